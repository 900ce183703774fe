"""The watcher: the resident part of the keeper. Standard library only, imports nothing of ours.

It must outlive the flow, stay small (one per home, whatever the number of leases) and have nothing in it that can
break. So it knows no ledger, no Terraform and no model: it reads *cards* (JSON, schema in `model.card`), notices that a
client is gone, that a moment has come or that somebody wakes it, and spawns an *operation process* that does the work.
Killed at any moment it loses nothing: the next watcher reads the same cards.

A client is noticed to be gone in two ways, because one alone can be wrong: its named pipe closes (a forked child may
hold it open), and its process ends (by pid and start time; on Linux a pidfd tells at once).

As a *service* it is started by whoever runs the host, and differs in little: it stays with an empty desk, ends well
when it is told to, shows that it lives by the age of ``watch.json``, and has a *lookout* process beside it that looks
for work in the ledger, because who asks on another host can lay no card here.

It is one file, longer than others, because it runs as a script: an interpreter that loads nothing else stays small.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

BUSY = 75
"""An operation's exit code (EX_TEMPFAIL): not now, ask again soon."""
BUSY_SECONDS = (0.1, 0.1, 0.2, 0.3, 0.5, 1.0)
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
"""After an operation that failed, or that left its card as due as it was."""
LOOKS_AT_ONCE = 8
"""Operations at once that only take over what is well: a new watcher of 300 leases must not start 300 processes. What
has something to do (a release, a lost client, a moment that has come) never waits for that."""
ENDS_AT_ONCE = 8
"""Operations at once that may end what is up: 50 leases that reach their deadlines in the same moment must not be 50
interpreters. One process sees to the drains and meters of those that wait, at once: what costs money never waits, and
with two cores the last of 50 meters stops in less than half the time. What is only beginning has no part in it."""
STOPS_AT_ONCE = 4
"""Processes that see to them, for a drain may take an hour and the next one must not wait for it."""
BEGINNING = ("requested", "provisioning")
OWN_MARKS = ("MLINFRA_LEASE_ID", "MLINFRA_ATTEMPT", "MLINFRA_DEADLINE")
LOOK_SECONDS = 1.0
"""How often clients are looked at where the kernel has no pidfd."""
OPERATION_SECONDS = 300.0
"""How long an operation may take that has recorded no deadline."""
OVERDUE_SECONDS = 30.0
"""An operation ends its Terraform at the deadline; this much later the operation itself is ended."""
RENEWAL_SECONDS = 60.0
PASS_DELAY_SECONDS = 1.5
"""A pass of the reaper belongs to every start of a lease, but must not slow it."""
PASS_PAUSE_SECONDS = 60.0
PASS_PATIENCE_SECONDS = 30.0
"""For how long a pass that is due waits for operations: somebody waits for those."""
LOOKOUT_SECONDS = 660.0
"""A lookout ends itself after 600 s and another one begins; this much later it hangs."""
LOOKOUT_PAUSE_SECONDS = 5.0
"""Between two starts of a lookout, where it ends at once."""
BEAT_SECONDS = 10.0
"""A service that lives writes the time of its ``watch.json`` this often."""
TAKE_SECONDS = 2.0
TAKEN = 5
"""A service's exit code: another one keeps this home."""
CRIPPLED = 1
"""A service's exit code: its home, its interpreter or this package is gone."""


def start_time(pid: int) -> str:
    """The start time of a process as an opaque text (that of `agent.identity`), empty when it is gone or a zombie."""
    if os.path.exists("/proc/self/stat"):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZXx" else fields[19]
    env = {"LC_ALL": "C", "TZ": "UTC"}
    argv = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    told = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    state, _, started = told.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def is_held(path: str) -> bool:
    """Whether any process holds the lock of a file; an absent file is held by none.

    Looking takes a shared lock for a moment, so whoever takes an exclusive one tries more than once.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def passed_on(env: dict[str, str]) -> dict[str, str]:
    """What of a card's environment is not the mark of its one record."""
    return {name: value for name, value in env.items() if name not in OWN_MARKS}


class Process:
    """An operation process that the watcher started, and when it must be over."""

    def __init__(self, popen: subprocess.Popen[bytes], seconds: float) -> None:
        self.popen = popen
        self.until = time.time() + seconds

    def ended(self) -> bool:
        """Whether it is over; it is no zombie then."""
        return self.popen.poll() is not None

    def end_if_overdue(self, deadline: float) -> None:
        """Kill it alone, never what it started: Terraform has a deadline of its own and is not signalled before."""
        if time.time() > max(self.until, deadline + OVERDUE_SECONDS):
            self.popen.kill()


class Stopping(NamedTuple):
    """A process that sees to the drains and meters of many, and of whom."""

    process: Process
    names: Sequence[str]


class Entry:
    """One card on the desk, and what the watcher has noticed about it."""

    def __init__(self, card: dict[str, Any], stamp: tuple[int, int]) -> None:
        self.card = card
        self.stamp = stamp
        self.operation: Process | None = None
        self.began_with: dict[str, Any] = {}
        self.wanted = True  # a card that is new to this watcher gets one operation: it takes over, or begins
        self.fresh = True  # and until that has ended well, nothing is known to be wrong with it
        self.looks = False  # whether its operation only takes over
        self.held = False  # whether one that only takes over waits for others
        self.queued = False  # whether one that ends what is up waits for others
        self.stopped = False  # and whether its drain and its meter are being seen to meanwhile, or were
        self.lost = False
        self.told_lost = False
        self.failures = 0
        self.not_before = 0.0
        self.tried = 0.0  # when its last operation began
        self.pipe: int | None = None
        self.pidfd: int | None = None
        self.client: tuple[int, str] | None = None

    @property
    def due(self) -> float | None:
        """The next moment (epoch seconds) at which an operation must run."""
        due = self.card.get("due")
        return float(due) if isinstance(due, int | float) else None

    @property
    def deadline(self) -> float | None:
        """When what an operation of it has recorded must be over (epoch seconds)."""
        deadline = self.card.get("operation_deadline")
        return float(deadline) if isinstance(deadline, int | float) else None

    def is_called_for(self, now: float) -> bool:
        """Whether an operation must run now."""
        return self.wanted or (self.lost and not self.told_lost) or (self.due is not None and self.due <= now)

    def is_only_new(self, now: float) -> bool:
        """Whether an operation would only take over what is well."""
        return self.fresh and not self.lost and (self.due is None or self.due > now)

    def ends(self) -> bool:
        """Whether an operation may have to end what is up."""
        return self.card.get("kind") != "rollout" and self.card.get("state") not in BEGINNING

    def next_moments(self, now: float, clock: float) -> list[float]:
        """In how many seconds an operation must run; empty: at no known moment."""
        if self.queued:
            return []  # the end of another one is what wakes us
        pause = self.not_before - clock
        if (self.wanted or (self.lost and not self.told_lost)) and not (self.held and not self.lost):
            return [pause]
        return [] if self.due is None else [max(self.due - now, pause)]

    def pause(self, pauses: tuple[float, ...]) -> None:
        """Wait before the next operation, longer each time."""
        self.not_before = time.monotonic() + pauses[min(self.failures, len(pauses) - 1)]
        self.failures += 1

    def close(self) -> None:
        """Let go of the client."""
        for descriptor in (self.pipe, self.pidfd):
            if descriptor is not None:
                os.close(descriptor)
        self.pipe = self.pidfd = None


class Watcher:
    """The desk of one home."""

    def __init__(self, options: argparse.Namespace) -> None:
        home: str = options.home
        self.keeper = os.path.join(home, "keeper")
        self.cards = os.path.join(self.keeper, "cards")
        self.home, self.python, self.place = home, options.python, options.place
        self.renew_seconds: float = options.renew_seconds
        self.idle_seconds: float = options.idle_seconds
        self.missing_seconds: float = options.missing_seconds
        self.whole_at = time.monotonic()
        self.serves = options.place == "service"
        self.reaps, self.waits = options.with_reaper, options.wait_for_operations
        self.ending = False
        self.lookout: Process | None = None
        self.next_lookout = 0.0
        self.entries: dict[str, Entry] = {}
        self.renewal: Process | None = None
        self.next_renewal = time.monotonic() + self.renew_seconds
        self.stopping: list[Stopping] = []
        self.passing: Process | None = None
        self.next_pass: float | None = time.monotonic() + PASS_DELAY_SECONDS
        self.last_pass = 0.0
        self.next_look = 0.0
        self.idle_since = time.monotonic()
        self.me = f"{os.getpid()}:{start_time(os.getpid())}"
        wake = os.path.join(self.keeper, "wake")
        with contextlib.suppress(FileExistsError):
            os.mkfifo(wake, 0o600)
        # Open for writing too: without a writer of its own, poll() would report a hang-up for ever.
        self.wake = os.open(wake, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.child_read, child_write = os.pipe()
        os.set_blocking(child_write, False)
        os.set_blocking(self.child_read, False)
        signal.set_wakeup_fd(child_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        log = os.path.join(self.keeper, "operations.log")
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def run(self) -> None:
        """Watch until nothing is left to watch for a while, the home is gone, or (a service) it is told to end."""
        while os.path.isdir(self.cards) and self.is_whole() and not self.may_end():
            self.show_life()
            self.read_cards()
            self.take_note()
            self.look_at_clients()
            self.start_operations()
            self.start_renewal()
            self.start_pass()
            self.start_lookout()
            if self.entries or self.renewal or self.passing or self.next_pass is not None or self.serves:
                self.idle_since = time.monotonic()
            elif time.monotonic() - self.idle_since >= self.idle_seconds and self.may_go():
                return
            self.wait()

    def is_whole(self) -> bool:
        """Whether operations can be started at all: else, after a while, the desk is left to one that can.

        A virtual environment that is upgraded is gone for a moment, one that was deleted for good.
        """
        if all(map(os.path.exists, (self.python, os.path.join(os.path.dirname(__file__), "operate.py")))):
            self.whole_at = time.monotonic()
        elif time.monotonic() - self.whole_at >= self.missing_seconds:
            self.say(f"{self.python}, or the package beside {__file__}, is gone: the desk is left to another keeper")
            return False
        return True

    def may_end(self) -> bool:
        """Whether a service that was told to end may: in a container its operations would end with it."""
        at_work = self.stopping or any(entry.operation for entry in self.entries.values())
        return self.ending and not (self.waits and at_work)

    def end(self, number: int) -> None:
        """Be told to end; the signal itself ends the wait."""
        self.ending = True
        self.say(f"told to end by {signal.Signals(number).name}")

    def show_life(self) -> None:
        """Let the age of a file say that this service lives; that needs no room on the disk."""
        if self.serves:
            with contextlib.suppress(OSError):
                os.utime(os.path.join(self.keeper, "watch.json"))

    def say(self, text: str) -> None:
        """Write a line about this watcher itself: a service to whoever runs it, another one to the log."""
        with contextlib.suppress(OSError):
            os.write(2 if self.serves else self.log, f"keeper {os.getpid()}: {text}\n".encode())

    def close(self) -> None:
        """End the lookout, the one process that is of no use without this watcher. Operations finish by themselves."""
        if self.lookout is not None:
            self.lookout.popen.terminate()
        left = sorted(name for name, entry in self.entries.items() if entry.operation is not None)
        if left:
            self.say(f"operations go on by themselves, and the next keeper takes over: {', '.join(left)}")

    # --- the desk ----------------------------------------------------------------------------------------------------

    def read_cards(self) -> None:
        """Take up new and changed cards, drop removed ones."""
        names = set()
        try:
            listed = list(os.scandir(self.cards))
        except OSError:
            return
        for item in listed:
            name, dot, kind = item.name.rpartition(".")
            if not dot or kind != "json" or not name or name[0] == ".":
                continue
            names.add(name)
            with contextlib.suppress(OSError, ValueError):  # it is being replaced: the next look reads it whole
                self.read_card(name, item)
        for name in set(self.entries) - names:
            if self.entries[name].operation is None:
                self.entries.pop(name).close()

    def read_card(self, name: str, item: os.DirEntry[str]) -> None:
        """Take up one card, when it is new or has changed."""
        status = item.stat()
        stamp = (status.st_mtime_ns, status.st_ino)
        known = self.entries.get(name)
        if known is not None and known.stamp == stamp:
            return
        with open(item.path, encoding="utf-8") as stream:
            card = json.load(stream)
        if not isinstance(card, dict):
            return
        if known is None:
            known = self.entries[name] = Entry(card, stamp)
            if self.next_pass is None and time.monotonic() - self.last_pass > PASS_PAUSE_SECONDS:
                self.next_pass = time.monotonic() + PASS_DELAY_SECONDS
        known.card, known.stamp = card, stamp
        self.take_client(known)

    def may_go(self) -> bool:
        """Leave the desk, unless a client comes in through the door at this very moment."""
        door = os.open(os.path.join(self.keeper, "door.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(door, fcntl.LOCK_EX)
            self.read_cards()
            if self.entries:
                return False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.keeper, "watch.json"))
            # The lock of the desk goes with the process, and nobody can look at it before the door is free.
            os._exit(0)
        finally:
            os.close(door)

    # --- clients -----------------------------------------------------------------------------------------------------

    def take_client(self, entry: Entry) -> None:
        """Open what tells about the client of a card, when it names another one than before."""
        pid = entry.card.get("client_pid")
        client = (int(pid), str(entry.card.get("client_start_time") or "")) if pid else None
        if client == entry.client:
            return
        entry.close()
        entry.client, entry.lost, entry.told_lost = client, False, False
        if client is None:
            return
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                entry.pidfd = os.pidfd_open(client[0])
        self.open_pipe(entry)
        self.look_at(entry)

    def open_pipe(self, entry: Entry) -> None:
        """Read the client's pipe; without a writer nothing is told until one has come and gone."""
        with contextlib.suppress(OSError):
            entry.pipe = os.open(str(entry.card.get("client_fifo")), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def look_at(self, entry: Entry) -> None:
        """Notice whether the client's process is gone."""
        if entry.client and not entry.lost and start_time(entry.client[0]) != entry.client[1]:
            entry.lost = True

    def look_at_clients(self) -> None:
        """Look at every client now and then where the kernel does not tell."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_SECONDS
        for entry in self.entries.values():
            if entry.pidfd is None:
                self.look_at(entry)

    def notice(self, entry: Entry, descriptor: int) -> None:
        """A pipe closed or a process ended: the process decides, the pipe only makes us look."""
        self.look_at(entry)
        if entry.lost:
            return
        os.close(descriptor)
        if descriptor == entry.pidfd:
            entry.pidfd = None
        else:
            entry.pipe = None
            if sys.platform == "linux":  # elsewhere a pipe without a writer reports a hang-up again and again
                self.open_pipe(entry)
        entry.wanted = True

    # --- operations --------------------------------------------------------------------------------------------------

    def take_note(self) -> None:
        """Take note of processes that have ended, and end those that are overdue."""
        ended = []
        for entry in self.entries.values():
            if entry.operation is None:
                continue
            if entry.operation.ended():
                ended.append(entry)
            else:
                entry.operation.end_if_overdue(entry.deadline or 0.0)
        if ended:
            self.read_cards()  # what they left there
        for entry in ended:
            self.judge(entry)
        if ended:
            self.read_cards()  # only now can a card that is gone be dropped: its operation has been judged
        self.take_note_of_helpers()

    def take_note_of_helpers(self) -> None:
        """The same of the processes that work for many records."""
        for name in ("renewal", "passing", "lookout"):
            process = getattr(self, name)
            if process is not None:
                process.end_if_overdue(0.0)
                if process.ended():
                    setattr(self, name, None)
        for batch in self.stopping:
            batch.process.end_if_overdue(self.last_deadline(batch.names))
        self.stopping = [batch for batch in self.stopping if not batch.process.ended()]

    def last_deadline(self, names: Sequence[str]) -> float:
        """When the last of the drains of these records must be over."""
        return max((self.entries[name].deadline or 0.0 for name in names if name in self.entries), default=0.0)

    def judge(self, entry: Entry) -> None:
        """An operation has ended: was it enough, and if not, when is the next one?"""
        code = entry.operation.popen.returncode if entry.operation else 0
        entry.operation, entry.looks = None, False
        entry.fresh = entry.fresh and code != 0
        if code != 0:
            entry.wanted, entry.told_lost = True, False
            entry.pause(BUSY_SECONDS if code == BUSY else RETRY_SECONDS)
        elif entry.due is not None and entry.due <= time.time() and entry.card == entry.began_with:
            entry.pause(RETRY_SECONDS)  # it left everything as it was: asking again at once would ask for ever
        else:
            entry.failures = 0

    def start_operations(self) -> None:
        """Spawn an operation for each card that needs one, within limits; meters first."""
        if self.ending:
            return
        now, clock = time.time(), time.monotonic()
        looks = sum(entry.looks for entry in self.entries.values())
        ends = sum(bool(entry.operation) and not entry.looks and entry.ends() for entry in self.entries.values())
        chosen = []
        seen_to = {name for batch in self.stopping for name in batch.names}
        # Who waits longest first: what fails again and again would have the turn of what was never tried.
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1].tried):
            entry.held = entry.queued = False
            if entry.operation or clock < entry.not_before or not entry.is_called_for(now):
                continue
            if any(is_held(str(path)) for path in entry.card.get("lock_files") or ()) and not self.overdue(entry, now):
                entry.pause(BUSY_SECONDS)  # a Terraform of it runs, whoever started it, and is respected
                continue
            if entry.is_only_new(now):
                entry.held = looks >= LOOKS_AT_ONCE  # then the end of another one is what wakes us
                looks += not entry.held
            elif entry.ends():
                entry.queued = ends >= ENDS_AT_ONCE or (name in seen_to and self.is_at_work(name))
                ends += not entry.queued
            if not entry.held and not entry.queued:
                chosen.append(name)
        self.start_stopping()
        for name in chosen:
            self.start_operation(name, self.entries[name], looks=self.entries[name].is_only_new(now))

    def start_operation(self, name: str, entry: Entry, *, looks: bool) -> None:
        """Spawn the operation of a card."""
        entry.began_with, entry.tried = entry.card, time.monotonic()
        entry.operation = self.spawn(["step", name], entry.card.get("env") or {}, OPERATION_SECONDS)
        if entry.operation is None:
            entry.pause(RETRY_SECONDS)
            return
        entry.wanted, entry.told_lost, entry.stopped, entry.looks = False, entry.lost, False, looks

    def is_at_work(self, name: str) -> bool:
        """Whether a process works on a record, whoever started it."""
        return is_held(os.path.join(self.home, "work", name, "operation.lock"))

    def start_stopping(self) -> None:
        """Have the drains and meters seen to of what waits for its turn to be released."""
        waiting = {name: entry for name, entry in self.entries.items() if entry.queued and not entry.stopped}
        if not waiting or len(self.stopping) >= STOPS_AT_ONCE:
            return
        env = next(iter(waiting.values())).card.get("env") or {}
        chosen = [name for name, entry in waiting.items() if passed_on(entry.card.get("env") or {}) == passed_on(env)]
        process = self.spawn(["stop", *chosen], passed_on(env), OPERATION_SECONDS)
        if process is not None:
            self.stopping.append(Stopping(process, chosen))
            for name in chosen:
                self.entries[name].stopped = True

    @staticmethod
    def overdue(entry: Entry, now: float) -> bool:
        """Whether a Terraform that was left behind is past its deadline, so that an operation must end it."""
        return entry.deadline is not None and now > entry.deadline

    def start_renewal(self) -> None:
        """Have every lease renewed whose client lives."""
        clock = time.monotonic()
        if clock < self.next_renewal or self.renewal is not None:
            return
        self.next_renewal = clock + self.renew_seconds
        names = [name for name, entry in self.entries.items() if entry.card.get("renew") and not entry.lost]
        if names:
            self.renewal = self.spawn(["renew", *names], {}, RENEWAL_SECONDS)

    def start_pass(self) -> None:
        """Have the reaper look through the ledger, in the background and once in a while."""
        clock, due = time.monotonic(), self.pass_due()
        if due is None or clock < due or self.passing is not None or self.ending:
            return
        self.next_pass, self.last_pass = clock + PASS_PAUSE_SECONDS if self.reaps else None, clock
        self.passing = self.spawn(["pass"], {}, RENEWAL_SECONDS)

    def pass_due(self) -> float | None:
        """When the next pass begins at the latest; None: none is due."""
        if self.next_pass is None or not any(entry.operation is not None for entry in self.entries.values()):
            return self.next_pass
        return self.next_pass + PASS_PATIENCE_SECONDS

    def start_lookout(self) -> None:
        """Have a service's lookout look into the ledger."""
        clock = time.monotonic()
        if self.serves and self.lookout is None and clock >= self.next_lookout and not self.ending:
            self.next_lookout = clock + LOOKOUT_PAUSE_SECONDS
            self.lookout = self.spawn(["lookout"], {}, LOOKOUT_SECONDS)

    def spawn(self, arguments: list[str], env: dict[str, str], seconds: float) -> Process | None:
        """Start an operation process, in a session of its own: what ends the watcher spares it. None: it cannot."""
        argv = [self.python, "-P", "-m", "mlinfra_prefect.keeper", "--home", self.home, "--watcher", self.me,
                "--place", self.place, *arguments]  # fmt: skip
        try:
            started = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True, cwd="/",
                env={**os.environ, **env},
            )  # fmt: skip
        except OSError as error:  # no memory, no processes, no interpreter any more: this may pass
            with contextlib.suppress(OSError):
                os.write(self.log, f"{arguments[0]}: cannot be started: {error}\n".encode())
            return None
        return Process(started, seconds)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Sleep until something happens or the next moment has come."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.register(self.child_read, select.POLLIN)
        by_descriptor: dict[int, Entry] = {}
        for entry in self.entries.values():
            if entry.client and not entry.lost:
                for descriptor in (entry.pipe, entry.pidfd):
                    if descriptor is not None:
                        poll.register(descriptor, select.POLLIN)
                        by_descriptor[descriptor] = entry
        for descriptor, _ in poll.poll(1000 * self.patience()):
            if descriptor == self.wake:
                self.woken()
            elif descriptor == self.child_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.child_read, 4096)
            else:
                self.notice(by_descriptor[descriptor], descriptor)

    def woken(self) -> None:
        """Read who is to be looked at."""
        with contextlib.suppress(BlockingIOError):
            for name in os.read(self.wake, 65536).decode(errors="replace").split():
                if name in self.entries:
                    self.entries[name].wanted, self.entries[name].not_before = True, 0.0
                    self.entries[name].failures = 0

    def patience(self) -> float:
        """Seconds until the next moment at which something must be looked at."""
        now, clock = time.time(), time.monotonic()
        moments: list[float] = [self.next_renewal - clock, BEAT_SECONDS if self.serves else 60.0]
        if self.whole_at < clock - 1.0 and not os.path.exists(self.python):
            moments.append(self.whole_at + self.missing_seconds - clock)
        if self.serves and self.lookout is None and not self.ending:
            moments.append(self.next_lookout - clock)
        due = self.pass_due()
        if due is not None and self.passing is None and not self.ending:
            moments.append(due - clock)
        if not self.entries:
            moments.append(self.idle_seconds)
        for entry in self.entries.values():
            if entry.client and entry.pidfd is None and not entry.lost:
                moments.append(LOOK_SECONDS)
            if entry.operation is None and not self.ending:  # told to end, it starts nothing
                moments += entry.next_moments(now, clock)
        return max(0.001, min(moments))


def take_desk(descriptor: int) -> bool:
    """Take the lock of the desk; False when another watcher has it. Those who only look hold it for a moment."""
    until = time.monotonic() + TAKE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.005)
        else:
            return True


def write_down(keeper: str, place: str) -> None:
    """Write who watches."""
    scratch = os.path.join(keeper, f".watch.{os.getpid()}")
    with open(scratch, "w", encoding="utf-8") as stream:
        json.dump({"pid": os.getpid(), "start_time": start_time(os.getpid()), "place": place}, stream)
    os.replace(scratch, os.path.join(keeper, "watch.json"))


def take_over_desk(desk: int, keeper: str) -> str:
    """Take the desk from a watcher that a flow has started: ended, it loses nothing. Empty, or why it stays taken."""
    door = os.open(os.path.join(keeper, "door.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)  # nobody starts another one meanwhile
        told: dict[str, Any] = {}
        if not take_desk(desk):
            path = os.path.join(keeper, "watch.json")
            with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as stream:
                told = json.load(stream)
            if told.get("place") == "service" or not told:
                return f"another keeper service keeps this home{', pid ' + str(told['pid']) if told else ''}"
            if start_time(int(told["pid"])) == told.get("start_time"):
                os.kill(int(told["pid"]), signal.SIGKILL)
            if not take_desk(desk):
                return f"the keeper of this home, pid {told['pid']}, does not leave its desk"
        write_down(keeper, "service")
    finally:
        os.close(door)
    return ""


def serve(arguments: argparse.Namespace) -> int:
    """Be the watcher of a home in this very process, for as long as nobody tells it to end. Returns its exit code."""
    signal.signal(signal.SIGHUP, lambda *_: None)
    os.umask(0o077)
    keeper = os.path.join(arguments.home, "keeper")
    desk = os.open(os.path.join(keeper, "watch.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    problem = take_over_desk(desk, keeper)
    if problem:
        os.write(2, f"error: {problem}. One home has one keeper: end that one, or name another home.\n".encode())
        return TAKEN
    watcher = Watcher(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda told, _: watcher.end(told))
    watcher.say(f"keeps the leases of {arguments.home}{', and reaps every minute' if arguments.with_reaper else ''}")
    watcher.run()
    watcher.close()
    return 0 if watcher.ending else CRIPPLED


def main() -> None:
    """Become the watcher of a home, unless there is one; the starting process returns when it watches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--place", required=True)
    parser.add_argument("--renew-seconds", type=float, required=True)
    parser.add_argument("--idle-seconds", type=float, required=True)
    parser.add_argument("--missing-seconds", type=float, required=True)
    parser.add_argument("--with-reaper", action="store_true")
    parser.add_argument("--wait-for-operations", action="store_true")
    arguments = parser.parse_args()
    if arguments.place == "service":
        sys.exit(serve(arguments))
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which every training would inherit
    ready, tell = os.pipe()
    if os.fork():
        # The one who started us waits here: then a watcher watches (ours, or the one that was faster).
        os.close(tell)
        os._exit(0 if os.read(ready, 1) == b"1" else 1)
    os.setsid()
    os.close(ready)
    os.umask(0o077)
    keeper = os.path.join(arguments.home, "keeper")
    desk = os.open(os.path.join(keeper, "watch.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not take_desk(desk):
        os.write(tell, b"1")
        return
    watcher = Watcher(arguments)
    write_down(keeper, arguments.place)
    os.write(tell, b"1")
    os.close(tell)
    watcher.run()


if __name__ == "__main__":
    main()
