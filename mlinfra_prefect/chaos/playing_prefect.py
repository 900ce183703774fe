"""How the rows with a real Prefect are played: server, runner or worker, and flow, each of which may be killed.

Nothing here imports Prefect: its server is spoken to over HTTP, and all of it runs in processes of its own.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlinfra_prefect.chaos import judge
from mlinfra_prefect.chaos.place import VICTIM_SECONDS, Place
from mlinfra_prefect.chaos.plan import Plan

FLOW = Path(__file__).with_name("scripts") / "doomed_flow.py"
START_SECONDS = 300.0
OVER = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
POOL = "chaos"


def killed(place: Place, plan: Plan) -> None:
    """A run of a deployment under `flow.serve` or a process worker; parts of it all are killed at a random moment."""
    here = _Prefect(place)
    run = here.start(worker=bool(plan.options["worker"]))
    if run is None:
        return
    # From here on a lease exists, or is about to.
    moment = time.time() + float(plan.options["kill_at"])
    here.wait(lambda: judge.ledger_id(place.home) is not None, START_SECONDS)
    time.sleep(max(0.0, moment - time.time()))
    if plan.options["cancel"]:
        here.ask("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        place.happened("flow run", "cancelled")
        time.sleep(0.5)

    def victims() -> list[judge.Seen]:
        return [seen for role in plan.options["victims"] for seen in here.victims(role, run)]

    here.wait(lambda: bool(victims()), VICTIM_SECONDS)  # a run's process may be between two programs
    place.hit(victims(), "KILL")
    # A flow that lives goes on for as long as it likes; what counts begins when it has ended.
    until = time.time() + START_SECONDS
    # One that has not asked for anything yet may still do so: nothing is gone before something was there.
    while here.victims("flow", run) and not (judge.texts(place.home) and place.is_gone()) and time.time() < until:
        time.sleep(0.1)
        place.wanted_until = time.time()


class _Prefect:
    """A server, and a runner or a worker, of one run."""

    def __init__(self, place: Place) -> None:
        self.place = place
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        place.env |= {
            "CHAOS_PLATFORM": place.platform,
            "PREFECT_HOME": str(place.root / "prefect"), "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }  # fmt: skip

    def start(self, *, worker: bool) -> str | None:
        """Start all of it and one run; returns the run's id, or None where it did not come up."""
        project = self.place.root / "project"
        project.mkdir()
        (project / "pyproject.toml").write_text('[project]\nname = "doomed"\nversion = "0"\n')
        shutil.copy(FLOW, project / "doomed_flow.py")
        self._popen("server", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        if not self.wait(lambda: self.ask("GET", "/health") is not None, START_SECONDS):
            raise TimeoutError("the Prefect server does not answer")
        if worker:
            deployment = self._pooled(project)
        else:
            self._popen("runner", str(project / "doomed_flow.py"), "serve")
            self.wait(lambda: self.ask("GET", "/deployments/name/doomed/served") is not None, START_SECONDS)
            deployment = self.told("GET", "/deployments/name/doomed/served")["id"]
        seconds = self.place.plan.options["seconds"]
        run = self.ask("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": {"seconds": seconds}})
        return None if run is None else str(run["id"])

    def _pooled(self, project: Path) -> str:
        self.ask("POST", "/work_pools/", {"name": POOL, "type": "process"})
        flow = self.told("POST", "/flows/", {"name": "doomed"})["id"]
        pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(project)}}]
        wanted = {"name": "pooled", "flow_id": flow, "entrypoint": "doomed_flow.py:doomed", "work_pool_name": POOL,
                  "pull_steps": pull}  # fmt: skip
        deployment = self.told("POST", "/deployments/", wanted)["id"]
        self._popen("runner", "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process")
        return str(deployment)

    def _popen(self, name: str, *words: str) -> None:
        with (self.place.root / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                [sys.executable, *words], env=self.place.env, cwd=self.place.root, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.place.helpers.append(self.started[name])

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Speak to the server; None where it does not answer well."""
        request = urllib.request.Request(  # noqa: S310 (http, loopback)
            self.api + path, None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"},
            method=method,
        )  # fmt: skip
        with suppress(urllib.error.URLError, OSError, ValueError), urllib.request.urlopen(request, timeout=60) as got:  # noqa: S310
            return json.load(got)
        return None

    def told(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The same of a server that is there: on SQLite it is busy now and then, and is asked again.

        Raises:
            TimeoutError: it never answers well.
        """
        until = time.monotonic() + START_SECONDS
        while (answer := self.ask(method, path, body)) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"the Prefect server does not answer {method} {path}")
            time.sleep(0.5)
        return answer

    @staticmethod
    def wait(what: Callable[[], bool], seconds: float) -> bool:
        """Wait until it is so; False when it never was."""
        until = time.monotonic() + seconds
        while not what():
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def victims(self, role: str, run: str) -> list[judge.Seen]:
        """The living processes of server, runner (or worker) and flow, and those that the place knows."""
        if role == "flow":
            ours = judge.carriers_of("PREFECT_HOME", self.place.env["PREFECT_HOME"])
            return [seen for seen in ours if run in seen.environ.get("PREFECT__FLOW_RUN_ID", "")]
        if role in {"server", "runner"}:
            seen = judge.look(self.started[role].pid)
            return [] if seen is None else [seen]
        return self.place.victims(role)
