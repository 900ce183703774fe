"""The training process of a callable: load it, decode its arguments, call it, encode what it returns.

It runs in the user's interpreter with the user's code, so it keeps out of the way: the only traces are a SIGTERM
handler that does not kill and a Prefect run logger that works. It tells the launcher how it went by ``result.json`` or
``error.json``; its exit code is 0 or 1.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import traceback
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import codecs, drafts, groups, loading, node, prefect_logging
from .specs import JobSpec
from .wire import ARGS, CODE, DRAFT, ERROR, JOB, RESULT, RESULT_FILES, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LONGEST_TRACEBACK = 64 << 10
_HERE = str(Path(__file__).parent)


class NoResult(RuntimeError):
    """The function ended the process instead of returning."""


def main(job_dir: Path, launcher: int) -> int:
    """Be the training of one job; returns the exit code."""
    groups.die_with(launcher)
    node.listen()
    job = JobSpec.from_payload(read_json(job_dir / JOB))
    # Not an argument of the user's: their code must see a program that was started with nothing.
    sys.argv[:] = [job.callable.file or job.callable.module or "" if job.callable else ""]
    sys.path[:] = [entry for entry in sys.path if entry != os.environ.get("MLINFRA_AGENT")]
    prefect_logging.install()
    try:
        _call(job, job_dir)
    except SystemExit as end:
        return _on_exit(job, job_dir, end)
    except BaseException as error:  # noqa: BLE001  (the user's code may raise anything; the launcher must hear of it)
        _report(job, job_dir, error)
        return 1
    return 0


def _call(job: JobSpec, job_dir: Path) -> None:
    ref = job.callable
    if ref is None:
        raise TypeError("the job has no callable")
    code_root = job_dir / CODE if job.code is not None else None
    function = loading.load(code_root, ref.import_root, ref.file, ref.module, ref.qualname)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{ref.qualname} is a generator, whose values cannot travel one by one: return a list instead")
    hints = _hints(function)
    args, kwargs = _arguments(job, job_dir, function, hints)
    value = function(*args, **kwargs)
    if inspect.isawaitable(value):
        value = asyncio.run(_await(value))
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        raise TypeError(
            f"{ref.qualname} returned a generator, whose values cannot travel one by one: return a list instead"
        )
    _keep(job, job_dir, value, hints.get("return"))


async def _await(value: Any) -> Any:
    return await value


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations, resolved; without those that cannot be (a name imported only for type checkers)."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001  (annotations are code of the user's; they are a hint here, never needed)
        return {}


def _arguments(
    job: JobSpec, job_dir: Path, function: Callable[..., Any], hints: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    if job.args is None:
        return [], {}
    names = list(inspect.signature(function).parameters)
    artifacts = {key: Path(path) for key, path in job.artifacts.items()}
    place = job_dir / ARGS

    def decode(envelope: Any, name: str | None) -> Any:
        return codecs.decode(envelope, place, hints.get(name or ""), artifacts)

    args = [decode(envelope, names[i] if i < len(names) else None) for i, envelope in enumerate(job.args.args)]
    return args, {name: decode(envelope, name) for name, envelope in job.args.kwargs.items()}


def _keep(job: JobSpec, job_dir: Path, value: Any, annotation: Any) -> None:
    if getattr(type(value), "__mlinfra_draft__", False):
        write_json(job_dir / DRAFT, value.to_payload())
        _check({f"metrics[{name}]": metric for name, metric in value.metrics.items()}, job)
    elif isinstance(value, dict):
        _check(value, job)
    if job.expects == "none":
        return
    place = job_dir / RESULT_FILES
    place.mkdir(mode=0o700, exist_ok=True)
    envelope = codecs.encode(value, place, name="return", annotation=annotation)
    write_json(job_dir / RESULT, {"value": envelope}, durable=True)


def _check(metrics: Mapping[Any, Any], job: JobSpec) -> None:
    """Refuse NaN and infinities among the numbers that are returned; what is not a number is not a metric."""
    if not job.check_metrics:
        return
    for name, value in metrics.items():
        if isinstance(value, float):  # numpy's float64 is one
            drafts.finite(str(name), value)


def _on_exit(job: JobSpec, job_dir: Path, end: SystemExit) -> int:
    code = end.code if isinstance(end.code, int) else (0 if end.code is None else 1)
    if code == 0 and job.expects != "result":
        return 0
    if code == 0:
        _report(job, job_dir, NoResult("sys.exit() was called before the function returned a result"))
        return 1
    _report(job, job_dir, end)
    return code


def _report(job: JobSpec, job_dir: Path, error: BaseException) -> None:
    hide = _redactor(job)
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith((_HERE, "mlinfra_agent/")):
        frames = frames.tb_next
    shown = error.with_traceback(frames or error.__traceback__)
    text = hide("".join(traceback.format_exception(shown)))
    sys.stdout.flush()
    sys.stderr.write(text)
    sys.stderr.flush()
    kind = type(error)
    args = tuple(hide(item) if isinstance(item, str) else item for item in error.args)
    builtin = kind.__module__ == "builtins" and all(_scalar(item) for item in args) and _again(kind, args)
    named = kind.__module__ == "builtins" or kind.__module__.startswith(__name__.rpartition(".")[0])
    payload = {
        "type": kind.__qualname__ if named else f"{kind.__module__}.{kind.__qualname__}",
        "message": hide(str(error)),
        "traceback": text[-_LONGEST_TRACEBACK:],
        "builtin": builtin,
        "args": list(args) if builtin else [],
    }
    write_json(job_dir / ERROR, payload)


def _redactor(job: JobSpec) -> Callable[[str], str]:
    """Take secret values out of what is reported: an exception may quote the token that was refused."""
    values = sorted((os.environ[name] for name in job.secrets if os.environ.get(name)), key=len, reverse=True)

    def hide(text: str) -> str:
        for value in values:
            text = text.replace(value, "***")
        return text

    return hide


def _scalar(item: object) -> bool:
    if isinstance(item, float):
        return type(item) is float and item - item == 0  # finite: NaN and infinities are not JSON
    return item is None or type(item) in {bool, int, str}


def _again(kind: type[BaseException], args: tuple[Any, ...]) -> bool:
    try:
        return kind(*args).args == args
    except Exception:  # noqa: BLE001  (some builtins insist on arguments of their own, in any way they like)
        return False
