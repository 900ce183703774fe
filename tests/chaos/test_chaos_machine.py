"""Rule: whatever crashes between two steps, and whatever the store does, what is alive has somebody who will end it.

A Hypothesis state machine drives the real story (asking, provisioning, releasing, taking over, reaping) over a SQLite
ledger that fails and a platform that only remembers what is alive. Crashes play SIGKILL: nothing catches them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlinfra_prefect.errors import LeaseHeld, LedgerUnavailable, MlinfraError, NodeLost, StaleWrite, TerraformFailed
from mlinfra_prefect.keeper import desk, operate, reap
from mlinfra_prefect.ledger import SqliteLedger
from mlinfra_prefect.lifecycle import clients, leasing, releasing
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Client, Keeper, State
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.process import Owner, ProcessIdentity
from mlinfra_prefect.model.receipt import Search
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.model.stack import Found, Late, StackInput

HERE = identify()


class Crash(BaseException):
    """SIGKILL, as far as one process can play it."""


class World:
    """What is really alive, and the fault that is to come."""

    def __init__(self, *, cloud: bool = False) -> None:
        self.cloud, self.unfit = cloud, 0
        self.alive: set[tuple[str, int]] = set()
        self.states: dict[str, set[tuple[str, int]]] = {}
        self.dead: set[str] = set()
        self.offset = timedelta()
        self.fuse: int | None = None
        self.kind = "crash"

    def call(self, effect: Callable[[], Any], *, store: bool = False) -> Any:
        """Make a call that may be the last one: lost before it, or executed and unanswered."""
        if self.fuse is None:
            return effect()
        self.fuse -= 1
        if self.fuse > 0:
            return effect()
        kind, self.fuse = self.kind, None
        if kind == "executed, then crash":
            effect()
        if kind == "the store fails" and store:
            raise LedgerUnavailable("it does not answer")
        if kind == "the store answers late" and store:
            effect()
            raise LedgerUnavailable("it answered too late")
        if kind == "somebody was faster" and store:
            raise StaleWrite("somebody was faster")
        raise Crash


class FaultyLedger:
    """A real ledger, any write of which may fail."""

    def __init__(self, ledger: SqliteLedger, world: World) -> None:
        self._ledger, self._world = ledger, world

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        if name not in {"create", "replace"}:
            return found
        return lambda *args, **named: self._world.call(lambda: found(*args, **named), store=True)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._world.offset


class FakeStack:
    """A Terraform whose resource is a line in the world, and whose state may lose it."""

    def __init__(self, world: World, what: tuple[str, int], directory: Path) -> None:
        self.world, self.what, self.directory = world, what, directory
        self.module = directory
        self.suspect = False

    def prepare(self, *_: object, **__: object) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def plan(self, **_: object) -> None:
        pass

    def apply(self, **_: object) -> SimpleNamespace:
        self.world.call(lambda: self.world.alive.add(self.what))
        self.world.call(lambda: self._state().add(self.what))
        return SimpleNamespace(resources=("terraform_data.node",), outputs={})

    def outputs(self) -> dict[str, Any]:
        return {}

    def destroy(self, **_: object) -> SimpleNamespace:
        named = self._state()
        self.world.call(lambda: self.world.alive.difference_update(named))
        self.world.call(named.clear)
        return SimpleNamespace(remaining=(), destroyed=("terraform_data.node",))

    def resources(self) -> tuple[str, ...]:
        if str(self.directory) in self.world.dead:
            raise TerraformFailed("the state cannot be read")
        return ("terraform_data.node",) if self._state() else ()

    def break_stale_lock(self) -> None:
        """Nobody locks a line in the world."""

    def why_suspect(self) -> str:
        """A state that forgot what exists does not know that it did."""
        return ""

    def mark_suspect(self, _: str) -> None:
        self.suspect = True

    def _state(self) -> set[tuple[str, int]]:
        return self.world.states.setdefault(str(self.directory), set())


class FakePlatform:
    """A place where things are alive or not."""

    name, consistency_seconds, settle_seconds, found_by_mark = "local", 0.0, 0.0, True
    emulated, remarks, most_attempts, late_looks = True, (), 4, (30.0,)

    def __init__(self, world: World) -> None:
        self.world = world
        self.destroys_later = world.cloud
        self.has_packages_of_flow = True

    def python_of(self, _: TrainingRequest) -> None:
        """Nobody can say."""

    def take_secrets(self, _: str, references: Mapping[str, str]) -> Mapping[str, str]:
        return references

    def account(self, _: str) -> str:
        return ""

    def check_login(self, _: Any) -> None:
        """There is one account."""

    def offers(self, _: TrainingRequest) -> tuple[Offer, ...]:
        places = ("here", "there") if self.world.cloud else ("here",)
        return tuple(
            Offer(type="local", region=place, market="on-demand", usd_per_hour=0.0, gpus=0) for place in places
        )

    def stack(self, *_: object) -> StackInput:
        return StackInput(name="fake", root_module=Path("/nowhere"), variables={})

    def check_up(self, record: Any, attempt: Any, *_: object) -> Found:
        if not self.is_up(record, attempt):
            raise NodeLost("it is not there")
        if self.world.unfit:
            self.world.unfit -= 1
            raise NodeLost("it is unfit")
        return Found()

    def is_up(self, record: Any, attempt: Any) -> bool:
        return (record.id, attempt.number) in self.world.alive

    def node(self, _: object) -> SimpleNamespace:
        return SimpleNamespace(jobs=list, alive=lambda: True, lives=lambda: True, why_gone=str)

    def stop_meter(self, record: Any, attempt: Any) -> None:
        self.world.call(lambda: self.world.alive.discard((record.id, attempt.number)))

    def end_late(self, record: Any, attempts: Any) -> tuple[Late, ...]:
        found = {(record.id, each.number) for each in attempts} & self.world.alive
        self.world.call(lambda: self.world.alive.difference_update(found))
        return tuple(Late(number, f"{name}/{number}") for name, number in found)

    def sweep(self, record: Any) -> Search:
        found = {each for each in self.world.alive if each[0] == record.id}
        self.world.call(lambda: self.world.alive.difference_update(found))
        names = tuple(f"{name}/{number}" for name, number in found)
        return Search(what="what is alive", where="here", at=datetime.now(UTC), found=names, ended=names)

    def tidy(self, *_: object) -> None:
        pass


class Story(Context):
    """The real context over a faulty ledger, a fake platform and a fake Terraform."""

    def __init__(self, home: Home, world: World) -> None:
        super().__init__(home)
        self.world = world
        self.__dict__["ledger"] = FaultyLedger(SqliteLedger(self.home.ledger), world)
        self.__dict__["engine"] = SimpleNamespace(name="fake", version="1")

    def platform(self, name: str) -> Any:
        return FakePlatform(self.world)

    def open_stack(self, directory: Path, record: Any, attempt: int) -> Any:
        return FakeStack(self.world, (record.id, attempt), directory)


def somebody(number: int) -> ProcessIdentity:
    """A process of this host that lives until the world says that it is dead."""
    return HERE.revised(start_time=f"{HERE.start_time}{number:04}")


FAULTS = st.one_of(
    st.none(),
    st.none(),
    st.tuples(
        st.integers(1, 14),
        st.sampled_from(
            ["crash", "executed, then crash", "the store fails", "the store answers late", "somebody was faster"]
        ),
    ),
)
RECORDS = st.integers(0, 3)


class LeaseMachine(RuleBasedStateMachine):
    """Ask, step, release, lose, reap, let time pass: in any order, with a fault in any of it."""

    cloud = False

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="mlm-"))
        self.world = World(cloud=self.cloud)
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("MLINFRA_CACHE", str(self.root))
        dead = lambda process: process.start_time in self.world.dead  # noqa: E731
        for module in (clients, operate, reap, leasing):
            self.patch.setattr(module, "is_provably_dead", dead)
        self.patch.setattr(desk, "is_here", lambda _: True)
        self.patch.setattr(operate, "is_here", lambda _: True)
        self.patch.setattr(reap, "is_here", lambda _: True)
        self.patch.setattr(reap, "is_alive", lambda process: not dead(process))
        self.patch.setattr(operate, "_take_operation_lock", lambda *_: True)  # one process plays all operations
        for name in ("ensure_watcher", "replace_lost_keeper"):
            self.patch.setattr(reap, name, lambda *_: None)
        self.patch.setattr(releasing, "collect_all", lambda *_: None)
        self.context = Story(Home(self.root), self.world)
        self.number = 0
        self.keeper = self._new_keeper()
        self.ask("a", True, None)
        self.step(0, None)
        assert self.world.alive, "a machine in which nothing ever lives would prove nothing"

    def _new_keeper(self) -> Keeper:
        self.number += 1
        return Keeper(place="process", process=somebody(self.number))

    def _ids(self) -> list[str]:
        return [seen.record.id for seen in self.context.ledger.records()]

    def _with(self, fault: tuple[int, str] | None, what: Callable[[], object]) -> None:
        if fault is not None:
            self.world.fuse, self.world.kind = fault
        try:
            what()
        except Crash:
            self.world.dead.add(self.keeper.process.start_time)  # whoever did it is gone
            self.keeper = self._new_keeper()
        except (MlinfraError, LeaseHeld):
            pass
        finally:
            self.world.fuse = None

    @rule(key=st.sampled_from(["a", "b"]), alive=st.booleans(), fault=FAULTS)
    def ask(self, key: str, alive: bool, fault: tuple[int, str] | None) -> None:
        self.number += 1
        process = somebody(self.number)
        if not alive:
            self.world.dead.add(process.start_time)
        self._with(
            fault,
            lambda: leasing.ask(
                self.context, TrainingRequest(max_minutes=5), key=leasing.Key("run", "training", key),
                owner=Owner(user="t", host="h"), client=Client(kind="process", process=process),
                is_dead=lambda each: each.start_time in self.world.dead,
            ),
        )  # fmt: skip

    @rule(which=RECORDS, fault=FAULTS)
    def step(self, which: int, fault: tuple[int, str] | None) -> None:
        ids = self._ids()
        if ids:
            self._with(fault, lambda: operate.step(self.context, ids[which % len(ids)], self.keeper))

    @rule(which=RECORDS, fault=FAULTS)
    def release(self, which: int, fault: tuple[int, str] | None) -> None:
        ids = self._ids()
        if ids:
            self._with(fault, lambda: begin_release(self.context, ids[which % len(ids)], reason="done"))

    @rule(which=RECORDS)
    def client_dies(self, which: int) -> None:
        for seen in self.context.ledger.records()[which : which + 1]:
            if seen.record.client.process is not None:
                self.world.dead.add(seen.record.client.process.start_time)

    @rule()
    def keeper_dies(self) -> None:
        self.world.dead.add(self.keeper.process.start_time)
        self.keeper = self._new_keeper()

    @rule(which=RECORDS)
    def node_dies(self, which: int) -> None:
        for each in sorted(self.world.alive)[which : which + 1]:
            self.world.alive.discard(each)

    @rule(which=RECORDS)
    def state_is_lost(self, which: int) -> None:
        """Terraform's state forgets what exists: only the mark finds it."""
        for named in list(self.world.states.values())[which : which + 1]:
            named.clear()

    @rule(seconds=st.sampled_from([1.0, 130.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.offset += timedelta(seconds=seconds)

    @rule(fault=FAULTS)
    def reap(self, fault: tuple[int, str] | None) -> None:
        self._with(fault, lambda: reap.reap(self.context, settle_seconds=0.0))

    @invariant()
    def what_is_alive_is_somebodys(self) -> None:
        """Alive → a record that names its attempt, is not called released, and has a card on the desk."""
        if not hasattr(self, "context"):
            return
        records = {seen.record.id: seen.record for seen in self.context.ledger.records()}
        for record_id, number in self.world.alive:
            record = records[record_id]
            assert record.state is not State.RELEASED, f"{record_id} is called released and is alive"
            assert number in {each.number for each in record.attempts}, f"{record_id}/{number} was forgotten"
            assert desk.card_of(record, self.context.home) is not None, f"{record_id}: no card, so nobody looks"

    def teardown(self) -> None:
        """No more faults, everybody dead: reapers and operations alone bring it to nothing."""
        if not hasattr(self, "context"):
            return
        try:
            for seen in self.context.ledger.records():
                if seen.record.client.process is not None:
                    self.world.dead.add(seen.record.client.process.start_time)
            self.keeper_dies()
            for _ in range(8):
                reap.reap(self.context, settle_seconds=0.0)
                for record_id in self._ids():
                    operate.step(self.context, record_id, self.keeper)
            assert self.world.alive == set()
            left = [seen.record.id for seen in self.context.ledger.records() if seen.record.state is not State.RELEASED]
            assert left == []
        finally:
            self.context.ledger.close()
            self.patch.undo()
            shutil.rmtree(self.root, ignore_errors=True)


class CloudMachine(LeaseMachine):
    """The same where a failed attempt is destroyed at release, and what it rented must have ended before the next."""

    cloud = True

    @rule(count=st.integers(1, 3))
    def machines_are_unfit(self, count: int) -> None:
        self.world.unfit = count

    @invariant()
    def one_attempt_of_a_lease_costs_money_at_a_time(self) -> None:
        if not hasattr(self, "context"):
            return
        for record_id in self._ids():
            alive = {number for each, number in self.world.alive if each == record_id}
            assert len(alive) <= 1, f"{record_id} pays for attempts {alive}"


SETTINGS = settings(
    max_examples=20, stateful_step_count=16, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
LeaseMachine.TestCase.settings = CloudMachine.TestCase.settings = SETTINGS
TestLeaseMachine = LeaseMachine.TestCase
TestCloudMachine = CloudMachine.TestCase
