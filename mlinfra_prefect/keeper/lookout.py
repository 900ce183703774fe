"""The lookout: a keeper service's eye on the ledger. It lays cards for what nobody here has laid, and does no more.

Who asks on another host can lay no card on this desk, so what is asked for, ended or given back there stands in the
ledger alone. It goes through the ledger's protocol only, and looks at a bounded rate: a look that takes long
is followed by a longer pause, so that it never takes more than a twentieth of its time. It ends itself after a while,
so that the next one runs what was installed meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from mlinfra_prefect.errors import MlinfraError
from mlinfra_prefect.keeper.desk import card_of, laid, lay, stands, wake
from mlinfra_prefect.keeper.watch import is_held
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import CLOCK_SECONDS, Context
from mlinfra_prefect.lifecycle.whose_host import busy_until
from mlinfra_prefect.local.process import is_here, is_provably_dead
from mlinfra_prefect.model.card import Card
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import OPEN, Keeper, State

LOOK_SECONDS = 2.0
"""Between two looks: what it adds to the start of a lease that was asked for on another host."""
LONGEST_PAUSE_SECONDS = 30.0
SHARE = 20.0
"""A pause is at least so many times the look before it."""
LIFE_SECONDS = 600.0


def keep_looking(context: Context, keeper: Keeper, *, life_seconds: float = LIFE_SECONDS) -> None:
    """Look again and again while the watcher that started this lives, for `life_seconds` at most."""
    until = time.monotonic() + life_seconds
    while time.monotonic() < until and os.getppid() == keeper.process.pid:
        began = time.monotonic()
        try:
            look(context, keeper)
        except (MlinfraError, OSError) as error:  # the ledger may be away for a while
            sys.stderr.write(f"lookout: {type(error).__name__}: {error}\n")
            sys.stderr.flush()
        took = time.monotonic() - began
        time.sleep(min(max(LOOK_SECONDS, SHARE * took), LONGEST_PAUSE_SECONDS))


def look(context: Context, keeper: Keeper) -> tuple[str, ...]:
    """Look once. Returns the ids of the records whose cards were laid; their operations begin at once."""
    found = []
    for seen in context.ledger.records(states=OPEN):
        with suppress(MlinfraError):  # one bad record never stops the others (rule R9)
            if _is_called_for(context, seen.record, keeper):
                lay(context, seen.record)
                found.append(seen.record.id)
    if found:  # each gets an operation; those of what is only taken over a few at a time
        wake(context.home, *found)
    return tuple(found)


def _is_called_for(context: Context, record: KeptRecord, keeper: Keeper) -> bool:
    """Whether the ledger says something of a record that this desk does not know yet."""
    if isinstance(record, EndpointRecord | RolloutRecord) and stands(record) and record.state is State.READY:
        return False  # it stands by itself; whoever changes it says so
    card = card_of(record, context.home, context.here)
    if card is None or is_held(str(context.home.record_dir(record.id) / "operation.lock")):
        return False  # its operation lays the next card
    known = laid(context.home, record.id)
    if keeper.keeps(record):
        return known is None or _is_news(card, known)
    if record.keeper is None:
        return record.keeper_place == "service" and (known is None or _is_news(card, known))
    return known is None and _is_left(context, record)


def _is_news(card: Card, known: dict[str, object]) -> bool:
    """Whether a card tells more than the one that is laid; a later moment is no news, nor a clock's rounding. Pure."""
    if (card.state, card.generation, card.client_pid) != tuple(map(known.get, ("state", "generation", "client_pid"))):
        return True
    due = known.get("due")
    return card.due is not None and (not isinstance(due, int | float) or card.due < due - CLOCK_SECONDS - 1.0)


def _is_left(context: Context, record: KeptRecord) -> bool:
    """Whether the keeper of a record is dead, or has not renewed it and has no operation under way (rule R6)."""
    assert record.keeper is not None
    process = record.keeper.process
    if is_provably_dead(process):
        return True
    return not is_here(process) and busy_until(record) < context.ledger.now()
