"""``promote``, ``rollback``, ``retire``, and ``endpoints`` with ``--repair`` or ``--token``: serving by hand."""

from __future__ import annotations

import getpass
import json
import socket

from mlinfra_prefect.cli.opening import meant, opened
from mlinfra_prefect.cli.outcome import DONE, FAILED
from mlinfra_prefect.cli.screen import screen
from mlinfra_prefect.errors import InvalidInput, NotFound
from mlinfra_prefect.keeper import rollouts
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.endpoint import EndpointRecord
from mlinfra_prefect.model.lease import Client
from mlinfra_prefect.model.process import Owner

BY_HAND = "by hand"


def promote(name: str, version: int | None, *, environment: str, reason: str, as_json: bool) -> int:
    """Send all requests to one version, and return when they go there."""
    context = opened()
    after = rollouts.promote(context, context.endpoint(name, environment), version, reason=reason or BY_HAND)
    return _told(after, "promoted", as_json=as_json)


def rollback(name: str, *, environment: str, reason: str, as_json: bool) -> int:
    """Take the rollout in flight back, or serve the version before the current one again."""
    context = opened()
    owner = Owner(user=getpass.getuser(), host=socket.gethostname())
    client = Client(kind="process", process=identify())
    endpoint = context.endpoint(name, environment)
    back = rollouts.roll_back(context, endpoint, reason=reason or BY_HAND, owner=owner, client=client)
    if back.asked is not None:
        rollouts.wait_rolled(context, back.asked.rollout)
    return _told(context.endpoint(endpoint.id), f"rolled back from version {back.from_version}", as_json=as_json)


def retire(name: str, version: int, *, environment: str, reason: str, as_json: bool) -> int:
    """End a version that does not serve alone."""
    context = opened()
    after = rollouts.retire(context, context.endpoint(name, environment), version, reason=reason or BY_HAND)
    return _told(after, f"version {version} retires", as_json=as_json)


def repair(*, as_json: bool) -> int:
    """Bring back every router and server that should answer and does not."""
    context = opened()
    found = rollouts.repair(context)
    if as_json:
        print(json.dumps({"repaired": [{"id": each, "result": what} for each, what in found.items()]}, indent=1))
    elif not found:
        screen().print("Everything that should be served is up.")
    else:
        for each, what in found.items():
            screen().print(f"{each}: {what}")
    return DONE if all(what == "brought back" for what in found.values()) else FAILED


def token(name: str) -> int:
    """Print what clients of an endpoint must show, and nothing else, so that a script can take it."""
    context = opened()
    record = meant(context, name)
    if not isinstance(record, EndpointRecord):
        raise InvalidInput("--token", f"{name!r} is the id of a {record.kind}, not of an endpoint")
    if record.serving.auth != "token":
        raise InvalidInput("--token", f"endpoint {record.name!r} asks for no token (auth='none')")
    found = context.platform(record.platform).token(record)
    if found is None:
        raise NotFound(f"The token of endpoint {record.name!r} is not in this home.", "Is it up? See `endpoints`.")
    print(found)
    return DONE


def _told(endpoint: EndpointRecord, what: str, *, as_json: bool) -> int:
    versions = [{"version": v.version, "state": v.state, "share": v.share} for v in endpoint.versions]
    if as_json:
        print(
            json.dumps({"id": endpoint.id, "name": endpoint.name, "url": endpoint.url, "versions": versions}, indent=1)
        )
        return DONE
    shares = ", ".join(f"version {v.version} {v.share} % ({v.state})" for v in endpoint.versions if v.share)
    screen().print(f"{endpoint.name}: {what}; {shares}")
    return DONE
