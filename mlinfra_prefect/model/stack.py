"""What a platform tells the Terraform driver to build, and how a node is spoken to: values at a seam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mlinfra_prefect.errors import NotYetDestroyed
from mlinfra_prefect.model.offer import Offer


@dataclass(frozen=True, slots=True)
class StackInput:
    """One root module with its variables, and the environment that Terraform may see on top of its allow-list."""

    name: str
    root_module: Path
    variables: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    within: Path | None = None
    """The directory that the module's own local modules may lie in; None: its own."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What everything billable of it must carry; empty: nothing of it is rented, so its plan needs no gate."""
    egress: str = "internet"


@dataclass(frozen=True, slots=True)
class Found:
    """What a platform found up after an apply: the machines, what holds them, and which offer it has become."""

    nodes: tuple[str, ...] = ()
    fleet: str | None = None
    mailbox: str | None = None
    launched_at: datetime | None = None
    offer: Offer | None = None


@dataclass(frozen=True, slots=True)
class Late:
    """A machine that appeared after its attempt was told to end, and was told to end by itself."""

    attempt: int
    id: str
    launched_at: datetime | None = None


class PartlyEnded(NotYetDestroyed):
    """As `NotYetDestroyed`; `found` was ended all the same, and has to be reckoned with."""

    def __init__(self, message: str, remedy: str = "", *, found: tuple[Late, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.found = found


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a node says of one job. Times are seconds since the epoch on the node's clock."""

    state: str
    reason: str = ""
    exit_code: int | None = None
    error: Mapping[str, Any] | None = None
    started_at: float | None = None
    finished_at: float | None = None
    resumed_from: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in {"succeeded", "failed", "stopped"}
