"""What a platform tells the Terraform driver to build, and how a node is spoken to: values at a seam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class StackInput:
    """One root module with its variables, and the environment that Terraform may see on top of its allow-list."""

    name: str
    root_module: Path
    variables: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)


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
