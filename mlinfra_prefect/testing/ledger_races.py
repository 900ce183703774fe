"""Rules of races: of many who want the same thing exactly one gets it, in threads and in processes."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any, ClassVar

import pytest

from mlinfra_prefect.errors import MlinfraError, StaleWrite
from mlinfra_prefect.ledger import Ledger, Versioned, revise
from mlinfra_prefect.testing.ledger_fixtures import LedgerFixtures, OpenLedger
from mlinfra_prefect.testing.records import sample_lease

WRITERS = 24
PROCESSES = 4
PATIENCE_SECONDS = 120.0

Act = Callable[[Ledger, int], Any]
Contend = Callable[[Act], list[Any]]


class RaceRules(LedgerFixtures):
    """What concurrency never breaks."""

    wins_each: ClassVar[int] = 3
    """How often each of the 24 writers wins in the longest race; a slow store may lower it to 1."""

    in_processes: ClassVar[bool] = True
    """Whether races run in processes too. A store of another machine, which decides there, may leave that out: to it
    a thread and a process are the same."""

    @pytest.fixture(params=["threads", "processes"])
    def contend(self, request: pytest.FixtureRequest, open_ledger: OpenLedger) -> Contend:
        """Give a function that has 24 writers, each with a handle of its own, act at once and returns what each got."""
        if request.param == "threads":
            return functools.partial(_in_threads, open_ledger)
        if not self.in_processes:
            pytest.skip("this store decides races on another machine")
        try:
            pickle.dumps(open_ledger)
        except (pickle.PicklingError, TypeError, AttributeError):
            pytest.skip("this store's open_ledger cannot be pickled, so no other process can open it")
        return functools.partial(_in_processes, open_ledger)

    def test_of_many_creators_exactly_one_creates(self, ledger: Ledger, contend: Contend) -> None:
        """A retried flow run and its former self cannot both own the lease."""
        assert Counter(contend(_create)) == {"won": 1, "AlreadyExists": WRITERS - 1}
        assert len(ledger.records()) == len(ledger.history(sample_lease().id)) == 1

    def test_of_many_writers_over_one_version_exactly_one_wins(self, ledger: Ledger, contend: Contend) -> None:
        """Compare-and-swap: a keeper and those that would take over from it cannot both win."""
        seen = ledger.create(sample_lease(), actor="test", reason="")
        outcomes = contend(functools.partial(_replace, seen))
        assert Counter(outcomes) == {"won": 1, "StaleWrite": WRITERS - 1}
        now = ledger.read(seen.record.id)
        assert now is not None
        assert (now.version, now.record.failures) == (seen.version + 1, outcomes.index("won"))

    def test_every_version_has_exactly_one_writer(self, ledger: Ledger, contend: Contend) -> None:
        """Over many versions no write is lost and none is written twice."""
        seen = ledger.create(sample_lease(), actor="test", reason="")
        won = [version for versions in contend(functools.partial(_win_some, self.wins_each)) for version in versions]
        assert sorted(won) == list(range(seen.version + 1, seen.version + 1 + WRITERS * self.wins_each))
        now = ledger.read(seen.record.id)
        assert now is not None
        assert now.record.failures == WRITERS * self.wins_each
        assert len(ledger.history(seen.record.id)) == 1 + WRITERS * self.wins_each

    def test_many_revisions_lose_nothing(self, ledger: Ledger, contend: Contend) -> None:
        """`revise` brings every change home under contention, without a lost race reaching its caller."""
        seen = ledger.create(sample_lease(), actor="test", reason="")
        assert Counter(contend(_revise)) == {"won": WRITERS}
        now = ledger.read(seen.record.id)
        assert now is not None
        assert now.record.failures == WRITERS

    def test_of_many_holders_exactly_one_holds(self, ledger: Ledger, contend: Contend) -> None:
        """Two live leases never write under one resume key."""
        outcomes = contend(_hold)
        assert Counter(outcomes) == {"won": 1, "LeaseHeld": WRITERS - 1}
        assert ledger.holder("key") == sample_lease(f"writer-{outcomes.index('won')}").id

    def test_many_who_make_the_store_at_once_make_one(self, contend: Contend, open_ledger: OpenLedger) -> None:
        """The first use of a new home from many processes mints one uuid."""
        outcomes = contend(functools.partial(_identity, open_ledger))
        with closing(open_ledger("fresh")) as fresh:
            assert Counter(outcomes) == {fresh.ledger_id: WRITERS}


def _create(ledger: Ledger, number: int) -> str:
    ledger.create(sample_lease(failures=number), actor=f"writer {number}", reason="mine")
    return "won"


def _replace(seen: Versioned, ledger: Ledger, number: int) -> str:
    ledger.replace(seen, seen.record.revised(failures=number), actor=f"writer {number}", reason="mine")
    return "won"


def _win_some(wins: int, ledger: Ledger, number: int) -> list[int]:
    won: list[int] = []
    while len(won) < wins:
        seen = ledger.read(sample_lease().id)
        assert seen is not None
        more = seen.record.revised(failures=seen.record.failures + 1)
        try:
            won.append(ledger.replace(seen, more, actor=f"writer {number}", reason="one more").version)
        except StaleWrite:
            continue
    return won


def _revise(ledger: Ledger, number: int) -> str:
    revise(
        ledger,
        sample_lease().id,
        lambda record: record.revised(failures=record.failures + 1),
        actor=f"writer {number}",
        reason="one more",
    )
    return "won"


def _hold(ledger: Ledger, number: int) -> str:
    record = ledger.create(sample_lease(f"writer-{number}"), actor=f"writer {number}", reason="mine").record
    ledger.hold("key", record.id)
    return "won"


def _identity(open_ledger: OpenLedger, ledger: Ledger, number: int) -> str:
    del ledger, number
    with closing(open_ledger("fresh")) as fresh:
        return fresh.ledger_id


def _in_threads(open_ledger: OpenLedger, act: Act) -> list[Any]:
    outcomes: dict[int, Any] = {}
    start = threading.Barrier(WRITERS)
    _run(open_ledger, act, range(WRITERS), lambda: start.wait(PATIENCE_SECONDS), outcomes.__setitem__)
    return [outcomes[number] for number in range(WRITERS)]


def _in_processes(open_ledger: OpenLedger, act: Act) -> list[Any]:
    spawn = multiprocessing.get_context("spawn")
    start, told = spawn.Barrier(WRITERS), spawn.Queue()
    processes = [
        spawn.Process(
            target=_process, args=(open_ledger, act, range(first, WRITERS, PROCESSES), start, told), daemon=True
        )
        for first in range(PROCESSES)
    ]
    try:
        for process in processes:
            process.start()
        outcomes = dict(told.get(timeout=PATIENCE_SECONDS) for _ in range(WRITERS))
        for process in processes:
            process.join(PATIENCE_SECONDS)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    return [outcomes[number] for number in range(WRITERS)]


def _process(open_ledger: OpenLedger, act: Act, numbers: range, start: Any, told: Any) -> None:
    _run(open_ledger, act, numbers, lambda: start.wait(PATIENCE_SECONDS), lambda *outcome: told.put(outcome))


def _run(
    open_ledger: OpenLedger,
    act: Act,
    numbers: range,
    wait: Callable[[], object],
    tell: Callable[[int, Any], None],
) -> None:
    def writer(number: int) -> None:
        try:
            with closing(open_ledger()) as ledger:
                wait()
                tell(number, act(ledger, number))
        except MlinfraError as error:
            tell(number, type(error).__name__)
        except Exception as error:  # noqa: BLE001 (a thread's end: the test shows what the writer got)
            tell(number, repr(error))

    threads = [threading.Thread(target=writer, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
