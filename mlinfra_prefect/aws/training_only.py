"""What a platform says that trains and does not serve: the half of `lifecycle.platform.Platform` that is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from mlinfra_prefect.errors import UnsupportedHere
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.served import Served


class TrainingOnly:
    """Refuses whatever concerns an endpoint, in one sentence."""

    def route(self, endpoint: EndpointRecord, seconds: float = 10.0) -> Served:
        """Not on this platform."""
        del endpoint, seconds
        not_served()

    def served(self, endpoint: EndpointRecord) -> Served | None:
        """Not on this platform."""
        del endpoint
        not_served()

    def ask(self, rollout: RolloutRecord, row: Any) -> list[Any]:
        """Not on this platform."""
        del rollout, row
        not_served()

    def token(self, record: EndpointRecord | RolloutRecord) -> str | None:
        """Not on this platform."""
        del record
        not_served()

    def prolong(self, record: EndpointRecord | RolloutRecord, until: datetime | None) -> None:
        """Not on this platform."""
        del record, until
        not_served()

    def choose_port(self, wanted: int | None, taken: Callable[[int], bool]) -> int:
        """Not on this platform."""
        del wanted, taken
        not_served()


def not_served() -> NoReturn:
    """Raise UnsupportedHere."""
    raise UnsupportedHere("platform: nothing is served on aws in this version.", "Deploy on platform 'local'.")
