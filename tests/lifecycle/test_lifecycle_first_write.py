"""Rules of the first write: before everything else, once for one key, adopted from the dead only, within the caps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from mlinfra_prefect.errors import AlreadyExists, LeaseHeld, QuotaExceeded
from mlinfra_prefect.ledger import revise
from mlinfra_prefect.lifecycle import leasing
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import Key, ask
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.lease import Client, LeaseRecord, State
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import TrainingRequest

Ask = Callable[..., LeaseRecord]


def test_the_record_is_durable_before_anything_else_is(context: Context, asked: Ask) -> None:
    """Asking writes the ledger and nothing else: no directory, no process (R1)."""
    record = asked()
    assert context.lease(record.id) == record
    assert record.state is State.REQUESTED
    assert list(context.home.work.iterdir()) == []


def test_what_is_announced_is_written_or_withdrawn(context: Context) -> None:
    """The keeper expects a record before it is written; where it is not written, it is told so."""
    told: list[str] = []

    def attempt() -> None:
        ask(
            context, TrainingRequest(max_minutes=5), key=Key("r", "n", "k"), owner=Owner(user="u", host="h"),
            client=Client(kind="none"),
            announce=lambda record: told.append(f"announce {context.ledger.read(record.id) is None}"),
            withdraw=lambda record: told.append("withdraw"),
        )  # fmt: skip

    create = context.ledger.create
    context.ledger.create = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        attempt()
    context.ledger.create = create  # type: ignore[method-assign]
    attempt()
    assert told == ["announce True", "withdraw", "announce True"]


def test_ids_are_the_key_s_and_never_collide(asked: Ask) -> None:
    """Long keys with a common beginning are hashed, never truncated."""
    ids = {asked(f"{'x' * 200}{number}").id for number in range(50)}
    assert len(ids) == 50


def test_a_live_client_s_lease_is_held_a_dead_one_s_is_adopted(context: Context, asked: Ask, dead: Client) -> None:
    """Adopted with everything void that was decided because the former client was lost."""
    record = asked(client=dead)
    until = context.ledger.now() + timedelta(minutes=5)
    revise(context.ledger, record.id, lambda r: r.revised(keep_until=until), actor="t", reason="kept")
    adopted = asked()
    assert (adopted.id, adopted.client.process, adopted.keep_until) == (record.id, identify(), None)
    again = asked()  # this very process asks again
    assert again.revised(renewed_until=adopted.renewed_until) == adopted
    other = Client(kind="process", process=identify(1))
    with pytest.raises(LeaseHeld, match=record.id):
        asked(client=other)


def test_a_client_elsewhere_is_believed_until_its_lease_expires(
    context: Context, asked: Ask, elsewhere: Client
) -> None:
    """Nothing about another host can be proven here; what nobody renews for the whole window is free (R5)."""
    record = asked(client=elsewhere)
    with pytest.raises(LeaseHeld, match="cannot be proven dead"):
        asked()
    past = context.ledger.now() - timedelta(seconds=1)
    revise(context.ledger, record.id, lambda r: r.revised(renewed_until=past), actor="t", reason="time goes by")
    assert asked().id == record.id


def test_a_lease_that_began_to_go_is_followed_by_the_next_round(context: Context, asked: Ask, dead: Client) -> None:
    """Also when it begins between the look and the adoption."""
    record = asked(client=dead)
    rounds = context.ledger.rounds

    def go_meanwhile(base: str):
        found = rounds(base)
        begin_release(context, record.id, reason="somebody was faster")
        return found

    context.ledger.rounds = go_meanwhile  # type: ignore[method-assign]
    assert asked().id == f"{record.base}-2"


def test_another_runner_that_was_faster_is_found_and_not_doubled(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create-if-absent: who loses the race looks at what the winner wrote."""
    create, calls = context.ledger.create, []

    def lose_once(record: LeaseRecord, **how: object):
        calls.append(record.id)
        if len(calls) == 1:
            create(record, **how)
            raise AlreadyExists(record.id)
        return create(record, **how)

    monkeypatch.setattr(context.ledger, "create", lose_once)
    assert asked().id == calls[0]
    assert len(context.ledger.records()) == 1


def test_the_cap_on_leases_holds_under_a_race(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight at once for three places: exactly three records, five clear refusals; a released one frees its place."""
    config = tmp_path / "mlinfra-prefect.toml"
    config.write_text("[environments.dev.caps]\nmax_leases = 3\n")
    monkeypatch.setenv("MLINFRA_CONFIG", str(config))

    refused: list[str] = []

    def one(number: int) -> str:
        try:
            return ask(
                Context(context.home), TrainingRequest(max_minutes=5), key=Key("r", "n", str(number)),
                owner=Owner(user="u", host="h"), client=Client(kind="none"),
            ).record.id  # fmt: skip
        except QuotaExceeded as error:
            refused.append(str(error))
            return ""

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(one, range(8)))
    assert (len([i for i in ids if i]), len(context.ledger.records()), len(refused)) == (3, 3, 5)
    assert all("cap is 3" in text for text in refused)
    going = next(i for i in ids if i)
    begin_release(context, going, reason="done")
    assert one(100) == ""  # what is going still counts
    seen = context.ledger.read(going)
    assert seen is not None
    context.ledger.replace(seen, seen.record.revised(state=State.RELEASED), actor="t", reason="gone")
    assert one(101)


def test_the_hard_deadline_is_fixed_before_anything_starts(asked: Ask) -> None:
    """From the request, at the moment of the record; the renewal window holds four renewals (R5)."""
    record = asked(max_minutes=7)
    assert record.deadline - record.created_at == timedelta(minutes=7)
    assert record.renewed_until - record.created_at == timedelta(seconds=leasing.TTL_SECONDS)
    assert leasing.TTL_SECONDS >= 4 * leasing.RENEW_SECONDS
