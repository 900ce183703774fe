"""From what a user passes to a piece of work that can travel: code found and checked before anything is provisioned."""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from mlinfra_prefect.code import check_signature, prepare, resolve, write_archive
from mlinfra_prefect.code.reference import names_for_annotations
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.training import Work
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingJob, resume_key

_VERSIONED = (
    "numpy",
    "scikit-learn",
    "scipy",
    "skops",
    "torch",
    "safetensors",
    "pandas",
    "pyarrow",
    "xgboost",
    "lightgbm",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What goes with a piece of work besides its arguments; the same names as in `TrainingJob`."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    resume: str | None = None
    grace_seconds: float | None = None
    progress_timeout_minutes: float | None = None
    by_value: bool = False

    def merged(self, changes: Mapping[str, Any]) -> Options:
        """Return these options with some replaced.

        Raises:
            InvalidInput: an unknown option.
        """
        unknown = sorted(set(changes) - set(self.__slots__))
        if unknown:
            raise InvalidInput(unknown[0], "is not an option", f"The options are: {', '.join(sorted(self.__slots__))}.")
        merged = replace(self, **changes)
        merged.checked()
        return merged

    def checked(self) -> TrainingJob:
        """Check the options by the model's rules.

        Raises:
            InvalidInput: naming the field.
        """
        values = {name: value for name, value in asdict(self).items() if name != "by_value"}
        return parsed(TrainingJob, {"target": "checked:later", **values})


def callable_work(
    context: Context,
    function: Callable[..., Any] | str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Options,
    *,
    model: bool = False,
) -> Work:
    """Return the work of calling a function on a node. Everything that is knowable is checked here.

    Raises:
        NotImportable, NoCodec, InvalidInput: as said; nothing was created.
    """
    refuse_secrets(args, kwargs)
    options.checked()
    prepared = prepare(
        function, by_value=options.by_value, cache_dir=context.home.cache, requirements=options.requirements
    )
    plain = resolve(function) if not isinstance(function, str) else None
    known = plain or prepared.signature
    if known is not None:
        check_signature(known, args, kwargs, aliases=prepared.aliases)
    annotation = _annotation(plain) if plain else None
    params = _params(plain, prepared.signature, args, kwargs)
    archive = None
    if prepared.package is not None:
        archive = write_archive(prepared.package, context.home.cache / "code")
    reference = prepared.reference
    assert reference is not None
    return Work(
        label=reference.text,
        callable={
            "module": reference.module,
            "file": reference.file,
            "qualname": reference.qualname,
            "import_root": reference.import_root,
        },
        code_archive=archive,
        code_sha256=_sha256(archive) if archive else "",
        code_hash=prepared.code_hash,
        args=tuple(args),
        kwargs=dict(kwargs),
        params=params,
        inputs=dict(options.inputs),
        secrets=dict(options.secrets),
        requirements=tuple(options.requirements),
        project=prepared.package.root if prepared.package else None,
        requirements_file=prepared.package.requirements if prepared.package else "",
        python=prepared.python,
        resume=None if options.resume is None else resume_key(options.resume, params),
        grace_seconds=options.grace_seconds,
        progress_timeout_seconds=_seconds(options.progress_timeout_minutes),
        expects="model" if model or _is_model(annotation) else "result",
        annotation=annotation,
        aliases=dict(prepared.aliases),
        versions=versions(),
    )


def job_work(context: Context, job: TrainingJob) -> Work:
    """Return the work of a `TrainingJob`: a function by its address, or a command. Its result is a model."""
    options = Options(
        inputs=job.inputs, secrets=job.secrets, requirements=job.requirements, resume=job.resume,
        grace_seconds=job.grace_seconds, progress_timeout_minutes=job.progress_timeout_minutes,
    )  # fmt: skip
    if isinstance(job.target, str):
        return callable_work(context, job.target, (), job.params, options, model=True)
    prepared = prepare(None, cache_dir=context.home.cache)
    archive = write_archive(prepared.package, context.home.cache / "code") if prepared.package else None
    return Work(
        label=" ".join(job.target)[:200],
        command=job.target,
        code_archive=archive,
        code_sha256=_sha256(archive) if archive else "",
        code_hash=prepared.code_hash,
        params=job.params,
        inputs=dict(job.inputs),
        secrets=dict(job.secrets),
        requirements=tuple(job.requirements),
        project=prepared.package.root if prepared.package else None,
        requirements_file=prepared.package.requirements if prepared.package else "",
        resume=None if job.resume is None else resume_key(job.resume, job.params),
        grace_seconds=job.grace_seconds,
        progress_timeout_seconds=_seconds(job.progress_timeout_minutes),
        expects="model",
        versions=versions(),
    )


def code_of(context: Context, target: Callable[..., Any] | str | None) -> tuple[tuple[str, ...], int]:
    """Return the files that would travel for a target, and their size in bytes; for plans."""
    package = prepare(target, cache_dir=context.home.cache).package
    return (tuple(file.path for file in package.files), package.size) if package else ((), 0)


def versions() -> dict[str, str]:
    """The versions that decide whether a model can be loaded again."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def refuse_secrets(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse secrets as arguments: they would stand in files and in Prefect's database.

    Raises:
        InvalidInput: naming the argument and the remedy.
    """
    from pydantic import SecretBytes, SecretStr

    for name, value in [*((f"argument {n + 1}", v) for n, v in enumerate(args)), *kwargs.items()]:
        for item in _within(value):
            is_block = type(item).__module__.startswith("prefect.") and type(item).__name__ == "Secret"
            if is_block or isinstance(item, SecretStr | SecretBytes):
                raise InvalidInput(
                    name,
                    "is a secret, and arguments are stored in files",
                    "Pass it by reference: secrets={'NAME': 'env:NAME'}, on aws {'NAME': 'aws-sm:NAME'}.",
                )


def _within(value: Any) -> Iterator[Any]:
    """A value and what its containers hold; what hides deeper has no codec, and is refused for that."""
    yield value
    if isinstance(value, list | tuple | set | frozenset | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _within(item)


def _params(
    plain: Callable[..., Any] | None,
    signature: inspect.Signature | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments that are JSON, by name: MLINFRA_PARAMS, the lineage, and what resume keys are filled from."""
    known = inspect.signature(plain) if plain else signature
    if known is None:
        return {name: value for name, value in kwargs.items() if _is_json(value)}
    bound = known.bind(*args, **kwargs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    try:
        parsed(TrainingJob, {"target": "a:b", "params": {"x": value}})
    except InvalidInput:
        return False
    return True


def _annotation(function: Callable[..., Any]) -> Any:
    try:
        hints = inspect.get_annotations(function, globals=dict(names_for_annotations(function)), eval_str=True)
    except (NameError, TypeError, AttributeError):
        return None
    return hints.get("return")


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, ModelArtifact)


def _seconds(minutes: float | None) -> float | None:
    return None if minutes is None else 60 * minutes


def _sha256(path: Path) -> str:
    from mlinfra_prefect.artifacts import hash_file

    return hash_file(path)


def on_node() -> bool:
    """Whether this process is a training on a node: there, our decorators step aside."""
    return os.environ.get("MLINFRA_ON_NODE") == "1"
