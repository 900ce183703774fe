"""What the agent and its jobs are told: typed, frozen, and checked field by field where they enter a process.

Unknown fields are refused rather than ignored: both sides are the same code, so one can only be a mistake, and a
mistake in a grace or a deadline must not be found out after a night of training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .fields import Fields, check_variables
from .wire import AGENT_SCHEMA, JOB_SCHEMA, SpecError

Kind = Literal["callable", "command"]
Expects = Literal["result", "model", "none"]
Action = Literal["checkpoint", "kill"]


@dataclass(frozen=True)
class ServeSpec:
    """The servers that an agent of role ``endpoint`` runs as its children.

    ``listen``: a port of the loopback interface that the agent itself listens on and each server inherits as
    ``--fd N``, so that requests wait, and are not refused, while a server that died is started again.
    ``final``: exit codes by which a server says that starting it again would change nothing.
    ``scale``: the file that says how many of them shall run (``{"replicas": 2}``), from ``least``, which run in any
    case, to all of them. None: always all.
    """

    argvs: tuple[tuple[str, ...], ...]
    env: dict[str, str]
    cwd: Path
    listen: int | None = None
    final: tuple[int, ...] = ()
    scale: Path | None = None
    least: int = 1


@dataclass(frozen=True)
class AgentSpec:
    """What one agent is for, where it lives, and what ends it. Times in seconds, ``deadline`` in epoch seconds."""

    ledger_id: str
    lease_id: str
    attempt: int
    role: Literal["node", "endpoint"]
    deadline: float | None
    node_dir: Path
    grant: Path
    grant_token: str = field(repr=False)
    heartbeat_seconds: float
    poll_seconds: float
    python: Path
    cache_dir: Path
    serve: ServeSpec | None = None

    @classmethod
    def from_payload(cls, payload: object) -> AgentSpec:
        """Check and build; raises SpecError naming the field."""
        fields = Fields(payload, "agent spec")
        fields.choice("schema", (AGENT_SCHEMA,))
        serve = fields.take("serve", dict, None)
        spec = cls(
            ledger_id=fields.identifier("ledger_id"),
            lease_id=fields.identifier("lease_id"),
            attempt=fields.take("attempt", int),
            role=fields.choice("role", ("node", "endpoint")),
            deadline=fields.number("deadline", None),
            node_dir=fields.path("node_dir"),
            grant=fields.path("grant"),
            grant_token=fields.take("grant_token", str),
            heartbeat_seconds=fields.number("heartbeat_seconds", 2.0, least=0.01),
            poll_seconds=fields.number("poll_seconds", 0.1, least=0.005),
            python=fields.path("python"),
            cache_dir=fields.path("cache_dir"),
            serve=_serve(serve) if serve is not None else None,
        )
        fields.finish()
        if not spec.grant_token.strip():
            raise SpecError("agent spec: the field 'grant_token' is empty")
        if (spec.role == "endpoint") != (spec.serve is not None):
            raise SpecError("agent spec: 'serve' is for the role 'endpoint', which needs it")
        return spec

    def to_payload(self) -> dict[str, Any]:
        """The JSON object that `from_payload` reads."""
        return {"schema": AGENT_SCHEMA, **_jsonable(asdict(self))}


def _serve(payload: object) -> ServeSpec:
    fields = Fields(payload, "agent spec: serve")
    argvs = fields.take("argvs", list)
    for argv in argvs:
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise SpecError("agent spec: serve: each of 'argvs' must be a list of words, and not empty")
    serve = ServeSpec(
        argvs=tuple(tuple(argv) for argv in argvs),
        env=fields.texts("env", variables=True),
        cwd=fields.path("cwd"),
        listen=fields.take("listen", int, None),
        final=tuple(int(code) for code in fields.take("final", list, [])),
        scale=fields.path("scale", None),
        least=fields.take("least", int, 1),
    )
    fields.finish()
    if not serve.argvs:
        raise SpecError("agent spec: serve: the field 'argvs' is empty")
    if not 1 <= serve.least <= len(serve.argvs):
        raise SpecError("agent spec: serve: the field 'least' must be from 1 to the number of 'argvs'")
    return serve


@dataclass(frozen=True)
class CallableRef:
    """Where the training function is: a module name, or a file inside the code archive, and a qualified name.

    ``import_root``: the directory inside the archive that stands on ``sys.path`` for that file (`loading.load`).
    """

    module: str | None
    file: str | None
    qualname: str
    import_root: str = ""


@dataclass(frozen=True)
class CodeRef:
    """The code archive: a file in the job directory and its hash."""

    archive: str
    sha256: str


@dataclass(frozen=True)
class Arguments:
    """Encoded arguments (`codecs`); their files lie in the job directory under ``args/``."""

    args: tuple[dict[str, Any], ...] = ()
    kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointRef:
    """Where committed checkpoints outlive the lease."""

    key: str
    store: Path


@dataclass(frozen=True)
class JobSpec:
    """One training: what to call, with what, and what is expected of it. Times in seconds.

    ``beside``: whether it runs at once, next to the others, instead of after them.
    ``inherit``: whether an environment made for ``requirements`` also sees the packages of the flow's interpreter.
    """

    job_id: str
    lease_id: str
    attempt: int
    kind: Kind
    upload_dir: Path
    command: tuple[str, ...] | None = None
    callable: CallableRef | None = None
    code: CodeRef | None = None
    args: Arguments | None = None
    params: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    grace_seconds: float = 30.0
    progress_timeout_seconds: float | None = None
    checkpoint: CheckpointRef | None = None
    env: dict[str, str] = field(default_factory=dict)
    expects: Expects = "result"
    check_metrics: bool = True
    inherit: bool = True
    beside: bool = False

    @classmethod
    def from_payload(cls, payload: object) -> JobSpec:
        """Check and build; raises SpecError naming the field."""
        fields = Fields(payload, "job")
        fields.choice("schema", (JOB_SCHEMA,))
        job = cls(
            job_id=fields.identifier("job_id"),
            lease_id=fields.identifier("lease_id"),
            attempt=fields.take("attempt", int),
            kind=fields.choice("kind", ("callable", "command")),
            upload_dir=fields.path("upload_dir"),
            command=fields.strings("command", None),
            callable=_callable(fields.take("callable", dict, None)),
            code=_code(fields.take("code", dict, None)),
            args=_arguments(fields.take("args", dict, None)),
            params=fields.take("params", dict, {}),
            inputs=fields.texts("inputs", variables=True),
            artifacts=fields.texts("artifacts"),
            requirements=fields.strings("requirements", ()),
            secrets=fields.strings("secrets", ()),
            grace_seconds=fields.number("grace_seconds", 30.0),
            progress_timeout_seconds=fields.number("progress_timeout_seconds", None, least=0.01),
            checkpoint=_checkpoint(fields.take("checkpoint", dict, None)),
            env=fields.texts("env", variables=True),
            expects=fields.choice("expects", ("result", "model", "none"), "result"),
            check_metrics=fields.take("check_metrics", bool, True),
            inherit=fields.take("inherit", bool, True),
            beside=fields.take("beside", bool, False),
        )
        fields.finish()
        check_variables(job.secrets, "job: secrets")
        if job.kind == "callable" and (job.callable is None or job.command is not None):
            raise SpecError("job: the kind 'callable' needs the field 'callable' and no 'command'")
        if job.kind == "command" and (not job.command or job.callable is not None):
            raise SpecError("job: the kind 'command' needs the field 'command' and no 'callable'")
        return job

    def to_payload(self) -> dict[str, Any]:
        """The JSON object that `from_payload` reads."""
        return {"schema": JOB_SCHEMA, **_jsonable(asdict(self))}


def _callable(payload: object) -> CallableRef | None:
    if payload is None:
        return None
    fields = Fields(payload, "job: callable")
    ref = CallableRef(
        module=fields.take("module", str, None),
        file=fields.take("file", str, None),
        qualname=fields.take("qualname", str),
        import_root=fields.take("import_root", str, ""),
    )
    fields.finish()
    if (ref.module is None) == (ref.file is None):
        raise SpecError("job: callable: exactly one of 'module' and 'file' is needed")
    return ref


def _code(payload: object) -> CodeRef | None:
    if payload is None:
        return None
    fields = Fields(payload, "job: code")
    ref = CodeRef(fields.take("archive", str), fields.take("sha256", str))
    fields.finish()
    return ref


def _arguments(payload: object) -> Arguments | None:
    if payload is None:
        return None
    fields = Fields(payload, "job: args")
    arguments = Arguments(tuple(fields.take("args", (list, tuple), [])), fields.take("kwargs", dict, {}))
    fields.finish()
    return arguments


def _checkpoint(payload: object) -> CheckpointRef | None:
    if payload is None:
        return None
    fields = Fields(payload, "job: checkpoint")
    ref = CheckpointRef(fields.take("key", str), fields.path("store"))
    fields.finish()
    return ref


@dataclass(frozen=True)
class StopOrder:
    """What ``stop.json`` says: *checkpoint now* with a grace in seconds, or kill at once."""

    action: Action
    grace_seconds: float

    @classmethod
    def from_payload(cls, payload: object) -> StopOrder:
        """Check and build; raises SpecError naming the field."""
        fields = Fields(payload, "stop.json")
        order = cls(fields.choice("action", ("checkpoint", "kill")), fields.number("grace_seconds", 30.0))
        fields.finish()
        return order

    def to_payload(self) -> dict[str, Any]:
        """The JSON object that `from_payload` reads."""
        return asdict(self)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value
