"""The servers that an agent keeps running: started, started again when they die, ended with the agent.

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
from .wire import SERVER_LOG

if TYPE_CHECKING:
    from pathlib import Path

    from .specs import AgentSpec, ServeSpec

STEADY_SECONDS = 5.0
"""A server that lived so long was well: its next death is the first one."""
QUICK_DEATHS = 5
"""So many in a row, and starting it again would change nothing."""
PAUSE_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0)
BACKLOG = 1024


@dataclass
class Server:
    """One server: its command, its process, and how it has fared."""

    argv: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    deaths: int = 0
    start_at: float = 0.0


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

    def start(self) -> None:
        """Start them all.

        Raises:
            OSError: a program cannot be started, or the port is in use.
        """
        if self._serve.listen is not None:
            self._listening = _listening(self._serve.listen)
        for server in self._servers:
            self._start(server)

    def step(self) -> str | None:
        """Start again what has died; returns why the agent must end, or None."""
        now = time.monotonic()
        for server in self._servers:
            if server.process is None:
                if now >= server.start_at:
                    self._start_again(server)
                continue
            code = server.process.poll()
            if code is None:
                continue
            self._guardian.forget(server.process.pid)
            groups.kill(server.process.pid, None)  # what it has left behind in its group
            steady = now - server.began >= STEADY_SECONDS
            server.deaths = 1 if steady else server.deaths + 1
            # A server that ends itself right after its start says why, and would say it again.
            if code in self._serve.final or (code >= 0 and not steady) or server.deaths > QUICK_DEATHS:
                return f"server exited with {code}"
            self._say(f"a server exited with {code}: starting it again")
            server.process = None
            server.start_at = now + PAUSE_SECONDS[min(server.deaths, len(PAUSE_SECONDS)) - 1]
            if now >= server.start_at:
                self._start_again(server)
        return None

    def told(self) -> list[dict[str, Any] | None]:
        """Pid and start time of each; None: it is about to be started again."""
        pids = [None if each.process is None else each.process.pid for each in self._servers]
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
