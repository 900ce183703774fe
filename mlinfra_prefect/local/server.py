"""The inference server of the local platform: KServe's Python model server around one verified model, on loopback.

It exists because a served model must run in an environment of its own (the model's versions, not the flow's), so this
file is a program rather than a library: it imports nothing of ours, needs only KServe, numpy and, for `sklearn-skops`,
scikit-learn and skops, and also runs as ``python -I server.py``. It refuses to do three things: to load a file whose
sha256 is not the one the artifact records, to build a type that nobody said to trust, and to listen anywhere else
than on loopback (it has no TLS).

Usage::

    server.py --model-dir DIR --sha256-manifest FILE --name NAME --host 127.0.0.1 --port N
              --format sklearn-skops [--trusted-type TYPE]...
    server.py ... --format python --code-dir DIR --predictor file.py:function
    server.py ... --token-file FILE

Protocol: Open Inference Protocol v2 (``GET /v2/health/ready``, ``POST /v2/models/NAME/infer``) and ``GET /metrics``.
The port is reserved at once and listens only when the model is loaded: until then connections are refused, so *ready*
never means *about to be*. One prediction runs at a time, in one thread, while health checks go on being answered.

With a token file (one line, read once, at the start), everything but ``/v2/health/live`` and ``/v2/health/ready`` asks
for ``Authorization: Bearer TOKEN``, and is refused with 401 without it.

Formats:
    sklearn-skops: the one ``*.skops`` file of the manifest. Takes one tensor of shape [rows, features]; answers
        ``predict`` and, where a classifier has it, ``predict_proba``. As the protocol says, a request without
        ``outputs`` gets every output; name ``predict`` alone to save computing the probabilities.
    python: ``function(model_dir: Path)`` of a file in the code directory returns ``predict(inputs: dict[str, ndarray])
        -> dict[str, ndarray] | ndarray`` (a bare array is the output ``predict``). It refuses an input by raising
        ValueError, which becomes a 400; anything else it raises is a 500.

A wrong shape, datatype or output name is a 400 with a sentence under ``error``. SIGTERM ends the server within 2 s.

Exit codes: 0 told to stop · 2 wrong arguments or unreadable manifest · 3 a model file is not what the artifact records
· 4 the port is taken · 5 untrusted types · 6 the model cannot be loaded. Every refusal is one sentence on stderr.
"""

from __future__ import annotations

import argparse
import errno
import gc
import hashlib
import hmac
import importlib
import ipaddress
import json
import logging
import math
import os
import re
import signal
import socket
import sys
import time
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[Any]]

EXIT_USAGE, EXIT_CORRUPTED, EXIT_PORT_TAKEN, EXIT_UNTRUSTED, EXIT_UNLOADABLE = 2, 3, 4, 5, 6

# Seconds that requests in progress may take after SIGTERM; the rest of the promised 2 s is for the interpreter to end.
DRAIN_SECONDS = 1

OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
"""What the router and a load balancer may ask without a token: each says no more than that there is life."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TOKEN_LINE = re.compile(rb"([A-Za-z0-9._~+/-]{16,512}=*)\n?")  # what RFC 6750 allows
# The JSON values each datatype takes, as the kinds numpy gives them: "1" is no number and 1.5 is no integer, so that
# a mistaken client gets a sentence rather than a plausible wrong prediction.
_KINDS = {"BOOL": "b", "BYTES": "US", "FP32": "iuf", "FP64": "iuf"} | {
    f"{sign}INT{bits}": "iu" for sign in ("", "U") for bits in (8, 16, 32, 64)
}

log = logging.getLogger("mlinfra_prefect.server")


class RefusedToServe(Exception):
    """The server ends before it listens: a sentence for stderr and the exit code that names the reason."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Predictor(Protocol):
    """What a format provides: `tensors` in, named outputs out; ValueError is the client's mistake, in a sentence."""

    def inputs(self) -> list[dict[str, Any]]:
        """Return the protocol's description of the inputs; empty where the format does not know them."""

    def predict(self, tensors: Tensors, wanted: Sequence[str] | None) -> Tensors:
        """Return the outputs named in `wanted`, or all where it is None."""


# --- before anything is loaded ---------------------------------------------------------------------------------------


def reserve(host: str, port: int) -> socket.socket:
    """Bind the port without listening, so that a taken one is known now and nobody is answered before *ready*."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise RefusedToServe(EXIT_USAGE, f"--host {host!r} is not an IP address; use 127.0.0.1.") from None
    if not address.is_loopback:
        message = f"--host {host} is not loopback, and this server has no TLS; use 127.0.0.1."
        raise RefusedToServe(EXIT_USAGE, message)
    if not 0 < port < 1 << 16:
        raise RefusedToServe(EXIT_USAGE, f"--port {port} is not between 1 and 65535.")
    bound = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
    # A server restarted on its recorded port must not wait for the TIME_WAIT of its predecessor's connections.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _claim(bound.bind, (str(address), port), port)
    return bound


def listen(bound: socket.socket) -> None:
    """Start listening; two servers may both have reserved a port that nobody listened on, and this decides."""
    _claim(bound.listen, 128, bound.getsockname()[1])


def _claim(call: Callable[[Any], None], argument: object, port: int) -> None:
    try:
        call(argument)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} is in use by another program; choose another port or end that program."
        elif error.errno == errno.EACCES:
            message = f"Port {port} may not be used by this user; choose one above 1023."
        else:
            raise
        raise RefusedToServe(EXIT_PORT_TAKEN, message) from None


def read_token(path: Path | None) -> bytes | None:
    """Return the token in a file; None where none is wanted. What is in the file is never told."""
    if path is None:
        return None
    try:
        found = _TOKEN_LINE.fullmatch(path.read_bytes())
    except OSError as error:
        raise RefusedToServe(EXIT_USAGE, f"--token-file {path} cannot be read ({error.strerror}).") from None
    if found is None:
        raise RefusedToServe(EXIT_USAGE, f"--token-file {path} is not one line with a token of 16 characters or more.")
    return found[1]


def verify(model_dir: Path, manifest: Path) -> tuple[Path, ...]:
    """Compare every model file with the artifact's manifest; return the files in the manifest's order.

    A file that differs, is missing, lies outside the directory, or is there without being listed is a refusal:
    nothing unverified may be reachable for the code that loads the model.
    """
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        listed = {entry["path"]: (entry["sha256"], entry["size"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"The manifest {manifest} cannot be read ({type(error).__name__}: {error})."
        raise RefusedToServe(EXIT_USAGE, message) from None
    if not listed:
        raise RefusedToServe(EXIT_CORRUPTED, f"The manifest {manifest} lists no model file.")
    root = model_dir.resolve()
    files = {}
    for name, (sha256, size) in listed.items():
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise RefusedToServe(EXIT_CORRUPTED, f"The manifest names {name!r}, which lies outside {model_dir}.")
        if not path.is_file():
            raise RefusedToServe(EXIT_CORRUPTED, f"The model file {name!r} is missing from {model_dir}.")
        with path.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != sha256 or path.stat().st_size != size:
            message = (
                f"The model file {name!r} has the sha256 {actual}, but the artifact records {sha256}; it was not "
                "loaded. Fetch the artifact again, or deploy another version."
            )
            raise RefusedToServe(EXIT_CORRUPTED, message)
        files[path] = name
    present = {path.resolve() for path in root.rglob("*") if not path.is_dir()} - {manifest.resolve()}
    if unlisted := sorted(str(path) for path in present - files.keys()):
        raise RefusedToServe(EXIT_CORRUPTED, f"Files that the artifact does not record are in {root}: {unlisted}.")
    return tuple(files)


# --- formats ---------------------------------------------------------------------------------------------------------


class SklearnPredictor:
    """A scikit-learn estimator behind one tensor of shape [rows, features]."""

    def __init__(self, model: Any) -> None:
        if not hasattr(model, "predict"):
            raise RefusedToServe(EXIT_UNLOADABLE, f"The model is a {type(model).__name__}, which has no predict().")
        self.model = model
        self.features: int | None = getattr(model, "n_features_in_", None)
        self.columns = getattr(model, "feature_names_in_", None)
        # A multi-output classifier has one array of probabilities per output, which one tensor cannot carry.
        single_output = not isinstance(getattr(model, "classes_", None), list)
        self.outputs = ["predict"] + ["predict_proba"] * (single_output and hasattr(model, "predict_proba"))

    def inputs(self) -> list[dict[str, Any]]:
        return [{"name": "input", "datatype": "FP64", "shape": [-1, self.features or -1]}]

    def predict(self, tensors: Tensors, wanted: Sequence[str] | None) -> Tensors:
        names = self.outputs if wanted is None else wanted
        if unknown := [name for name in names if name not in self.outputs]:
            raise ValueError(f"This model has no output {unknown[0]!r}; it has {', '.join(self.outputs)}.")
        if len(tensors) != 1:
            message = f"This model takes one input tensor with a row per example; the request has {len(tensors)}."
            raise ValueError(message)
        ((name, rows),) = tensors.items()
        if self.features is not None and (rows.ndim != 2 or rows.shape[1] != self.features):
            message = f"Input {name!r} has shape {list(rows.shape)}, but this model takes [rows, {self.features}]."
            raise ValueError(message)
        examples: Any = rows
        if self.columns is not None:
            # Trained on a data frame: its columns are found by name, and the tensor has them in the order of training.
            import pandas as pd

            examples = pd.DataFrame(rows, columns=self.columns)
        return {output: getattr(self.model, output)(examples) for output in names}


class PythonPredictor:
    """The callable that a user's function returned; all its outputs are computed, KServe returns the wanted ones."""

    def __init__(self, call: Callable[[Tensors], Any]) -> None:
        self.call = call

    def inputs(self) -> list[dict[str, Any]]:
        return []

    def predict(self, tensors: Tensors, wanted: Sequence[str] | None) -> Tensors:
        result = self.call(tensors)
        outputs = dict(result) if isinstance(result, dict) else {"predict": result}
        if unknown := [name for name in wanted or () if name not in outputs]:
            raise ValueError(f"This model has no output {unknown[0]!r}; it has {', '.join(outputs)}.")
        return outputs


def load_skops(files: Sequence[Path], trusted: Sequence[str]) -> SklearnPredictor:
    """Load the one `.skops` file, building only types that skops or `trusted` names."""
    models = [path for path in files if path.suffix == ".skops"]
    if len(models) != 1:
        message = f"An artifact of the format sklearn-skops holds one .skops file; this one holds {len(models)}."
        raise RefusedToServe(EXIT_UNLOADABLE, message)
    from skops.io import get_untrusted_types, load
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return SklearnPredictor(load(models[0], trusted=list(trusted)))
    except UntrustedTypesFoundException:
        untrusted = sorted(set(get_untrusted_types(file=models[0])) - set(trusted))
        message = (
            f"The model {models[0].name!r} holds types that are not trusted: {', '.join(untrusted)}. Review them, and "
            f"where you know them to be harmless pass {' '.join(f'--trusted-type {name}' for name in untrusted)}."
        )
        raise RefusedToServe(EXIT_UNTRUSTED, message) from None


def load_python(model_dir: Path, code_dir: Path, target: str) -> PythonPredictor:
    """Import ``file.py:function`` from the code directory and call it with the model directory."""
    file, _, function = target.partition(":")
    path = (code_dir / file).resolve()
    root = code_dir.resolve()
    if not (function.isidentifier() and path.suffix == ".py" and path.is_relative_to(root) and path.is_file()):
        message = f"--predictor {target!r} must be file.py:function, with the file inside {code_dir}."
        raise RefusedToServe(EXIT_USAGE, message)
    sys.path.insert(0, str(root))
    # The code may stand in the model directory, which must hold nothing that the artifact does not record.
    sys.dont_write_bytecode = True
    module = importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
    if Path(module.__file__ or "").resolve() != path:
        message = (
            f"{file!r} has the name of another module that is loaded already ({module.__file__}); rename the file."
        )
        raise RefusedToServe(EXIT_USAGE, message)
    try:
        make = getattr(module, function)
    except AttributeError:
        raise RefusedToServe(EXIT_USAGE, f"{file!r} has no function {function!r}.") from None
    predict = make(model_dir)
    if not callable(predict):
        message = f"{target} must return a callable predict(inputs), but returned a {type(predict).__name__}."
        raise RefusedToServe(EXIT_UNLOADABLE, message)
    return PythonPredictor(predict)


# --- tensors ---------------------------------------------------------------------------------------------------------


def decode(name: str, datatype: str, shape: Sequence[int], data: Any) -> NDArray[Any]:
    """Turn one input of a request (flat or nested `data`) into an array of exactly that datatype and shape.

    Raises ValueError with the sentence that becomes the answer's ``error``.
    """
    import numpy as np

    kinds = _KINDS.get(datatype)
    if kinds is None:
        raise ValueError(f"Input {name!r} has the datatype {datatype!r}; known are {', '.join(sorted(_KINDS))}.")
    try:
        values = np.asarray(data)
    except ValueError:
        raise ValueError(f"Input {name!r} has rows of different lengths.") from None
    if values.size and values.dtype.kind not in kinds:
        raise ValueError(f"Input {name!r} has values that are not {datatype}.")
    if any(size < 0 for size in shape) or math.prod(shape) != values.size:
        raise ValueError(f"Input {name!r} has {values.size} values, which do not fill its shape {list(shape)}.")
    if datatype == "BYTES":
        return values.astype(object).reshape(shape)
    dtype = {"BOOL": "bool", "FP32": "float32", "FP64": "float64"}.get(datatype, datatype.lower())
    exact = values.astype(dtype)
    if values.dtype.kind in "iu" and exact.dtype.kind in "iu" and not np.array_equal(exact, values):
        raise ValueError(f"Input {name!r} has values that do not fit into {datatype}.")
    return exact.reshape(shape)


def encodable(name: str, value: Any) -> NDArray[Any]:
    """Return an output as an array that the protocol can carry; TypeError where it has no datatype for it."""
    import numpy as np

    array: NDArray[Any] = np.asarray(value)
    if array.dtype.kind in "US":
        return array.astype(object)
    if array.dtype == np.float16:  # KServe refuses FP16 in JSON
        return array.astype(np.float32)
    if array.dtype.kind not in "biufO" or array.dtype.itemsize > 8:
        raise TypeError(f"The model's output {name!r} is of dtype {array.dtype}, which the protocol cannot carry.")
    return array


# --- serving ---------------------------------------------------------------------------------------------------------


class Turnstile:
    """Runs one prediction at a time in one thread (many models are not thread-safe, and some are bound to a thread)."""

    def __init__(self) -> None:
        self.busy = False
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="predict")

    def run(self, predictor: Predictor, tensors: Tensors, wanted: Sequence[str] | None) -> Tensors:
        """Blocking; called in the pool's thread."""
        self.busy = True
        try:
            return {name: encodable(name, value) for name, value in predictor.predict(tensors, wanted).items()}
        finally:
            self.busy = False


def kserve_model(name: str, predictor: Predictor, turnstile: Turnstile) -> Any:
    """The predictor as KServe sees it: requests decoded and checked, outputs encoded."""
    import asyncio

    import kserve
    from kserve.errors import InvalidInput

    class ServedModel(kserve.Model):  # type: ignore[misc]
        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:  # noqa: ARG002
            if not isinstance(payload, kserve.InferRequest):
                raise InvalidInput(f"This server speaks the v2 protocol: POST /v2/models/{name}/infer.")
            wanted = [output.name for output in payload.request_outputs] if payload.request_outputs else None
            loop = asyncio.get_running_loop()
            try:
                tensors = {
                    item.name: decode(item.name, item.datatype, item.shape, item.data) for item in payload.inputs
                }
                if len(tensors) != len(payload.inputs):
                    raise InvalidInput("Two inputs of the request have the same name.")
                outputs = await loop.run_in_executor(turnstile.pool, turnstile.run, predictor, tensors, wanted)
            except ValueError as error:  # ours, or what the model itself says about its input (NaN, categories)
                raise InvalidInput(str(error)) from error
            return kserve.InferResponse(
                response_id=payload.id or str(uuid.uuid4()),  # KServe leaves it empty, and its own schema requires it
                model_name=self.name,
                infer_outputs=[
                    kserve.InferOutput(key, list(value.shape), _datatype(value), data=value)
                    for key, value in outputs.items()
                ],
                use_binary_outputs=payload.use_binary_outputs,
                requested_outputs=payload.request_outputs,
            )

        def get_input_types(self) -> list[dict[str, Any]]:
            return predictor.inputs()

    model = ServedModel(name)
    model.load()
    return model


class Doorkeeper:
    """ASGI middleware: lets a request in that shows the token, and answers all others 401."""

    def __init__(self, app: Callable[..., Awaitable[None]], token: bytes) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN or self.allows(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served here")
        content = json.dumps({"error": "The token is missing or wrong: send 'Authorization: Bearer TOKEN'."}).encode()
        headers = [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)),
            (b"www-authenticate", b'Bearer realm="mlinfra-prefect"'),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def allows(self, scope: dict[str, Any]) -> bool:
        """Whether the one Authorization header of a request shows the token; compared in constant time."""
        shown = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        scheme, _, token = (shown[0] if len(shown) == 1 else b"").partition(b" ")
        return hmac.compare_digest(token.strip(b" "), self.token) and scheme.lower() == b"bearer"


def rest_server(model: Any, port: int, token: bytes | None) -> Any:
    """KServe's REST server around that one model, with its rough edges off; it neither binds nor listens."""
    import kserve
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from kserve.errors import InvalidInput, ModelNotFound
    from kserve.model_server import app
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer

    class StrictDataPlane(DataPlane):  # type: ignore[misc]
        def decode(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().decode(*args, **kwargs)
            except (ValueError, KeyError, TypeError) as error:  # KServe answers 500 for a malformed binary request
                raise InvalidInput(f"The request cannot be read: {str(error).rstrip('.')}.") from error

    class FixedRepository(ModelRepositoryExtension):  # type: ignore[misc]
        async def load(self, model_name: str) -> None:  # or anyone on this machine could unload the model
            raise InvalidInput(
                f"This server serves one fixed model: {model_name!r} can be neither loaded nor unloaded."
            )

        unload = load

    async def refuse(_: Any, error: Exception) -> JSONResponse:
        status = 404 if isinstance(error, ModelNotFound) else 400
        return JSONResponse(status_code=status, content={"error": _sentence(error)})

    class QuietServer(RESTServer):  # type: ignore[misc]
        def create_application(self) -> None:
            super().create_application()
            # KServe logs a traceback for every bad request, and FastAPI answers 422 with its own structure.
            for mistake in (InvalidInput, ModelNotFound, RequestValidationError):
                app.add_exception_handler(mistake, refuse)
            if token is not None:
                app.add_middleware(Doorkeeper, token=token)  # added last, so it is asked first

    server = kserve.ModelServer(workers=1, enable_grpc=False, enable_latency_logging=False)
    server.register_model(model)
    rest = QuietServer(
        "kserve.model_server:app",
        StrictDataPlane(model_registry=server.registered_models),
        FixedRepository(model_registry=server.registered_models),
        http_port=port,
        grace_period=DRAIN_SECONDS,
    )
    rest.config.access_log = False
    return rest


def serve(name: str, predictor: Predictor, bound: socket.socket, token: bytes | None = None) -> None:
    """Answer requests until SIGTERM or SIGINT; blocks. KServe is imported here, after everything that can refuse."""
    turnstile = Turnstile()
    # ModelServer.start would bind 0.0.0.0: the host is fixed there. Its REST server takes a bound socket instead.
    rest = rest_server(kserve_model(name, predictor, turnstile), bound.getsockname()[1], token)
    listen(bound)
    gc.enable()
    try:
        rest.run(sockets=[bound])
    finally:
        turnstile.pool.shutdown(wait=False, cancel_futures=True)
        if turnstile.busy:  # the interpreter would wait for the thread of a prediction that nobody awaits any more
            os._exit(0)


def _datatype(array: NDArray[Any]) -> str:
    kind, bits = array.dtype.kind, array.dtype.itemsize * 8
    return {"b": "BOOL", "O": "BYTES", "i": f"INT{bits}", "u": f"UINT{bits}", "f": f"FP{bits}"}[kind]


def _sentence(error: Exception) -> str:
    """One line for the client: pydantic's list of mistakes becomes its first one, with the field's path."""
    mistakes = getattr(error, "errors", None)
    if mistakes is None:
        return str(error)
    first = mistakes()[0]
    path = [] if first["type"] == "json_invalid" else first["loc"]
    field = ".".join(str(part) for part in path if part not in ("body", "InferenceRequest", "bytes"))
    return f"The request is not an Open Inference Protocol v2 request: {field or 'body'}: {first['msg']}."


def _stop(_signum: int, _frame: object) -> NoReturn:
    # While serving, uvicorn holds the signals, drains, and raises them again at the end: both ways end here.
    raise SystemExit(0)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="server.py", allow_abbrev=False, description="Serve one verified model.")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--sha256-manifest", type=Path, required=True, metavar="FILE")
    parser.add_argument("--name", required=True, help="the model's name in the URL")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--format", choices=("sklearn-skops", "python"), default="sklearn-skops")
    parser.add_argument("--trusted-type", action="append", default=[], metavar="TYPE", help="repeatable")
    parser.add_argument("--predictor", metavar="FILE.py:FUNCTION", help="for --format python")
    parser.add_argument("--code-dir", type=Path, metavar="DIR", help="for --format python")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="what requests must show")
    arguments = parser.parse_args(argv)
    if not _NAME.fullmatch(arguments.name):
        parser.error(f"--name {arguments.name!r} must match {_NAME.pattern}")
    if not arguments.model_dir.is_dir():
        parser.error(f"--model-dir {arguments.model_dir} is not a directory")
    if arguments.format == "python" and not (arguments.predictor and arguments.code_dir):
        parser.error("--format python needs --predictor and --code-dir")
    return arguments


def _load(arguments: argparse.Namespace, files: Sequence[Path]) -> Predictor:
    try:
        if arguments.format == "sklearn-skops":
            return load_skops(files, arguments.trusted_type)
        return load_python(arguments.model_dir.resolve(), arguments.code_dir, arguments.predictor)
    except RefusedToServe:
        raise
    except Exception as error:  # boundary: whatever a user's code or a model file raises must become one sentence
        log.exception("Loading the model raised:")
        message = f"The model could not be loaded: {type(error).__name__}: {error}"
        raise RefusedToServe(EXIT_UNLOADABLE, message) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code (see the module's docstring)."""
    started = time.perf_counter()
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setLevel(logging.INFO)
    for noisy in ("kserve", "uvicorn"):  # a handler of its own keeps KServe from installing its verbose set
        logging.getLogger(noisy).addHandler(logging.NullHandler())
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # KServe's own choice of response class, announced for every route by current FastAPI.
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")
    # KServe parses sys.argv when it is imported, and would take --predictor for an ambiguous option of its own.
    sys.argv[1:] = []
    # Importing allocates hundreds of thousands of objects that stay: collecting in between costs a tenth of the start.
    gc.disable()
    try:
        token = read_token(arguments.token_file)
        bound = reserve(arguments.host, arguments.port)
        predictor = _load(arguments, verify(arguments.model_dir, arguments.sha256_manifest))
        log.info("model %s loaded after %.1f s", arguments.name, time.perf_counter() - started)
        serve(arguments.name, predictor, bound, token)
    except RefusedToServe as refusal:
        sys.stderr.write(f"mlinfra-prefect server: {refusal}\n")
        return refusal.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
