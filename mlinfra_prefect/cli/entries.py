"""What the listings say of each record: a few fields of it, under keys that stay (docs/cli.md).

Standard library only, from the ledger's quick look: a script that asks for them every second should not pay for models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from mlinfra_prefect.agent.identity import boot, is_alive
from mlinfra_prefect.ledger.listing import Row
from mlinfra_prefect.model.metering import cost_usd, rents_nothing

ROUTER_SECONDS = 1.0
TOKEN = "token"  # noqa: S105 (a file's name, as in `model.endpoint`)


class Entry(TypedDict):
    """One lease, endpoint or rollout in a listing. Moments are ISO 8601 in UTC; what a kind does not have is None."""

    kind: str
    id: str
    name: str | None
    state: str
    reason: str
    unreadable: bool
    platform: str | None
    environment: str | None
    owner: dict[str, str | None]
    generation: int | None
    created_at: str | None
    renewed_until: str | None
    ready_at: str | None
    deadline: str | None
    keep_until: str | None
    expires_at: str | None
    accelerator: str | None
    cost_usd: float | None
    reserved_usd: float | None
    version: int | None
    url: str | None
    auth: str | None
    up: bool | None
    client: dict[str, Any] | None
    keeper: dict[str, Any] | None


def entry(row: Row) -> Entry:
    """Return what a listing says of one record; of an unreadable one, its state and why it cannot be read."""
    values = row.values
    request, url = _mapping(values.get("request")), values.get("url")
    return Entry(
        kind=row.kind,
        id=row.id,
        name=_text(values.get("name")),
        state=row.state,
        reason=f"this record cannot be read: {row.problem}" if row.problem else str(values.get("reason") or ""),
        unreadable=bool(row.problem),
        platform=_text(values.get("platform")),
        environment=_text(values.get("environment")),
        owner={name: _text(value) for name, value in _mapping(values.get("owner")).items()},
        generation=values.get("generation"),
        created_at=_text(values.get("created_at")),
        renewed_until=_text(values.get("renewed_until")),
        ready_at=_text(values.get("ready_at")),
        deadline=_text(values.get("deadline")),
        keep_until=_text(values.get("keep_until")),
        expires_at=_text(values.get("expires_at")),
        accelerator=_text(request.get("accelerator")),
        cost_usd=_cost(values) if row.kind == "lease" else None,
        reserved_usd=values.get("reserved_usd") if row.kind == "lease" else None,
        version=values.get("version"),
        url=_text(url),
        auth=str(_mapping(values.get("serving")).get("auth") or "none") if row.kind == "endpoint" else None,
        up=_up(row),
        client=_holder(values.get("client"), "kind"),
        keeper=_holder(values.get("keeper"), "place"),
    )


def served(row: Row) -> dict[str, Any]:
    """Return what the listing of endpoints says of one, its versions included.

    A version's ``share`` is the one by which requests are routed at this moment, as the router says; None where no
    router answers, so nothing is served. ``declared_share`` is the record's. ``replicas``: how many of its servers get
    requests; None where that is not known.
    """
    kept = entry(row)
    now = _served_now(row)
    versions = [
        {
            "version": version.get("version"),
            "share": None if now is None else now.get(version.get("version"), (0, 0))[0],
            "declared_share": version.get("share"),
            "replicas": None if now is None else now.get(version.get("version"), (0, 0))[1],
            **{name: version.get(name) for name in ("state", "reason", "sha256", "rollout", "retire_at")},
        }
        for version in row.values.get("versions", ())
    ]
    first = {"name": kept["name"], "url": kept["url"], "auth": kept["auth"], "versions": versions}
    rest = ("id", "state", "reason", "environment", "platform", "owner", "created_at", "expires_at")
    return first | {name: kept[name] for name in rest}  # type: ignore[literal-required]


def _served_now(row: Row) -> dict[int, tuple[int, int | None]] | None:
    """Ask the router by which shares it routes, and to how many servers; None: no router answers."""
    url = row.values.get("url")
    if row.state == "released" or not isinstance(url, str) or not url.startswith("http://127.0.0.1:"):
        return None
    import http.client  # half of what a listing without endpoints would cost

    line = http.client.HTTPConnection(url.removeprefix("http://"), timeout=ROUTER_SECONDS)
    try:
        line.request("GET", "/mlinfra/state", headers=_shown(row))
        told = json.load(line.getresponse())
        if told["name"] != row.values.get("name"):
            return None  # a stranger on its port
        return {int(each["version"]): (int(each["share"]), each.get("replicas")) for each in told["versions"]}
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None
    finally:
        line.close()


def _shown(row: Row) -> dict[str, str]:
    """The header that shows an endpoint's token to its router; none where there is no token."""
    try:
        place = Path(str(row.values["attempts"][-1]["node_dir"])).parent.parent
        return {"Authorization": f"Bearer {(place / TOKEN).read_text(encoding='ascii').strip()}"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def who(owner: Mapping[str, str | None], *, run: bool = True) -> str:
    """Return the owner as one phrase, as `model.process.Owner` writes it; without the run where there is no room."""
    if not owner:
        return "?"
    told = (owner.get("flow_run") or owner.get("flow")) if run else None
    return f"{owner.get('user')}@{owner.get('host')}" + (f" ({told})" if told else "")


def _holder(found: Any, kind: str) -> dict[str, Any] | None:
    """What a listing says of a client or keeper; `alive` is None for nobody, and where only another host can tell."""
    if not isinstance(found, Mapping):
        return None
    process = _mapping(found.get("process"))
    return {kind: found.get(kind), "pid": process.get("pid"), "host": process.get("host"), "alive": _alive(process)}


def _up(row: Row) -> bool | None:
    """Whether the agent of what is ready lives; None: it is not ready, or only another host can tell."""
    attempts = row.values.get("attempts") or ()
    owner = _mapping(row.values.get("owner"))
    if row.state != "ready" or not attempts or owner.get("host") != os.uname().nodename:
        return None
    if row.values.get("platform") != "local":
        return None  # its process is another machine's
    try:
        agent = json.loads(Path(str(attempts[-1].get("node_dir")), "agent.json").read_bytes())
        return agent.get("state") == "up" and is_alive(int(agent["pid"]), str(agent["start_time"]))
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _alive(process: Mapping[str, Any]) -> bool | None:
    pid, here = process.get("pid"), process.get("host") == os.uname().nodename
    if not isinstance(pid, int):
        return None
    if process.get("boot") == boot() and (boot() or here):
        return is_alive(pid, process.get("start_time"))
    # The same host after another boot: gone for sure. Another host or PID namespace cannot be seen from here.
    kernels = [str(each or "").partition("/")[0] for each in (process.get("boot"), boot())]
    return False if here and all(kernels) and kernels[0] != kernels[1] else None


def _cost(values: Mapping[str, Any]) -> float:
    """What a lease has cost until now, as `model.lease.Attempt.cost_usd` reckons it."""
    total = 0.0
    for each in values.get("attempts") or ():
        total += float(each.get("late_usd") or 0.0)
        began, ended = each.get("launched_at") or each.get("applied_at"), each.get("stopped_at") or each.get("gone_at")
        if began is None or rents_nothing(began, str(each.get("outcome", "")), nodes=bool(each.get("nodes"))):
            continue
        until = datetime.fromisoformat(ended) if ended else datetime.now(UTC)
        rate = float(_mapping(each.get("offer")).get("usd_per_hour") or 0.0)
        total += cost_usd(datetime.fromisoformat(began), until, rate)
    return round(total, 6)


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _text(found: Any) -> str | None:
    return None if found is None else str(found)
