"""An endpoint's token: the router, and the servers behind it, refuse whoever does not show it."""

from __future__ import annotations

import json
import os
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from router_harness import Backend, Routed, refusal, running, says

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.local import client, tokens
from mlinfra_prefect.testing.records import sample_endpoint, sample_rollout

if TYPE_CHECKING:
    from conftest import Digits

TOKEN = "a-token-of-the-tests_0123456789~"
SHOWN = f"Bearer {TOKEN}"
WRONG = [
    None, "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer {TOKEN.upper()}", f"Basic {TOKEN}",
    TOKEN, f"Bearer {TOKEN} {TOKEN}", f"Bearer, {TOKEN}", "Bearer ä",
]  # fmt: skip


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, token_file: Path) -> Iterator[tuple[Routed, Backend]]:
    """A router that asks for the token, and what is behind it."""
    server = Backend(says("yes"))
    try:
        with running(tmp_path_factory.mktemp("router"), "--token-file", str(token_file)) as made:
            (made.routes).write_text(json.dumps({
                "schema": "mlinfra-prefect/routes/1", "revision": 1, "name": "churn",
                "versions": [{"version": 1, "share": 100, "urls": [server.url]}],
            }))  # fmt: skip
            threading.Event().wait(0.3)  # it looks every 25 ms, and its state is not to be had without the token
            yield made, server
    finally:
        server.kill()


@pytest.mark.parametrize("shown", WRONG)
def test_a_request_without_the_token_never_reaches_a_server(guarded: tuple[Routed, Backend], shown: str | None) -> None:
    """Missing, cut, longer, another scheme: 401 and how it is done right, on a connection that is then closed."""
    router, server = guarded
    heard = len(server.received)
    named = {} if shown is None else {"Authorization": shown.encode("latin-1")}
    status, body, headers = router.ask(body=b"{}", **named)  # type: ignore[arg-type]
    assert (status, headers["WWW-Authenticate"], headers["Connection"]) == (
        401, 'Bearer realm="mlinfra-prefect"', "close"
    )  # fmt: skip
    assert "Authorization: Bearer TOKEN" in json.loads(body)["error"]
    assert TOKEN not in str(body)
    assert len(server.received) == heard


def test_the_token_opens_it_and_travels_on(guarded: tuple[Routed, Backend]) -> None:
    """The scheme is of any case (RFC 9110); the server behind gets the header, and asks for it, too."""
    router, server = guarded
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert router.ask(body=b"{}", Authorization=f"{scheme} {TOKEN}")[:2] == (200, b"yes")
        assert f"Authorization: {scheme} {TOKEN}".encode() in server.received[-1]
    # Named as of this hop, it travels all the same.
    assert router.ask(body=b"{}", Authorization=SHOWN, Connection="authorization")[0] == 200
    assert SHOWN.encode() in server.received[-1]
    assert TOKEN not in router.log.read_text()


def test_two_tokens_are_two_ways_to_read_a_request(guarded: tuple[Routed, Backend]) -> None:
    """Which of them the server would take is not for the router to guess."""
    router, server = guarded
    heard = len(server.received)
    two = f"Authorization: {SHOWN}\r\nAuthorization: Bearer other\r\n"
    said = router.talk(f"POST /v2/models/churn/infer HTTP/1.1\r\nHost: a\r\n{two}\r\n".encode())
    assert said.startswith(b"HTTP/1.1 400 ")
    assert len(server.received) == heard


@pytest.mark.parametrize("path", ["/mlinfra/health", "/v2/health/live", "/v2/health/ready"])
def test_whether_there_is_life_may_be_asked_by_anybody(guarded: tuple[Routed, Backend], path: str) -> None:
    """Load balancers have no token. To read, that is: with a body, or to write, it takes the token."""
    router, _ = guarded
    assert router.ask("GET", path)[0] == 200
    assert router.ask("POST", path)[0] == 401
    assert router.ask("GET", path, body=b"{}")[0] == 401


@pytest.mark.parametrize(
    "path",
    [
        "/mlinfra/state", "/mlinfra/metrics", "/metrics", "/v2/health/ready/", "/v2/health/ready?a",
        "/v2/health/../models/m", "//v2/health/ready", "/v2/health%2fready", "/mlinfra/health/../state",
        "/MLINFRA/HEALTH", "http://a/v2/health/ready",
    ],
)  # fmt: skip
def test_nothing_else_is_open_however_it_is_spelt(guarded: tuple[Routed, Backend], path: str) -> None:
    """Counters, metadata, and whatever only looks like an open page."""
    router, server = guarded
    heard = len(server.received)
    said = router.talk(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 401 ")
    assert len(server.received) == heard


def test_it_is_refused_before_its_body_is_read(guarded: tuple[Routed, Backend]) -> None:
    """60 MB that are never sent are not waited for, and *100 Continue* is not said."""
    router, _ = guarded
    head = "POST /v2/models/churn/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\nExpect: 100-continue\r\n\r\n"
    assert router.talk(head.encode()).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "content", [b"", b"short", b"two\nlines-that-are-long-enough", b"with blanks in the token", b"\xff" * 20]
)
def test_a_file_without_a_token_is_no_open_door(tmp_path: Path, content: bytes) -> None:
    """The router ends with a sentence that does not quote the file; so it does where there is no file."""
    path = tmp_path / "token"
    path.write_bytes(content)
    code, said = refusal(["--name", "a", "--routes", "r", "--port", "1", "--token-file", str(path)])
    assert (code, "is not one line with a token" in said) == (2, True)
    assert not content or content.decode(errors="replace") not in said
    code, said = refusal(["--name", "a", "--routes", "r", "--port", "1", "--token-file", str(path / "x")])
    assert (code, "cannot be read" in said) == (2, True)


@pytest.mark.slow
def test_a_server_asks_for_it_too(start_server: Callable[..., Any], digits: Digits, token_file: Path) -> None:
    """Past the router nobody gets further than the health pages, KServe's own metrics included."""
    with start_server(digits.directory, "--token-file", str(token_file)) as running_server:
        running_server.wait_ready()
        url = running_server.url
        assert (
            client.infer(url, "digits", digits.examples[:3], token=TOKEN)
            == digits.model.predict(digits.examples[:3]).tolist()
        )
        for token in (None, TOKEN[:-1], f"{TOKEN}x", ""):
            with pytest.raises(InvalidInput, match=r"^token: .*endpoints --token"):
                client.infer(url, "digits", digits.examples[:1], token=token)
        for page, status in {
            "/metrics": 401,
            "/v2": 401,
            "/v2/models/digits": 401,
            "/openapi.json": 401,
            "/v2/health/ready": 200,
        }.items():
            assert _status(f"{url}{page}") == status, page
        assert TOKEN not in running_server.log.read_text()
        command = Path(f"/proc/{running_server.process.pid}/cmdline").read_bytes()
        assert TOKEN.encode() not in command


def _status(url: str) -> int:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_token_is_made_once_and_is_its_owner_s_alone(tmp_path: Path) -> None:
    """Many at once agree on one, whatever the umask; nothing else is left beside it."""
    path = tmp_path / "e1" / "token"
    before = os.umask(0)
    try:
        threads = [threading.Thread(target=tokens.ensure, args=(path,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(before)
    made = tokens.read(path)
    assert made is not None
    assert len(made) >= 43
    tokens.ensure(path)
    assert tokens.read(path) == made
    assert [each.name for each in path.parent.iterdir()] == ["token"]
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)


def test_a_rollout_has_its_endpoint_s_token_and_an_open_endpoint_none(tmp_path: Path) -> None:
    """So a new version's servers let the old one's clients in."""
    endpoint, rollout = sample_endpoint(), sample_rollout()
    expected = tmp_path / endpoint.id / "token"
    assert tokens.token_file(endpoint, tmp_path / endpoint.id) == expected
    assert tokens.token_file(rollout, tmp_path / rollout.id) == expected
    for auth in ("none", None):
        opened = endpoint.revised(serving=endpoint.serving.revised(auth=auth))
        assert tokens.token_file(opened, tmp_path / endpoint.id) is None
