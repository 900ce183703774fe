"""`doctor` and Prefect's API: it warns where a stranger may start runs, and raises no false alarm."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

from mlinfra_prefect.cli import prefect_api as asking
from mlinfra_prefect.integration.deployments import OPEN_VARIABLES, locked_template

OPEN = {"job_configuration": {}, "variables": {"properties": {"command": {}, "env": {}, "labels": {}}}}


class Api(socketserver.ThreadingTCPServer):
    """What answers at the API's address."""

    status = 200
    pools: Any = ()
    asked: list[dict[str, str]]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.asked.append(dict(self.headers))
        body = json.dumps(list(self.server.pools)).encode()
        self.send_response(self.server.status if self.path == "/api/work_pools/filter" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_address[1]}/api",
                                 PREFECT_API_KEY: "a-key-that-a-stranger-has-not"}):  # fmt: skip
            yield server
        server.shutdown()
        thread.join()


def test_it_is_asked_as_a_stranger_would_ask(api: Api) -> None:
    """Without the key that this user has: it would prove nothing, and goes to nobody."""
    assert [status for status, *_ in asking.prefect_api()] == ["OK"]
    assert "a-key" not in str(api.asked)


@pytest.mark.parametrize("status", [401, 403])
def test_an_api_that_refuses_strangers_is_good(api: Api, status: int) -> None:
    """Whatever its pools are like."""
    api.status, api.pools = status, [{"name": "a", "type": "process", "base_job_template": OPEN}]
    assert [status for status, *_ in asking.prefect_api()] == ["OK"]


def test_beyond_loopback_an_open_api_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is whoever reaches it who may start runs."""
    monkeypatch.setattr(asking, "_asked", lambda _: [])
    with temporary_settings({PREFECT_API_URL: "http://10.1.2.3:4200/api"}):
        ((status, message, next_step),) = asking.prefect_api()
    assert (status, "not on loopback" in message, "PREFECT_SERVER_API_AUTH_STRING" in next_step) == ("WARN", True, True)


def test_open_process_pools_are_named_and_locked_ones_are_not(api: Api) -> None:
    """What `register --create-pool` makes is locked; other types of pools have other keys."""
    api.pools = [
        {"name": "open", "type": "process", "base_job_template": OPEN},
        {"name": "ours", "type": "process", "base_job_template": locked_template()},
        {"name": "elsewhere", "type": "docker", "base_job_template": OPEN},
    ]
    (first, warned) = asking.prefect_api()
    assert (first[0], warned[0]) == ("OK", "WARN")
    assert "'open' takes command and env" in warned[1]
    assert asking.OPEN_VARIABLES == OPEN_VARIABLES


@pytest.mark.parametrize(
    "url", ["https://api.prefect.cloud/api/accounts/a/workspaces/b", "https://x.prefect.cloud/api"]
)
def test_prefect_cloud_is_not_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks everybody who they are; a look-alike is no Cloud."""
    monkeypatch.setattr(asking, "_asked", lambda _: pytest.fail("it was asked"))
    with temporary_settings({PREFECT_API_URL: url}):
        assert [status for status, *_ in asking.prefect_api()] == ["OK"]
    monkeypatch.setattr(asking, "_asked", lambda _: [])
    with temporary_settings({PREFECT_API_URL: "https://api.prefect.cloud.example.org/api"}):
        assert [status for status, *_ in asking.prefect_api()] == ["WARN"]


def test_no_server_and_a_silent_one_are_told_apart(api: Api) -> None:
    """Unset is fine; an address where nobody answers is a warning, within seconds."""
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert [status for status, *_ in asking.prefect_api()] == ["OK"]
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        ((status, message, _),) = asking.prefect_api()
    assert (status, "does not answer" in message) == ("WARN", True)
    api.pools, api.status = [], 500
    assert [status for status, *_ in asking.prefect_api()] == ["WARN"]
