"""Clients that ask an endpoint all the time, and what the rollout tests look at: shares, versions, receipts."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import keeper_judge as judge
from keeper_harness import House

INSTALLATION_SECONDS = 240.0
"""The first one on a fresh machine also makes the server's environment."""
ROW = [5.1, 3.5, 1.4, 0.2]


class Asker:
    """Clients that ask an endpoint without a pause, and count what was not answered."""

    def __init__(self, house: House, url: str, name: str = "digits", threads: int = 2) -> None:
        self.url = f"{url}/v2/models/{name}/infer"
        self.headers = {"Content-Type": "application/json", **shown(house, url)}
        self.asked, self.failed, self.versions = 0, [], {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        tensor = {"name": "input", "shape": [1, 4], "datatype": "FP64", "data": [ROW]}
        body = json.dumps({"id": "1", "inputs": [tensor]}).encode()
        while not self._over.is_set():
            request = urllib.request.Request(self.url, body, self.headers)
            problem, version = None, None
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    version = answer.headers["Mlinfra-Version"]
                    assert json.load(answer)["outputs"]
            except (OSError, AssertionError) as error:
                problem = (
                    f"{error}: {error.read()[:200]!r}" if isinstance(error, urllib.error.HTTPError) else str(error)
                )
            with self._lock:
                self.asked += 1
                self.versions[version] = self.versions.get(version, 0) + 1
                if problem is not None:
                    self.failed.append(problem)
            time.sleep(0.005)

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def all_answered(self, at_least: int = 20) -> None:
        """End, and judge."""
        self.close()
        assert not self.failed, (len(self.failed), self.asked, self.failed[:3])
        assert self.asked >= at_least, self.asked


def shown(house: House, url: str) -> dict[str, str]:
    """The header with the token of the endpoint behind a URL, read from its file."""
    records = judge.records(house.home).values()
    (endpoint,) = [each["id"] for each in records if each.get("url") == url and each["state"] != "released"]
    return {"Authorization": f"Bearer {(house.home / 'work' / endpoint / 'token').read_text().strip()}"}


def page(house: House, url: str) -> urllib.request.Request:
    return urllib.request.Request(f"{url}/mlinfra/state", headers=shown(house, url))


def versions(house: House, endpoint: str) -> dict[int, tuple[str, int]]:
    return {each["version"]: (each["state"], each["share"]) for each in house.record(endpoint)["versions"]}


def served(house: House, endpoint: str) -> dict[int, int]:
    with urllib.request.urlopen(page(house, house.record(endpoint)["url"]), timeout=5) as answer:
        return {each["version"]: each["share"] for each in json.load(answer)["versions"] if each["share"]}


def standing(house: House, source: Path, **options: Any) -> dict[str, Any]:
    """Deploy version 1 in a client that ends; returns what it said of it."""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return house.runs(f"deploy(model({str(source)!r}){given})", patience=INSTALLATION_SECONDS).hears("deployed")


def give_back(house: House, endpoint: str) -> dict[str, Any]:
    return house.runs(f"give_back(context.record({endpoint!r}))").hears("released")["receipt"]
