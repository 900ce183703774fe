"""How a verb opens the story, and finds the record that a person means."""

from __future__ import annotations

from mlinfra_prefect.cli.attention import replace_lost_keeper
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.endpoint import EndpointRecord
from mlinfra_prefect.model.lease import OPEN


def opened() -> Context:
    """Return the context of the home that ``MLINFRA_HOME`` names, its lost keeper replaced."""
    context = Context()
    replace_lost_keeper(context.home)
    return context


def meant(context: Context, record: str) -> KeptRecord:
    """Return the lease or endpoint of an id, or the endpoint of a name; one that lives goes before its past rounds.

    Raises:
        NotFound: there is none.
        InvalidInput: endpoints of several environments have the name.
    """
    if context.ledger.read(record) is None:
        named = [
            seen.record
            for seen in context.ledger.records(states=OPEN)
            if isinstance(seen.record, EndpointRecord) and seen.record.name == record
        ]
        if len(named) > 1:
            listed = ", ".join(f"{each.id} in {each.environment}" for each in named)
            raise InvalidInput("name", f"{record!r} names several endpoints: {listed}", "Give the id of one.")
        if named:
            return named[0]
    return context.record(record)
