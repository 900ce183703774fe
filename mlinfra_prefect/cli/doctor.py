"""``doctor``: is everything here that a lease needs, and if not, what is the next step."""

from __future__ import annotations

import json

from mlinfra_prefect.cli.columns import Table, cell
from mlinfra_prefect.cli.outcome import DONE, FAILED
from mlinfra_prefect.cli.screen import screen

_STYLES = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


def doctor(*, as_json: bool) -> int:
    """Print one line for each check; the exit code is 1 when one fails."""
    from mlinfra_prefect.cli.checks import examined

    found = examined()
    failed = any(each.status == "FAIL" for each in found)
    if as_json:
        told = [{"check": e.name, "status": e.status, "message": e.message, "next": e.next_step or None} for e in found]
        print(json.dumps({"ok": not failed, "checks": told}, indent=1))
        return FAILED if failed else DONE
    shown = Table(("", "CHECK", "FOUND"), whole=("", "CHECK"), folded=("FOUND",))
    for each in found:
        said = cell(f"{each.message} → {each.next_step}" if each.next_step else each.message)
        shown.add(cell(each.status, _STYLES[each.status]), cell(each.name), said)
    screen().print(shown)
    return FAILED if failed else DONE
