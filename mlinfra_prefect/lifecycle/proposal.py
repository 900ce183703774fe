"""The proposal of `init aws`: what an environment would share, planned, priced and shown before anything exists.

What is agreed to is what is applied: the plans of a proposal are kept in the home and `making` applies those. Only the
very first one cannot plan everything for real, because states lie in a bucket that it has yet to make.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlinfra_prefect.aws import buckets, environment as environments, shared_remains
from mlinfra_prefect.aws.environment import AwsEnvironment
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle import environment_stacks as stacks
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.environment_stacks import Planned, Wanted
from mlinfra_prefect.terraform.idle_price import IdlePrice


@dataclass(frozen=True, slots=True)
class Proposal:
    """What would be made, and what it costs at rest. Nothing exists because of it but files in the home."""

    wanted: Wanted
    account: str
    planned: tuple[Planned, ...]

    @property
    def creates(self) -> Mapping[str, int]:
        """How many resources of each type would be new."""
        return self._counted(new=True)

    @property
    def changes(self) -> Mapping[str, int]:
        """How many resources of each type would be changed, replaced or deleted."""
        return self._counted(new=False)

    @property
    def idle(self) -> tuple[IdlePrice, ...]:
        """What each part costs at rest."""
        return tuple(each.idle for each in self.planned)

    @property
    def usd_per_month(self) -> float:
        """What all of it costs a month while nothing is leased."""
        return sum(each.usd_per_month for each in self.idle)

    def _counted(self, *, new: bool) -> Mapping[str, int]:
        counted: Counter[str] = Counter()
        for each in self.planned:
            for (kind, action), count in each.actions.items():
                if (action == "create") is new:
                    counted[kind] += count
        return dict(counted)


def propose(context: Context, wanted: Wanted) -> Proposal:
    """Plan everything and price it; creates nothing.

    Raises:
        InvalidInput: no region is configured, a zone cannot be had, or the account has that name elsewhere.
        PlanRejected: a plan breaks a rule.
        MlinfraError: credentials, permissions, Terraform.
    """
    account = environments.account()
    _refuse_long_name(wanted, account)
    _refuse_another_home(context, wanted, account)
    made = environments.look_up(wanted.environment, wanted.regions[0])
    _refuse_lost_regions(wanted, made)
    wanted = _as_before(wanted, made)
    there = buckets.exists(environments.state_bucket(wanted.environment, account, wanted.regions[0]), wanted.regions[0])
    if not there:
        _refuse_elsewhere(wanted, account)
    foreign = is_foreign(context, wanted, account)
    found = []
    for part in stacks.parts(context, wanted, account):
        if foreign and not part.in_bucket:
            continue
        if there or not part.in_bucket:
            found.append(stacks.plan(stacks.prepared(context, wanted, part, account), wanted, part, keep=True))
            continue
        with tempfile.TemporaryDirectory(prefix="init-", dir=context.home.work) as scratch:
            stack = stacks.prepared_without_state(context, part, Path(scratch))
            found.append(stacks.plan(stack, wanted, part, keep=False))
    return Proposal(wanted, account, tuple(found))


def is_foreign(context: Context, wanted: Wanted, account: str) -> bool:
    """Whether the state bucket was made by another home, so that nothing here knows of it: then it is only looked at.

    Raises:
        PlanRejected: it can lose or show what lies in it.
    """
    bucket, region = environments.state_bucket(wanted.environment, account, wanted.regions[0]), wanted.regions[0]
    mine = stacks.place(context, wanted.environment, account, region) / "state" / "terraform.tfstate"
    if mine.is_file() or not buckets.exists(bucket, region):
        return False
    buckets.check(bucket, region)
    return True


def as_json(proposal: Proposal) -> str:
    """A proposal for machines."""
    return json.dumps({
        "environment": proposal.wanted.environment, "account": proposal.account,
        "regions": list(proposal.wanted.regions), "profile": proposal.wanted.profile, "egress": proposal.wanted.egress,
        "mirrors": list(proposal.wanted.mirrors or ()), "input_buckets": list(proposal.wanted.input_buckets or ()),
        "secrets": list(proposal.wanted.secrets or ()),
        "creates": dict(proposal.creates), "changes": dict(proposal.changes),
        "idle_usd_per_month": round(proposal.usd_per_month, 2),
    }, indent=1)  # fmt: skip


# --- what is refused --------------------------------------------------------------------------------------------------


def _refuse_long_name(wanted: Wanted, account: str) -> None:
    longest = environments.artifact_bucket(wanted.environment, account, wanted.regions[0])
    if len(longest) > buckets.LONGEST_NAME:
        most = buckets.LONGEST_NAME - len(longest) + len(wanted.environment)
        raise InvalidInput(
            "environment",
            f"{wanted.environment!r} is too long: its name is part of a bucket's. Nothing was created",
            f"In {wanted.regions[0]} it may have {most} characters.",
        )


def _refuse_another_home(context: Context, wanted: Wanted, account: str) -> None:
    """Refuse a second environment of one name: leases of this home could mean either."""
    made = environments.remembered(wanted.environment, context.home.aws)
    if made is not None and (made.account, made.home_region) != (account, wanted.regions[0]):
        raise InvalidInput(
            "environment",
            f"{made.name!r} of this home is in {made.home_region} of account {made.account}. Nothing was created",
            f"Name {made.home_region} first, log in to that account, or take another name or another MLINFRA_HOME.",
        )


def _refuse_elsewhere(wanted: Wanted, account: str) -> None:
    """Refuse a name that the account has in another region: its roles are the account's, and are there already.

    They are never called left over where a region may have the environment: somebody would delete what it needs.
    """
    name, region = wanted.environment, wanted.regions[0]
    roles = shared_remains.roles(name, region)
    if not roles:
        return
    others = buckets.regions_of(environments.state_bucket(name, account, ""), region)
    if others:
        told, remedy = f"is in {others[0]}", f"Say --region {others[0]} first, to go on with that one"
    elif others is None:
        told = "is in another region, as its roles say; this login may not list the buckets (s3:ListAllMyBuckets)"
        remedy = "Name its region first with --region"
    else:
        told = f"was not destroyed as a whole: its state bucket is gone, and {', '.join(roles)} are there"
        remedy = "Make sure that nobody uses them, and delete them"
    raise InvalidInput(
        "environment",
        f"{name!r} of account {account} {told}. Nothing was created",
        f"{remedy}, or take another name.",
    )


def _as_before(wanted: Wanted, made: AwsEnvironment | None) -> Wanted:
    """What is not said stays as it was made: whoever runs `init` again takes nobody's right away by not knowing of it.

    Raises:
        InvalidInput: ranges of mirrors that this egress does not reach.
    """
    mirrors, inputs, secrets = wanted.mirrors, wanted.input_buckets, wanted.secrets
    if mirrors and wanted.egress != "mirror":
        raise InvalidInput("mirror", f"egress {wanted.egress!r} reaches none", "Say --egress mirror.")
    if mirrors is None:
        mirrors = made.mirrors if made is not None and wanted.egress == "mirror" else ()
    if inputs is None:
        inputs = made.input_buckets if made is not None else ()
    if secrets is None:
        secrets = made.secrets if made is not None else ()
    return replace(wanted, mirrors=mirrors, input_buckets=inputs, secrets=secrets)


def _refuse_lost_regions(wanted: Wanted, made: AwsEnvironment | None) -> None:
    """Refuse to forget a region: its network would be there, and nobody would know of it any more."""
    lost = [each.name for each in made.regions if each.name not in wanted.regions] if made is not None else []
    if lost:
        options = " ".join(f"--region {each}" for each in (*wanted.regions, *lost))
        raise InvalidInput(
            "region",
            f"environment {wanted.environment!r} has a network in {', '.join(lost)} too. Nothing was created",
            f"Run: mlinfra-prefect init aws --environment {wanted.environment} {options}; or destroy the environment.",
        )
