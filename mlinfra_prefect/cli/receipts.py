"""How a receipt is shown: what was created, what is destroyed, what was looked for and not found, what it cost."""

from __future__ import annotations

from mlinfra_prefect.cli.screen import Facts, clock, span
from mlinfra_prefect.lifecycle.markdown import usd
from mlinfra_prefect.model.receipt import CLEAN_SWEEPS, Receipt, Search


def receipt_facts(receipt: Receipt) -> Facts:
    """Return a receipt as a table of two columns."""
    told = Facts()
    told.fact("receipt", f"{receipt.kind} {receipt.id}", style="bold")
    told.fact("because", receipt.reason)
    told.fact("released", clock(receipt.released_at))
    told.fact("created", _listed(receipt.created))
    gone = set(receipt.created) <= set(receipt.destroyed)
    told.fact("destroyed", "all of it" if gone else _listed(receipt.destroyed), "" if gone else "bold red")
    for search in receipt.searches:
        told.fact("looked for", _look(search))
    verdict = "clean: the last two looks found nothing" if receipt.clean else f"NOT clean after {CLEAN_SWEEPS} looks"
    told.fact("verdict", verdict, "green" if receipt.clean else "bold red")
    served = receipt.kind == "endpoint"
    use = f"up {span(receipt.up_seconds)}"
    if not served:
        use += f", trained {receipt.trained_seconds:.1f} s, idle {receipt.idle_seconds:.1f} s"
    told.fact("used", f"{use}, {receipt.attempts} attempt{'' if receipt.attempts == 1 else 's'}")
    told.fact("cost", usd(receipt.cost_usd))
    return told


def addenda_facts(since: tuple[Search, ...]) -> Facts:
    """Return what later passes found of something released, as a table of two columns."""
    told = Facts()
    for search in since:
        told.fact(clock(search.at), _look(search), "" if search.found == search.ended else "bold red")
    return told


def _look(search: Search) -> str:
    found = f"FOUND {_listed(search.found)}" if search.found else "nothing found"
    ended = f", ended {_listed(search.ended)}" if search.ended else ""
    return f"{search.what} on {search.where}: {found}{ended}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "nothing"
