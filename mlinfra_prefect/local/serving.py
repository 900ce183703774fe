"""What the agent of an endpoint has to run: KServe's Python server in an environment of its own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent import allowlist, environments, groups
from mlinfra_prefect.agent.wire import write_json
from mlinfra_prefect.errors import EndpointNotReady, InvalidInput
from mlinfra_prefect.local import tokens
from mlinfra_prefect.local.serving_requirements import serving_requirements
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import REPLICAS, RolloutRecord

FORMATS = ("sklearn-skops", "python")
"""The formats that a local endpoint can serve."""
FINAL = [2, 3, 4, 5, 6]
"""The exit codes of `local/server.py` and `local/router.py` that say why: starting again would say it again."""


def check_servable(record_format: str, predictor: str | None) -> None:
    """Refuse what the server could not load, before anything is created.

    Raises:
        InvalidInput: naming the field.
    """
    if record_format not in FORMATS:
        raise InvalidInput(
            "model",
            f"its format is {record_format!r}, which the local endpoint cannot serve",
            f"Save it as one of {', '.join(FORMATS)}: node().artifact(format=…).",
        )
    if (record_format == "python") != (predictor is not None):
        raise InvalidInput("serving.predictor", "goes with models of format 'python', and they need it")


def check_trusted(model: ModelArtifact, trusted: Sequence[str]) -> None:
    """Refuse a model that the server would refuse because of its types, where skops is here to tell.

    Raises:
        InvalidInput: naming the types and the field that trusts them, or the file that is no model.
    """
    if model.format != "sklearn-skops":
        if trusted:
            raise InvalidInput("serving.trusted_types", "goes with models of format 'sklearn-skops'")
        return
    if importlib.util.find_spec("skops") is None:
        return  # the server says the same a little later
    from skops.io import get_untrusted_types

    for entry in model.files:
        if not entry.path.endswith(".skops"):
            continue
        try:
            found = get_untrusted_types(file=model.path / entry.path)
        except Exception as error:
            problem = f"{entry.path} cannot be read as a skops file ({type(error).__name__}: {error})"
            raise InvalidInput("model", problem, "Save it with skops.io.dump.") from error
        unknown = sorted(set(found) - set(trusted))
        if unknown:
            raise InvalidInput(
                "serving.trusted_types",
                f"{entry.path} holds types that skops does not trust: {', '.join(unknown)}",
                "Loading them runs their code: if you trust who trained the model, "
                f"deploy(…, trusted_types={unknown!r}).",
            )


def serve_spec(record: RolloutRecord, cache: Path, node_dir: Path, marks: Mapping[str, str]) -> dict[str, Any]:
    """Make the server's environment (cached by the hash of its requirements) and return what the agent runs.

    Blocking: the first time it installs packages.

    Raises:
        EndpointNotReady: the environment could not be installed; the message carries the installer's last lines.
    """
    artifact = record.artifact
    requirements = serving_requirements(artifact.format, artifact.versions)
    path = node_dir / "install.log"
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    guardian = groups.Guardian()  # an operation that is killed must not leave pip writing into the environment
    try:
        python = environments.ensure(
            cache, Path(sys.executable), requirements, inherit=False, log=log, guardian=guardian,
            env={**allowlist.inherited(pip=True), **marks},
        )  # fmt: skip
    except environments.EnvironmentFailed as error:
        said = " | ".join(path.read_text(errors="replace").splitlines()[-5:])
        raise EndpointNotReady(f"The server's environment could not be installed: {error}. {said}") from error
    finally:
        guardian.close()
        os.close(log)
    manifest = node_dir / "artifact.json"
    write_json(manifest, {"files": [entry.model_dump() for entry in artifact.files]})
    argv = [
        str(python), "-I", str(Path(__file__).with_name("server.py")),
        "--model-dir", str(artifact.path),
        "--name", record.name,
        "--host", "127.0.0.1",
        "--format", artifact.format,
        "--sha256-manifest", str(manifest),
    ]  # fmt: skip
    if record.serving.predictor:
        argv += ["--predictor", record.serving.predictor, "--code-dir", str(artifact.path)]
    token = tokens.token_file(record, node_dir.parent.parent)
    if token is not None:
        tokens.ensure(token)
        argv += ["--token-file", str(token)]
    for trusted in record.serving.trusted_types:
        argv += ["--trusted-type", trusted]
    argvs = [[*argv, "--port", str(port)] for port in record.ports]
    # Not in the attempt's own directory: servers that are repaired are as many as before.
    scaled = {"scale": str(node_dir.parent.parent / REPLICAS), "least": record.serving.replicas}
    return {
        "argvs": argvs, "env": {}, "cwd": str(node_dir), "final": FINAL,
        **(scaled if len(argvs) > record.serving.replicas else {}),
    }  # fmt: skip
