"""``reap``: one pass over what nobody keeps, for people, cron jobs and checks."""

from __future__ import annotations

import json

from mlinfra_prefect.cli.columns import Table, cell
from mlinfra_prefect.cli.outcome import DONE, STUCK
from mlinfra_prefect.cli.screen import screen, state_cell
from mlinfra_prefect.keeper import reap as reaper
from mlinfra_prefect.lifecycle.context import Context


def reap(*, as_json: bool) -> int:
    """Run one pass; the exit code is 3 when something is stuck."""
    found = reaper.reap(Context())
    if as_json:
        print(json.dumps(reaper.as_json(found), indent=1))
    elif not (found.released or found.stuck or found.skipped):
        print("Nothing to reap.")
    else:
        shown = Table(("ID", "", "BECAUSE"), whole=("ID", ""), folded=("BECAUSE",))
        for word, findings in (("released", found.released), ("stuck", found.stuck), ("skipped", found.skipped)):
            for each in findings:
                shown.add(cell(each.id), state_cell(word), cell(each.reason))
        screen().print(shown)
    return STUCK if found.stuck else DONE
