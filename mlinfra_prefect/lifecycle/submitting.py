"""Hand a job to a node: everything it needs is put into one directory, which appears to the agent all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.agent import codecs
from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.artifacts import Lineage
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle.adopting import origin_of
from mlinfra_prefect.lifecycle.collecting import note_job
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.lineages import note_lineage
from mlinfra_prefect.lifecycle.platform import Node
from mlinfra_prefect.lifecycle.resuming import take_resume_key
from mlinfra_prefect.lifecycle.suiting import project_requirements, refuse_other_python
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import Attempt, JobNote, LeaseRecord
from mlinfra_prefect.model.names import as_line, digest

if TYPE_CHECKING:
    from mlinfra_prefect.lifecycle.training import Work


@contextmanager
def submitted(
    context: Context, record: LeaseRecord, attempt: Attempt, node: Node, *, job_id: str, work: Work
) -> Iterator[None]:
    """Hand a job over, write it down first, and answer its question for secrets while the block runs.

    Raises:
        InvalidInput: a secret's or an input's reference leads nowhere, or an argument or the function cannot travel.
        ResumeHeld: another live lease holds the resume key.
        ArtifactCorrupted, NotFound: an artifact among the arguments is not what was stored.
        LeaseLost: the lease has begun to go.
    """
    platform = context.platform(record.platform)
    refuse_other_python(platform, record.request, work)
    secrets = platform.take_secrets(record.environment, work.secrets)
    own = project_requirements(platform, work)
    inputs = _resolve_inputs(context, record, work.inputs)
    place = take_resume_key(context, record, _resume_key(record, work), work.code_hash)
    staged = context.directory(record, attempt.node_dir).parent / "staging" / job_id
    shutil.rmtree(staged, ignore_errors=True)
    private_folder(staged)
    if work.code_archive is not None:
        shutil.copyfile(work.code_archive, staged / "code.zip")
    requirements = list(dict.fromkeys((*own, *work.requirements)))
    environment = digest("environment", json.dumps(dict(work.versions)), *requirements)
    lineage = Lineage(
        name=as_line(work.label), lease_id=record.id, environment=record.environment, code_hash=work.code_hash,
        request_hash=record.request_hash, environment_hash=environment, params=dict(work.params),
        versions=dict(work.versions),
    )  # fmt: skip
    note_lineage(context, record, job_id, lineage, place.makers)
    found = _artifacts_in((*work.args, *work.kwargs.values()))
    incoming = context.artifacts.incoming(record.id, job_id)
    private_folder(incoming.parent)
    job = {
        "schema": "mlinfra-prefect/job/1",
        "job_id": job_id,
        "lease_id": record.id,
        "attempt": attempt.number,
        "kind": "command" if work.command else "callable",
        "command": list(work.command) if work.command else None,
        "callable": dict(work.callable) if work.callable else None,
        "code": {"archive": "code.zip", "sha256": work.code_sha256} if work.code_archive else None,
        "args": None if work.command else _encoded(work, staged),
        "params": dict(work.params),
        "inputs": inputs,
        "artifacts": {each.id: str(context.artifacts.verified(each.id).path) for each in found},
        "requirements": requirements,
        "secrets": sorted(secrets),
        "grace_seconds": work.grace_seconds or record.request.grace_seconds,
        "progress_timeout_seconds": work.progress_timeout_seconds,
        "checkpoint": {"key": place.key, "store": str(place.store)},
        "upload_dir": str(incoming),
        "env": {},
        "expects": work.expects,
        "beside": work.beside,
        "check_metrics": True,
    }
    note_job(context, record, JobNote(job_id=job_id, label=as_line(work.label), state="submitted"))
    with node.submitted(job_id, staged, job, secrets, origin=origin_of(lineage, place)):
        yield


def _encoded(work: Work, staged: Path) -> dict[str, Any]:
    def encode(value: Any, name: str) -> Any:
        return codecs.encode(value, staged / "args", name=name, aliases=work.aliases)

    return {
        "args": [encode(value, f"argument {number}") for number, value in enumerate(work.args, 1)],
        "kwargs": {name: encode(value, name) for name, value in work.kwargs.items()},
    }


def _resolve_inputs(context: Context, record: LeaseRecord, inputs: Mapping[str, str]) -> dict[str, str]:
    roots = [root.resolve() for root in context.config.environment(record.environment).input_roots]
    found = {}
    for name, uri in inputs.items():
        field = f"inputs.{name}"
        if uri.startswith("s3://") and record.platform == "aws":
            found[name] = uri  # the node fetches it, by links that read exactly this
            continue
        if "://" in uri and not uri.startswith("file://"):
            where = "Platform aws also reads s3:// URIs." if record.platform == "aws" else "Platform local reads files."
            raise InvalidInput(field, f"{uri!r} is not a path or file:// URI", where)
        path = Path(uri.removeprefix("file://")).expanduser().resolve()
        if not path.exists():
            raise InvalidInput(field, f"{path} does not exist")
        if roots and not any(path.is_relative_to(root) for root in roots):
            problem = f"{path} is outside the input_roots of environment {record.environment!r}"
            raise InvalidInput(field, problem, f"Put it under one of: {', '.join(map(str, roots))}.")
        found[name] = str(path)
    return found


def _resume_key(record: LeaseRecord, work: Work) -> str:
    if work.resume is not None:
        return work.resume
    # Without an explicit key a checkpoint belongs to this lease's base, this code and these parameters only.
    own = digest("resume", work.label, work.code_hash, json.dumps(dict(work.params), default=str, sort_keys=True))
    return f"{record.base}:{own}"


def _artifacts_in(values: tuple[Any, ...]) -> list[ModelArtifact]:
    found: list[ModelArtifact] = []
    for value in values:
        if isinstance(value, ModelArtifact):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(_artifacts_in(tuple(value)))
        elif isinstance(value, dict):
            found.extend(_artifacts_in(tuple(value.values())))
    return found
