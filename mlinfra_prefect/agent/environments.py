"""Python environments by hash: made once, shared by every job that asks for the same requirements.

A virtual environment cannot be moved after it was made, so it is built in its final place under a file lock, and
``complete.json`` is written last: a place without that marker is a build that died, and is built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import groups
from .folders import private_folder
from .requirement import refusal
from .transfer import no_tick
from .wire import read_json_if_there, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_MARKER = "complete.json"
_POLL_SECONDS = 0.05
_PROBE = (
    "import json, site, sys, sysconfig\n"
    "places = [sysconfig.get_path('purelib'), sysconfig.get_path('platlib')]\n"
    "places += getattr(site, 'getsitepackages', list)()\n"
    "if site.ENABLE_USER_SITE: places.append(site.getusersitepackages())\n"
    "base = getattr(sys, '_base_executable', sys.executable)\n"
    "seen = {'version': sys.version, 'prefix': sys.prefix, 'base': base, 'places': list(dict.fromkeys(places))}\n"
    "print(json.dumps(seen))"
)


class EnvironmentFailed(RuntimeError):
    """The environment could not be made; the message says which step failed, the log says why."""


def check_requirements(requirements: Sequence[str]) -> None:
    """Refuse what is not a requirement (`requirement.refusal`): a job may come from anywhere.

    Raises:
        EnvironmentFailed: names the first bad entry.
    """
    for text in requirements:
        problem = refusal(text)
        if problem:
            raise EnvironmentFailed(f"the requirement {text!r} is refused: it {problem}")


def ensure(
    cache_dir: Path,
    python: Path,
    requirements: Sequence[str],
    *,
    inherit: bool,
    log: int,
    env: Mapping[str, str],
    tick: Callable[[], None] = no_tick,
    guardian: groups.Guardian | None = None,
) -> Path:
    """Return the interpreter of an environment that has the requirements; makes it when there is none. Blocking.

    Args:
        cache_dir: environments are kept in ``<cache_dir>/environments/<hash>``.
        python: the interpreter it is made from; returned as it is when nothing is required.
        requirements: as in a requirements file; order does not matter.
        inherit: also see the packages of ``python``, editable installs included (the environment's own win).
        log: descriptor that pip's output goes to.
        env: environment of venv and pip.
        tick: called often while waiting; what it raises ends the build and is passed on.
        guardian: ends pip when this process is killed.

    Raises:
        EnvironmentFailed: a requirement is refused, or a step failed.
    """
    if not requirements:
        return python
    check_requirements(requirements)
    seen = _probe(python, env)
    if not inherit:
        # Nothing of the flow's own environment is in it, so every flow of the same Python may share it.
        python = Path(seen["base"] or python)
        seen = _probe(python, env)
    key = json.dumps([seen["version"], str(python), seen["prefix"], sorted(requirements), inherit])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    root = cache_dir / "environments"
    private_folder(root)
    place = root / name
    found = place / "bin" / "python"
    with _locked(root / f"{name}.lock", tick):
        if read_json_if_there(place / _MARKER) is not None and found.exists():
            return found
        shutil.rmtree(place, ignore_errors=True)
        step = _Steps(log, env, tick, guardian)
        step.run("making the virtual environment", [str(python), "-m", "venv", "--without-pip", str(place)])
        if inherit:
            _inherit(place, found, seen["places"], env)
        # pip may come with what is inherited; installing a second one would cost seconds.
        if not inherit or _fails([str(found), "-c", "import pip"], env):
            step.run("installing pip", [str(found), "-m", "ensurepip", "--default-pip"])
        wanted = place / "requirements.txt"
        wanted.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
        step.run(
            "installing the requirements",
            [str(found), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r", str(wanted)],
        )
        write_json(
            place / _MARKER,
            {"python": str(python), "requirements": sorted(requirements), "inherit": inherit},
            durable=True,
        )
    return found


class _Steps:
    """Runs the programs of a build, each in a group of its own that ends with the build."""

    def __init__(
        self, log: int, env: Mapping[str, str], tick: Callable[[], None], guardian: groups.Guardian | None
    ) -> None:
        self._log = log
        self._env = dict(env)
        self._tick = tick
        self._guardian = guardian

    def run(self, what: str, argv: list[str]) -> None:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=self._env, process_group=0
        )
        if self._guardian is not None:
            self._guardian.watch(process.pid)
        try:
            while True:
                self._tick()
                try:
                    code = process.wait(timeout=_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
                break
        finally:
            groups.end(process, 0.5)
            if self._guardian is not None:
                self._guardian.forget(process.pid)
        if code != 0:
            raise EnvironmentFailed(f"{what} failed with exit code {code}; the log has its output")


def _probe(python: Path, env: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = subprocess.run(
            [str(python), "-c", _PROBE], capture_output=True, check=True, timeout=60, env=dict(env), text=True
        )
        return dict(json.loads(found.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EnvironmentFailed(f"the interpreter {python} cannot be asked for its version: {error}") from error


def _fails(argv: list[str], env: Mapping[str, str]) -> bool:
    return subprocess.run(argv, capture_output=True, check=False, timeout=60, env=dict(env)).returncode != 0


def _inherit(place: Path, python: Path, places: Sequence[str], env: Mapping[str, str]) -> None:
    # site.addsitedir and not a bare path: it also reads the .pth files there, which is what editable installs are.
    lines = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in places)
    own = _probe(python, env)["places"][0]
    (place / own / "_mlinfra_inherit.pth").write_text(lines, encoding="utf-8")


@contextmanager
def _locked(path: Path, tick: Callable[[], None]) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tick()
                time.sleep(_POLL_SECONDS)
            else:
                break
        yield
    finally:
        os.close(descriptor)
