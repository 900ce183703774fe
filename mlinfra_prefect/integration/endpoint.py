"""`Endpoint`: a served model as its user holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlinfra_prefect.errors import EndpointNotReady
from mlinfra_prefect.keeper.client import release, wait_released
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.local import client
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord
from mlinfra_prefect.model.receipt import Receipt


class Endpoint:
    """A served model behind a stable URL that speaks the Open Inference Protocol v2."""

    def __init__(self, context: Context, endpoint_id: str) -> None:
        self._context = context
        self.id = endpoint_id
        record = self.record
        self.name, self.url = record.name, record.url

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r}, {self.url!r})"

    def __reduce__(self) -> tuple[Callable[[str], Endpoint], tuple[str]]:
        # To another process of this host, and into a stored result, it goes as its id.
        return _found, (self.id,)

    @property
    def record(self) -> EndpointRecord:
        """Its record as it stands in the ledger now."""
        found = self._context.record(self.id)
        assert isinstance(found, EndpointRecord)
        return found

    @property
    def model(self) -> ModelArtifact:
        """The artifact that it serves (most of the requests).

        Raises:
            EndpointNotReady: no version was promoted yet.
        """
        current = self.record.current
        if current is None:
            raise EndpointNotReady(f"Endpoint {self.name!r} has no version yet.")
        return current.artifact

    @property
    def token(self) -> str | None:
        """What a client must show (``Authorization: Bearer TOKEN``); None: it was deployed with ``auth="none"``.

        It stays for as long as the endpoint does. It is a secret: keep it out of logs and parameters.

        Raises:
            EndpointNotReady: it is not up on this host, or is gone.
        """
        record = self.record
        found = self._context.platform(record.platform).token(record)
        if found is None and record.serving.auth == "token":
            raise EndpointNotReady(
                f"The token of endpoint {self.name!r} is not here.", "See where it is: mlinfra-prefect endpoints."
            )
        return found

    def ready(self) -> bool:
        """Whether it answers ``GET /v2/health/ready``."""
        return client.ready(self.url)

    def predict(self, data: Any, *, timeout: float = 30.0) -> list[Any]:
        """Ask for predictions of one batch (nested lists or an array); returns the first output's values.

        It shows the endpoint's token.

        Raises:
            EndpointNotReady: it does not answer.
        """
        rows = data.tolist() if hasattr(data, "tolist") else data
        return client.infer(self.url, self.name, rows, timeout=timeout, token=self.token)

    def release(self, *, timeout: float = 900.0) -> Receipt:
        """Give it back and return the receipt; a safe no-op when it is gone."""
        release(self._context, self.id, reason="released", drain=False)
        return wait_released(self._context, self.id, timeout=timeout)


def _found(endpoint_id: str) -> Endpoint:
    from mlinfra_prefect.integration.phase import context

    return Endpoint(context(), endpoint_id)
