"""Keeps the machines as the account has the instances: one started here for each that runs there, ended when it ends.

It looks at what moto has rather than at requests, so that whatever made or ended an instance — a fleet, an API call, a
timer, a test that reached into moto — has the same effect. Requests only wake it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mlinfra_prefect.testing.aws.account import LIVE, Account, InstanceFacts
from mlinfra_prefect.testing.aws.kinds import kind
from mlinfra_prefect.testing.aws.machine import GRACE_SECONDS, Boot, Machine
from mlinfra_prefect.testing.aws.stand_ins import PowerRequest
from mlinfra_prefect.testing.aws.user_data import is_ours

TICK_SECONDS = 0.1
"""How soon a machine's own wish to end is heard."""
IDLE_SECONDS = 1.0
"""How often the account is looked at when nothing has asked for it and no machine runs."""
UserData = Literal["none", "run", "recorded"]
EventKind = Literal[
    "started", "recorded", "power-off armed", "power-off taken back", "powered off", "ending", "ended", "failed"
]


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """One line of what happened to the machines. `at` in epoch seconds; `failed`: none is kept from now on."""

    at: float
    instance_id: str
    kind: EventKind
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EmulatedInstance:
    """An instance as the service has it, and the machine behind it."""

    id: str
    region: str
    zone: str
    type: str
    market: str
    state: str
    """Of EC2: running, stopped, terminated."""
    tags: dict[str, str]
    launched_at: float
    fleet_id: str
    user_data: UserData
    """Whether it has any, and whether it was run or only recorded."""
    pids: tuple[int, ...]
    """The processes that are alive."""
    power_off_at: float | None
    """Epoch seconds at which the machine asked to be powered off."""
    root: Path
    """Holds ``user-data`` and ``console.log``, and while it runs ``home`` and ``node``."""

    @property
    def console(self) -> str:
        """Everything its user data has written so far."""
        file = self.root / "console.log"
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


class Machines:
    """The machines of one account, and the thread that keeps them.

    Args:
        account: whose instances.
        exclusively: gives the account to one thread for a while.
        root: where the machines have their directories.
        metadata: where an instance's metadata is answered, by its id.
        run_any: run user data that is not ours as well.
        minute_seconds: how long a minute of ``shutdown -P +N`` lasts.
        broken: asked once for each machine with GPUs: whether its driver does not answer.
        told: hears every event, in the machines' thread.
    """

    def __init__(
        self, account: Account, exclusively: Callable[[], AbstractContextManager[None]], root: Path,
        metadata: Callable[[str], str], *, run_any: bool = False, minute_seconds: float = 60.0,
        broken: Callable[[], bool] = lambda: False, told: Callable[[MachineEvent], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._account, self._exclusively, self._root, self._metadata = account, exclusively, root, metadata
        self._run_any, self._minute, self._broken, self._told = run_any, minute_seconds, broken, told
        self._machines: dict[str, Machine] = {}
        self._lock = threading.RLock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._events: list[MachineEvent] = []
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._keep, name="emulated machines", daemon=True)

    def start(self) -> None:
        """Begin to keep them."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the account now; returns at once."""
        self._wake.set()

    def close(self) -> None:
        """End every process of every machine, and return when they have ended. Idempotent."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            for machine in self._machines.values():
                machine.end()
            left = list(self._machines.values())
            while left := [machine for machine in left if not machine.ended()]:
                time.sleep(0.02)

    @property
    def events(self) -> list[MachineEvent]:
        """What happened so far, oldest first."""
        with self._lock:
            return list(self._events)

    def view(self) -> tuple[EmulatedInstance, ...]:
        """Return every instance of the account, oldest first, the dead included."""
        with self._exclusively():
            facts = sorted(self._account.instances(), key=lambda each: (each.launched_at, each.id))
        with self._lock:
            return tuple(self._viewed(each) for each in facts)

    def reboot(self, instance_id: str) -> None:
        """End an instance's processes; its user data is not run a second time, as cloud-init would not."""
        with self._lock:
            machine = self._machines.get(instance_id)
            if machine is not None:
                self._ending(machine, "rebooted")

    def settled(self) -> bool:
        """Whether every machine is as the account has its instance.

        Raises:
            RuntimeError: the machines cannot be kept any more.
        """
        with self._exclusively():
            facts = list(self._account.instances())
        with self._lock:
            if self._failure is not None:
                raise RuntimeError("The emulated machines are not kept any more.") from self._failure
            live = {each.id for each in facts if each.state in LIVE}
            return all(each in self._machines for each in live) and all(
                machine.state == "ended" or (machine.state == "running" and number in live and machine.booted())
                for number, machine in self._machines.items()
            )

    # --- the thread --------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                busy = any(each.state != "ended" for each in self._machines.values())
            self._wake.wait(TICK_SECONDS if busy else IDLE_SECONDS)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self._pass()
            except Exception as error:  # noqa: BLE001 (a thread has nobody to raise to: `settled` does)
                with self._lock:
                    self._failure = error
                    self._note("", "failed", f"{type(error).__name__}: {error}")
                return

    def _pass(self) -> None:
        with self._exclusively():
            facts = {each.id: each for each in self._account.instances()}
            new = {
                each.id: (
                    self._account.user_data(each.id, each.region), self._account.image_name(each.image, each.region),
                )
                for each in facts.values() if each.state in LIVE and each.id not in self._machines
            }  # fmt: skip
        off = list[InstanceFacts]()
        with self._lock:
            for number, (user_data, image) in new.items():
                self._start(facts[number], user_data, image)
            for number, machine in self._machines.items():
                found = facts.get(number)
                if found is None or found.state not in LIVE:
                    self._ending(machine, found.state if found else "forgotten")
                elif machine.state == "running" and self._wants_off(machine):
                    off.append(found)
                if machine.state == "ending" and machine.ended():
                    self._note(number, "ended")
        for each in off:
            with self._exclusively():
                self._account.powered_off(each)
            with self._lock:
                self._note(each.id, "powered off", each.shutdown_behaviour)
                self._ending(self._machines[each.id], each.shutdown_behaviour)

    def _start(self, facts: InstanceFacts, user_data: bytes, image: str) -> None:
        run = bool(user_data) and (self._run_any or is_ours(user_data))
        found = kind(facts.type)
        # An image that is known to have no driver has no nvidia-smi either.
        driver = not image or "nvidia" in image.lower() or "deep learning" in image.lower()
        gpus = found.gpus if found and driver else ()
        machine = Machine(Boot(
            facts.id, self._root / facts.id, user_data, run, gpus, bool(gpus) and self._broken(),
            self._metadata(facts.id), GRACE_SECONDS,
        ))  # fmt: skip
        self._machines[facts.id] = machine
        machine.start()
        self._note(facts.id, "started" if run else "recorded", f"{facts.type} in {facts.zone}, {facts.market}")

    def _wants_off(self, machine: Machine) -> bool:
        """Hear what a machine asks about its power; whether it is to be off by now."""
        for asked in machine.power_requests():
            self._heard(machine, asked)
        return machine.power_off_at is not None and machine.power_off_at <= time.time()

    def _heard(self, machine: Machine, asked: PowerRequest) -> None:
        if asked.power == "cancel":
            machine.power_off_at = None
            self._note(machine.boot.instance_id, "power-off taken back")
        elif asked.power == "reboot":
            self._ending(machine, "rebooted")
        else:
            machine.power_off_at = time.time() + asked.minutes * self._minute
            self._note(machine.boot.instance_id, "power-off armed", f"in {asked.minutes:g} minutes")

    def _ending(self, machine: Machine, why: str) -> None:
        if machine.state == "running":
            machine.end()
            self._note(machine.boot.instance_id, "ending", why)
            self._wake.set()

    def _note(self, instance_id: str, what: EventKind, detail: str = "") -> None:
        event = MachineEvent(time.time(), instance_id, what, detail)
        self._events.append(event)
        self._told(event)

    def _viewed(self, facts: InstanceFacts) -> EmulatedInstance:
        machine = self._machines.get(facts.id)
        viewed = EmulatedInstance(
            id=facts.id, region=facts.region, zone=facts.zone, type=facts.type, market=facts.market, state=facts.state,
            tags=facts.tags, launched_at=facts.launched_at, fleet_id=facts.tags.get("aws:ec2:fleet-id", ""),
            user_data="none", pids=(), power_off_at=None, root=self._root / facts.id,
        )  # fmt: skip
        if machine is None:
            return viewed
        kept: UserData = "none" if not machine.boot.user_data else "run" if machine.boot.run else "recorded"
        return replace(viewed, user_data=kept, pids=tuple(machine.pids()), power_off_at=machine.power_off_at)
