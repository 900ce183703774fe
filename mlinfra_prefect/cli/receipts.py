"""How a receipt is shown: what was created, what is destroyed, what was looked for and not found, what it cost."""

from __future__ import annotations

from rich.table import Table

from mlinfra_prefect.cli.screen import clock, facts, plain, span
from mlinfra_prefect.model.receipt import CLEAN_SWEEPS, Receipt


def receipt_facts(receipt: Receipt) -> Table:
    """Return a receipt as a table of two columns."""
    told = facts()
    told.add_row("receipt", plain(f"{receipt.kind} {receipt.id}", style="bold"))
    told.add_row("because", plain(receipt.reason))
    told.add_row("released", plain(clock(receipt.released_at)))
    told.add_row("created", plain(_listed(receipt.created)))
    gone = set(receipt.created) <= set(receipt.destroyed)
    told.add_row(
        "destroyed", plain("all of it" if gone else _listed(receipt.destroyed), style="" if gone else "bold red")
    )
    for search in receipt.searches:
        found = f"FOUND {_listed(search.found)}" if search.found else "nothing found"
        ended = f", ended {_listed(search.ended)}" if search.ended else ""
        told.add_row("looked for", plain(f"{search.what} on {search.where}: {found}{ended}"))
    verdict = "clean: the last two looks found nothing" if receipt.clean else f"NOT clean after {CLEAN_SWEEPS} looks"
    told.add_row("verdict", plain(verdict, style="green" if receipt.clean else "bold red"))
    served = receipt.kind == "endpoint"
    use = f"up {span(receipt.up_seconds)}"
    if not served:
        use += f", trained {receipt.trained_seconds:.1f} s, idle {receipt.idle_seconds:.1f} s"
    told.add_row("used", plain(f"{use}, {receipt.attempts} attempt{'' if receipt.attempts == 1 else 's'}"))
    told.add_row("cost", plain(f"{receipt.cost_usd:.2f} USD"))
    return told


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "nothing"
