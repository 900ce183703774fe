"""A Prefect server, a process worker and a home of ours, as somebody has them on one machine; all ended by pid.

Real processes and nothing of this one's settings: neither a ``PREFECT_`` nor an ``MLINFRA_`` variable of whoever runs
the tests gets in. What runs in here is known by its environment (``PREFECT_HOME``, ``MLINFRA_HOME``, the ledger's id),
so that the end can say what is left, whoever started it. The benchmarks use this too; it imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or CHECKOUT / ".cache")
POOL = "here"
START_SECONDS = 120.0
COMMAND_SECONDS = 120.0
WORKER_END_SECONDS = 5.0
QUIET_SECONDS = 60.0
TRIES = 5
DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
"""A test run that is killed ends nothing: its worker would go on running scheduled flows for ever."""
OVER = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Place:
    """One machine's Prefect, with `mlinfra_prefect` registered in it."""

    def __init__(self, root: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.root = root
        self.home = root / "home"
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLINFRA_", "PREFECT_"))}
        self.env = {
            **kept,
            "MLINFRA_HOME": str(self.home),
            "MLINFRA_CACHE": str(CACHE),
            "PREFECT_HOME": str(root / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            # The server would tell its makers; the browser's half of that is blocked (`prefect_screen`).
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        self.api = httpx.Client(base_url=f"{self.url}/api", timeout=90)
        self._started: list[subprocess.Popen[bytes]] = []

    # --- starting

    def start_server(self) -> None:
        """Start the server and wait until it answers: 6 s on a quiet machine."""
        self._start("server", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self.wait(self._answers, START_SECONDS, "the server does not answer")

    def start_worker(self, *, asks_every: float | None = None) -> subprocess.Popen[bytes]:
        """Start a process worker for the pool; it asks for work every so many seconds (Prefect's default: 10)."""
        extra = {} if asks_every is None else {"PREFECT_WORKER_QUERY_SECONDS": str(asks_every)}
        worker = self._start("worker", "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", **extra)
        self.wait(self._polled, START_SECONDS, "no worker asks for work")
        return worker

    def does(self, *words: str) -> str:
        """Run Python with these words to its end, which must be good; returns what it printed."""
        done = subprocess.run(
            [sys.executable, *words], cwd=CHECKOUT, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout

    def _start(self, name: str, *words: str, **extra: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                [*DIES_WITH_US, sys.executable, *words], cwd=self.root, env={**self.env, **extra},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._started.append(started)
        return started

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return self.api.get("/health").status_code == httpx.codes.OK
        return False

    def _polled(self) -> bool:
        answer = self.api.post(f"/work_pools/{POOL}/workers/filter", json={})
        return answer.is_success and any(worker["status"] == "ONLINE" for worker in answer.json())

    def wait(self, what: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Wait until it is so; told with the ends of the logs otherwise."""
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, f"{otherwise} after {seconds:.0f} s\n{self.logs()}"
            assert all(process.poll() is None for process in self._started), f"a process has ended\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of what the server and the worker said."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(self.root.glob("*.log"))
        )

    # --- asking

    def answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        """What the API answers. On SQLite it is busy now and then, and Prefect's clients ask again then too."""
        for _ in range(TRIES):
            answer = self.api.request(method, path, **options)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(1)
        return answer

    def posted(self, path: str, **body: Any) -> Any:
        """What the API answers to a POST, which must succeed."""
        return self.answer("POST", path, json=body).raise_for_status().json()

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by ``flow/deployment``."""
        return dict(self.answer("GET", f"/deployments/name/{name}").raise_for_status().json())

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run."""
        return dict(self.answer("GET", f"/flow_runs/{run_id}").raise_for_status().json())

    def runs(self, deployment_id: str) -> list[str]:
        """The ids of a deployment's runs."""
        wanted = {"deployment_id": {"any_": [deployment_id]}}
        return [run["id"] for run in self.posted("/flow_runs/filter", flow_runs=wanted)]

    def paused(self, run_id: str, *, seconds: float) -> None:
        """Wait until a run is paused, or over."""
        ends = {"PAUSED", *OVER}
        self.wait(lambda: self.run(run_id)["state_type"] in ends, seconds, f"run {run_id} does not pause")

    def over(self, run_id: str, *, seconds: float) -> dict[str, Any]:
        """Wait until a run is over, and return it."""
        self.wait(lambda: self.run(run_id)["state_type"] in OVER, seconds, f"run {run_id} is not over")
        return self.run(run_id)

    def records(self) -> list[dict[str, Any]]:
        """Every record of the ledger, read from its file; none where there is no ledger yet."""
        return [json.loads(row[0]) for row in self._rows("SELECT json FROM records ORDER BY seq")]

    def _rows(self, sql: str) -> list[Any]:
        ledger = self.home / "ledger.sqlite"
        if not ledger.exists():
            return []
        # Closed at once: a connection that stays open would keep the file's shared memory for the next reader.
        db = sqlite3.connect(ledger, timeout=90)
        try:
            return db.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []  # it is just being made
        finally:
            db.close()

    # --- ending

    def processes(self) -> dict[int, str]:
        """Living processes that belong here, by pid, with their command lines."""
        marks = {f"{name}={self.env[name]}".encode() for name in ("MLINFRA_HOME", "PREFECT_HOME")}
        marks |= {f"MLINFRA_LEDGER_ID={row[0]}".encode() for row in self._rows(_LEDGER_ID)}
        found = {}
        for entry in Path("/proc").iterdir():
            # A process may end while it is looked at, and others are not ours to read.
            with suppress(OSError):
                if entry.name.isdigit() and marks & set((entry / "environ").read_bytes().split(b"\0")):
                    told = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                        found[int(entry.name)] = told.strip()
        return found

    def end(self) -> list[str]:
        """End the worker with the runs it started, wait for the keeper to give everything back, end the server.

        Returns what was left then, which is a fault of the product: it is ended too.
        """
        # Started last, ended first. A worker that is asked to end waits for its runs, one that waits for approval too.
        server, workers = self._started[:1], self._started[1:]
        for worker in workers:
            _ended(worker, WORKER_END_SECONDS)
        for pid, told in self.processes().items():
            if "prefect.engine" in told or "prefect flow-run execute" in told:
                _killed(pid)
        until = time.monotonic() + QUIET_SECONDS
        while (left := self._left()) and time.monotonic() < until:
            time.sleep(0.1)
        for process in server:
            _ended(process, WORKER_END_SECONDS)
        self.api.close()
        for pid in self.processes():
            _killed(pid)
        return left

    def _left(self) -> list[str]:
        known = {process.pid for process in self._started}
        live = [f"{record['id']} is {record['state']}" for record in self.records() if record["state"] != "released"]
        return live + [f"{pid}: {told}" for pid, told in self.processes().items() if pid not in known]


_LEDGER_ID = "SELECT value FROM meta WHERE key = 'ledger_id'"


def _ended(process: subprocess.Popen[bytes], seconds: float) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _killed(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def prefect_place(*, asks_every: float | None = None) -> Iterator[Place]:
    """A place with the shipped flows registered; at its end nothing of it runs.

    Raises:
        AssertionError: something was left at the end, or did not start.
    """
    # Sockets and pipes in the home have short names only.
    root = Path(tempfile.mkdtemp(prefix="mlw-"))
    here = Place(root)
    left: list[str] = []
    try:
        here.start_server()
        here.does("-m", "mlinfra_prefect", "register", "--pool", POOL, "--create-pool")
        here.start_worker(asks_every=asks_every)
        yield here
    finally:
        left = here.end()
        shutil.rmtree(root, ignore_errors=True)
    assert not left, f"left behind: {left}"
