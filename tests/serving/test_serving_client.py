"""The client against a stand-in that answers what it is told to, so that every refusal can be shown."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from mlinfra_prefect.errors import EndpointNotReady, InvalidInput, PermanentError
from mlinfra_prefect.local import client

if TYPE_CHECKING:
    from collections.abc import Iterator


class StandIn:
    """An HTTP server with one answer for everything, which remembers what it was asked."""

    def __init__(self) -> None:
        self.status, self.answer = 200, b"{}"
        self.paths: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.paths.append(self.path)
                self.send_response(stand_in.status)
                self.end_headers()
                self.wfile.write(stand_in.answer)

            def do_POST(self) -> None:
                stand_in.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.do_GET()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def says(self, status: int, answer: object) -> None:
        """Answer this from now on."""
        self.status = status
        self.answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """A server on loopback that ends with the test."""
    server = StandIn()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def output(name: str, data: list[object], shape: list[int]) -> dict[str, object]:
    """One output of an answer."""
    return {"name": name, "datatype": "INT64", "shape": shape, "data": data}


@pytest.mark.parametrize(
    ("inputs", "shape", "datatype"),
    [
        ([[1, 2], [3, 4]], [2, 2], "INT64"),
        ([[1, 2.5]], [1, 2], "FP64"),
        ([True, False], [2], "BOOL"),
        (["a"], [1], "BYTES"),
        ((((1,),),), [1, 1, 1], "INT64"),
        ([], [0], "FP64"),
        ([[]], [1, 0], "FP64"),
    ],
)
def test_shape_and_datatype_come_from_the_values(
    stand_in: StandIn, inputs: object, shape: list[int], datatype: str
) -> None:
    """A nested list is sent flat, with the shape it had and the protocol's name for its values."""
    stand_in.says(200, {"outputs": [output("predict", [1], [1])]})
    client.infer(stand_in.url, "m", inputs)
    sent = stand_in.bodies[0]["inputs"][0]
    assert (sent["shape"], sent["datatype"]) == (shape, datatype)
    assert not any(isinstance(value, list) for value in sent["data"])


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([[1], [1, 2]], "rows of different lengths: \\[1, 2\\]"),
        ([[1], 2], "mixed on one level"),
        ([1, "a"], "int, str"),
        ([None], "NoneType"),
        (3, "a int is not an array"),
    ],
)
def test_what_is_no_tensor_is_refused_before_it_is_sent(stand_in: StandIn, inputs: object, sentence: str) -> None:
    """The sentence names the field and what is wrong with it."""
    with pytest.raises(InvalidInput, match=f"inputs: .*{sentence}"):
        client.infer(stand_in.url, "m", inputs)
    assert stand_in.paths == []


def test_anything_with_tolist_is_an_array(stand_in: StandIn) -> None:
    """Arrays work without this module importing numpy; an explicit datatype wins."""
    np = pytest.importorskip("numpy")
    stand_in.says(200, {"outputs": [output("predict", [1], [1])]})
    client.infer(stand_in.url, "m", np.ones((2, 3), dtype="float32"), datatype="FP32")
    assert stand_in.bodies[0]["inputs"][0]["shape"] == [2, 3]
    assert stand_in.bodies[0]["inputs"][0]["datatype"] == "FP32"


def test_the_output_gets_its_shape_back(stand_in: StandIn) -> None:
    """`predict` is preferred, another one can be named, and the data are nested as the shape says."""
    outputs = [output("other", [1, 2, 3, 4, 5, 6], [3, 1, 2]), output("predict", [7], [1])]
    stand_in.says(200, {"outputs": outputs})
    assert client.infer(stand_in.url, "m", [1]) == [7]
    assert client.infer(stand_in.url, "m", [1], output="other") == [[[1, 2]], [[3, 4]], [[5, 6]]]
    assert stand_in.bodies[-1]["outputs"] == [{"name": "other"}]
    stand_in.says(200, {"outputs": outputs[:1]})
    assert len(client.infer(stand_in.url, "m", [1])) == 3  # noqa: PLR2004


def test_a_name_cannot_leave_its_place_in_the_url(stand_in: StandIn) -> None:
    """Slashes and question marks of a name are quoted."""
    stand_in.says(200, {"outputs": [output("predict", [7], [1])]})
    client.infer(f"{stand_in.url}/", "../a?b", [1])
    assert stand_in.paths == ["/v2/models/..%2Fa%3Fb/infer"]


@pytest.mark.parametrize(
    ("status", "answer", "error", "sentence"),
    [
        (400, {"error": "takes [rows, 64]"}, InvalidInput, "inputs: takes \\[rows, 64\\]"),
        (404, {"error": "no such model"}, InvalidInput, "name: no such model"),
        (503, {"error": "loading"}, EndpointNotReady, "not ready: loading"),
        (500, {"error": "ZeroDivisionError"}, PermanentError, "failed: ZeroDivisionError"),
        (502, b"<html>", PermanentError, "failed: Bad Gateway"),
        (200, b"<html>", PermanentError, "does not speak the Open Inference Protocol"),
        (200, {"outputs": []}, PermanentError, "does not speak"),
        (200, {"outputs": [output("predict", [1, 2], [3])]}, PermanentError, "does not speak"),
    ],
)
def test_each_refusal_says_whose_it_is(
    stand_in: StandIn, status: int, answer: object, error: type[Exception], sentence: str
) -> None:
    """The client's mistake, a server that is not ready, a model that failed and a stranger are told apart."""
    stand_in.says(status, answer)
    with pytest.raises(error, match=sentence):
        client.infer(stand_in.url, "m", [1])


def test_nobody_there_is_not_ready() -> None:
    """A refused connection is EndpointNotReady with the address, and `ready` is False."""
    with socket.socket() as bound:  # bound and not listening: nobody else can take the port meanwhile
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert not client.ready(url)
        with pytest.raises(EndpointNotReady, match=f"{url} did not answer"):
            client.infer(url, "m", [1])


def test_a_server_that_does_not_answer_in_time_is_not_ready() -> None:
    """The time-out is the caller's."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EndpointNotReady, match="did not answer"):
            client.infer(url, "m", [1], timeout=0.05)


def test_a_proxy_is_never_asked_for_loopback(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment could not reach this machine's loopback."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    stand_in.says(200, {"ready": True})
    assert client.ready(stand_in.url)


@pytest.mark.parametrize("answer", [{"ready": False}, {"ready": "yes"}, [], b"ready"])
def test_ready_means_that_the_protocol_says_so(stand_in: StandIn, answer: object) -> None:
    """Another program on that port is not a ready server."""
    stand_in.says(200, answer)
    assert not client.ready(stand_in.url)


def test_waiting_ends_when_it_is_ready(stand_in: StandIn) -> None:
    """The seconds waited come back."""
    stand_in.says(503, {})
    asked = []

    def alive() -> bool:
        asked.append(1)
        if len(asked) == 2:  # noqa: PLR2004
            stand_in.says(200, {"ready": True})
        return True

    assert 0 < client.wait_ready(stand_in.url, time.time() + 10, alive) < 10  # noqa: PLR2004
    assert len(asked) == 2  # noqa: PLR2004


def test_waiting_ends_when_the_server_ended(stand_in: StandIn) -> None:
    """A crash is told at once, not at the deadline."""
    stand_in.says(503, {})
    with pytest.raises(EndpointNotReady, match="ended before it was ready"):
        client.wait_ready(stand_in.url, time.time() + 60, lambda: False)


def test_waiting_ends_at_the_deadline(stand_in: StandIn) -> None:
    """The deadline is epoch seconds; one that has passed still looks once."""
    stand_in.says(503, {})
    with pytest.raises(EndpointNotReady, match="was not ready within 0 s"):
        client.wait_ready(stand_in.url, time.time() - 1, lambda: True)
    stand_in.says(200, {"ready": True})
    assert client.wait_ready(stand_in.url, time.time() - 1, lambda: True) >= 0


def test_only_http_is_asked() -> None:
    """A file:// address is refused rather than read, and never waited for."""
    with pytest.raises(InvalidInput, match="url"):
        client.ready("file:///etc")
    with pytest.raises(InvalidInput, match=r"url: .*not an http address"):
        client.infer("file:///etc", "m", [1])
