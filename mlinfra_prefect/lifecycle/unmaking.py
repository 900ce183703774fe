"""`init aws --destroy`: all that an environment shares goes, whether making it was ever finished or not.

What there is is found in the account and not believed: the state bucket by its name, and in it the states of what was
made. So what a dead `init` left is destroyed like anything else. The bucket goes last, because it knows of the rest.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlinfra_prefect.aws import S3Ledger, buckets, environment as environments, shared_remains
from mlinfra_prefect.aws.environment import AwsEnvironment
from mlinfra_prefect.errors import (
    InvalidInput,
    LeaseHeld,
    NotInitialised,
    NotYetDestroyed,
    PermanentError,
    StateLocked,
)
from mlinfra_prefect.lifecycle import environment_stacks as stacks
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.environment_stacks import OF_REGION, Wanted
from mlinfra_prefect.model.lease import OPEN


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of an environment.

    Attributes:
        name: the environment's.
        account: whose.
        regions: where it may have something, the home region first.
        states: the parts whose states lie in its bucket.
        made: what `init aws` noted when it had finished; None: it never had.
    """

    name: str
    account: str
    regions: tuple[str, ...]
    states: tuple[str, ...]
    made: AwsEnvironment | None

    @property
    def home_region(self) -> str:
        """Of its buckets."""
        return self.regions[0]

    @property
    def state_bucket(self) -> str:
        """Its name."""
        return environments.state_bucket(self.name, self.account, self.home_region)

    @property
    def artifact_bucket(self) -> str:
        """Its name."""
        return environments.artifact_bucket(self.name, self.account, self.home_region)


def find(context: Context, name: str, region: str | None = None) -> Found:
    """Look for an environment in this login's account: as the home remembers it, or in its bucket.

    Args:
        context: where.
        name: the environment's.
        region: its home region; None: as the home knows it, or the one of the AWS configuration.

    Raises:
        NotInitialised: there is nothing of it.
        InvalidInput: the home's environment of that name is in another region.
        PermanentError: the home's environment of that name is in another account.
        MlinfraError: its state bucket is somebody else's, or AWS cannot be asked.
    """
    account = environments.account()
    made = environments.remembered(name, context.home.aws)
    if made is not None and made.account != account:
        raise PermanentError(
            f"Environment {name!r} of this home is in account {made.account}, and this login is of account {account}.",
            f"Log in to account {made.account}. Nothing was destroyed.",
        )
    if made is not None:
        if region not in {None, made.home_region}:
            raise InvalidInput(
                "region",
                f"environment {name!r} of this home is in {made.home_region}. Nothing was destroyed",
                f"Name that one or none; for another one of this name in {region} take another MLINFRA_HOME.",
            )
        buckets.exists(environments.state_bucket(name, account, made.home_region), made.home_region)
        return _found(context, name, account, made.home_region, made)
    looked_at = []
    for home_region in _home_regions(context, name, account, region):
        made = environments.look_up(name, home_region)
        if made is not None or buckets.exists(environments.state_bucket(name, account, home_region), home_region):
            return _found(context, name, account, home_region, made)
        looked_at.append(home_region)
    where = ", ".join(dict.fromkeys(looked_at))
    raise NotInitialised(
        f"Environment {name!r} is not initialised on AWS in {where} of account {account}.",
        "If it is in another region, name its first one with --region. Nothing was destroyed.",
    )


def unmake(context: Context, found: Found, tell: Callable[[str], None] = lambda _: None) -> None:
    """Destroy what an environment shares, its buckets last. Idempotent.

    Raises:
        LeaseHeld: something of it is leased still; nothing was touched.
        StateLocked: a Terraform of it runs still, here (nothing was touched) or elsewhere (its bucket stays).
        NotYetDestroyed: something of it is there that no state names.
        MlinfraError: credentials, permissions, Terraform; the next run goes on with what is left.
    """
    refuse_leases(context, found)
    _refuse_running(context, found)
    made = found.made
    # What goes is what the states name; the variables only have to be valid.
    wanted = Wanted(found.name, found.regions) if made is None else Wanted(
        found.name, found.regions, made.profile, made.egress, mirrors=made.mirrors, input_buckets=made.input_buckets,
        secrets=made.secrets,
    )  # fmt: skip
    for part in reversed(stacks.parts(context, wanted, found.account)):
        # A state that the bucket did not take lies in the home.
        if part.name in found.states or (
            part.in_bucket and stacks.opened(context, wanted, part, found.account).suspect
        ):
            if part.stack == "aws-shared":
                buckets.empty(found.artifact_bucket, found.home_region)
            tell(f"{part.name}: destroying {part.stack} in {part.region}")
            stack = stacks.prepared(context, wanted, part, found.account)
            gone = stack.destroy(deadline=time.time() + stacks.STACK_SECONDS)
            tell(f"{part.name}: {len(gone.destroyed)} resource(s) destroyed")
    regions = _still_alone(context, found)
    left = shared_remains.look(found.name, found.account, regions)
    if left:
        raise NotYetDestroyed(
            f"{', '.join(left)} of environment {found.name!r} are still there, and no state names them.",
            "Delete them by hand, and run it again: the state bucket stays until then.",
        )
    tell(f"deleting {found.state_bucket}, with the states and the ledger in it")
    buckets.delete(found.state_bucket, found.home_region)
    environments.forget(found.name, context.home.aws)
    place = stacks.place(context, found.name, found.account, found.home_region)
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not empty: another account has one of this name
        place.parent.rmdir()


def refuse_leases(context: Context, found: Found) -> None:
    """Refuse while anything of an environment is leased, in this ledger or in any other of the account.

    Raises:
        LeaseHeld: names what is.
    """
    held = [
        seen.record.id
        for seen in context.ledger.records(states=OPEN)
        if seen.record.platform == "aws" and seen.record.environment == found.name
    ]
    address = buckets.ledger_of(found.state_bucket, found.home_region)
    if address is not None:  # it goes with its bucket, so whatever it keeps must be gone
        with contextlib.closing(S3Ledger(address)) as ledger:
            held += [seen.record.id for seen in ledger.records(states=OPEN) if seen.record.id not in held]
    held += [each for each in buckets.leased(found.name, found.regions) if each.partition(" ")[0] not in held]
    if held:
        raise LeaseHeld(
            f"Environment {found.name!r} still has {len(held)} lease(s): {', '.join(dict.fromkeys(held))}.",
            "Release them first (`mlinfra-prefect ps`). Nothing was destroyed.",
        )


def _found(context: Context, name: str, account: str, home_region: str, made: AwsEnvironment | None) -> Found:
    """What there is in a home region. A further region is one that was noted, or that anybody has begun with."""
    bucket = environments.state_bucket(name, account, home_region)
    states = buckets.states(bucket, home_region)
    noted = [each.name for each in made.regions] if made is not None else []
    begun = [each.name for each in _stacks_in_home(context, name, account, home_region)]
    parts = (*states, *buckets.locked(bucket, home_region), *begun)
    further = [each.removeprefix(OF_REGION) for each in parts if each.startswith(OF_REGION)]
    return Found(name, account, tuple(dict.fromkeys((home_region, *noted, *further))), states, made)


def _stacks_in_home(context: Context, name: str, account: str, home_region: str) -> list[Path]:
    place = stacks.place(context, name, account, home_region)
    return sorted(each for each in place.glob("*") if each.is_dir())


def _refuse_running(context: Context, found: Found) -> None:
    """Refuse while a Terraform of this home makes something of it: an `init` that was interrupted leaves it running."""
    for directory in _stacks_in_home(context, found.name, found.account, found.home_region):
        if context.open_scratch_stack(directory, "aws").in_flight():
            raise StateLocked(
                f"A Terraform process of the stack in {directory} is still running: it makes what would be destroyed.",
                "Wait until it has ended, and run it again. Nothing was destroyed.",
            )


def _still_alone(context: Context, found: Found) -> tuple[str, ...]:
    """Every region to look at before the bucket goes: what another host has begun meanwhile is in the bucket only.

    Raises:
        StateLocked: somebody makes something of the environment.
        NotYetDestroyed: somebody has made something of it.
    """
    _refuse_running(context, found)
    locks = buckets.locked(found.state_bucket, found.home_region)
    if locks:
        keys = " ".join(f"s3://{found.state_bucket}/{buckets.STATES}{each}{buckets.LOCK}" for each in locks)
        raise StateLocked(
            f"A Terraform has locked the states of {', '.join(locks)} of environment {found.name!r}, and may still "
            "make what they would name: its state bucket stays.",
            f"Wait until it has ended, and run it again. Where it is certainly gone, delete its lock first: {keys}",
        )
    now = _found(context, found.name, found.account, found.home_region, found.made)
    new = sorted(set(now.states) - set(found.states))
    if new:
        raise NotYetDestroyed(
            f"Somebody has made {', '.join(new)} of environment {found.name!r} meanwhile.", "Run it again."
        )
    return tuple(dict.fromkeys((*found.regions, *now.regions)))


def _home_regions(context: Context, name: str, account: str, region: str | None) -> Iterator[str]:
    """Where the buckets of an environment may be: as it was said, else where this home has begun with it."""
    if region is not None:
        yield region
        return
    begun = stacks.place(context, name, account, "").name
    for each in sorted((context.home.aws / name).glob(f"{begun}*")):
        yield each.name.removeprefix(begun)
    yield environments.own_region()
