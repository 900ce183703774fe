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

from mlinfra_prefect.aws import S3Ledger, buckets, environment as environments, shared_remains
from mlinfra_prefect.aws.environment import AwsEnvironment
from mlinfra_prefect.errors import LeaseHeld, NotInitialised, NotYetDestroyed, PermanentError
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
        PermanentError: the home's environment of that name is in another account.
        MlinfraError: AWS cannot be asked.
    """
    account = environments.account()
    made = environments.remembered(name, context.home.aws)
    if made is not None and made.account != account:
        raise PermanentError(
            f"Environment {name!r} of this home is in account {made.account}, and this login is of account {account}.",
            f"Log in to account {made.account}. Nothing was destroyed.",
        )
    if made is not None:
        return _found(name, account, made.home_region, made)
    looked_at = []
    for home_region in _home_regions(context, name, account, region):
        made = environments.look_up(name, home_region)
        if made is not None or buckets.exists(environments.state_bucket(name, account, home_region), home_region):
            return _found(name, account, home_region, made)
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
        NotYetDestroyed: something of it is there that no state names.
        MlinfraError: credentials, permissions, Terraform; the next run goes on with what is left.
    """
    refuse_leases(context, found)
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
    left = shared_remains.look(found.name, found.account, found.regions)
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


def _found(name: str, account: str, home_region: str, made: AwsEnvironment | None) -> Found:
    states = buckets.states(environments.state_bucket(name, account, home_region), home_region)
    noted = [each.name for each in made.regions] if made is not None else []
    further = [each.removeprefix(OF_REGION) for each in states if each.startswith(OF_REGION)]
    return Found(name, account, tuple(dict.fromkeys((home_region, *noted, *further))), states, made)


def _home_regions(context: Context, name: str, account: str, region: str | None) -> Iterator[str]:
    """Where the buckets of an environment may be: as it was said, else where this home has begun with it."""
    if region is not None:
        yield region
        return
    begun = stacks.place(context, name, account, "").name
    for each in sorted((context.home.aws / name).glob(f"{begun}*")):
        yield each.name.removeprefix(begun)
    yield environments.own_region()
