"""The servers that an agent keeps running: started, started again when they die, ended with the agent.

Where their number follows the load, a file says how many shall run. It decides how many, never whether: the first ones
run in any case, and only their end can be the agent's.

A router or a replica that is killed must not take the endpoint with it. Where the agent holds the listening socket
itself, a request that comes while its server is being started again waits for it instead of being refused.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import allowlist, groups, identity
from .wire import SERVER_LOG, read_json_if_there

if TYPE_CHECKING:
    from pathlib import Path

    from .specs import AgentSpec, ServeSpec

STEADY_SECONDS = 5.0
"""A server that lived so long was well: its next death is the first one."""
QUICK_DEATHS = 5
"""So many in a row, and starting it again would change nothing."""
PAUSE_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0)
EXTRA_PAUSE_SECONDS = 10.0
"""Before a server is tried again that is not one of the first, and cannot be started."""
EXTRA_GRACE_SECONDS = 5.0
"""For a server that is not needed any more; nothing is in flight there."""
BACKLOG = 1024


@dataclass
class Server:
    """One server: its command, its process, and how it has fared. `kill_at`: it was told to end, and has until then."""

    argv: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    deaths: int = 0
    start_at: float = 0.0
    kill_at: float | None = None


class Servers:
    """All servers of one agent.

    Args:
        spec: the agent's.
        serve: what they are.
        archive: the agent's, whose ``exec`` ties each server to the agent.
        guardian: ends them when the agent is killed.
        say: writes to the agent's log.
    """

    def __init__(
        self, spec: AgentSpec, serve: ServeSpec, archive: Path, guardian: groups.Guardian, say: Callable[[str], None]
    ) -> None:
        self._spec, self._serve, self._archive = spec, serve, archive
        self._guardian, self._say = guardian, say
        self._servers = [Server(argv) for argv in serve.argvs]
        self._listening: socket.socket | None = None
        self._least = len(self._servers) if serve.scale is None else serve.least
        self._wanted = self._least
        self._seen: tuple[int, ...] | None = None

    def start(self) -> None:
        """Start those that run in any case, and those that the file asks for.

        Raises:
            OSError: a program cannot be started, or the port is in use.
        """
        if self._serve.listen is not None:
            self._listening = _listening(self._serve.listen)
        self._follow()
        for server in self._servers[: self._wanted]:
            self._start(server)

    def step(self) -> str | None:
        """Start again what has died, start and end what the file says; returns why the agent must end, or None."""
        self._follow()
        now = time.monotonic()
        for number, server in enumerate(self._servers, start=1):
            if server.process is None:
                if number <= self._wanted and now >= server.start_at:
                    self._start_again(server)
                continue
            code = server.process.poll()
            if code is None:
                if number > self._wanted or server.kill_at is not None:
                    self._let_go(server.process, server, now)
                continue
            self._guardian.forget(server.process.pid)
            groups.kill(server.process.pid, None)  # what it has left behind in its group
            if server.kill_at is not None:  # it was told to
                server.process, server.kill_at, server.deaths, server.start_at = None, None, 0, 0.0
                continue
            steady = now - server.began >= STEADY_SECONDS
            server.deaths = 1 if steady else server.deaths + 1
            # A server that ends itself right after its start says why, and would say it again.
            if code in self._serve.final or (code >= 0 and not steady) or server.deaths > QUICK_DEATHS:
                if number <= self._least:
                    return f"server exited with {code}"
                self._say(f"server {number} exited with {code}: trying again in {EXTRA_PAUSE_SECONDS:g} s")
                server.process, server.start_at = None, now + EXTRA_PAUSE_SECONDS
                continue
            self._say(f"a server exited with {code}: starting it again")
            server.process = None
            server.start_at = now + PAUSE_SECONDS[min(server.deaths, len(PAUSE_SECONDS)) - 1]
            if now >= server.start_at:
                self._start_again(server)
        return None

    def told(self) -> list[dict[str, Any] | None]:
        """Pid and start time of each that shall run; None: it is about to be started (again)."""
        there = [e for n, e in enumerate(self._servers, start=1) if n <= self._wanted or e.process is not None]
        pids = [None if each.process is None else each.process.pid for each in there]
        return [None if pid is None else {"pid": pid, "start_time": identity.start_time(pid)} for pid in pids]

    def end(self, grace_seconds: float) -> None:
        """End them all at once. Blocks for the grace at most."""
        running = [each.process for each in self._servers if each.process is not None]
        for process in running[1:]:
            groups.kill(process.pid, identity.start_time(process.pid), 15)
        for process in running:
            groups.end(process, grace_seconds)
        if self._listening is not None:
            self._listening.close()

    def _follow(self) -> None:
        """Read how many shall run, where that may have changed; whatever is not a number changes nothing."""
        if self._serve.scale is None:
            return
        try:
            status = self._serve.scale.stat()
        except OSError:
            return
        seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        told = (read_json_if_there(self._serve.scale) or {}).get("replicas")
        if isinstance(told, int) and not isinstance(told, bool):
            wanted = min(max(told, self._least), len(self._servers))
            if wanted != self._wanted:
                self._say(f"{wanted} servers shall run, not {self._wanted}")
            self._wanted = wanted

    def _let_go(self, process: subprocess.Popen[bytes], server: Server, now: float) -> None:
        """End a server that is not needed any more, without waiting for it."""
        if server.kill_at is None:
            server.kill_at = now + EXTRA_GRACE_SECONDS
            groups.kill(process.pid, identity.start_time(process.pid), 15)
        elif now >= server.kill_at:
            groups.kill(process.pid, identity.start_time(process.pid))

    def _start_again(self, server: Server) -> None:
        try:
            self._start(server)
        except OSError as error:  # no memory, no processes: this may pass
            self._say(f"a server cannot be started again yet: {error}")
            server.start_at = time.monotonic() + PAUSE_SECONDS[-1]

    def _start(self, server: Server) -> None:
        keep = None if self._listening is None else self._listening.fileno()
        passed = [] if keep is None else ["--keep", str(keep)]
        last = [] if keep is None else ["--fd", str(keep)]
        log = os.open(self._spec.node_dir / SERVER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            server.process = subprocess.Popen(
                [
                    str(self._spec.python), "-I", "-S", str(self._archive), "exec", str(os.getpid()), *passed, "--",
                    *server.argv, *last,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._serve.cwd, process_group=0,
                pass_fds=[] if keep is None else [keep],
                env={**allowlist.inherited(), **self._serve.env, **allowlist.marks(self._spec)},
            )  # fmt: skip
        finally:
            os.close(log)
        server.began = time.monotonic()
        self._guardian.watch(server.process.pid)


def _listening(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise OSError(error.errno, f"port {port}: {error.strerror}") from error
    return found
