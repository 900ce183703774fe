"""``init aws``: show what an environment would share and what that costs at rest, ask, and make it."""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from mlinfra_prefect.aws import environment as environments, granting, quotas
from mlinfra_prefect.cli.columns import Table, cell
from mlinfra_prefect.cli.opening import opened
from mlinfra_prefect.cli.outcome import DONE, FAILED
from mlinfra_prefect.cli.screen import Facts, screen
from mlinfra_prefect.errors import InvalidInput, MlinfraError
from mlinfra_prefect.lifecycle import cloud_access
from mlinfra_prefect.lifecycle.environment_stacks import Egress, Profile, Wanted
from mlinfra_prefect.lifecycle.making import make
from mlinfra_prefect.lifecycle.proposal import Proposal, as_json as proposal_as_json, propose
from mlinfra_prefect.lifecycle.unmaking import Found, find, refuse_leases, unmake
from mlinfra_prefect.model.environment import AwsSettings
from mlinfra_prefect.model.ledger_address import BUCKET
from mlinfra_prefect.model.names import is_id
from mlinfra_prefect.model.record import parsed


def init(
    *, environment: str, regions: tuple[str, ...], profile: str, egress: str | None, mirrors: tuple[str, ...],
    input_buckets: tuple[str, ...], secrets: tuple[str, ...], destroy: bool, yes: bool, as_json: bool,
) -> int:  # fmt: skip
    """Make what an environment shares on AWS, or destroy it; asks before it does."""
    if not is_id(environment):
        raise InvalidInput("environment", f"{environment!r} is not a name", "Use lower-case letters, digits, dashes.")
    context = opened()
    if destroy:
        return _destroy(environment, regions, yes=yes)
    wanted = replace(
        _wanted(environment, regions, profile, egress),
        mirrors=_each(mirrors, "mirror", _is_range, "a range of addresses such as 10.20.0.0/16"),
        input_buckets=_each(input_buckets, "input-bucket", BUCKET.fullmatch, "the name of a bucket"),
        secrets=_each_secret(secrets),
    )
    proposal = propose(context, wanted)
    if not as_json:
        _show(proposal)
    if as_json and not yes and not sys.stdin.isatty():
        print(proposal_as_json(proposal))  # nobody can be asked, and may look all the same
    if not yes and not _agreed(f"Create this in account {proposal.account}?"):
        if as_json:
            print(proposal_as_json(proposal))
        return FAILED
    import os

    cloud_access.lend(context.home, os.environ, lambda: proposal.account)
    made = make(context, proposal, tell=_tell(as_json=as_json))
    if as_json:
        print(
            json.dumps(
                {**json.loads(proposal_as_json(proposal)), "made": made.model_dump(mode="json", by_alias=True)},
                indent=1,
            )
        )
        return DONE
    out, told = screen(), Facts()
    told.fact(
        "made", f"environment {made.name} on aws, account {made.account}, {', '.join(r.name for r in made.regions)}"
    )
    told.fact("a lease", f"mlinfra-prefect up cpu --platform aws --environment {made.name}")
    told.fact("for a team", f"export MLINFRA_LEDGER=s3://{made.state_bucket}/ledger")
    told.fact("undo", f"mlinfra-prefect init aws --environment {made.name} --destroy")
    out.print()
    out.print(told)
    return DONE


def _wanted(environment: str, regions: tuple[str, ...], profile: str, egress: str | None) -> Wanted:
    if profile not in get_args(Profile):
        raise InvalidInput("profile", f"{profile!r} is not one", f"There is: {', '.join(get_args(Profile))}.")
    chosen = egress or ("internet" if profile == "default" else "none")
    if chosen not in get_args(Egress):
        raise InvalidInput("egress", f"{chosen!r} is not one", f"There is: {', '.join(get_args(Egress))}.")
    if profile == "hardened" and chosen == "internet":
        raise InvalidInput("egress", "profile 'hardened' has no way to the internet", "Choose mirror or none.")
    if len(set(regions)) > 1 and chosen != "internet":
        raise InvalidInput(
            "region", f"several regions need egress 'internet': with {chosen!r} a node reaches its own region only",
            "Name one region.",
        )  # fmt: skip
    named = parsed(AwsSettings, {"regions": regions or (environments.own_region(),)}, prefix="").regions
    return Wanted(environment, tuple(dict.fromkeys(named)), profile, chosen)  # type: ignore[arg-type]  # checked above


def _each(said: tuple[str, ...], option: str, fits: Callable[[str], object], what: str) -> tuple[str, ...] | None:
    """What was said; None: nothing was. One empty text says that there shall be none."""
    for each in said:
        if each and not fits(each):
            raise InvalidInput(option, f"{each!r} is not {what}", "Nothing was created.")
    return tuple(dict.fromkeys(each for each in said if each)) if said else None


def _each_secret(said: tuple[str, ...]) -> tuple[str, ...] | None:
    """As `_each`; without the text: people paste the secret where its reference belongs."""
    if any(each and not granting.is_reference(each) for each in said):
        raise InvalidInput(
            "secret", "must be aws-sm:NAME, aws-sm:ARN (the whole ARN) or ssm:/NAME, without a #KEY: a role reads a "
            "secret as a whole",
            "Nothing was created.",
        )  # fmt: skip
    return _each(said, "secret", bool, "")


def _is_range(text: str) -> bool:
    try:
        return "/" in text and bool(ipaddress.ip_network(text))
    except ValueError:
        return False


def _show(proposal: Proposal) -> None:
    out, wanted = screen(), proposal.wanted
    told = Facts()
    told.fact("environment", wanted.environment)
    told.fact("account", proposal.account)
    told.fact("regions", ", ".join(wanted.regions))
    told.fact("profile", f"{wanted.profile}, egress {wanted.egress}")
    if wanted.mirrors:
        told.fact("mirrors", ", ".join(wanted.mirrors))
    if wanted.input_buckets:
        told.fact("inputs from", ", ".join(wanted.input_buckets))
    if wanted.secrets:
        told.fact("secrets", ", ".join(wanted.secrets))
    told.fact("creates", _counted(proposal.creates) or "nothing")
    if proposal.changes:
        told.fact("changes", _counted(proposal.changes), "bold yellow")
    out.print(told)
    out.print()
    lines = [line for price in proposal.idle for line in price.lines if line.usd is None or line.usd > 0]
    if lines:
        priced = Table(("AT REST", "USD/MONTH", "BECAUSE"), whole=("USD/MONTH",), folded=("BECAUSE",))
        for line in lines:
            usd = "unknown" if line.usd is None else f"{line.usd:.2f}"
            priced.add(cell(line.address), cell(usd), cell(line.why))
        out.print(priced)
        out.print()
    quota = Table(("QUOTA", "REGION", "VCPUS", "CODE"), whole=("REGION", "VCPUS", "CODE"))
    for region in wanted.regions:
        left, remarks = quotas.report(region)
        for each in left:
            limit = "unknown" if each.limit is None else each.limit
            style = "" if each.limit else "yellow"
            quota.add(cell(each.quota.name, style), cell(region), cell(limit, style), cell(each.quota.code))
        for remark in remarks:
            out.print(cell(remark, "yellow"))
    out.print(quota)
    out.print()
    out.print(f"It costs {proposal.usd_per_month:.2f} USD a month while nothing is leased.")


def _counted(counts: object) -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in sorted(counts.items()))


def _destroy(environment: str, regions: tuple[str, ...], *, yes: bool) -> int:
    if len(set(regions)) > 1:
        raise InvalidInput(
            "region", "an environment is destroyed in all its regions", "Name its first one. Nothing was destroyed."
        )
    context = opened()
    found = find(context, environment, regions[0] if regions else None)
    refuse_leases(context, found)
    screen().print(_what_goes(found))
    if not yes and not _agreed("Destroy it?", done="destroyed"):
        return FAILED
    unmake(context, found, tell=_tell(as_json=False))
    screen().print(f"Environment {environment} is gone from account {found.account}.")
    return DONE


def _what_goes(found: Found) -> str:
    if found.made is not None:
        return (
            f"This destroys what environment {found.name} shares in account {found.account}: its network, its roles, "
            f"and its buckets {found.state_bucket} and {found.artifact_bucket} with states, ledger, mailboxes and "
            "checkpoints."
        )
    begun = f", and what the states of {', '.join(found.states)} name" if found.states else ", which has no state in it"
    return (
        f"Environment {found.name} was never finished. This destroys what there is of it in account {found.account}: "
        f"the bucket {found.state_bucket}{begun}."
    )


def _tell(*, as_json: bool) -> Callable[[str], None]:
    """Lines for people: on standard error where standard output is JSON."""

    def tell(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    return tell


def _agreed(question: str, *, done: str = "created") -> bool:
    if not sys.stdin.isatty():
        raise MlinfraError(f"{question} Nobody can be asked here.", f"Say that it may with --yes. Nothing was {done}.")
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
