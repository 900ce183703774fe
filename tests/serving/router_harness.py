"""A router and what stands behind it, for the tests that ask it: backends made of threads, and the real program."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlinfra_prefect.local import router

SOURCE = Path(router.__file__)
PATIENCE = 20.0
NAME = "churn"


# --- what the tests are made of --------------------------------------------------------------------------------------


def until(holds: Callable[[], Any], what: str) -> Any:
    """Look until something holds, and return it."""
    end = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < end, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.005)
    return found


def receive(connection: socket.socket, data: bytes = b"") -> tuple[bytes, bytes]:
    """Read one request from a socket; return it as it came, and what came after it. ConnectionError at its end."""
    while b"\r\n\r\n" not in data:
        data += some(connection)
    head, _, rest = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(rest) < length:
        rest += some(connection)
    return head + b"\r\n\r\n" + rest[:length], rest[length:]


def some(connection: socket.socket) -> bytes:
    found = connection.recv(1 << 20)
    if not found:
        raise ConnectionError
    return found


def plain(body: bytes = b"{}", status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


PLAIN = plain()


class Backend:
    """A server made of threads: `behave(connection, request)` answers and returns whether the connection stays."""

    def __init__(self, behave: Callable[[socket.socket, bytes], bool] | bytes = PLAIN, port: int = 0) -> None:
        self.behave = (lambda to, _: to.sendall(behave) is None) if isinstance(behave, bytes) else behave
        self.received: list[bytes] = []
        self.open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with self._lock:
                    self.open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        rest = b""
        with suppress(OSError):
            while True:
                request, rest = receive(connection, rest)
                self.received.append(request)
                if not self.behave(connection, request):
                    break
        with self._lock:
            self.open.discard(connection)
        connection.close()

    def kill(self) -> None:
        """End as a killed process does: nobody listens, and every connection breaks. Idempotent."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(PATIENCE)
        with self._lock:
            for connection in self.open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def says(what: str) -> bytes:
    return plain(what.encode())


@dataclass
class Routed:
    """A running router with its routes."""

    process: subprocess.Popen[bytes]
    port: int
    routes: Path
    log: Path
    revision: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def write(self, *versions: tuple[int, int, list[str]], **changes: Any) -> int:
        """Replace the routes as the keeper does; returns their revision."""
        self.revision += 1
        listed = [{"version": number, "share": share, "urls": urls} for number, share, urls in versions]
        told = {"schema": router.ROUTES_SCHEMA, "revision": self.revision, "name": NAME, "versions": listed, **changes}
        self.put(json.dumps(told).encode())
        return self.revision

    def put(self, content: bytes) -> None:
        fresh = self.routes.with_name(".fresh")
        fresh.write_bytes(content)
        fresh.replace(self.routes)

    def route(self, *versions: tuple[int, int, list[str]]) -> None:
        """Replace the routes and wait until requests follow them."""
        revision = self.write(*versions)
        until(lambda: self.state()["revision"] == revision, f"revision {revision}: {self.state()['problem']}")

    def page(self, path: str) -> tuple[int, bytes]:
        return self.ask("GET", path)[:2]

    def state(self) -> dict[str, Any]:
        return json.loads(self.page("/mlinfra/state")[1])

    def version(self, number: int) -> dict[str, Any]:
        told = self.state()
        return next(each for each in (*told["versions"], *told["gone"]) if each["version"] == number)

    def ask(
        self, method: str = "POST", path: str = "/v2/models/churn/infer", body: Any = None, **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Ask on a connection of its own."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

    def talk(self, sent: bytes) -> bytes:
        """Send some bytes and return all that comes until the router closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(sent)
            said = b""
            while data := connection.recv(1 << 16):
                said += data
        return said


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(place: Path, *extra: str, fd: int | None = None, port: int | None = None) -> Iterator[Routed]:
    """The program in an environment that would lead a careless HTTP client to a proxy."""
    port = port or free_port()
    argv = [sys.executable, "-I", str(SOURCE), "--name", NAME, "--routes", str(place / "routes.json"), *extra]
    argv += ["--port", str(port)] if fd is None else ["--fd", str(fd)]
    nowhere = "http://127.0.0.1:9"
    env = {"PATH": os.defpath, "HTTP_PROXY": nowhere, "http_proxy": nowhere, "ALL_PROXY": nowhere}
    log = place / "router.log"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env, pass_fds=[] if fd is None else [fd]
        )
    made = Routed(process, port, place / "routes.json", log)

    def lives() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            return made.page("/mlinfra/health")[0] == 200
        return False

    try:
        until(lives, "the router serves")
        yield made
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.kill()
        process.wait()


def refusal(argv: list[str], *passed: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-I", SOURCE, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30,
        pass_fds=passed, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.strip()
