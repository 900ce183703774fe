"""The load of the serving rows: clients that ask an endpoint without a pause and count what was not answered."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request

ROW = [5.1, 3.5, 1.4, 0.2]
PAUSE_SECONDS = 0.01
ANSWER_SECONDS = 20.0


class Asker:
    """Ask one endpoint from some threads until it is closed."""

    def __init__(self, url: str, token: str, name: str = "digits", threads: int = 2) -> None:
        self._token = token
        self.url = f"{url}/v2/models/{name}/infer"
        self.asked = 0
        self.failed: list[str] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._over.is_set():
            problem = ask(self.url, self._token)
            with self._lock:
                self.asked += 1
                if problem:
                    self.failed.append(problem)
            time.sleep(PAUSE_SECONDS)

    def close(self) -> None:
        """Stop asking; every question that was asked has its answer, or has failed, by then."""
        self._over.set()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS + 5.0)


def ask(url: str, token: str) -> str:
    """Ask once, with the endpoint's token; returns what went wrong, or nothing."""
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP64", "data": [ROW]}
    body = json.dumps({"id": "1", "inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 (http, loopback)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 (the same)
            return "" if json.load(answer).get("outputs") else "an answer without outputs"
    except urllib.error.HTTPError as error:
        return f"{error}: {error.read()[:200]!r}"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
