"""The server program, run for real in its own environment: what it serves, what it refuses, how it ends."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlinfra_prefect.errors import InvalidInput, PermanentError
from mlinfra_prefect.local import client, server
from mlinfra_prefect.local.server import (
    EXIT_CORRUPTED,
    EXIT_PORT_TAKEN,
    EXIT_UNTRUSTED,
    EXIT_USAGE,
    RefusedToServe,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from conftest import Digits, Running

    Start = Callable[..., AbstractContextManager[Running]]
    Manifest = Callable[[Path], Path]

ENDS_WITHIN = 2.0  # seconds after SIGTERM, as the program promises


@pytest.fixture(scope="module")
def served(start_server: Start, digits: Digits) -> Iterator[Running]:
    """One ready server for the whole module."""
    with start_server(digits.directory) as running:
        running.wait_ready()
        yield running


def ends(running: Running, timeout: float = 30) -> tuple[int, str]:
    """Exit code and log of a server that ends by itself."""
    code = running.process.wait(timeout)
    return code, running.log.read_text()


def post(running: Running, body: object) -> tuple[int, dict[str, Any]]:
    """Status and answer of one raw infer request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(  # noqa: S310
        f"{running.url}/v2/models/digits/infer", data=data, headers=headers
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def tensor(data: object, shape: list[int], datatype: str = "FP64", **more: object) -> dict[str, object]:
    """An infer request of one tensor."""
    return {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}], **more}


def test_predictions_over_http_equal_local_ones(served: Running, digits: Digits) -> None:
    """What the endpoint answers is what the model says in the process that trained it."""
    labels = client.infer(served.url, "digits", digits.examples)
    assert labels == digits.model.predict(digits.examples).tolist()
    probabilities = client.infer(served.url, "digits", digits.examples, output="predict_proba")
    np.testing.assert_allclose(probabilities, digits.model.predict_proba(digits.examples), rtol=1e-9)


def test_every_output_comes_unless_one_is_named(served: Running) -> None:
    """Without `outputs` the protocol gives all; with it, only those. The id of the request comes back."""
    _, everything = post(served, tensor([[0.0] * 64], [1, 64]))
    assert [output["name"] for output in everything["outputs"]] == ["predict", "predict_proba"]
    assert everything["id"]
    _, one = post(served, tensor([0.0] * 64, [1, 64], outputs=[{"name": "predict"}], id="mine"))
    assert [output["name"] for output in one["outputs"]] == ["predict"]
    assert one["id"] == "mine"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (tensor([0.0] * 63, [1, 63]), "has shape [1, 63], but this model takes [rows, 64]"),
        (tensor([0.0] * 64, [64]), "has shape [64], but this model takes [rows, 64]"),
        (tensor([0.0] * 64, [2, 64]), "has 64 values, which do not fill its shape [2, 64]"),
        (tensor([[0.0] * 64, [0.0]], [2, 64]), "rows of different lengths"),
        (tensor(["0"] * 64, [1, 64]), "values that are not FP64"),
        (tensor([0.5] * 64, [1, 64], "INT64"), "values that are not INT64"),
        (tensor([300] * 64, [1, 64], "INT8"), "do not fit into INT8"),
        (tensor([0.0] * 64, [1, 64], "DECIMAL"), "datatype 'DECIMAL'"),
        (tensor([float("nan")] * 64, [1, 64]), "contains NaN"),
        (tensor([0.0] * 64, [1, 64], outputs=[{"name": "score"}]), "no output 'score'"),
        ({"inputs": []}, "one input tensor"),
        ({"inputs": 3}, "inputs: Input should be a valid list"),
        (b"{", "JSON decode error"),
    ],
)
def test_a_bad_request_is_a_400_with_a_sentence(served: Running, body: object, sentence: str) -> None:
    """The client's mistake is told to the client, and is never a 500."""
    status, answer = post(served, body)
    assert (status, list(answer)) == (400, ["error"])
    assert sentence in answer["error"]


def test_bad_requests_leave_no_traceback_in_the_log(served: Running) -> None:
    """A client cannot fill the log with tracebacks, and requests are not logged one by one."""
    post(served, tensor([0.0], [1, 1]))
    post(served, tensor([0.0] * 64, [1, 64]))
    assert "Traceback" not in served.log.read_text()
    assert "infer" not in served.log.read_text()


def test_nobody_can_unload_the_model(served: Running) -> None:
    """KServe's repository extension would let any process of this machine stop the serving."""
    request = urllib.request.Request(  # noqa: S310
        f"{served.url}/v2/repository/models/digits/unload", method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
    refused.value.close()
    assert refused.value.code == 400  # noqa: PLR2004
    assert client.infer(served.url, "digits", [[0.0] * 64])


def test_another_name_is_refused(served: Running) -> None:
    """A client that asks for a model that is not served here is told its name."""
    with pytest.raises(InvalidInput, match="other"):
        client.infer(served.url, "other", [[0.0] * 64])


def test_a_taken_port_ends_the_second_server_at_once(served: Running, start_server: Start, digits: Digits) -> None:
    """Exit code 4 and a sentence with the port, before anything is imported; the first server goes on."""
    port = int(served.url.rpartition(":")[2])
    with start_server(digits.directory, port=port) as second:
        code, log = ends(second)
    assert code == EXIT_PORT_TAKEN
    assert f"Port {port} is in use" in log
    assert served.alive()
    assert client.ready(served.url)


def test_of_two_that_reserved_a_port_one_serves() -> None:
    """While both load, neither listens and both may reserve; the second to be ready is told that it is taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with server.reserve("127.0.0.1", port) as first, server.reserve("127.0.0.1", port) as second:
        server.listen(first)
        with pytest.raises(RefusedToServe, match=f"Port {port} is in use") as refused:
            server.listen(second)
    assert refused.value.code == EXIT_PORT_TAKEN


@pytest.fixture
def copied(digits: Digits, tmp_path: Path) -> Path:
    """The artifact again, to be spoilt."""
    return Path(shutil.copytree(digits.directory, tmp_path / "artifact"))


def corrupt(directory: Path) -> None:
    """Change one bit in the middle, not the size."""
    path = directory / "model" / "model.skops"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(directory: Path) -> None:
    """Take the model away."""
    (directory / "model" / "model.skops").unlink()


def add(directory: Path) -> None:
    """Put a file there that the artifact does not record."""
    (directory / "model" / "extra.py").write_text("")


def leave(directory: Path) -> None:
    """Let the manifest name a file outside the artifact."""
    manifest = directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace("model.skops", "../manifest.json"))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (corrupt, "but the artifact records"),
        (remove, "is missing"),
        (add, "does not record"),
        (leave, "lies outside"),
    ],
)
def test_a_model_that_is_not_what_the_artifact_records_is_not_loaded(
    start_server: Start, copied: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    """Exit code 3 and a sentence; nothing unverified is loaded."""
    spoil(copied)
    with start_server(copied) as running:
        code, log = ends(running)
    assert code == EXIT_CORRUPTED
    assert sentence in log
    assert "Traceback" not in log


def test_an_untrusted_type_is_named_with_its_remedy(
    start_server: Start, write_manifest: Manifest, tmp_path: Path
) -> None:
    """Exit code 5; the sentence lists the type and the option that would trust it."""
    import skops.io  # noqa: PLC0415
    from sklearn.preprocessing import FunctionTransformer  # noqa: PLC0415

    (tmp_path / "model").mkdir()
    skops.io.dump(FunctionTransformer(json.dumps), tmp_path / "model" / "model.skops")
    write_manifest(tmp_path)
    with start_server(tmp_path) as running:
        code, log = ends(running)
    assert code == EXIT_UNTRUSTED
    assert "--trusted-type json.dumps" in log


def test_a_type_that_is_trusted_by_name_is_loaded(tmp_path: Path) -> None:
    """`--trusted-type` opens exactly the types it names."""
    import skops.io  # noqa: PLC0415
    from sklearn.linear_model import LinearRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import FunctionTransformer  # noqa: PLC0415

    model = make_pipeline(FunctionTransformer(shutil.which), FunctionTransformer(json.dumps), LinearRegression())
    skops.io.dump(model, tmp_path / "model.skops")
    files = [tmp_path / "model.skops"]
    with pytest.raises(RefusedToServe, match=r"--trusted-type shutil\.which") as refused:
        server.load_skops(files, ["json.dumps"])
    assert "--trusted-type json.dumps" not in str(refused.value)
    assert server.load_skops(files, ["json.dumps", "shutil.which"]).outputs == ["predict"]


FRAME = """
import runpy, sys
import numpy as np, pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

frame = pd.DataFrame({"a": [0.0, 1.0, 2.0], "b": [5.0, 7.0, 5.0]})
model = make_pipeline(make_column_transformer(("passthrough", ["a"])), LinearRegression()).fit(frame, [0.0, 3.0, 6.0])
predictor = runpy.run_path(sys.argv[1])["SklearnPredictor"](model)
print(predictor.predict({"x": np.array([[4.0, 9.0]])}, None)["predict"].round(6).tolist())
"""


def test_a_model_trained_on_a_data_frame_finds_its_columns(serving_python: Path) -> None:
    """The tensor's columns get the names of the training's, in its order."""
    argv = [serving_python, "-I", "-c", FRAME, server.__file__]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[12.0]", 0), done.stderr


@pytest.mark.parametrize("extra", [("--host", "0.0.0.0"), ("--format", "python"), ("--name", "a/b")])  # noqa: S104
def test_wrong_arguments_end_with_code_2(start_server: Start, digits: Digits, extra: tuple[str, str]) -> None:
    """A host beyond loopback, a format without its options and a name that breaks the URL are refused at once."""
    with start_server(digits.directory, *extra) as running:
        code, log = ends(running)
    assert code == EXIT_USAGE
    assert extra[0] in log


PREDICTOR = """
import time
from pathlib import Path

def load(model_dir):
    (model_dir.parent / "loading").touch()
    while not (model_dir.parent / "go").exists():
        time.sleep(0.01)
    words = (model_dir / "words.txt").read_text().split()

    def predict(inputs):
        if "sleep" in inputs:
            (model_dir.parent / "sleeping").touch()
            time.sleep(60)
        if "fail" in inputs:
            raise RuntimeError("the lamp is broken")
        if "refuse" in inputs:
            raise ValueError("only numbers below three")
        return {"word": [words[i] for i in inputs["input"].ravel()], "twice": inputs["input"] * 2}

    return predict
"""


def test_a_python_predictor_from_loading_to_sigterm(
    start_server: Start, write_manifest: Manifest, tmp_path: Path
) -> None:
    """Not ready while it loads, then it serves; its errors are 400 or 500; SIGTERM ends it within 2 s, even in use.

    One test for one server's life, because each start costs seconds.
    """
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "words.txt").write_text("zero one two")
    (tmp_path / "model" / "serve.py").write_text(PREDICTOR)
    write_manifest(tmp_path)
    code_dir = str(tmp_path / "model")
    with start_server(
        tmp_path, "--format", "python", "--predictor", "serve.py:load", "--code-dir", code_dir
    ) as running:
        while not (tmp_path / "loading").exists():
            assert running.alive(), running.log.read_text()
            time.sleep(0.02)
        assert not client.ready(running.url)
        (tmp_path / "go").touch()
        running.wait_ready()

        assert client.infer(running.url, "digits", [0, 2], output="word") == ["zero", "two"]
        assert client.infer(running.url, "digits", [[0], [2]], output="twice") == [[0], [4]]
        assert [path.name for path in (tmp_path / "model").iterdir() if path.is_dir()] == []

        def one(name: str) -> tuple[int, dict[str, Any]]:
            return post(running, {"inputs": [{"name": name, "shape": [1], "datatype": "INT64", "data": [1]}]})

        assert one("refuse") == (400, {"error": "only numbers below three"})
        status, answer = one("fail")
        assert (status, "the lamp is broken" in answer["error"]) == (500, True)
        with pytest.raises(PermanentError, match="list index out of range"):
            client.infer(running.url, "digits", [7])

        with pytest.raises(OSError, match="timed out"):
            send_and_leave(running, "sleep")
        assert (tmp_path / "sleeping").exists()
        assert client.ready(running.url)  # health is answered during a prediction
        told = time.monotonic()
        running.process.terminate()
        code, _ = ends(running, ENDS_WITHIN + 5)
        assert code == 0
        assert time.monotonic() - told < ENDS_WITHIN


def send_and_leave(running: Running, name: str) -> None:
    """Send a request that will not be answered in time, and hang up."""
    body = {"inputs": [{"name": name, "shape": [1], "datatype": "INT64", "data": [1]}]}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(  # noqa: S310
        f"{running.url}/v2/models/digits/infer", data=json.dumps(body).encode(), headers=headers
    )
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=0.5)


def test_sigterm_ends_an_idle_server(served: Running) -> None:
    """Exit code 0 within 2 s; last in the module, as it ends the shared server."""
    told = time.monotonic()
    served.process.terminate()
    assert ends(served, ENDS_WITHIN + 5)[0] == 0
    assert time.monotonic() - told < ENDS_WITHIN
    assert not client.ready(served.url)
