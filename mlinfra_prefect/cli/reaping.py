"""``reap``: look after what nobody keeps, for people, cron jobs and checks."""

from __future__ import annotations

import json

from mlinfra_prefect.cli.columns import Table, cell
from mlinfra_prefect.cli.outcome import DONE, FAILED, STUCK, complain
from mlinfra_prefect.cli.screen import screen, state_cell
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.keeper import reap as reaper
from mlinfra_prefect.keeper.passes import LISTS, Pass
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.home import Home

_WORDS = {"orphans": "orphan"}


def reap(*, until_quiet: bool, dry_run: bool, environment: str | None, as_json: bool) -> int:
    """Run one pass, or passes until it is quiet; the exit code is 3 when something is stuck."""
    if until_quiet and dry_run:
        raise InvalidInput("dry-run", "changes nothing, so it is never quiet", "Leave --until-quiet or --dry-run out.")
    home = Home.from_environment()
    if dry_run and not home.ledger.exists():
        found = Pass(dry_run=True)  # opening it would make a home
    elif until_quiet:
        found = reaper.reap_until_quiet(Context(home), environment=environment)
    else:
        found = reaper.reap(Context(home), environment=environment, dry_run=dry_run)
    _show(found, as_json=as_json)
    if found.stuck:
        return STUCK
    if until_quiet and not found.quiet:
        complain("it is not quiet yet: what is skipped is still on its way. Look again with `mlinfra-prefect ps`.")
        return FAILED
    return DONE


def _show(found: Pass, *, as_json: bool) -> None:
    listed = [(name, each) for name in LISTS for each in getattr(found, name)]
    if as_json:
        print(json.dumps(reaper.as_json(found), indent=1))
    elif not listed:
        print("Nothing to reap.")
    else:
        shown = Table(("ID", "", "BECAUSE"), whole=("ID", ""), folded=("BECAUSE",))
        for name, each in listed:
            shown.add(cell(each.id), state_cell(_WORDS.get(name, name)), cell(each.reason))
        screen().print(shown)
        if found.dry_run:
            print("A dry run: nothing was changed, and nothing was started.")
