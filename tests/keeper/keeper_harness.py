"""A house for one test: a home of its own, clients as processes of their own, Terraform with handles, and a judge."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keeper_judge as judge

from mlinfra_prefect.keeper.starting import watcher_argv
from mlinfra_prefect.model.home import Home

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or HERE.parents[1] / ".cache")
PATIENCE = 60.0
"""Seconds after which something that should have happened will not."""

PRELUDE = """
import sys
sys.path.insert(0, {here!r})
from keeper_client import *
"""

WRAPPER = """#!/bin/sh
# Terraform with handles: files in one directory make a command fail, or hold it before it begins.
place={place}
if [ "$1" != version ]; then
    echo "$1 $$" >> "$place/calls"
    if [ -e "$place/hold-$1" ]; then
        echo $$ > "$place/held-$1"
        while [ -e "$place/hold-$1" ]; do sleep 0.05; done
    fi
    if [ -e "$place/fail-$1" ]; then echo "made to fail" >&2; exit 1; fi
fi
exec {engine} "$@"
"""


class Client:
    """A client process. What it says arrives as events."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self.errors = errors
        self.events: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                with contextlib.suppress(ValueError):
                    self.events.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def hears(self, what: str, seconds: float = PATIENCE, **values: Any) -> dict[str, Any]:
        """Wait until the client says something."""
        until = time.monotonic() + seconds

        def found() -> dict[str, Any] | None:
            for event in self.events:
                if event["what"] == what and all(event.get(name) == value for name, value in values.items()):
                    return event
            return None

        with self._news:
            while found() is None:
                left = until - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    raise AssertionError(f"never heard {what!r}: {self.events}\n{self.errors.read_text()}")
                self._news.wait(min(left, 0.5))
        event = found()
        assert event is not None
        return event

    def kill(self) -> float:
        """SIGKILL it; returns the moment."""
        moment = time.time()
        self.process.kill()
        self.process.wait()
        return moment

    def close(self) -> None:
        """Let go of what it said."""
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def ends(self, seconds: float = PATIENCE) -> int:
        """Wait for its end; returns its exit code."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code


class House:
    """One home, and everything that a test needs to disturb it."""

    def __init__(self, home: Path, cache: Path, engine: str) -> None:
        self.home = home
        self.handles = home.with_name(home.name + ".t")
        self.handles.mkdir()
        wrapper = self.handles / "terraform"
        wrapper.write_text(WRAPPER.format(place=self.handles, engine=engine))
        wrapper.chmod(0o700)
        passed = {name: value for name, value in os.environ.items() if not name.startswith(("MLINFRA_", "PREFECT_"))}
        self.env = {
            **passed,
            "MLINFRA_HOME": str(home),
            "MLINFRA_CACHE": str(cache),
            "MLINFRA_TERRAFORM": str(wrapper),
            "MLINFRA_KEEPER_PLACE": "process",
            "TMPDIR": str(self.handles),  # and with it the Terraform slots: other tests do not take them
        }
        self.clients: list[Client] = []

    # --- clients -----------------------------------------------------------------------------------------------------

    def client(self, body: str, **env: str) -> Client:
        """Start a client process."""
        number = len(self.clients)
        script = self.handles / f"client-{number}.py"
        script.write_text(PRELUDE.format(here=str(HERE)) + textwrap.dedent(body))
        errors = self.handles / f"client-{number}.err"
        with errors.open("w") as sink:
            process = subprocess.Popen(
                [sys.executable, str(script)], env={**self.env, **env}, cwd=self.handles, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink,
            )  # fmt: skip
        client = Client(process, errors)
        self.clients.append(client)
        return client

    def runs(self, body: str, *, patience: float = PATIENCE, **env: str) -> Client:
        """Run a client to its good end."""
        client = self.client(body, **env)
        code = client.ends(patience)
        assert code == 0, client.errors.read_text()
        return client

    def reap(self, settle: float = 60.0) -> dict[str, dict[str, str]]:
        """One pass of the reaper in a process of its own: id to reason, for each list."""
        body = f"""
            from mlinfra_prefect.keeper.reap import as_json, reap
            say("reaped", **as_json(reap(context, settle_seconds={settle})))
        """
        found = self.runs(body).hears("reaped")
        return {name: {e["id"]: e["reason"] for e in found[name]} for name in ("released", "stuck", "skipped")}

    # --- a keeper service --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def service(self, *options: str, contained: bool | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A keeper service of this home, once it watches; told to end with SIGTERM, it must end well.

        `contained`: as in a container, or as on a host; None: as the command line finds it here.
        """
        argv, env = [sys.executable, "-m", "mlinfra_prefect", "keeper", *options], {}
        if contained is not None:
            self.runs("say('ledger', id=context.ledger.ledger_id)")  # the home and its ledger
            waits = ["--wait-for-operations"] if contained else []
            argv = [*watcher_argv(Home(self.home), "service"), *waits, *options]
            env = {
                "MLINFRA_KEEPER_PLACE": "service",
                "PYTHONPATH": str(HERE.parents[1]),
                "MLINFRA_LEDGER_ID": str(judge.ledger_id(self.home)),
            }
        with (self.handles / "client-service.err").open("ab") as sink:
            process = subprocess.Popen(
                argv, env={**self.env, **env}, cwd=self.handles, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )
        try:
            told = self.home / "keeper" / "watch.json"
            self.until(
                lambda: told.exists() and json.loads(told.read_text())["pid"] == process.pid, "the service watches"
            )
            yield process
            if process.poll() is None:
                process.terminate()
                assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()

    def says(self, *words: str) -> str:
        """What the command line prints."""
        argv = [sys.executable, "-m", "mlinfra_prefect", *words]
        done = subprocess.run(argv, env=self.env, cwd=self.handles, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def checks(self) -> tuple[int, str]:
        """What a liveness probe gets: exit code and words."""
        argv = [sys.executable, "-m", "mlinfra_prefect", "keeper", "--check"]
        done = subprocess.run(argv, env=self.env, cwd=self.handles, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    # --- Terraform's handles -----------------------------------------------------------------------------------------

    def hold(self, command: str) -> None:
        """Hold a Terraform command before it begins, from now on."""
        (self.handles / f"hold-{command}").touch()

    def held(self, command: str) -> int:
        """Wait until a command is held; its pid."""
        path = self.handles / f"held-{command}"
        self.until(lambda: path.exists() and path.read_text().strip(), f"{command} is held")
        return int(path.read_text())

    def let(self, command: str) -> None:
        """Let it go on."""
        (self.handles / f"hold-{command}").unlink()

    def fail(self, command: str, fails: bool = True) -> None:
        """Make a Terraform command fail, or work again."""
        path = self.handles / f"fail-{command}"
        path.touch() if fails else path.unlink()

    def calls(self, command: str) -> int:
        """How often Terraform was asked for a command."""
        path = self.handles / "calls"
        return sum(line.split()[0] == command for line in path.read_text().splitlines()) if path.exists() else 0

    # --- what there is -----------------------------------------------------------------------------------------------

    def record(self, record_id: str) -> dict[str, Any]:
        return judge.records(self.home)[record_id]

    def history(self, record_id: str) -> list[dict[str, Any]]:
        return judge.history(self.home, record_id)

    def processes(self, *words: str, lease: str | None = None) -> list[judge.Seen]:
        """Processes that carry this ledger's id, whose command line has all the words."""
        seen = judge.carriers(judge.ledger_id(self.home))
        return [
            each
            for each in seen
            if all(any(word in argument for argument in each.argv) for word in words)
            and (lease is None or each.lease == lease)
        ]

    def watcher(self) -> int:
        """The pid of the watcher: one, but for a moment in which another one was started beside it and is leaving."""
        return self.until(
            lambda: found[0].pid if len(found := self.processes("watch.py")) == 1 else None, "one watcher"
        )

    def kill_keeper(self, *, operations: bool = False) -> None:
        """SIGKILL the watcher, and what it has spawned."""
        ended = self.processes("watch.py") + (self.processes("mlinfra_prefect.keeper") if operations else [])
        assert ended
        for seen in ended:
            judge.end(seen)
        self.until(lambda: not any(seen in ended for seen in self.processes()), "the keeper is gone")

    def until(self, condition: Any, what: str, seconds: float = PATIENCE) -> Any:
        """Wait until something holds; returns what it is."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > until:
                raise AssertionError(f"never: {what}\n{self.words()}")
            time.sleep(0.02)
        return found

    def becomes(self, record_id: str, state: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait until a record is in a state."""
        self.until(lambda: self.record(record_id)["state"] == state, f"{record_id} is {state}", seconds)
        return self.record(record_id)

    def began_release(self, record_id: str) -> float:
        """The moment (epoch seconds) at which the release of a record began."""
        from datetime import datetime

        line = next(each for each in self.history(record_id) if each["state"] == "releasing")
        return datetime.fromisoformat(line["time"]).timestamp()

    def words(self) -> str:
        """Everything that helps to see why a test failed."""
        parts = []
        with contextlib.suppress(Exception):
            for record_id, record in judge.records(self.home).items():
                parts.append(f"{record_id}: {record['state']} {record['reason']}")
                parts += [
                    f"  {e['time'][11:23]} g{e['generation']} {e['state']}: {e['reason']}"
                    for e in self.history(record_id)
                ]
        for log in (*self.home.glob("keeper/*.log"), *self.handles.glob("client-*.err")):
            parts.append(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        parts += [str(seen) for seen in judge.carriers(judge.ledger_id(self.home))]
        return "\n".join(parts)

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self, *, strict: bool) -> list[str]:
        """End everything of this test; what the judge finds is the answer."""
        for handle in self.handles.glob("hold-*"):
            handle.unlink()
        for client in self.clients:
            if client.process.poll() is None:
                client.process.send_signal(signal.SIGCONT)
                client.kill()
            client.close()
        problems, words = (judge.verdict(self.home), self.words()) if strict else ([], "")
        for seen in judge.carriers(judge.ledger_id(self.home)):
            judge.end(seen)
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.handles, ignore_errors=True)
        return [*problems, words] if problems else []
