"""Builds every Terraform argument vector; starts nothing and reads nothing.

python-terraform's ``generate_cmd_string`` knows the option syntax, so it is what turns names and values into
``-option=value``. Its runner is not used: it buffers all output in pipes, sends ``-force``, which no current Terraform
knows, and leaks its own arguments into the command. Three traps of the builder itself are closed here: its constructor
reads ``./terraform.tfstate`` of the current directory (so it is given a directory that holds none), a dictionary value
becomes a world-readable temporary file (so no dictionary is ever passed), and any keyword becomes an option (so only
the functions below call it).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from python_terraform import IsFlagged, Terraform

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LOCK_TIMEOUT_SECONDS = 20
"""How long Terraform waits for a remote state lock: a lease's state has one user, so a wait means a dying one."""


def init(engine: Path, *, locked: bool, backend: Mapping[str, str], reconfigure: bool = False) -> list[str]:
    """``init``; with ``locked`` the module's provider lock file is law and is never rewritten."""
    return _argv(
        engine,
        "init",
        input=False,
        json=IsFlagged,
        no_color=IsFlagged,
        lockfile="readonly" if locked else None,
        reconfigure=IsFlagged if reconfigure else None,
        backend_config=[f"{key}={value}" for key, value in sorted(backend.items())],
    )


def plan(engine: Path, *, out: Path, var_file: Path, state: Path | None) -> list[str]:
    """``plan`` into the file ``out``; ``state`` is the local state file, None where a backend keeps the state."""
    return _argv(engine, "plan", **_COMMON, out=out, var_file=var_file, state=state)


def show(engine: Path, plan_file: Path) -> list[str]:
    """``show -json`` of a saved plan."""
    return _argv(engine, "show", str(plan_file), json=IsFlagged, no_color=IsFlagged)


def apply(engine: Path, plan_file: Path, *, state: Path | None) -> list[str]:
    """``apply`` of exactly that saved plan: a saved plan asks for no approval and takes no variables."""
    return _argv(engine, "apply", str(plan_file), **_COMMON, state=state)


def destroy(engine: Path, *, state: Path | None, var_file: Path | None) -> list[str]:
    """``destroy`` without a question; ``var_file`` is None for the teardown bundle, which has no variables."""
    return _argv(engine, "destroy", **_COMMON, auto_approve=IsFlagged, force=None, var_file=var_file, state=state)


def state_pull(engine: Path) -> list[str]:
    """``state pull``: the state that a backend keeps, on stdout."""
    return _argv(engine, "state pull")


def state_push(engine: Path, state: Path) -> list[str]:
    """``state push``: store a state in the backend; Terraform refuses one that is older than what is there."""
    return _argv(engine, "state push", str(state), lock_timeout=_COMMON["lock_timeout"])


def force_unlock(engine: Path, lock_id: str) -> list[str]:
    """``force-unlock`` of exactly that lock, without a question."""
    return [str(engine), "force-unlock", "-force", lock_id]


_COMMON: dict[str, Any] = {
    "input": False,
    "json": IsFlagged,
    "no_color": IsFlagged,
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
}


def _argv(engine: Path, command: str, *arguments: str, **options: Any) -> list[str]:
    builder = Terraform(working_dir=os.devnull, terraform_bin_path=str(engine))
    argv: list[str] = builder.generate_cmd_string(command, *arguments, **options)
    return argv
