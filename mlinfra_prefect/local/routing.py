"""The router of a local endpoint, as the keeper speaks to it: what it has to run, its routes, and what it counts.

Its routes are a file that is replaced as a whole, made of the endpoint's record alone: whoever writes it (an operation
of any rollout, the reaper, a repair) writes the same. It is written under a lock and never replaced by an older one.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.wire import read_json_if_there, write_json
from mlinfra_prefect.errors import EndpointNotReady
from mlinfra_prefect.local import tokens
from mlinfra_prefect.local.client import bearer
from mlinfra_prefect.local.serving import FINAL
from mlinfra_prefect.model.endpoint import GONE, EndpointRecord
from mlinfra_prefect.model.served import Served, ServedVersion

ROUTES_SCHEMA = "mlinfra-prefect/routes/1"
ROUTES = "routes.json"
ROUTE_SECONDS = 10.0
"""How long a router may take to follow new routes: it looks every few milliseconds, and is started again if it died."""
POLL_SECONDS = 0.01
ANSWER_SECONDS = 2.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def routes_of(endpoint: EndpointRecord) -> dict[str, Any]:
    """Return the routes that an endpoint's record asks for. Pure.

    A version without a share is listed while its servers live: whoever names it in a header reaches it.
    """
    return {
        "schema": ROUTES_SCHEMA,
        "revision": endpoint.revision,
        "name": endpoint.name,
        "versions": [
            {"version": each.version, "share": each.share, "urls": list(each.urls)}
            | ({"scale": each.scale.model_dump()} if each.scale is not None else {})
            for each in endpoint.versions
            if each.state not in GONE and (each.share or each.state != "deploying")
        ],
    }


def router_spec(endpoint: EndpointRecord, node_dir: Path) -> dict[str, Any]:
    """Write the first routes and return what the agent runs: the router, on a socket that the agent holds."""
    _write(endpoint, node_dir / ROUTES)
    argv = [
        sys.executable, "-I", str(Path(__file__).with_name("router.py")),
        "--name", endpoint.name,
        "--routes", str(node_dir / ROUTES),
    ]  # fmt: skip
    token = tokens.token_file(endpoint, node_dir.parent.parent)
    if token is not None:
        tokens.ensure(token)
        argv += ["--token-file", str(token)]
    return {"argvs": [argv], "env": {}, "cwd": str(node_dir), "listen": endpoint.port, "final": FINAL}


def route(endpoint: EndpointRecord, seconds: float = ROUTE_SECONDS) -> Served:
    """Have the router route as a record says, or as a newer one does, and wait until it does. Idempotent.

    Raises:
        EndpointNotReady: the router does not answer, or has not followed after `seconds`.
    """
    attempt = endpoint.attempt
    if attempt is None or not Path(attempt.node_dir).is_dir():
        raise EndpointNotReady(f"Endpoint {endpoint.name!r} has no router.")
    _write(endpoint, Path(attempt.node_dir) / ROUTES)
    until = time.monotonic() + seconds
    while True:
        now = served(endpoint)
        if now is not None and now.revision >= endpoint.revision:
            return now
        if time.monotonic() >= until:
            told = "does not answer" if now is None else f"still follows revision {now.revision}"
            raise EndpointNotReady(
                f"The router of endpoint {endpoint.name!r} {told}; wanted is revision {endpoint.revision}.",
                "`mlinfra-prefect endpoints --repair` brings it back.",
            )
        time.sleep(POLL_SECONDS)


def served(endpoint: EndpointRecord) -> Served | None:
    """Return what the router does now; None where it does not answer. Blocks for two seconds at most."""
    attempt = endpoint.attempt
    if attempt is None:
        return None
    place = Path(attempt.node_dir).parent.parent
    told = _get(f"{endpoint.url}/mlinfra/state", tokens.read(tokens.token_file(endpoint, place)))
    if told is None or told.get("name") != endpoint.name:
        return None
    return Served(
        revision=told["revision"],
        began=told["started"],
        versions=tuple(_version(each) for each in (*told["versions"], *told["gone"])),
    )


def routes(url: str) -> bool:
    """Whether a router answers there."""
    return _get(f"{url}/mlinfra/health") is not None


def _version(told: Mapping[str, Any]) -> ServedVersion:
    return ServedVersion(
        version=told["version"],
        share=told["share"],
        in_flight=told["in_flight"],
        requests=told["requests"],
        errors=told["errors"],
        client_errors=told["client_errors"],
        retried=told["retried"],
        buckets=tuple((limit, count) for limit, count in told["latency"]["buckets"] if limit is not None),
    )


def _get(url: str, token: str | None = None) -> dict[str, Any] | None:
    request = urllib.request.Request(url)  # noqa: S310 (a record's URL, on loopback)
    for key, value in bearer(token).items():
        request.add_unredirected_header(key, value)
    try:
        with _OPENER.open(request, timeout=ANSWER_SECONDS) as answer:
            found = json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return found if isinstance(found, dict) else None


def _write(endpoint: EndpointRecord, path: Path) -> None:
    lock = os.open(path.with_name(".routes.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        there = read_json_if_there(path)
        if there is None or there.get("revision", 0) < endpoint.revision:
            write_json(path, routes_of(endpoint))
    finally:
        os.close(lock)
