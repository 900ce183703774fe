"""``apply FILE``, and ``plan FILE`` where the file declares endpoints: what differs, and doing it."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlinfra_prefect.cli.columns import Table, cell
from mlinfra_prefect.cli.opening import opened
from mlinfra_prefect.cli.outcome import DONE
from mlinfra_prefect.cli.screen import screen
from mlinfra_prefect.errors import InvalidInput, MlinfraError, PermanentError
from mlinfra_prefect.keeper.reconciling import Reconciliation, look, reconcile
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.declaration_file import read_declaration
from mlinfra_prefect.lifecycle.differences import Action, Change
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.lease import Client
from mlinfra_prefect.model.process import Owner

CHANGES = 2
"""With ``--check``: it is not as declared. Wrong input is 1 then, so that 2 means one thing to a script."""


def plan(given: str, overrides: Sequence[str], *, check: bool, as_json: bool) -> int:
    """Print what differs from the declaration, and do nothing about it."""
    if overrides:
        raise _asked(InvalidInput(
            overrides[0], "is a field of a request, and cannot replace what a file declares", "Leave the option out."
        ), check=check)  # fmt: skip
    return _show(given, check=check, prune=False, as_json=as_json)


def apply(given: str, *, check: bool, prune: bool, yes: bool, as_json: bool) -> int:
    """Bring what is served to what the file declares. With `check` that is only looked at."""
    if check:
        return _show(given, check=True, prune=prune, as_json=as_json)
    context, found = _looked(given, prune=prune)
    released = [each.endpoint for each in found.changes if each.action is Action.RELEASE]
    if released and not yes:
        raise InvalidInput(
            "prune", f"would release {', '.join(released)}, which {Path(given).name} does not declare",
            "Say that it may with --yes; without --prune they are left alone.",
        )  # fmt: skip
    made: list[Change] = []
    owner = Owner(user=getpass.getuser(), host=socket.gethostname())
    client = Client(kind="process", process=identify())

    def done(changes: Sequence[Change]) -> None:
        made.extend(changes)
        if not as_json:
            for each in changes:
                screen().print(_line(each))

    try:
        reconcile(context, found.differences, owner=owner, client=client, done=done)
    except MlinfraError:
        if as_json:
            _dump(found, made, applied=False)
        raise
    if as_json:
        _dump(found, made, applied=True)
    else:
        _summary(found, "applied" if made else "")
    return DONE


def _show(given: str, *, check: bool, prune: bool, as_json: bool) -> int:
    try:
        _, found = _looked(given, prune=prune)
    except MlinfraError as error:
        raise _asked(error, check=check) from error
    if as_json:
        _dump(found, (), applied=False)
    else:
        if found.changes:
            heads = ("ENDPOINT", "ENVIRONMENT", "FIELD", "FROM", "TO", "ACTION")
            shown = Table(heads, whole=("FIELD", "ACTION"), folded=("FROM", "TO"))
            for each in found.changes:
                shown.add(
                    cell(each.endpoint), cell(each.environment), cell(each.field), cell(_value(each.before)),
                    cell(_value(each.after)), cell(each.action, "bold"),
                )  # fmt: skip
            screen().print(shown)
        _summary(found, "to be applied" if found.changes else "")
    return CHANGES if check and found.changes else DONE


def _looked(given: str, *, prune: bool) -> tuple[Context, Reconciliation]:
    path = Path(given)
    declaration = read_declaration(path)
    context = opened()
    return context, look(context, declaration, where=path.name, prune=prune)


def _asked(error: MlinfraError, *, check: bool) -> MlinfraError:
    """The error as its exit code shall be: with ``--check`` wrong input is a failure like others."""
    return PermanentError(error.message, error.remedy) if check and isinstance(error, InvalidInput) else error


def _summary(found: Reconciliation, what: str) -> None:
    out, count = screen(), len(found.changes)
    out.print(
        f"{count} change{'' if count == 1 else 's'} {what}." if count else "No changes: everything is as declared."
    )
    pruned = {each.endpoint for each in found.changes if each.action is Action.RELEASE}
    left = [each.name for each in found.undeclared if each.name not in pruned]
    if left:
        out.print(f"Left alone, as the file does not declare them: {', '.join(left)}.")


def _line(change: Change) -> str:
    return (
        f"{change.endpoint}: {change.field} {_value(change.before)} → {_value(change.after)} "
        f"({change.action} in {change.environment})"
    )


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"version {key}: {each} %" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "none" if value is None else str(value)


def _dump(found: Reconciliation, made: Sequence[Change], *, applied: bool) -> None:
    changes = [
        {
            "endpoint": each.endpoint, "environment": each.environment, "field": each.field, "from": each.before,
            "to": each.after, "action": str(each.action), "done": each in made,
        }
        for each in found.changes
    ]  # fmt: skip
    undeclared = [{"endpoint": each.name, "environment": each.environment, "id": each.id} for each in found.undeclared]
    print(json.dumps({"changes": changes, "undeclared": undeclared, "applied": applied}, indent=1))
