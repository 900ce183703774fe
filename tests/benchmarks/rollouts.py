"""Version changes of a served model: how fast the first request goes to the new one, and whether any is lost.

A small real model is deployed twice, and the two live versions take turns while clients ask without a pause. Every
answer says which version gave it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from functools import partial
from importlib import metadata
from typing import Any

from mlinfra_prefect.artifacts import Lineage
from mlinfra_prefect.keeper import rollouts
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.serving import ask_to_serve
from mlinfra_prefect.local.client import bearer
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import Client
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import ServingRequest
from tests.benchmarks.homes import bench
from tests.benchmarks.lines import Line
from tests.benchmarks.side_by_side import Effort

CLIENTS = 3
NAME = "iris"
BODY = json.dumps({
    "id": "1", "inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP64", "data": [[5.1, 3.5, 1.4, 0.2]]}],
}).encode()  # fmt: skip


def changes(effort: Effort) -> list[Line]:
    """Version changes under load."""
    with bench() as here:
        context = here.context
        url = deployed(context)
        endpoint = context.endpoint(NAME)
        load = Load(url, bearer(context.platform(endpoint.platform).token(endpoint)))
        seconds = []
        try:
            for number in range(effort.rounds):
                version = 1 + number % 2
                began = time.monotonic()
                rollouts.promote(context, context.endpoint(NAME), version, reason="a benchmark")
                promoted = time.monotonic()
                seconds.append(load.first_of(version, since=began) - began)
                time.sleep(max(0.0, 0.2 - (time.monotonic() - promoted)))
        finally:
            asked, lost = load.end()
    return [
        Line("promote to first request on the new version", "s", tuple(seconds), made_of=f"{CLIENTS} clients ask"),
        Line("requests lost over the version changes", "n", (float(lost),), aim=0.0, made_of=f"of {asked} requests"),
    ]


class Load:
    """Clients that ask all the time, and what became of it."""

    def __init__(self, url: str, shown: dict[str, str]) -> None:
        self._headers = {"Content-Type": "application/json", **shown}
        self._address = url.removeprefix("http://")
        self._over = threading.Event()
        self._news = threading.Condition()
        self._last: dict[int, float] = {}
        self.asked = self.lost = 0
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        line = http.client.HTTPConnection(self._address, timeout=30)
        while not self._over.is_set():
            sent = time.monotonic()
            version = 0
            try:
                line.request("POST", f"/v2/models/{NAME}/infer", BODY, self._headers)
                answer = line.getresponse()
                answer.read()
                version = int(answer.headers["Mlinfra-Version"]) if answer.status == 200 else 0
            except (OSError, http.client.HTTPException):
                line.close()
            with self._news:
                self.asked += 1
                self.lost += version == 0
                self._last[version] = sent
                self._news.notify_all()
        line.close()

    def first_of(self, version: int, *, since: float) -> float:
        """Wait for an answer of a version to a request sent after a moment; returns when it was sent."""
        with self._news:
            assert self._news.wait_for(lambda: self._last.get(version, 0.0) > since, timeout=30)
            return time.monotonic()

    def end(self) -> tuple[int, int]:
        """Stop asking; returns how many requests were sent, and how many were lost."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        return self.asked, self.lost


def deployed(context: Context) -> str:
    """Deploy the same model twice, both versions kept; returns the URL."""
    model = _model(context)
    serving = ServingRequest(name=NAME, retire_seconds=3600, expires_minutes=30)
    owner, client = Owner(user="bench", host="here"), Client(kind="process", process=identify())
    for _ in range(2):
        ask = partial(ask_to_serve, context, model, serving, owner=owner, client=client)
        rollouts.wait_rolled(context, rollouts.begin(context, ask).rollout)
    return context.endpoint(NAME).url


def _model(context: Context) -> ModelArtifact:
    import skops.io
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    incoming = context.artifacts.incoming("l0-1", f"j{time.time_ns()}")
    (incoming / "files").mkdir(parents=True)
    path = incoming / "files" / "model.skops"
    skops.io.dump(LogisticRegression(max_iter=200).fit(*load_iris(return_X_y=True)), path)
    content = path.read_bytes()
    entry = {"path": path.name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    manifest: dict[str, Any] = {"files": [entry], "metrics": {}, "draft": {"format": "sklearn-skops"}}
    (incoming / "manifest.json").write_text(json.dumps(manifest))
    versions = {name: metadata.version(name) for name in ("numpy", "scikit-learn", "scipy", "skops")}
    lineage = Lineage(
        name="iris", lease_id="l0-1", environment="dev", code_hash="c", request_hash="r", environment_hash="e",
        versions=versions,
    )  # fmt: skip
    return context.artifacts.commit(incoming, lineage)
