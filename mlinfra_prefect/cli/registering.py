"""``register``: the shipped deployments on a Prefect server, and how to run them."""

from __future__ import annotations

import json

from mlinfra_prefect.cli.columns import Table, cell
from mlinfra_prefect.cli.outcome import DONE
from mlinfra_prefect.cli.screen import Facts, screen
from mlinfra_prefect.integration.deployments import Registration, register as register_deployments


def register(pool: str, *, create_pool: bool, automation: bool, timezone: str, as_json: bool) -> int:
    """Create or update them, and print what there is."""
    done = register_deployments(pool, create_pool=create_pool, automation=automation, timezone=timezone)
    if as_json:
        print(json.dumps(done.model_dump(mode="json"), indent=1))
        return DONE
    _show(done)
    return DONE


def _show(done: Registration) -> None:
    out = screen()
    if done.pool_created:
        out.print(f"work pool {done.pool} was created.")
    shown = Table(("DEPLOYMENT", "", "STARTED BY"), whole=("DEPLOYMENT", ""), folded=("STARTED BY",))
    for each in done.deployments:
        state = ("created" if each.created else "up to date") + (", paused" if each.paused else "")
        shown.add(cell(each.name, "bold"), cell(state), cell(each.starts))
    out.print(shown)
    out.print()
    told = Facts()
    told.fact("server", done.api)
    told.fact("a worker", f"prefect worker start --pool {done.pool} (with MLINFRA_HOME as you have it here)")
    told.fact("a run", "prefect deployment run model-lifecycle/on-demand --param accelerator=cpu")
    told.fact("off", "in the UI: schedules at their deployment, what events start under Automations")
    out.print(told)
