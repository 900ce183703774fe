"""The watcher: the resident part of the keeper. Standard library only, imports nothing of ours.

It must outlive the flow, stay small (one per home, whatever the number of leases) and have nothing in it that can break.
So it knows no ledger, no Terraform and no model: it reads *cards* (JSON, schema in `model.card`), notices that a client
is gone, that a moment has come or that somebody wakes it, and spawns an *operation process* that does the work. Killed
at any moment it loses nothing: the next watcher reads the same cards.

A client is noticed to be gone in two ways, because one alone can be wrong: its named pipe closes (a forked child may
hold it open), and its process ends (by pid and start time; on Linux a pidfd tells at once).
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
from typing import Any

BUSY = 75
"""An operation's exit code (EX_TEMPFAIL): not now, ask again."""
LOCK_LOOK_SECONDS = 0.1
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
LOOK_SECONDS = 1.0
"""How often clients are looked at where the kernel has no pidfd."""


def start_time(pid: int) -> str:
    """The start time of a process as an opaque text, empty when it is gone or a zombie (as `agent.identity` tells it)."""
    if os.path.exists("/proc/self/stat"):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZXx" else fields[19]
    told = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
    )
    state, _, started = told.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def is_held(path: str) -> bool:
    """Whether any process holds the lock of a file; an absent file is held by none."""
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


class Entry:
    """One card on the desk, and what the watcher has noticed about it."""

    def __init__(self, card: dict[str, Any], stamp: tuple[int, int]) -> None:
        self.card = card
        self.stamp = stamp
        self.operation: subprocess.Popen[bytes] | None = None
        self.wanted = True  # a card that is new to this watcher gets one operation: it takes over, or begins
        self.lost = False
        self.told_lost = False
        self.failures = 0
        self.not_before = 0.0
        self.pipe: int | None = None
        self.pidfd: int | None = None
        self.client: tuple[int, str] | None = None

    def close(self) -> None:
        """Let go of the client."""
        for descriptor in (self.pipe, self.pidfd):
            if descriptor is not None:
                os.close(descriptor)
        self.pipe = self.pidfd = None


class Watcher:
    """The desk of one home."""

    def __init__(self, home: str, python: str, place: str, renew_seconds: float, idle_seconds: float) -> None:
        self.keeper = os.path.join(home, "keeper")
        self.cards = os.path.join(self.keeper, "cards")
        self.home, self.python, self.place = home, python, place
        self.renew_seconds, self.idle_seconds = renew_seconds, idle_seconds
        self.entries: dict[str, Entry] = {}
        self.renewal: subprocess.Popen[bytes] | None = None
        self.next_renewal = time.monotonic() + renew_seconds
        self.next_look = 0.0
        self.idle_since = time.monotonic()
        self.me = f"{os.getpid()}:{start_time(os.getpid())}"
        wake = os.path.join(self.keeper, "wake")
        with contextlib.suppress(FileExistsError):
            os.mkfifo(wake, 0o600)
        # Open for writing too: without a writer of its own, poll() would report a hang-up for ever.
        self.wake = os.open(wake, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.child_read, child_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(child_write, False)
        os.set_blocking(self.child_read, False)
        signal.set_wakeup_fd(child_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.log = os.open(os.path.join(self.keeper, "operations.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def run(self) -> None:
        """Watch until nothing is left to watch for a while."""
        while True:
            self.read_cards()
            self.reap_operations()
            self.look_at_clients()
            self.start_operations()
            if self.entries or self.renewal:
                self.idle_since = time.monotonic()
            elif time.monotonic() - self.idle_since >= self.idle_seconds and self.may_go():
                return
            self.wait()

    def read_cards(self) -> None:
        """Take up new and changed cards, drop removed ones."""
        names = set()
        for item in os.scandir(self.cards):
            if not item.name.endswith(".json") or item.name.startswith("."):
                continue
            name = item.name[:-5]
            names.add(name)
            try:
                status = item.stat()
                stamp = (status.st_mtime_ns, status.st_ino)
                known = self.entries.get(name)
                if known is not None and known.stamp == stamp:
                    continue
                with open(item.path, encoding="utf-8") as stream:
                    card = json.load(stream)
            except (OSError, ValueError):
                continue  # it is being replaced: the next look reads it whole
            if known is None:
                self.entries[name] = Entry(card, stamp)
            else:
                known.card, known.stamp = card, stamp
            self.take_client(self.entries[name])
        for name in set(self.entries) - names:
            if self.entries[name].operation is None:
                self.entries.pop(name).close()

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
        with contextlib.suppress(OSError):
            entry.pipe = os.open(str(entry.card.get("client_fifo")), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.look_at(entry)

    def look_at(self, entry: Entry) -> None:
        """Notice whether the client's process is gone."""
        if entry.client and not entry.lost and start_time(entry.client[0]) != entry.client[1]:
            entry.lost = True

    def look_at_clients(self) -> None:
        """Look at every client now and then: the pidfd is quicker, but is not everywhere."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_SECONDS
        for entry in self.entries.values():
            if entry.pidfd is None:
                self.look_at(entry)

    def reap_operations(self) -> None:
        """Take note of operations that have ended."""
        for entry in self.entries.values():
            if entry.operation is None or entry.operation.poll() is None:
                continue
            code, entry.operation = entry.operation.returncode, None
            if code == 0:
                entry.failures = 0
            else:
                entry.wanted, entry.told_lost = True, False
                wait = RETRY_SECONDS[min(entry.failures, len(RETRY_SECONDS) - 1)]
                entry.failures += code != BUSY
                entry.not_before = time.monotonic() + (RETRY_SECONDS[0] if code == BUSY else wait)
        if self.renewal is not None and self.renewal.poll() is not None:
            self.renewal = None
        self.read_cards()

    def start_operations(self) -> None:
        """Spawn an operation for each card that needs one, and the renewal of all others."""
        now, clock = time.time(), time.monotonic()
        for name, entry in self.entries.items():
            due = entry.card.get("due")
            lost = entry.lost and not entry.told_lost
            if entry.operation or clock < entry.not_before or not (entry.wanted or lost or (due is not None and due <= now)):
                continue
            if any(is_held(path) for path in entry.card.get("lock_files", ())):
                entry.not_before = clock + LOCK_LOOK_SECONDS
                entry.wanted = True
                continue
            arguments = ["step", name] + (["--look-at-client"] if entry.lost or entry.wanted else [])
            entry.wanted, entry.told_lost = False, entry.told_lost or lost
            # A card whose moment has come and stays must not spin: the operation moves `due`, or we wait.
            entry.not_before = clock + RETRY_SECONDS[0]
            entry.operation = self.spawn(arguments, entry.card.get("env", {}))
        if clock >= self.next_renewal and self.renewal is None:
            self.next_renewal = clock + self.renew_seconds
            names = [name for name, entry in self.entries.items() if entry.card.get("renew") and not entry.lost]
            if names:
                self.renewal = self.spawn(["renew", *names], {})

    def spawn(self, arguments: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start an operation process: own session, so that nothing that ends the watcher ends it."""
        argv = [self.python, "-m", "mlinfra_prefect.keeper.operate", "--home", self.home, "--watcher", self.me,
                "--place", self.place, *arguments]  # fmt: skip
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True, cwd="/",
            env={**os.environ, **env},
        )  # fmt: skip

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

    def notice(self, entry: Entry, descriptor: int) -> None:
        """A pipe closed or a process ended: the process decides, the pipe only makes us look."""
        self.look_at(entry)
        if entry.lost:
            return
        os.close(descriptor)
        if descriptor == entry.pipe:
            entry.pipe = None
        else:
            entry.pidfd = None
        entry.wanted = True

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
        moments = [max(0.0, self.next_renewal - clock), 60.0]
        if not self.entries:
            moments.append(self.idle_seconds)
        for entry in self.entries.values():
            if entry.operation is not None:
                continue
            due = entry.card.get("due")
            if entry.wanted or (entry.lost and not entry.told_lost):
                moments.append(max(0.0, entry.not_before - clock))
            if due is not None:
                moments.append(max(due - now, entry.not_before - clock, 0.0))
            if entry.client and entry.pidfd is None and not entry.lost:
                moments.append(LOOK_SECONDS)
        return max(0.001, min(moments))


def take_desk(descriptor: int) -> bool:
    """Take the lock of the desk; False when another watcher has it. Those who only look hold it for a moment."""
    for _ in range(50):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False


def main() -> None:
    """Become the watcher of a home, unless there is one; the starting process returns when it watches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--place", required=True)
    parser.add_argument("--renew-seconds", type=float, required=True)
    parser.add_argument("--idle-seconds", type=float, required=True)
    arguments = parser.parse_args()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
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
    watcher = Watcher(arguments.home, arguments.python, arguments.place, arguments.renew_seconds, arguments.idle_seconds)
    scratch = os.path.join(keeper, f".watch.{os.getpid()}")
    with open(scratch, "w", encoding="utf-8") as stream:
        json.dump({"pid": os.getpid(), "start_time": start_time(os.getpid()), "place": arguments.place}, stream)
    os.replace(scratch, os.path.join(keeper, "watch.json"))
    os.write(tell, b"1")
    os.close(tell)
    watcher.run()


if __name__ == "__main__":
    sys.exit(main())
