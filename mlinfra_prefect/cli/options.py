"""Options that several verbs share, so that they are called and explained the same everywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", show_default=False)]
"""JSON on standard output, with keys that stay (docs/cli.md)."""
All = Annotated[bool, Parameter(name="--all", show_default=False)]
Flag = Annotated[bool, Parameter(show_default=False)]
NoWait = Annotated[bool, Parameter(name="--no-wait", show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class Overrides:
    """Fields of the request; those given here replace those of the file."""

    accelerator: Annotated[str | None, Parameter(help="What one node has: NAME[:COUNT] or cpu.")] = None
    name: Annotated[str | None, Parameter(help="The lease's name.")] = None
    environment: Annotated[str | None, Parameter(help="Whose caps and defaults hold.")] = None
    platform: Annotated[str | None, Parameter(help="Where it is rented.")] = None
    ami: Annotated[str | None, Parameter(help="On aws: the machine image of a node.")] = None
    market: Annotated[str | None, Parameter(help="on-demand, spot or reserved.")] = None
    max_minutes: Annotated[int | None, Parameter(help="The hard limit of its life.")] = None
    max_usd: Annotated[float | None, Parameter(help="The budget over its whole life.")] = None
    max_hourly_usd: Annotated[float | None, Parameter(help="Dearer offers are not taken.")] = None
    wait_minutes: Annotated[int | None, Parameter(help="How long to try again while no machine can be had.")] = None
    grace_seconds: Annotated[float | None, Parameter(help="Between SIGTERM and SIGKILL of a training.")] = None
    exclusive: Annotated[str | None, Parameter(help="Of the leases with this name one lives at a time.")] = None

    def given(self) -> dict[str, Any]:
        """Return the fields that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}
