"""The local router: shares, swaps and dying servers under load, and messages that pass byte for byte."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from hypothesis import given, strategies as st
from router_harness import (
    NAME,
    PATIENCE,
    PLAIN,
    Backend,
    Routed,
    free_port,
    plain,
    refusal,
    running,
    says,
    some,
    until,
)

from mlinfra_prefect.local import router
from mlinfra_prefect.local.router import (
    Body,
    Demand,
    Malformed,
    Picker,
    Scale,
    Table,
    Version,
    parse_fields,
    parse_routes,
    quantile,
)


@pytest.fixture
def backend() -> Iterator[Callable[..., Backend]]:
    """Start backends that end with the test."""
    with ExitStack() as stack:

        def start(*arguments: Any, **more: Any) -> Backend:
            made = Backend(*arguments, **more)
            stack.callback(made.kill)
            return made

        yield start


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[Routed]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Routed, Backend]]:
    """A router that many refusals are asked of, and the server that never hears of them."""
    server = Backend()
    try:
        with running(tmp_path_factory.mktemp("router")) as made:
            made.route((1, 100, [server.url]))
            yield made, server
    finally:
        server.kill()


class Load:
    """Clients that ask without a pause, on connections that they keep; what failed, and who answered."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self.port = port
        self.failed: list[str] = []
        self.answers: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            while not self._over.is_set():
                try:
                    connection.request("POST", "/v2/models/churn/infer", b"{}")
                    answer = connection.getresponse()
                    said = answer.read().decode()
                    if answer.status != 200:
                        self.failed.append(f"{answer.status}: {said}")
                    self.answers[said] += 1
                except (OSError, http.client.HTTPException) as error:
                    self.failed.append(repr(error))
                    connection.close()
                time.sleep(0.001)

    def more(self, count: int = 20) -> None:
        """Wait until so many more were answered."""
        wanted = self.answers.total() + count
        until(lambda: self.answers.total() >= wanted, f"{count} more answers; failed: {self.failed[:3]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)


class Gate:
    """A behaviour that answers when it is told to."""

    def __init__(self, answer: bytes = PLAIN) -> None:
        self.answer, self.opened = answer, threading.Event()

    def __call__(self, connection: socket.socket, _: bytes) -> bool:
        self.opened.wait(PATIENCE)
        connection.sendall(self.answer)
        return True


# --- shares ----------------------------------------------------------------------------------------------------------


def test_of_a_hundred_requests_each_version_gets_exactly_its_share(routed: Routed, backend: Any) -> None:
    """And its replicas take turns."""
    one, two, three = backend(says("one")), backend(says("two")), backend(says("three"))
    routed.route((1, 90, [one.url]), (2, 10, [two.url, three.url]))
    told = [routed.ask() for _ in range(100)]
    assert Counter(body for _, body, _ in told) == {b"one": 90, b"two": 5, b"three": 5}
    assert Counter(headers["Mlinfra-Version"] for _, _, headers in told) == {"1": 90, "2": 10}
    assert [each["requests"] for each in routed.state()["versions"]] == [90, 10]


@pytest.mark.parametrize("share", [1, 10, 33, 50, 90])
def test_small_counts_are_near_the_shares_too(share: int) -> None:
    """Any stretch of a turn is within one request of the share; random picks would not be."""
    picker = Picker(Table(1, (Version(1, 100 - share, ("a",)), Version(2, share, ("b",)))))
    picked = [found[0].version for _ in range(300) if (found := picker.pick(None))]
    for count in range(1, 300):
        assert abs(picked[:count].count(2) - count * share / 100) <= 1


def test_a_request_that_names_a_version_gets_it_whatever_its_share(routed: Routed, backend: Any) -> None:
    """As a probe asks a version without a share; one without a route is a 404, and no other answers for it."""
    one, two = backend(says("one")), backend(says("two"))
    routed.route((1, 100, [one.url]), (2, 0, [two.url]))
    assert routed.ask(Mlinfra_Version="2")[1] == b"two"
    for unknown in ("3", "two", "-1"):
        status, body, _ = routed.ask(Mlinfra_Version=unknown)
        assert status == 404
        assert json.loads(body)["error"] == f"Endpoint 'churn' has no version {unknown!r}; it has 1, 2."
    two.kill()
    status, body, headers = routed.ask(Mlinfra_Version="2")
    assert (status, headers["Mlinfra-Version"], headers["Retry-After"]) == (503, "2", "1")
    assert "the last was version 2: it cannot be reached" in json.loads(body)["error"]
    assert len(one.received) == 0
    assert routed.version(2)["errors"] == 1


def test_without_versions_it_is_healthy_and_asks_to_come_back(routed: Routed) -> None:
    """The routes file is not even there."""
    assert routed.page("/mlinfra/health")[0] == 200
    for path in ("/v2/health/ready", "/v2/models/churn/infer"):
        status, body, headers = routed.ask("GET", path)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert json.loads(body)["error"] == "Endpoint 'churn' has no server yet; ask again soon."
    told = routed.state()
    assert (told["revision"], told["versions"]) == (0, [])
    assert "cannot be read (No such file or directory)" in told["problem"]
    routed.route()
    assert routed.state()["problem"] is None


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_servers_come_at_once_and_go_when_fewer_sufficed_for_as_long_as_was_said() -> None:
    """What is in flight is averaged over seconds: one busy moment is not a load, and one idle moment no rest."""
    demand = Demand(Scale(1, 3, 2.0, "/f"), 1, 0.0, 30.0)
    assert [demand.judge(8.0, now) for now in (1.0, 2.0)] == [2, 3]
    assert demand.judge(100.0, 3.0) == 3
    falls = {now: demand.judge(0.0, now) for now in range(4, 60)}
    assert [falls[now] for now in (4, 32, 59)] == [3, 3, 1]
    needed_last = max(now for now, wanted in falls.items() if wanted == 3) - 29
    assert 3 <= needed_last <= 9  # the average of what came at 3 s has fallen below two servers' worth soon
    once = Demand(Scale(1, 3, 4.0, "/f"), 1, 0.0, 30.0)
    assert once.judge(8.0, 1.0) == 1


@given(
    loads=st.lists(st.floats(0, 50), min_size=1, max_size=40),
    began=st.integers(1, 4),
    patience=st.integers(0, 12),
)
def test_what_is_wanted_is_the_most_that_was_needed_lately(loads: list[float], began: int, patience: int) -> None:
    """And never outside the bounds; the servers that were there at the beginning count as needed then."""
    scale = Scale(1, 4, 3.0, "/f")
    demand, average, needed = Demand(scale, began, 0.0, patience), 0.0, [(0, began)]
    for now, load in enumerate(loads, start=1):
        average += router.LOAD_WEIGHT * (load - average)
        needed.append((now, min(max(-int(-average // scale.target), 1), 4)))
        recent = [count for moment, count in needed if moment > now - patience or moment == now]
        assert demand.judge(load, float(now)) == max(recent)


class Fleet:
    """Servers that follow the file as the agent does: each needs a moment to come, and is ended at once."""

    def __init__(self, place: Path, most: int, behave: Callable[[socket.socket, bytes], bool]) -> None:
        self.file = place / "replicas.json"
        self.ports = [free_port() for _ in range(most)]
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.behave = behave
        self.servers: dict[int, Backend] = {}
        self.ended: list[Backend] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.start(0)

    def scale(self, target: float) -> dict[str, Any]:
        return {"least": 1, "most": len(self.ports), "target": target, "file": str(self.file)}

    def versions(self, target: float) -> list[dict[str, Any]]:
        return [{"version": 1, "share": 100, "urls": self.urls, "scale": self.scale(target)}]

    def start(self, index: int) -> Backend:
        self.servers[index] = Backend(self.behave, self.ports[index])
        return self.servers[index]

    def asked(self) -> int:
        return json.loads(self.file.read_text())["replicas"] if self.file.exists() else 1

    def _follow(self) -> None:
        while not self._over.wait(0.02):
            asked = self.asked()
            for index in range(len(self.ports)):
                if index < asked and index not in self.servers:
                    self._over.wait(0.3)
                    self.start(index)
                elif index >= asked and index in self.servers:
                    self.ended.append(self.servers.pop(index))
                    self.ended[-1].kill()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE)
        for server in self.servers.values():
            server.kill()


def works(connection: socket.socket, request: bytes) -> bool:
    """A model that takes 20 ms, and is ready in none."""
    if request.startswith(b"POST"):
        time.sleep(0.02)
    connection.sendall(PLAIN)
    return True


def predicted(server: Backend) -> int:
    return sum(request.startswith(b"POST") for request in tuple(server.received))


def test_scaling_from_one_to_three_and_back_under_load_fails_and_retries_no_request(tmp_path: Path) -> None:
    """A server gets its first request when it is ready, and its last one before it is told to end."""
    fleet = Fleet(tmp_path, 3, works)
    with fleet, running(tmp_path, "--down-seconds", "0.5") as routed:
        routed.write(versions=fleet.versions(1.5))
        until(lambda: routed.state()["revision"] == 1, "the routes")
        with Load(routed.port, clients=1) as light:
            with Load(routed.port, clients=6) as heavy:
                until(lambda: routed.version(1)["replicas"] == 3, "three serve")
                assert fleet.asked() == routed.version(1)["wanted"] == 3
                assert oct(fleet.file.stat().st_mode & 0o777) == "0o600"
                heavy.more(100)
                assert all(predicted(server) > 10 for server in fleet.servers.values())
            until(lambda: len(fleet.ended) == 2, "two are ended again")
            told = routed.version(1)
            assert (told["replicas"], told["wanted"], told["urls"]) == (1, 1, fleet.urls[:1])
            light.more()
        told = routed.version(1)
    assert heavy.failed == light.failed == []
    assert (told["errors"], told["client_errors"], told["retried"]) == (0, 0, 0)
    assert [path.name for path in tmp_path.glob("replicas*")] == ["replicas.json"]


def test_a_server_is_given_up_only_when_nothing_is_in_flight_there(tmp_path: Path) -> None:
    """A router that begins where another ended finds the servers that run, and uses them."""
    gate = Gate(says("late"))
    fleet = Fleet(tmp_path, 2, works)
    fleet.file.write_text('{"replicas": 2}')
    fleet.behave = lambda line, request: gate(line, request) if request.startswith(b"POST") else works(line, request)
    with fleet, running(tmp_path, "--down-seconds", "2") as routed, ThreadPoolExecutor() as pool:
        routed.write(versions=fleet.versions(4))
        until(lambda: routed.state()["versions"], "the routes")
        until(lambda: routed.version(1)["replicas"] == 2, "both are found")
        asked = [pool.submit(routed.ask) for _ in range(2)]
        until(lambda: predicted(fleet.servers[1]) == 1, "one waits at the second server")
        until(lambda: routed.version(1)["replicas"] == 1, "the second gets no requests any more")
        time.sleep(3 * router.STEP_SECONDS)
        assert fleet.asked() == 2
        gate.opened.set()
        assert sorted(each.result(PATIENCE)[0] for each in asked) == [200, 200]
        until(lambda: len(fleet.ended) == 1, "it is ended")
        assert routed.version(1)["retried"] == 0


def test_a_server_that_was_given_up_must_be_gone_before_another_is_asked_for(tmp_path: Path) -> None:
    """It would say that it is ready until it ends, and take requests with it."""
    fleet = Fleet(tmp_path, 2, works)  # nobody follows its file
    dying = fleet.start(1)
    try:
        with running(tmp_path) as routed:
            routed.write(versions=fleet.versions(0.5))
            until(lambda: routed.state()["versions"], "the routes")
            with Load(routed.port) as load:
                until(lambda: routed.version(1)["wanted"] == 2, "two are wanted")
                time.sleep(3 * router.STEP_SECONDS)
                assert (fleet.asked(), routed.version(1)["replicas"], predicted(dying)) == (1, 1, 0)
                dying.kill()
                until(lambda: fleet.asked() == 2, "another is asked for")
                assert routed.version(1)["replicas"] == 1
                fleet.start(1)
                until(lambda: routed.version(1)["replicas"] == 2, "it serves")
            assert routed.version(1)["retried"] == 0
        assert load.failed == []
    finally:
        for server in fleet.servers.values():
            server.kill()


def test_a_file_that_cannot_be_written_is_told_once_and_requests_go_on(tmp_path: Path) -> None:
    """Its directory is gone, or the disk is full."""
    fleet = Fleet(tmp_path / "gone", 2, works)
    try:
        with running(tmp_path) as routed:
            routed.write(versions=fleet.versions(0.5))
            until(lambda: routed.state()["versions"], "the routes")
            with Load(routed.port) as load:
                until(lambda: "cannot be written" in routed.log.read_text(), "it is told")
                load.more()
            assert load.failed == []
            assert routed.version(1)["replicas"] == 1
            assert routed.log.read_text().count("cannot be written") == 1
    finally:
        fleet.servers[0].kill()


# --- changes under load ----------------------------------------------------------------------------------------------


def test_twenty_swaps_under_load_fail_no_request(routed: Routed, backend: Any) -> None:
    """Each time the old server is killed as soon as nothing is in flight to it; after the swap it gets no request."""
    old = backend(says("0"))
    routed.route((1, 100, [old.url]))
    with Load(routed.port) as load:
        load.more()
        for number in range(2, 22):
            new = backend(says(str(number)))
            routed.route((number - 1, 90, [old.url]), (number, 10, [new.url]))
            load.more(10)
            routed.route((number, 100, [new.url]))
            until(lambda: not routed.state()["gone"], "the old version is idle")
            got = len(old.received)
            load.more(10)
            assert len(old.received) == got
            until(lambda gone=old: not gone.open, "its connections are closed")
            old.kill()
            old = new
    assert load.failed == []
    assert load.answers["21"] >= 10


def test_a_killed_server_fails_no_request_while_another_lives(routed: Routed, backend: Any) -> None:
    """First a replica of two, then the whole version; its tries count as retried, and the answers as the other's."""
    one, two, three = backend(says("one")), backend(says("two")), backend(says("three"))
    routed.route((1, 50, [one.url, two.url]), (2, 50, [three.url]))
    with Load(routed.port) as load:
        load.more()
        one.kill()
        load.more(50)
        two.kill()
        load.more(50)
        routed.write((1, 50, [one.url, two.url]), (2, 50, [three.url]))
    assert load.failed == []
    told = routed.version(1)
    assert told["retried"] > 0
    assert told["errors"] == routed.version(2)["errors"] == 0


def test_a_request_in_flight_to_a_removed_version_ends_there(routed: Routed, backend: Any) -> None:
    """State tells of it until then; its connections are closed after it."""
    gate = Gate(says("late"))
    one, two = backend(gate), backend(says("two"))
    routed.route((1, 100, [one.url]))
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(routed.ask)
        until(lambda: one.received, "the request is there")
        routed.route((2, 100, [two.url]))
        assert routed.ask()[1] == b"two"
        (gone,) = routed.state()["gone"]
        assert (gone["version"], gone["share"], gone["in_flight"]) == (1, 0, 1)
        gate.opened.set()
        status, body, headers = asked.result(PATIENCE)
    assert (status, body, headers["Mlinfra-Version"]) == (200, b"late", "1")
    assert routed.state()["gone"] == []
    until(lambda: not one.open, "its connection is closed")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "Expecting property name"),
        (b'{"\xff": 1}', "can't decode"),
        (b"[]", "schema is not 'mlinfra-prefect/routes/1'"),
        ({"schema": "mlinfra-prefect/routes/2"}, "schema is not"),
        ({"name": "fraud"}, "name is 'fraud', and this is the router of 'churn'"),
        ({"revision": "9"}, "revision must be a whole number from 0, not '9'"),
        ({"revision": True}, "revision must be a whole number"),
        ({"versions": None}, "versions must be a list"),
        ({"versions": [1]}, "no object: 1"),
        ({"versions": [{"version": 1, "share": 100, "urls": []}]}, "urls is empty, but version 1 has a share"),
        ({"versions": [{"version": 1, "share": 90, "urls": ["http://127.0.0.1:1"]}]}, "share adds up to 90"),
        ({"versions": [{"version": 1, "share": -1, "urls": []}]}, "share must be a whole number"),
        ({"versions": [{"version": 1, "share": 0, "urls": []}] * 2}, "lists a version twice"),
        ({"versions": [{"version": 1, "share": 0, "urls": "http://127.0.0.1:1"}]}, "urls must be a list of"),
        ({"versions": [{"version": 1, "share": 0, "urls": ["http://10.0.0.1:80"]}]}, "urls must be a list of http://1"),
    ],
)
def test_malformed_routes_are_refused_with_a_sentence_that_names_the_field(
    content: bytes | dict[str, Any], problem: str
) -> None:
    """They come from a file that somebody may have edited."""
    good = {"schema": router.ROUTES_SCHEMA, "revision": 2, "name": NAME, "versions": []}
    assert parse_routes(json.dumps(good).encode(), NAME) == Table(2, ())
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_routes(content if isinstance(content, bytes) else json.dumps(good | content).encode(), NAME)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"least": 0}, "1 <= least <= most"),
        ({"least": 3}, "1 <= least <= most"),
        ({"most": 3}, "with 2 urls"),
        ({"target": 0}, "target must be a number above 0, not 0"),
        ({"target": "4"}, "target must be a number above 0"),
        ({"target": True}, "target must be a number above 0"),
        ({"file": "replicas.json"}, "file must be an absolute path"),
        ({"file": None}, "file must be an absolute path"),
    ],
)
def test_a_malformed_scale_is_refused_with_its_field(changes: dict[str, Any], problem: str) -> None:
    """Rather than scaled by guesses."""
    scale = {"least": 1, "most": 2, "target": 4, "file": "/replicas.json", **changes}
    version = {"version": 1, "share": 100, "urls": ["http://127.0.0.1:1", "http://127.0.0.1:2"], "scale": scale}
    told = {"schema": router.ROUTES_SCHEMA, "revision": 2, "name": NAME, "versions": [version]}
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_routes(json.dumps(told).encode(), NAME)


def test_routes_that_are_not_right_are_told_and_not_followed(routed: Routed, backend: Any) -> None:
    """The last good ones go on, and the next good ones are followed."""
    one, two = backend(says("one")), backend(says("two"))
    routed.write()
    routed.route((1, 100, [one.url]))
    other = (2, 100, [two.url])
    for write, problem in (
        (lambda: routed.put(b"{"), "Expecting property name"),
        (lambda: routed.put(b"[" * 100_000), "recursion"),
        (routed.routes.unlink, "cannot be read"),
        (lambda: routed.write(other, revision=1), "revision 1 is older than 2"),
        (lambda: routed.write(other, revision=2), "revision 2 has other routes than it had"),
    ):
        write()
        until(lambda told=problem: told in (routed.state()["problem"] or ""), f"{problem!r} is told")
        assert routed.ask()[1] == b"one"
        assert routed.state()["revision"] == 2
    routed.revision = 9
    routed.route(other)
    assert routed.ask()[1] == b"two"
    assert routed.state()["problem"] is None


def test_a_file_that_looks_the_same_is_read_again_while_its_time_is_recent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replacements within one tick of the file system's clock can have the same time, inode and size."""
    path, now = tmp_path / "routes.json", time.time()
    seen = SimpleNamespace(st_mtime_ns=1, st_ctime_ns=1, st_ino=1, st_size=1, st_ctime=now)

    def put(revision: int) -> None:
        path.write_text(
            json.dumps({"schema": router.ROUTES_SCHEMA, "revision": revision, "name": NAME, "versions": []})
        )

    async def follow() -> list[int]:
        looking, found = router.Router(NAME, path, 1.0), []
        for revision, age in ((1, 0.0), (2, 0.0), (3, 60.0), (4, 60.0)):
            put(revision)
            seen.st_ctime = now - age
            looking._follow()
            found.append(looking.picker.table.revision)
        return found

    monkeypatch.setattr(router, "os", SimpleNamespace(stat=lambda _: seen))
    monkeypatch.setattr(router, "time", SimpleNamespace(time=lambda: now))
    assert asyncio.run(follow()) == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("versions", "tried", "wanted", "found"),
    [
        ([(1, 50, "ab"), (2, 50, "c")], "a", None, (1, "b")),
        ([(1, 50, "ab"), (2, 50, "c")], "ab", None, (2, "c")),
        ([(1, 50, "ab"), (2, 50, "c")], "ab", 1, None),
        ([(1, 10, "a"), (2, 30, "b"), (3, 60, "c")], "a", None, (3, "c")),
        ([(1, 100, "a"), (2, 0, "b")], "a", None, None),
        ([(1, 0, "ab"), (2, 100, "c")], "a", None, (2, "c")),
        ([(1, 0, "ab"), (2, 100, "c")], "a", 1, (1, "b")),
        ([(2, 100, "c")], "a", None, (2, "c")),
        ([(2, 100, "c")], "a", 1, None),
        ([], "a", None, None),
    ],
)
def test_a_failed_try_goes_to_a_replica_else_to_the_largest_share(
    versions: list[tuple[int, int, str]], tried: str, wanted: int | None, found: tuple[int, str] | None
) -> None:
    """By the routes of now: a version that lost its share meanwhile gets only what names it."""
    picker = Picker(Table(1, tuple(Version(number, share, tuple(urls)) for number, share, urls in versions)))
    other = picker.other(Version(1, 50, ("a",)), list(tried), wanted)
    assert found == (other and (other[0].version, other[1]))


# --- servers that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"]
)
def test_a_server_that_breaks_once_is_asked_again(routed: Routed, backend: Any, said: bytes) -> None:
    """It has no alternative, so the same one is, a moment later. The client has seen nothing of the first answer."""
    breaks = iter([True])

    def behave(connection: socket.socket, _: bytes) -> bool:
        if next(breaks, False):
            connection.sendall(said)
            return False
        connection.sendall(says("second"))
        return True

    routed.route((1, 100, [backend(behave).url]))
    assert routed.ask()[:2] == (200, b"second")
    told = routed.version(1)
    assert (told["requests"], told["retried"], told["errors"]) == (1, 1, 0)


def test_a_try_that_fails_after_a_swap_goes_to_the_new_version(routed: Routed, backend: Any) -> None:
    """Its own version has no route any more, and gets nothing more."""
    two = backend(says("two"))

    def behave(_: socket.socket, __: bytes) -> bool:
        routed.route((2, 100, [two.url]))
        return False

    one = backend(behave)
    routed.route((1, 100, [one.url]))
    assert routed.ask()[:2] == (200, b"two")
    assert len(one.received) == 1


def test_a_kept_connection_that_the_server_had_closed_says_nothing_against_it(routed: Routed, backend: Any) -> None:
    """Servers close idle connections when they like, also as the next request is on its way."""
    asked = []

    def behave(connection: socket.socket, _: bytes) -> bool:
        asked.append(connection)
        if asked.count(connection) > 1:
            return False  # it closes without a word, as one does whose keep-alive ended just now
        connection.sendall(plain())
        return True

    routed.route((1, 100, [backend(behave).url]))
    assert [routed.ask()[0] for _ in range(5)] == [200] * 5
    assert len(asked) > 5
    told = routed.version(1)
    assert (told["requests"], told["retried"], told["errors"]) == (5, 0, 0)


def test_a_silent_server_is_given_up(tmp_path: Path, backend: Any) -> None:
    """Another one answers instead; where there is none, that is a 503."""
    with running(tmp_path, "--timeout-seconds", "0.2") as routed:
        silent, other = backend(Gate()), backend(says("other"))
        routed.route((1, 100, [silent.url]), (2, 0, [other.url]))
        status, body, _ = routed.ask()
        assert status == 503
        assert "it was silent for 0.2 s" in json.loads(body)["error"]
        routed.route((1, 99, [silent.url]), (2, 1, [other.url]))
        assert routed.ask()[:2] == (200, b"other")
        told = routed.version(1)
        assert (told["requests"], told["errors"], told["retried"], told["in_flight"]) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n1",
        b"x" * 70_000,
    ],
    ids=["no HTTP", "two lengths", "endless head"],
)
def test_an_answer_that_is_none_is_a_failed_try(routed: Routed, backend: Any, answer: bytes) -> None:
    """The client gets a sentence, never those bytes."""
    routed.route((1, 100, [backend(answer).url]))
    status, body, _ = routed.ask()
    assert status == 503
    assert "No server of endpoint 'churn' answers" in json.loads(body)["error"]


def test_half_an_answer_is_never_taken_for_a_whole_one(routed: Routed, backend: Any) -> None:
    """Its connection breaks in the client's face, too, and it counts as an error."""

    def behave(connection: socket.socket, request: bytes) -> bool:
        chunked = b"/chunked" in request
        framing = b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n" if chunked else b"Content-Length: 8\r\n\r\nhalf"
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + framing)
        return False

    routed.route((1, 100, [backend(behave).url]))
    for path in ("/length", "/chunked"):
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            routed.ask("GET", path)
    told = routed.version(1)
    assert (told["requests"], told["errors"], told["in_flight"]) == (2, 2, 0)


# --- counting --------------------------------------------------------------------------------------------------------


def test_answers_are_counted_by_their_status_for_as_long_as_the_router_lives(routed: Routed, backend: Any) -> None:
    """Statuses pass; a version that comes back goes on counting."""

    def behave(connection: socket.socket, request: bytes) -> bool:
        connection.sendall(plain(status=request.split(b" ")[1][1:].decode() + " As It Is"))
        return True

    one = backend(behave)
    routed.route((1, 100, [one.url]))
    for status in (200, 200, 404, 422, 500, 503):
        assert routed.ask("GET", f"/{status}")[0] == status
    before = routed.version(1)
    assert (before["requests"], before["errors"], before["client_errors"]) == (6, 2, 2)
    latency = before["latency"]
    assert latency["count"] == 6 == sum(count for _, count in latency["buckets"])
    assert [bound for bound, _ in latency["buckets"]] == [*router.BOUNDS, None]
    assert 0 < latency["sum_seconds"] < 6 * PATIENCE
    assert 0 < before["p50_ms"] <= before["p95_ms"] <= before["p99_ms"]
    routed.route()
    routed.route((1, 100, [one.url]))
    routed.ask("GET", "/200")
    assert routed.version(1)["requests"] == 7
    text = routed.page("/mlinfra/metrics")[1].decode()
    for line in (
        'mlinfra_router_requests_total{name="churn",version="1"} 7',
        'mlinfra_router_errors_total{name="churn",version="1"} 2',
        'mlinfra_router_share_percent{name="churn",version="1"} 100',
        'mlinfra_router_seconds_bucket{name="churn",version="1",le="+Inf"} 7',
        'mlinfra_router_seconds_count{name="churn",version="1"} 7',
        'mlinfra_router_revision{name="churn"} 3',
    ):
        assert line in text.splitlines()


def test_a_client_that_goes_away_is_no_error_of_the_version(routed: Routed, backend: Any) -> None:
    """And nothing stays in flight for it."""
    gate = Gate()
    one = backend(gate)
    routed.route((1, 100, [one.url]))
    with socket.create_connection(("127.0.0.1", routed.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: one.received, "the request is there")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(lambda: routed.version(1)["in_flight"] == 0, "nothing is in flight")
    told = routed.version(1)
    assert (told["requests"], told["errors"], told["client_errors"]) == (1, 0, 1)
    gate.opened.set()


@pytest.mark.parametrize(
    ("buckets", "part", "seconds"),
    [
        ([], 0.5, None),
        ([(1.0, 0), (None, 0)], 0.5, None),
        ([(1.0, 10), (2.0, 0), (None, 0)], 0.5, 0.5),
        ([(1.0, 50), (2.0, 50), (None, 0)], 0.95, 1.9),
        ([(1.0, 0), (2.0, 4), (None, 0)], 1.0, 2.0),
        ([(1.0, 1), (2.0, 0), (None, 99)], 0.5, 2.0),
    ],
)
def test_quantiles_lie_within_their_bucket(buckets: Any, part: float, seconds: float | None) -> None:
    """Requests above all bounds count as the last bound."""
    assert quantile(buckets, part) == (None if seconds is None else pytest.approx(seconds))


# --- messages --------------------------------------------------------------------------------------------------------


def test_messages_pass_byte_for_byte(routed: Routed, backend: Any) -> None:
    """Also names in odd case, headers that come twice, a reason, an escaped path; what is of one hop does not."""
    answer = (
        b"HTTP/1.1 207 Sort Of Fine\r\nX-oDD:  two  spaces \r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"Content-Length: 4\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nConnection: keep-alive, x-hop\r\n"
        b"Mlinfra-Version: 99\r\n\r\n\0\xff\r\n"
    )
    server = backend(answer)
    routed.route((7, 100, [server.url]))
    said = routed.talk(
        b"PATCH //a%2Fb/../c?q=%20&&x HTTP/1.1\r\nhost: Example:1\r\nX-oDD:\tv\xe9 \r\nAccept: a\r\nAccept: b\r\n"
        b"TE: trailers\r\nConnection: close, X-Mine\r\nx-mine: 1\r\nProxy-Connection: x\r\nUpgrade: h2c\r\n"
        b"Content-Length: 6\r\n\r\n\0\x01\r\n\r\n"
    )
    assert server.received == [
        (
            b"PATCH //a%2Fb/../c?q=%20&&x HTTP/1.1\r\nhost: Example:1\r\nX-oDD:\tv\xe9 \r\nAccept: a\r\nAccept: b\r\n"
            b"Content-Length: 6\r\n\r\n\0\x01\r\n\r\n"
        )
    ]
    assert said == (
        b"HTTP/1.1 207 Sort Of Fine\r\nX-oDD:  two  spaces \r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"Content-Length: 4\r\nMlinfra-Version: 7\r\nConnection: close\r\n\r\n\0\xff\r\n"
    )


def test_large_bodies_pass_whole_in_both_directions(routed: Routed, backend: Any) -> None:
    """More than any buffer on the way holds."""

    def echo(connection: socket.socket, request: bytes) -> bool:
        connection.sendall(plain(request.partition(b"\r\n\r\n")[2]))
        return True

    routed.route((1, 100, [backend(echo).url]))
    content = os.urandom(12 << 20)
    with closing(http.client.HTTPConnection("127.0.0.1", routed.port, timeout=PATIENCE)) as connection:
        for _ in range(2):
            connection.request("POST", "/", content)
            assert connection.getresponse().read() == content


def test_an_answer_is_read_no_faster_than_its_client_reads(routed: Routed, backend: Any) -> None:
    """A client that stops must not fill the router's memory."""
    piece, pieces = bytes(1 << 20), 64
    sent = []

    def behave(connection: socket.socket, _: bytes) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (pieces << 20))
        for _ in range(pieces):
            connection.sendall(piece)
            sent.append(1)
        return True

    routed.route((1, 100, [backend(behave).url]))
    with closing(http.client.HTTPConnection("127.0.0.1", routed.port, timeout=PATIENCE)) as connection:
        connection.request("GET", "/")
        answer = connection.getresponse()
        until(lambda: sent, "the server sends")
        for _ in range(20):  # until nothing moves any more: what lies in the kernel's buffers is a few MiB
            before = len(sent)
            time.sleep(0.05)
            if len(sent) == before:
                break
        assert len(sent) < pieces // 2
        assert answer.read() == piece * pieces
    assert routed.version(1)["errors"] == 0


def test_chunks_of_a_request_become_one_length(routed: Routed, backend: Any) -> None:
    """The body is the same; extensions and trailers end here."""
    server = backend()
    routed.route((1, 100, [server.url]))
    routed.talk(
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"3;note=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n"
    )
    assert server.received == [b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\nabc0123456789"]


@pytest.mark.parametrize("framing", ["chunked", "until-close"])
@pytest.mark.parametrize("old", [False, True], ids=["HTTP/1.1", "HTTP/1.0"])
def test_answers_of_unknown_length_are_streamed(routed: Routed, backend: Any, framing: str, old: bool) -> None:
    """The first piece arrives while the server still works on the second."""
    gate = threading.Event()

    def behave(connection: socket.socket, _: bytes) -> bool:
        chunked = framing == "chunked"
        head, first, second = b"HTTP/1.1 200 OK\r\n", b"first", b"second"
        if chunked:
            head += b"Transfer-Encoding: chunked\r\n"
            first, second = b"5\r\nfirst\r\n", b"6\r\nsecond\r\n0\r\n\r\n"
        connection.sendall(head + b"\r\n" + first)
        gate.wait(PATIENCE)
        connection.sendall(second)
        return chunked

    routed.route((1, 100, [backend(behave).url]))
    with socket.create_connection(("127.0.0.1", routed.port), timeout=PATIENCE) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n" if old else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b""
        while b"first" not in said:
            said += some(connection)
        assert b"second" not in said
        gate.set()
        while not said.endswith(b"second" if old else b"0\r\n\r\n"):
            said += some(connection)
        if old:
            assert connection.recv(1) == b""
    assert said.partition(b"\r\n\r\n")[2] == (b"firstsecond" if old else b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n")
    assert (b"chunked" in said) is not old
    assert routed.version(1)["requests"] == 1


def test_answers_without_a_body_end_at_once(routed: Routed, backend: Any) -> None:
    """HEAD has the length of what GET would get; 204 and 304 have none; interim answers are passed over."""

    def behave(connection: socket.socket, request: bytes) -> bool:
        connection.sendall({
            b"HEAD": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            b"GET ": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            b"PUT ": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        }[request[:4]])  # fmt: skip
        return True

    routed.route((1, 100, [backend(behave).url]))
    with closing(http.client.HTTPConnection("127.0.0.1", routed.port, timeout=PATIENCE)) as connection:
        for method, status in (("HEAD", 200), ("GET", 204), ("PUT", 304), ("HEAD", 200)):
            connection.request(method, "/")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (status, b"")


def test_requests_sent_ahead_are_answered_in_order(routed: Routed, backend: Any) -> None:
    """One connection, three hundred requests in one write, the router's own pages among them."""

    def behave(connection: socket.socket, request: bytes) -> bool:
        connection.sendall(plain(request.split(b" ")[1]))
        return True

    routed.route((1, 100, [backend(behave).url]))
    paths = [b"/mlinfra/health" if number % 3 == 0 else b"/%d" % number for number in range(300)]
    said = routed.talk(
        b"\r\n".join(b"GET %b HTTP/1.1\r\nHost: x\r\n" % path for path in paths)
        + b"\r\nGET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    bodies = [part.split(b"\r\n\r\n")[1] for part in said.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert len(bodies) == 301
    assert all(body == path for body, path in zip(bodies, paths, strict=False) if path != b"/mlinfra/health")
    assert bodies[-1] == b"/last"


def test_who_expects_to_be_told_to_continue_is(routed: Routed, backend: Any) -> None:
    """The server is asked only when all of the request is here, so it is not asked that."""
    server = backend()
    routed.route((1, 100, [server.url]))
    with socket.create_connection(("127.0.0.1", routed.port), timeout=PATIENCE) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert some(connection) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert some(connection).startswith(b"HTTP/1.1 200 OK\r\n")
    assert server.received == [b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"]


def test_a_request_larger_than_64_mib_is_refused(routed: Routed, backend: Any) -> None:
    """At once where its length is announced; otherwise as soon as it is too long, and the client gets to know."""
    server = backend()
    routed.route((1, 100, [server.url]))
    said = routed.talk(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % ((64 << 20) + 1))
    assert said.startswith(b"HTTP/1.1 413 Content Too Large\r\n")
    assert b"at most 67108864 are taken" in said
    piece = b"%x\r\n%b\r\n" % (4 << 20, bytes(4 << 20))
    with socket.create_connection(("127.0.0.1", routed.port), timeout=PATIENCE) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(18):
            connection.sendall(piece)
        assert some(connection).startswith(b"HTTP/1.1 413")
    assert server.received == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\0\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n", 417),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, 431),
        (b"POST /mlinfra/state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_and_never_passed_on(
    standing: tuple[Routed, Backend], sent: bytes, status: int
) -> None:
    """With a sentence, and the end of the connection."""
    routed, server = standing
    said = routed.talk(sent)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"].endswith(".")
    assert server.received == []


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_chunks_are_understood_however_they_are_cut(step: int) -> None:
    """The body's content, and what follows it, do not depend on what was received together."""
    sent = b"3\r\nabc\r\n1;x=y\r\n\r\r\n0c\r\nhello\r\n\r\nwor\r\n0\r\nT: 1\r\n\r\nGET /next"
    body, content, rest = Body(None, chunked=True), b"", b""
    for at in range(0, len(sent), step):
        found, after = body.feed(sent[at : at + step])
        content, rest = content + found, rest + after
    assert body.done
    assert (content, rest) == (b"abc\rhello\r\n\r\nwor", b"GET /next")


def test_what_a_connection_header_names_stays_but_never_what_tells_where_a_message_ends() -> None:
    """`Connection: Content-Length` is an old trick to make the next hop read on."""
    kept, told = parse_fields(b"Connection: X, content-length\r\nX: 1\r\nContent-Length: 5\r\nY: 2\r\n")
    assert kept == b"Content-Length: 5\r\nY: 2\r\n"
    assert told[b"content-length"] == b"5"
    with pytest.raises(Malformed):
        parse_fields(b"bad line\r\n")


# --- the process -----------------------------------------------------------------------------------------------------


def test_behind_an_inherited_socket_a_killed_router_refuses_nobody(tmp_path: Path, backend: Any) -> None:
    """Whoever asks while there is no router waits for the next one; routes and versions are as before."""
    server = backend(says("here"))
    with socket.create_server(("127.0.0.1", 0), backlog=128) as held:
        port = held.getsockname()[1]
        with running(tmp_path, fd=held.fileno(), port=port) as first:
            first.route((1, 100, [server.url]))
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
            with ThreadPoolExecutor(8) as pool:
                asked = [pool.submit(first.ask) for _ in range(16)]
                time.sleep(0.05)  # they are connected, and nobody is there
                assert not any(each.done() for each in asked)
                with running(tmp_path, fd=held.fileno(), port=port) as second:
                    assert [each.result(PATIENCE)[:2] for each in asked] == [(200, b"here")] * 16
                    assert second.state()["revision"] == 1


def test_routers_that_take_turns_on_an_inherited_socket_lose_no_request(tmp_path: Path, backend: Any) -> None:
    """SIGTERM under load: what is asked is answered, the connection then ends, and the next router takes the next."""
    server = backend(says("here"))
    with socket.create_server(("127.0.0.1", 0), backlog=128) as held, ExitStack() as stack:
        port = held.getsockname()[1]
        one = stack.enter_context(running(tmp_path, fd=held.fileno(), port=port))
        one.route((1, 100, [server.url]))
        load = stack.enter_context(Load(port))
        for _ in range(3):
            load.more()
            one.process.terminate()
            assert one.process.wait(PATIENCE) == 0
            one = stack.enter_context(running(tmp_path, fd=held.fileno(), port=port))
        load.more()
        assert load.failed == []


def test_sigterm_lets_requests_end_and_says_zero(routed: Routed, backend: Any) -> None:
    """New ones are refused meanwhile."""
    gate = Gate(says("late"))
    server = backend(gate)
    routed.route((1, 100, [server.url]))
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(routed.ask)
        until(lambda: server.received, "the request is there")
        routed.process.terminate()
        until(lambda: not _connects(routed.port), "it takes no more")
        gate.opened.set()
        status, body, headers = asked.result(PATIENCE)
    assert (status, body, headers["Connection"]) == (200, b"late", "close")
    assert routed.process.wait(PATIENCE) == 0


def test_sigterm_waits_two_seconds_at_most(routed: Routed, backend: Any) -> None:
    """For a request that does not end."""
    server = backend(Gate())
    routed.route((1, 100, [server.url]))
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(routed.ask)
        until(lambda: server.received, "the request is there")
        began = time.monotonic()
        routed.process.terminate()
        assert routed.process.wait(PATIENCE) == 0
        assert 1 < time.monotonic() - began < 4  # 2, and a busy machine
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            asked.result(PATIENCE)


def _connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--port", "8000"], "the following arguments are required: --name, --routes"),
        (["--name", "a", "--routes", "r"], "one of the arguments --fd --port is required"),
        (["--name", "a", "--routes", "r", "--port", "1", "--fd", "3"], "not allowed with argument"),
        (["--name", "../a", "--routes", "r", "--port", "8000"], "--name '../a' must match"),
        (["--name", "a", "--routes", "r", "--port", "0"], "--port 0 is not between 1 and 65535."),
        (["--name", "a", "--routes", "r", "--port", "http"], "invalid int value: 'http'"),
        (["--name", "a", "--routes", "r", "--port", "8000", "--host", "0.0.0.0"], "--host 0.0.0.0 is not loopback"),
        (["--name", "a", "--routes", "r", "--port", "8000", "--host", "here"], "--host 'here' is not an IP address"),
        (["--name", "a", "--routes", "r", "--fd", "99"], "--fd 99 is not the descriptor of a socket."),
        (["--name", "a", "--routes", "r", "--fd", "-1"], "--fd -1 is not the descriptor of a socket."),
        (["--name", "a", "--routes", "r", "--port", "8000", "--timeout-seconds", "0"], "--timeout-seconds 0 is not"),
        (["--name", "a", "--routes", "r", "--port", "8000", "--timeout-seconds", "nan"], "--timeout-seconds nan is no"),
    ],
)
def test_wrong_arguments_are_one_sentence(argv: list[str], sentence: str) -> None:
    """And the exit code 2."""
    code, said = refusal(argv)
    assert code == 2
    assert sentence in said.splitlines()[-1]


def test_sockets_that_are_none_of_a_router_are_refused() -> None:
    """A taken port has an exit code of its own, because somebody else has to be ended."""
    named = ["--name", "a", "--routes", "r"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = f"mlinfra-prefect router: Port {port} is in use by another program; choose another port or end that "
        assert refusal([*named, "--port", str(port)]) == (4, f"{told}program.")
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))
        code, said = refusal([*named, "--fd", str(idle.fileno())], idle.fileno())
        assert (code, "is not a TCP socket that listens" in said) == (2, True)
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        code, said = refusal([*named, "--fd", str(everywhere.fileno())], everywhere.fileno())
        assert (code, "listens on 0.0.0.0, not on loopback" in said) == (2, True)
