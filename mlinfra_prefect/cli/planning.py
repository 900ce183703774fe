"""``plan``: every offer with its price or why not, and what Terraform would do for the first that can be had."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlinfra_prefect.cli.columns import Table, cell
from mlinfra_prefect.cli.opening import opened
from mlinfra_prefect.cli.outcome import DONE, code_of, complain, one_line
from mlinfra_prefect.cli.screen import Facts, screen
from mlinfra_prefect.errors import CapacityUnavailable
from mlinfra_prefect.lifecycle.planning import admitted, make_plan
from mlinfra_prefect.lifecycle.request_file import as_request
from mlinfra_prefect.model.offer import Offer, Plan

OFFER_KEYS = (
    "type", "region", "zones", "market", "usd_per_hour", "gpus", "gpu_memory_gib", "vcpus", "memory_gib",
    "quota_headroom", "priced_at", "price_source", "skipped",
)  # fmt: skip
SOURCES = {"pricing-api": "the Pricing API", "spot-history": "the spot price history", "snapshot": "the snapshot"}


def plan(given: str, overrides: Mapping[str, Any], *, as_json: bool) -> int:
    """Print the offers and the plan; without capacity the offers still say why, and the exit code is 4."""
    context = opened()
    request = admitted(context, as_request(given, overrides))
    made: Plan | None = None
    problem: CapacityUnavailable | None = None
    try:
        made = make_plan(context, request)
        offers = made.offers
    except CapacityUnavailable as error:
        problem = error
        offers = context.platform(request.platform or "local").offers(request)
    if as_json:
        print(json.dumps({
            "offers": [offer.model_dump(mode="json", include=set(OFFER_KEYS)) for offer in offers],
            "plan": made and made.model_dump(mode="json"),
            "estimate_usd": made and made.estimate_usd,
        }, indent=1))  # fmt: skip
    else:
        _show(offers, made)
        for remark in context.platform(request.platform or "local").remarks:
            screen().print(cell(remark, "yellow"))
    if problem is not None:
        complain(one_line(problem))
        return code_of(problem)
    return DONE


def _show(offers: tuple[Offer, ...], made: Plan | None) -> None:
    out = screen()
    skipping, rented = any(offer.skipped for offer in offers), any(offer.vcpus for offer in offers)
    more = ("GIB/GPU", "VCPUS", "QUOTA LEFT") if rented else ()
    heads = ("TYPE", "REGION", "ZONES", "MARKET", "USD/H", "GPUS", *more, *(("SKIPPED BECAUSE",) if skipping else ()))
    shown = Table(heads, whole=("TYPE", "MARKET", "USD/H", "GPUS", *more), folded=("SKIPPED BECAUSE",))
    for offer in offers:
        taken = made is not None and offer == made.offer
        style = "bold" if taken else ("dim" if offer.skipped else "")
        values = [offer.type, offer.region, ", ".join(offer.zones) or "any", offer.market,
                  f"{offer.usd_per_hour:.2f}", offer.gpus]  # fmt: skip
        if rented:
            left = "" if offer.quota_headroom is None else offer.quota_headroom
            values += [f"{offer.gpu_memory_gib:g}" if offer.gpu_memory_gib else "", offer.vcpus or "", left]
        shown.add(*(cell(value, style) for value in [*values, *([offer.skipped] if skipping else [])]))
    out.print(shown)
    for source in dict.fromkeys(offer.price_source for offer in offers if offer.price_source in SOURCES):
        dates = [offer.priced_at for offer in offers if offer.price_source == source and offer.priced_at is not None]
        of = f", of {min(dates):%Y-%m-%d %H:%M} UTC" if dates else ""
        out.print(cell(f"Prices are from {SOURCES[source]}{of}, a node's disk and address included.", "dim"))
    if made is None:
        return
    out.print()
    told = Facts()
    told.fact("takes", f"{made.offer.type} in {made.offer.region}, {made.request.accelerator}")
    told.fact("environment", f"{made.request.environment} on {made.platform}")
    told.fact("creates", ", ".join(f"{each.address} ({each.action})" for each in made.resources))
    told.fact("with", f"{made.stack}, {made.engine}")
    told.fact("for at most", f"{made.max_minutes} minutes")
    told.fact("at most", f"{made.estimate_usd:.2f} USD")
    out.print(told)
