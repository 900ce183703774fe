"""A real inference server for the serving tests: its interpreter, a trained model, and processes that always end."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import skops.io
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from mlinfra_prefect.agent import environments
from mlinfra_prefect.local import client, server
from mlinfra_prefect.local.serving_requirements import serving_requirements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

# pytest's importlib mode imports no siblings; the router's harness is one.
sys.path.insert(0, str(Path(__file__).parent))

READY_SECONDS = 60


@pytest.fixture(scope="session")
def serving_python() -> Path:
    """The interpreter of a serving environment: MLINFRA_TEST_SERVING_PYTHON, or one that is made once and kept."""
    named = os.environ.get("MLINFRA_TEST_SERVING_PYTHON")
    if named:
        return Path(named)
    versions = {name: metadata.version(name) for name in ("numpy", "scikit-learn", "scipy", "skops")}
    cache = Path(os.environ.get("MLINFRA_TEST_CACHE") or Path(__file__).parents[2] / ".cache")
    cache.mkdir(parents=True, exist_ok=True)
    allowed = ("PATH", "HOME", "LANG", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
    env = {
        key: value
        for key, value in os.environ.items()
        if key in allowed or key.startswith("PIP_") or key.lower().endswith("_proxy")
    }
    log = os.open(cache / "serving-environment.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        requirements = serving_requirements("sklearn-skops", versions)
        return environments.ensure(cache, Path(sys.executable), requirements, inherit=False, log=log, env=env)
    finally:
        os.close(log)


@dataclass(frozen=True)
class Digits:
    """A directory with `model/` and `manifest.json`, the model itself, and examples that it was not trained on."""

    directory: Path
    model: Any
    examples: NDArray[np.float64]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Scikit-learn's bundled digits, a logistic regression, saved as an artifact."""
    images, labels = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=50, tol=0.01).fit(images[:1000] / 16, labels[:1000])
    directory = tmp_path_factory.mktemp("digits")
    (directory / "model").mkdir()
    skops.io.dump(model, directory / "model" / "model.skops")
    _write_manifest(directory)
    return Digits(directory, model, images[1000:1100] / 16)


@pytest.fixture(scope="session")
def write_manifest() -> Callable[[Path], Path]:
    """Record what is in `directory/model` now; return the manifest."""
    return _write_manifest


def _write_manifest(directory: Path) -> Path:
    files = [
        {
            "path": path.relative_to(directory / "model").as_posix(),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in sorted((directory / "model").rglob("*"))
        if path.is_file()
    ]
    manifest = directory / "manifest.json"
    manifest.write_text(json.dumps({"files": files}))
    return manifest


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass(frozen=True)
class Running:
    """A started server."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None

    def wait_ready(self) -> float:
        """Wait for it as the keeper does; the log is in the failure."""
        try:
            return client.wait_ready(self.url, time.time() + READY_SECONDS, self.alive)
        except Exception as error:
            error.add_note(self.log.read_text())
            raise


@pytest.fixture(scope="session")
def start_server(serving_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Start the program on an artifact directory; as a context manager, so that it always ends."""
    source = Path(server.__file__)

    @contextmanager
    def start(directory: Path, *extra: str, port: int | None = None) -> Iterator[Running]:
        port = port or _free_port()
        log = tmp_path_factory.mktemp("server") / "server.log"
        argv = [serving_python, "-I", source, "--model-dir", directory / "model", "--name", "digits"]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--sha256-manifest", directory / "manifest.json", *extra]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env={"PATH": os.defpath}, cwd="/"
            )
        try:
            yield Running(process, f"http://127.0.0.1:{port}", log)
        finally:
            process.kill()
            process.wait()

    return start
