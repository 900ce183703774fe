"""What an environment shares on AWS, as stacks: which there are, where each keeps its state, and how one is planned.

The state bucket comes first, with its state in the home of whoever made it. Everything else keeps its state in that
bucket, so any host of the account can go on with it.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.aws import buckets, deadman, environment as environments, granting, tags
from mlinfra_prefect.lifecycle.context import STACKS, Context
from mlinfra_prefect.terraform import Stack, gate, planned
from mlinfra_prefect.terraform.idle_price import IdlePrice, idle

STACK_SECONDS = 900.0
"""The deadline of one Terraform command of an initialisation: interface endpoints take minutes."""
BACKEND = "backend.tf"
OF_REGION = "region-"
"""How the part of a further region begins its name."""

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
    """One stack of an environment: its root module, its region, its variables, and whether the bucket has its state."""

    name: str
    stack: str
    region: str
    variables: Mapping[str, Any]
    in_bucket: bool = True


@dataclass(frozen=True, slots=True)
class Planned:
    """A part, and what applying it would do.

    Attributes:
        part: which.
        actions: how many resources, by type and what happens to them (create, update, replace, delete).
        idle: what the part costs at rest afterwards.
        saved: sha256 of the plan that lies in the home and can be applied as it was shown; empty: there is none,
            because the bucket for the part's state is not there yet.
    """

    part: Part
    actions: Mapping[tuple[str, str], int]
    idle: IdlePrice
    saved: str = ""


def parts(context: Context, wanted: Wanted, account: str) -> tuple[Part, ...]:
    """The parts of an environment in the order in which they are made."""
    home = wanted.regions[0]
    state = environments.state_bucket(wanted.environment, account, home)
    # Rules of expiry, and the refusal of what is not sent by TLS, are nothing to an emulator on this host.
    emulated = context.platform("aws").emulated
    common = {"environment": wanted.environment, "profile": wanted.profile, "egress": wanted.egress}
    archive = deadman.build_archive(private_folder(context.home.cache / "dead-man") / "dead-man.zip")
    found = [
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
        found.append(Part(f"{OF_REGION}{region}", "aws-region", region, variables))
    return tuple(found)


def place(context: Context, environment: str, account: str, region: str) -> Path:
    """Where the home keeps the stacks of an environment: of each account and home region apart.

    A state of another one would have its bucket replaced. Pure.
    """
    return context.home.aws / environment / f"{account}-{region}"


def opened(context: Context, wanted: Wanted, part: Part, account: str) -> Stack:
    """The stack of a part, as it lies in the home."""
    where = place(context, wanted.environment, account, wanted.regions[0])
    private_folder(where.parent)
    return context.open_scratch_stack(private_folder(where) / part.name, "aws")


def prepared(context: Context, wanted: Wanted, part: Part, account: str) -> Stack:
    """The stack of a part, initialised on its state.

    Raises:
        MlinfraError: as `Stack.prepare`.
    """
    stack = opened(context, wanted, part, account)
    home = wanted.regions[0]
    backend = {
        "bucket": environments.state_bucket(wanted.environment, account, home), "region": home,
        "key": buckets.state_key(part.name), "use_lockfile": "true", "encrypt": "true",
        **({"use_path_style": "true"} if context.platform("aws").emulated else {}),
    }  # fmt: skip
    stack.prepare(
        STACKS / part.stack, part.variables, deadline=time.time() + STACK_SECONDS, within=STACKS.parent,
        backend=backend if part.in_bucket else None, init_cache=context.home.init_cache,
    )  # fmt: skip
    return stack


def prepared_without_state(context: Context, part: Part, scratch: Path) -> Stack:
    """The stack of a part whose bucket is not there yet, as if it had no state, which is so. Never to be applied."""
    modules = scratch / "terraform"
    shutil.copytree(STACKS.parent, modules, ignore=shutil.ignore_patterns("tests", BACKEND))
    stack = context.open_scratch_stack(scratch / "stack", "aws")
    stack.prepare(
        modules / "stacks" / part.stack, part.variables,
        deadline=time.time() + STACK_SECONDS, within=modules, init_cache=context.home.init_cache,
    )  # fmt: skip
    return stack


def plan(stack: Stack, wanted: Wanted, part: Part, *, keep: bool) -> Planned:
    """Plan a part and hold the plan against the rules; with `keep` it is the one that will be applied.

    Raises:
        PlanRejected: it breaks a rule.
        MlinfraError: credentials, permissions, Terraform.
    """
    changes = stack.plan(deadline=time.time() + STACK_SECONDS)
    document = planned.load(changes.raw_path)
    policy = gate.Policy.shared(tags.shared(wanted.environment), profile=wanted.profile, egress=wanted.egress)
    gate.enforce(document, policy, unresolved=changes.unresolved, module=stack.module)
    actions = Counter((each.type, each.action) for each in changes.changes if each.action not in {"no-op", "read"})
    return Planned(part, actions, idle(document), stack.saved_plan() if keep else "")
