"""`init aws` makes what was agreed to: an environment's buckets, its network, its roles and its second dead-man.

A plan that was shown is applied as it was saved. What could not be planned for real before there was a bucket is
planned anew, and refused where it asks for more than what was shown. Resumable: run again, it goes on with what is
there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from mlinfra_prefect.aws import environment as environments
from mlinfra_prefect.aws.environment import AwsEnvironment, AwsRegion
from mlinfra_prefect.errors import PlanRejected, PlanStale
from mlinfra_prefect.lifecycle import environment_stacks as stacks
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.environment_stacks import Planned
from mlinfra_prefect.lifecycle.proposal import Proposal, is_foreign
from mlinfra_prefect.terraform import Stack

ROUNDED_USD = 0.005
"""What two prices may differ by and be the same in cents."""


def make(context: Context, proposal: Proposal, tell: Callable[[str], None] = lambda _: None) -> AwsEnvironment:
    """Make what was proposed, and note it beside the ledger and in the home.

    Raises:
        PlanStale: a part changed since it was shown. It was left as it is; what was made before it stays.
        PlanRejected: a part that could not be planned before asks for more than what was shown; as above.
        MlinfraError: credentials, permissions, Terraform; what was made stays, and the next run goes on with it.
    """
    wanted, account = proposal.wanted, proposal.account
    outputs: dict[str, Mapping[str, Any]] = {}
    foreign = is_foreign(context, wanted, account)
    for shown in proposal.planned:
        part = shown.part
        if foreign and not part.in_bucket:
            continue
        tell(f"{part.name}: applying {part.stack} in {part.region}")
        stack, plan = _as_shown(context, proposal, shown)
        try:
            outputs[part.name] = stack.apply(deadline=time.time() + stacks.STACK_SECONDS, expected=plan).outputs
        except PlanStale as error:
            raise _stale(shown) from error
    shared = outputs["shared"]
    made = AwsEnvironment(
        name=wanted.environment, account=account, home_region=wanted.regions[0],
        profile=wanted.profile, egress=wanted.egress,
        state_bucket=environments.state_bucket(wanted.environment, account, wanted.regions[0]),
        artifact_bucket=str(shared["artifact_bucket"]),
        instance_profile=str(shared["instance_profile"]), node_role_id=str(shared["node_role_id"]),
        regions=tuple(
            _region(each.part.region, outputs[each.part.name]) for each in proposal.planned if each.part.in_bucket
        ),
        mirrors=wanted.mirrors or (), input_buckets=wanted.input_buckets or (), secrets=wanted.secrets or (),
        made_at=context.ledger.now(),
    )  # fmt: skip
    environments.save(made, context.home.aws)
    return made


def _as_shown(context: Context, proposal: Proposal, shown: Planned) -> tuple[Stack, str]:
    """The stack of a part with the sha256 of the plan that was agreed to, or of a new one that asks for no more.

    Raises:
        PlanStale, PlanRejected: as `make`.
    """
    wanted = proposal.wanted
    if shown.saved:
        stack = stacks.opened(context, wanted, shown.part, proposal.account)
        if stack.saved_plan() != shown.saved:  # another `init` of this home has planned since
            raise _stale(shown)
        return stack, shown.saved
    stack = stacks.prepared(context, wanted, shown.part, proposal.account)
    now = stacks.plan(stack, wanted, shown.part, keep=True)
    more = asks_for_more(shown, now)
    if more:
        raise PlanRejected(
            f"{shown.part.name}: now it needs more than what was agreed to: {', '.join(more)}. It was not applied.",
            "Run the same command again: it shows all of it.",
        )
    return stack, now.saved


def asks_for_more(shown: Planned, now: Planned) -> tuple[str, ...]:
    """What a plan does or costs beyond another one, for people; nothing: it asks for no more. Pure."""
    more = [
        f"{action} {count - shown.actions.get((kind, action), 0)} {kind}"
        for (kind, action), count in sorted(now.actions.items())
        if count > shown.actions.get((kind, action), 0)
    ]
    dearer = now.idle.usd_per_month - shown.idle.usd_per_month
    if dearer > ROUNDED_USD:
        more.append(f"{dearer:.2f} USD a month")
    unpriced = len(now.idle.unknown) - len(shown.idle.unknown)
    if unpriced > 0:
        more.append(f"{unpriced} of which the price is not known")
    return tuple(more)


def _stale(shown: Planned) -> PlanStale:
    return PlanStale(
        f"{shown.part.name}: something changed since this was shown, so it was not applied.",
        "Run the same command again.",
    )


def _region(name: str, outputs: Mapping[str, Any]) -> AwsRegion:
    return AwsRegion(
        name=name, subnets=dict(outputs["subnets"]), security_group=str(outputs["security_group_id"]),
        public_ip=bool(outputs["public_ip"]), kms_key=str(outputs.get("kms_key_arn") or ""),
    )  # fmt: skip
