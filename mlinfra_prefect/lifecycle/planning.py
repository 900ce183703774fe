"""Plan: which offers meet a request, and what Terraform says it would do for the first of them. Creates nothing."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from mlinfra_prefect.errors import BudgetExceeded, CapacityUnavailable
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.environment import longest_life_seconds
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.offer import Offer, Plan, PlannedResource, rungs
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.model.stack import StackInput
from mlinfra_prefect.terraform import gate, planned
from mlinfra_prefect.terraform.planned import PlannedChanges

NEXT = "Allow another accelerator, market, price or region, or ask for more of the quota."
FIRST_HOUR_SECONDS = 3600.0
PLAN_SECONDS = 300.0
"""The deadline of a plan."""


def admitted(context: Context, request: TrainingRequest) -> TrainingRequest:
    """Return the request as its environment admits it: open limits filled, nothing above a cap.

    Raises:
        InvalidInput: an unknown environment, or a limit above its cap.
    """
    return context.config.environment(request.environment).admit(request)


def choose_offer(context: Context, request: TrainingRequest) -> tuple[tuple[Offer, ...], Offer]:
    """Return every offer, and the first that can be taken, for an admitted request.

    Raises:
        CapacityUnavailable: none can be taken; the message says why for each.
        BudgetExceeded: the first is too expensive.
    """
    offers = context.platform(request.platform or "local").offers(request)
    offer = next((offer for offer in offers if offer.skipped is None), None)
    if offer is None:
        reasons = "; ".join(f"{offer.type} in {offer.region}: {offer.skipped}" for offer in offers) or "there is none"
        raise CapacityUnavailable(
            f"No offer meets accelerator {request.accelerator}, market {request.market}, "
            f"on platform {request.platform}: {reasons}.",
            NEXT if request.platform != "local" else "Ask for what this platform has: 'cpu' on-demand works anywhere.",
        )
    _refuse_short_budget(request, offer)
    return offers, offer


def _refuse_short_budget(request: TrainingRequest, offer: Offer) -> None:
    """Refuse money that ends what was asked for before its first hour: nobody means a run to be cut off so early."""
    seconds = longest_life_seconds(request, offer.usd_per_hour)
    asked = 60.0 * request.life_minutes
    if seconds < min(asked, FIRST_HOUR_SECONDS):
        needed = min(asked, FIRST_HOUR_SECONDS) / 3600 * offer.usd_per_hour
        raise BudgetExceeded(
            f"max_usd: {request.max_usd:.2f} USD buys {int(seconds // 60)} minutes of {offer.type} at "
            f"{offer.usd_per_hour:.2f} USD per hour, and {asked / 60:.0f} were asked for.",
            f"Ask for max_minutes={int(seconds // 60)}, or raise max_usd to {needed + 0.005:.2f} at least.",
        )


def affordable_rungs(context: Context, request: TrainingRequest) -> tuple[tuple[Offer, ...], ...]:
    """Return the rungs of the ladder for an admitted request, without what its price cap or its money rules out.

    Raises:
        CapacityUnavailable, BudgetExceeded: as `choose_offer`.
    """
    offers, _ = choose_offer(context, request)
    return rungs(tuple(offer for offer in offers if offer.skipped is None and _affordable(request, offer)))


def _affordable(request: TrainingRequest, offer: Offer) -> bool:
    try:
        _refuse_short_budget(request, offer)
    except BudgetExceeded:
        return False
    return True


def check_plan(stack_input: StackInput, changes: PlannedChanges, module: Path) -> None:
    """Hold a plan of what is rented against the rules (rule R11); what rents nothing needs none. `module` is its copy.

    Raises:
        PlanRejected: it breaks one; every finding is named.
    """
    if not stack_input.tags:
        return
    nodes = int(stack_input.variables.get("nodes", 1))
    policy = gate.Policy(required_tags=stack_input.tags, egress=stack_input.egress, max_instances=nodes)
    gate.enforce(planned.load(changes.raw_path), policy, unresolved=changes.unresolved, module=module)


def make_plan(context: Context, request: TrainingRequest, *, code: tuple[tuple[str, ...], int] = ((), 0)) -> Plan:
    """Return what would exist, for how long at most and at what cost.

    Args:
        context: where.
        request: what; it need not be admitted yet.
        code: the files that would travel, and their size in bytes.

    Raises:
        InvalidInput, CapacityUnavailable, BudgetExceeded, EngineMissing, TerraformFailed: as said.
    """
    request = admitted(context, request)
    offers, offer = choose_offer(context, request)
    stack_input = context.platform(request.platform or "local").plan_stack(request, rungs(offers)[0])
    scratch = Path(tempfile.mkdtemp(prefix="plan-", dir=context.home.work))
    try:
        deadline = time.time() + PLAN_SECONDS
        stack = context.open_scratch_stack(scratch, request.platform or "local")
        stack.prepare(
            stack_input.root_module, stack_input.variables,
            deadline=deadline, within=stack_input.within, init_cache=context.home.init_cache,
        )  # fmt: skip
        changes = stack.plan(deadline=deadline)
        check_plan(stack_input, changes, stack.module)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = longest_life_seconds(request, offer.usd_per_hour)
    return Plan(
        request=request,
        platform=request.platform or "local",
        offers=offers,
        offer=offer,
        stack=stack_input.name,
        engine=f"{context.engine.name} {context.engine.version}",
        resources=tuple(
            PlannedResource(address=each.address, type=each.type, action=each.action) for each in changes.changes
        ),
        max_minutes=max(1, int(seconds // 60)),
        estimate_usd=round(seconds / 3600 * offer.usd_per_hour * request.nodes, 4),
        code_files=code[0],
        code_bytes=code[1],
        remarks=tuple(map(as_line, context.platform(request.platform or "local").remarks)),
        made_at=context.ledger.now(),
    )
