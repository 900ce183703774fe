"""`init aws`: what an environment shares, made once: its buckets, its network, its roles and its second dead-man.

It is planned, priced and shown before anything exists, and made only with consent. Everything of it is Terraform with
its state in the environment's own bucket, so any host of the account can go on with it; the bucket itself is made
first, with its state in the home. Idempotent: run again, it brings what is there to what is asked for.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.aws import S3Ledger, buckets, deadman, environment as environments, granting, tags
from mlinfra_prefect.aws.environment import AwsEnvironment, AwsRegion
from mlinfra_prefect.errors import InvalidInput, LeaseHeld
from mlinfra_prefect.lifecycle.context import STACKS, Context
from mlinfra_prefect.model.lease import OPEN
from mlinfra_prefect.terraform import Stack, gate, planned
from mlinfra_prefect.terraform.idle_price import IdlePrice, idle

STACK_SECONDS = 900.0
"""The deadline of one Terraform command of an initialisation: interface endpoints take minutes."""
BACKEND = "backend.tf"

Profile = Literal["default", "hardened"]
Egress = Literal["internet", "mirror", "none"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an environment shall share. `regions`: the home region first. None: as it was made before, or nothing."""

    environment: str
    regions: tuple[str, ...]
    profile: Profile = "default"
    egress: Egress = "internet"
    zones: int = 3
    mirrors: tuple[str, ...] | None = None
    input_buckets: tuple[str, ...] | None = None
    secrets: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One stack of an environment: its root module, where its state lies in the bucket, and its variables."""

    name: str
    stack: str
    region: str
    variables: Mapping[str, Any]
    in_bucket: bool = True


@dataclass(frozen=True, slots=True)
class Proposal:
    """What would be made, and what it costs at rest. Nothing exists because of it."""

    wanted: Wanted
    account: str
    parts: tuple[Part, ...]
    creates: Mapping[str, int]
    changes: Mapping[str, int]
    idle: tuple[IdlePrice, ...]

    @property
    def usd_per_month(self) -> float:
        """What all of it costs a month while nothing is leased."""
        return sum(each.usd_per_month for each in self.idle)


def propose(context: Context, wanted: Wanted) -> Proposal:
    """Plan everything and price it; creates nothing.

    Raises:
        InvalidInput: no region is configured, or a zone cannot be had.
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
    foreign = _is_foreign(context, wanted, account)
    parts = _parts(context, wanted, account)
    creates: dict[str, int] = {}
    changes: dict[str, int] = {}
    prices = []
    for part in parts:
        if foreign and not part.in_bucket:
            continue
        with tempfile.TemporaryDirectory(prefix="init-", dir=context.home.work) as scratch:
            known = _directory(context, wanted, part, account) / "terraform.tfstate"
            if not part.in_bucket and known.is_file():
                shutil.copyfile(known, private_folder(Path(scratch) / "stack") / known.name)
            document = _plan(context, wanted, part, Path(scratch), account, with_backend=there and part.in_bucket)
        for change in document.get("resource_changes") or []:
            actions = change["change"]["actions"]
            if change.get("mode") == "managed" and actions != ["no-op"]:
                counted = creates if actions == ["create"] else changes
                counted[change["type"]] = counted.get(change["type"], 0) + 1
        prices.append(idle(document))
    return Proposal(wanted, account, parts, creates, changes, tuple(prices))


def make(context: Context, proposal: Proposal, tell: Callable[[str], None] = lambda _: None) -> AwsEnvironment:
    """Make what was proposed, and note it beside the ledger and in the home. Resumable: run it again after a failure.

    Raises:
        MlinfraError: credentials, permissions, Terraform; what was made stays, and the next run goes on with it.
    """
    wanted, account = proposal.wanted, proposal.account
    outputs: dict[str, Mapping[str, Any]] = {}
    home_region = wanted.regions[0]
    state_bucket = environments.state_bucket(wanted.environment, account, home_region)
    foreign = _is_foreign(context, wanted, account)
    for part in proposal.parts:
        if foreign and not part.in_bucket:
            continue
        tell(f"{part.name}: applying {part.stack} in {part.region}")
        stack = _prepared(context, wanted, part, _directory(context, wanted, part, account), account)
        deadline = time.time() + STACK_SECONDS
        _checked(stack, deadline, wanted)
        outputs[part.name] = stack.apply(deadline=deadline).outputs
    shared = outputs["shared"]
    made = AwsEnvironment(
        name=wanted.environment, account=account, home_region=home_region, profile=wanted.profile, egress=wanted.egress,
        state_bucket=state_bucket, artifact_bucket=str(shared["artifact_bucket"]),
        instance_profile=str(shared["instance_profile"]), node_role_id=str(shared["node_role_id"]),
        regions=tuple(_region(part.region, outputs[part.name]) for part in proposal.parts if part.in_bucket),
        mirrors=wanted.mirrors or (), input_buckets=wanted.input_buckets or (), secrets=wanted.secrets or (),
        made_at=context.ledger.now(),
    )  # fmt: skip
    environments.save(made, context.home.aws)
    return made


def unmake(context: Context, name: str, tell: Callable[[str], None] = lambda _: None) -> None:
    """Destroy what an environment shares, its buckets last. Idempotent.

    Raises:
        LeaseHeld: something of it is leased still; nothing was touched.
        NotInitialised: there is no such environment.
        MlinfraError: as `make`.
    """
    made = environments.load(name, context.home.aws)
    refuse_leases(context, made)
    wanted = Wanted(
        name, tuple(each.name for each in made.regions), made.profile, made.egress,
        mirrors=made.mirrors, input_buckets=made.input_buckets, secrets=made.secrets,
    )  # fmt: skip
    for part in reversed(_parts(context, wanted, made.account)):
        if part.in_bucket:
            if part.stack == "aws-shared":
                buckets.empty(made.artifact_bucket, made.home_region)
            tell(f"{part.name}: destroying {part.stack} in {part.region}")
            stack = _prepared(context, wanted, part, _directory(context, wanted, part, made.account), made.account)
            stack.destroy(deadline=time.time() + STACK_SECONDS)
    tell(f"deleting {made.state_bucket}, with the states and the ledger in it")
    buckets.delete(made.state_bucket, made.home_region)
    environments.forget(name, context.home.aws)
    shutil.rmtree(_place(context, name), ignore_errors=True)


def refuse_leases(context: Context, made: AwsEnvironment) -> None:
    """Refuse while anything of an environment is leased, in this ledger or in any other of the account.

    Raises:
        LeaseHeld: names what is.
    """
    held = [
        seen.record.id
        for seen in context.ledger.records(states=OPEN)
        if seen.record.platform == "aws" and seen.record.environment == made.name
    ]
    address = buckets.ledger_of(made)
    if address is not None:  # it goes with its bucket, so whatever it keeps must be gone
        with contextlib.closing(S3Ledger(address)) as ledger:
            held += [seen.record.id for seen in ledger.records(states=OPEN) if seen.record.id not in held]
    held += [each for each in buckets.leased(made) if each.partition(" ")[0] not in held]
    if held:
        raise LeaseHeld(
            f"Environment {made.name!r} still has {len(held)} lease(s): {', '.join(dict.fromkeys(held))}.",
            "Release them first (`mlinfra-prefect ps`). Nothing was destroyed.",
        )


# --- how --------------------------------------------------------------------------------------------------------------


def _refuse_long_name(wanted: Wanted, account: str) -> None:
    longest = environments.artifact_bucket(wanted.environment, account, wanted.regions[0])
    if len(longest) > buckets.LONGEST_NAME:
        most = buckets.LONGEST_NAME - len(longest) + len(wanted.environment)
        raise InvalidInput(
            "environment",
            f"{wanted.environment!r} is too long: its name is part of a bucket's. Nothing was created",
            f"In {wanted.regions[0]} it may have {most} characters.",
        )


def _is_foreign(context: Context, wanted: Wanted, account: str) -> bool:
    """Whether the state bucket was made by another home, so that nothing here knows of it: then it is only looked at.

    Raises:
        PlanRejected: it can lose or show what lies in it.
    """
    bucket, region = environments.state_bucket(wanted.environment, account, wanted.regions[0]), wanted.regions[0]
    mine = _place(context, wanted.environment) / f"{account}-{region}" / "state" / "terraform.tfstate"
    if mine.is_file() or not buckets.exists(bucket, region):
        return False
    buckets.check(bucket, region)
    return True


def _refuse_another_home(context: Context, wanted: Wanted, account: str) -> None:
    """Refuse a second environment of one name: leases of this home could mean either."""
    made = environments.remembered(wanted.environment, context.home.aws)
    if made is not None and (made.account, made.home_region) != (account, wanted.regions[0]):
        raise InvalidInput(
            "environment",
            f"{made.name!r} of this home is in {made.home_region} of account {made.account}. Nothing was created",
            f"Name {made.home_region} first, log in to that account, or take another name or another MLINFRA_HOME.",
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


def _parts(context: Context, wanted: Wanted, account: str) -> tuple[Part, ...]:
    home = wanted.regions[0]
    state = environments.state_bucket(wanted.environment, account, home)
    # Rules of expiry, and the refusal of what is not sent by TLS, are nothing to an emulator on this host.
    emulated = context.platform("aws").emulated
    common = {"environment": wanted.environment, "profile": wanted.profile, "egress": wanted.egress}
    archive = deadman.build_archive(private_folder(context.home.cache / "dead-man") / "dead-man.zip")
    parts = [
        Part("state", "aws-state", home, {
            "environment": wanted.environment, "region": home, "bucket": state, "emulated": emulated,
        }, in_bucket=False),
        Part("shared", "aws-shared", home, {
            **common, "region": home, "zones": buckets.zones(home, wanted.zones), "state_bucket": state,
            "artifact_bucket": environments.artifact_bucket(wanted.environment, account, home),
            "dead_man": {"archive": str(archive.path), "sha256": archive.sha256}, "dashboard": True,
            "regions": list(wanted.regions), "emulated": emulated,
            "mirrors": list(wanted.mirrors or ()), "input_buckets": list(wanted.input_buckets or ()),
            "secret_arns": granting.arns(wanted.secrets or (), home, account),
        }),
    ]  # fmt: skip
    for region in wanted.regions[1:]:
        variables = {**common, "region": region, "zones": buckets.zones(region, wanted.zones)}
        parts.append(Part(f"region-{region}", "aws-region", region, variables))
    return tuple(parts)


def _plan(
    context: Context, wanted: Wanted, part: Part, scratch: Path, account: str, *, with_backend: bool
) -> dict[str, Any]:
    """The JSON of a plan; without its bucket a part is planned as if it had no state, which is so."""
    if part.in_bucket and not with_backend:
        modules = scratch / "terraform"
        shutil.copytree(STACKS.parent, modules, ignore=shutil.ignore_patterns("tests", BACKEND))
        stack = context.open_scratch_stack(scratch / "stack", "aws")
        stack.prepare(
            modules / "stacks" / part.stack, part.variables,
            deadline=time.time() + STACK_SECONDS, within=modules, init_cache=context.home.init_cache,
        )  # fmt: skip
    else:
        stack = _prepared(context, wanted, part, scratch / "stack", account)
    return _checked(stack, time.time() + STACK_SECONDS, wanted)


def _prepared(context: Context, wanted: Wanted, part: Part, directory: Path, account: str) -> Stack:
    stack = context.open_scratch_stack(directory, "aws")
    home = wanted.regions[0]
    backend = {
        "bucket": environments.state_bucket(wanted.environment, account, home), "region": home,
        "key": f"terraform/{part.name}.tfstate", "use_lockfile": "true", "encrypt": "true",
        **({"use_path_style": "true"} if context.platform("aws").emulated else {}),
    }  # fmt: skip
    stack.prepare(
        STACKS / part.stack, part.variables, deadline=time.time() + STACK_SECONDS, within=STACKS.parent,
        backend=backend if part.in_bucket else None, init_cache=context.home.init_cache,
    )  # fmt: skip
    return stack


def _checked(stack: Stack, deadline: float, wanted: Wanted) -> dict[str, Any]:
    changes = stack.plan(deadline=deadline)
    document = planned.load(changes.raw_path)
    policy = gate.Policy.shared(tags.shared(wanted.environment), profile=wanted.profile, egress=wanted.egress)
    gate.enforce(document, policy, unresolved=changes.unresolved, module=stack.module)
    return document


def _place(context: Context, environment: str) -> Path:
    return context.home.aws / environment


def _directory(context: Context, wanted: Wanted, part: Part, account: str) -> Path:
    """Of its own for each account and home region: a state of another one would have its bucket replaced."""
    place = private_folder(_place(context, wanted.environment))
    return private_folder(place / f"{account}-{wanted.regions[0]}") / part.name


def _region(name: str, outputs: Mapping[str, Any]) -> AwsRegion:
    return AwsRegion(
        name=name, subnets=dict(outputs["subnets"]), security_group=str(outputs["security_group_id"]),
        public_ip=bool(outputs["public_ip"]), kms_key=str(outputs.get("kms_key_arn") or ""),
    )  # fmt: skip


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
