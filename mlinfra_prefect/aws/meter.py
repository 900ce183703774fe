"""Stop the meter: the end of what costs by the second, told before Terraform is asked to destroy anything.

A destroy takes a minute and may fail; the machines of a training that is over should not wait for it. So this tells
everything to end in as few calls as there are, in the order in which nothing new can appear behind it, and waits for
nothing: the sweep that follows the destroy says what is left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mlinfra_prefect.aws import ending, kinds, tags
from mlinfra_prefect.aws.asking import Clients, Refused, listed
from mlinfra_prefect.errors import NotYetDestroyed


@dataclass(frozen=True, slots=True)
class Stopped:
    """What was told to end; what had ended before is in none of these.

    Attributes:
        fleets: their ids; each was deleted with its instances.
        instances: ids of instances that ran on beside the fleet's end.
        spot_requests: ids of spot requests.
    """

    fleets: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()
    spot_requests: tuple[str, ...] = ()


def stop(
    clients: Clients, region: str, *, ledger_id: str, lease_id: str, attempt: int, fleet_id: str | None = None,
    instance_ids: Iterable[str] = (), spot: bool = True,
) -> Stopped:  # fmt: skip
    """Tell everything of an attempt that costs by the second to end. Idempotent; what is absent is success.

    Two calls where the fleet is known and was not of spot machines: the first of them ends it with its instances, the
    second looks for more of the attempt by its tags. A third looks for spot requests, and one each ends the instances
    and the requests that live on.

    Args:
        clients: of the SDK; their own retries are the only ones.
        region: where the attempt is.
        ledger_id: of the lease.
        lease_id: the lease's id.
        attempt: its number.
        fleet_id: the instant fleet that it made; None: nobody knows one.
        instance_ids: the instances that it is known to have; those without tags are ended as well.
        spot: False: it asked for no spot machines, so no spot requests are looked for.

    Raises:
        NotYetDestroyed: something could not be told to end, or not be looked for; the rest was ended all the same.
    """
    client = clients("ec2", region)
    telling = _Telling(clients, region, tags.of_lease(ledger_id, lease_id, attempt))
    fleets: tuple[str, ...] = ()
    if fleet_id:
        fleets = telling.told(kinds.FLEET, (fleet_id,), ending.delete_fleets(client, (fleet_id,)))
    found = telling.seen(kinds.INSTANCE)
    ended = {each.id for each in found if not each.lives}
    living = dict.fromkeys([*(each.id for each in found if each.lives), *instance_ids])
    running = [each for each in living if each not in ended]
    instances = telling.told(kinds.INSTANCE, running, ending.terminate(client, running))
    asked = [each.id for each in telling.seen(kinds.SPOT_REQUEST) if each.lives] if spot else []
    requests = telling.told(kinds.SPOT_REQUEST, asked, ending.cancel_spot_requests(client, asked))
    if telling.problems:
        raise telling.may_run_on(f"{lease_id}/{attempt}")
    return Stopped(fleets, instances, requests)


def stop_late(
    clients: Clients, region: str, *, ledger_id: str, lease_id: str, attempts: Collection[int], spot: bool
) -> tuple[tuple[kinds.Thing, ...], NotYetDestroyed | None]:
    """Tell machines of some attempts to end that appeared after `stop`. Idempotent; waits for nothing.

    One call for all of them where nothing has appeared, and two where spot machines were asked for. What the lease's
    other attempts have is seen, and left alone.

    Args:
        clients: of the SDK.
        region: where the attempts were.
        ledger_id: of the lease.
        lease_id: the lease's id.
        attempts: their numbers.
        spot: whether any of them asked for spot machines, so that a request may still launch one.

    Returns:
        What was told to end, and what stood in the way: something could not be told to end, or not be looked for.
    """
    client, telling = clients("ec2", region), _Telling(clients, region, tags.of_lease(ledger_id, lease_id))

    def living(kind: kinds.Kind) -> list[kinds.Thing]:
        return [each for each in telling.seen(kind) if each.lives and each.marks.attempt in attempts]

    requests = [each.id for each in living(kinds.SPOT_REQUEST)] if spot else []  # first: they launch
    telling.told(kinds.SPOT_REQUEST, requests, ending.cancel_spot_requests(client, requests))
    machines = {each.id: each for each in living(kinds.INSTANCE)}
    ended = telling.told(kinds.INSTANCE, machines, ending.terminate(client, list(machines)))
    return tuple(machines[each] for each in ended), telling.may_run_on(lease_id) if telling.problems else None


@dataclass
class _Telling:
    """What carries some tags in a region, and what stands in the way of ending it."""

    clients: Clients
    region: str
    selection: tags.Selection
    problems: dict[str, Refused] = field(default_factory=dict)

    def seen(self, kind: kinds.Kind) -> list[kinds.Thing]:
        """What there is of a kind; nothing, and a problem, where it cannot be looked for."""
        try:
            found = kinds.describe(self.clients, self.region, kind, self.selection)
        except Refused as why:
            self.problems[f"{kind.name}s that carry its tags"] = why
            return []
        return [each for each in found if not each.marks.shared]

    def told(self, kind: kinds.Kind, ids: Iterable[str], refused: ending.Reasons) -> tuple[str, ...]:
        """Those of which the end was not refused; the others are problems."""
        self.problems |= {f"{kind.name} {each}": why for each, why in refused.items()}
        return tuple(each for each in ids if each not in refused)

    def may_run_on(self, whose: str) -> NotYetDestroyed:
        """The problems, of which there is one at least, as an error."""
        why = listed([f"{name}: {each.reason}" for name, each in self.problems.items()], "; ")
        remedy = next(iter(self.problems.values())).remedy
        return NotYetDestroyed(f"The meter of {whose} in {self.region} may run on: {why}.", remedy)
