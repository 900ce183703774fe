"""What ``doctor`` asks about Prefect's API: may anybody who reaches it start runs, and what may such a run run?

Prefect's server has no authentication unless it is given one, and one request that starts a run with a ``command`` of
its own is a program on a process worker. So the API is asked without credentials, as a stranger would ask.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

ANSWER_SECONDS = 3.0
CLOUD = ("prefect.cloud",)
MOST_BYTES = 4 << 20
MOST_POOLS = 50
OPEN_VARIABLES = ("command", "env", "working_dir")
REFUSED = frozenset({401, 403})
Told = tuple[str, str, str]


def prefect_api() -> Iterator[Told]:
    """Yield status, message and next step of each answer. Blocks for some seconds at most; changes nothing."""
    from prefect.settings import get_current_settings

    url = str(get_current_settings().api.url or "").rstrip("/")
    parts = urllib.parse.urlsplit(url)
    if not url:
        yield "OK", "PREFECT_API_URL is not set: each run starts a server of its own, on loopback", ""
        return
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        yield "WARN", "PREFECT_API_URL is not an http address", "Set it to http://HOST:PORT/api."
        return
    where = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    if any(parts.hostname == each or parts.hostname.endswith(f".{each}") for each in CLOUD):
        yield "OK", f"{where} is Prefect Cloud, which asks everybody who they are", ""
        return
    try:
        pools = _asked(url)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in REFUSED:
            yield "OK", f"{where} refuses who shows no credentials", ""
        else:
            yield "WARN", f"{where} answers {error.code} to a stranger", "Look at the server's log."
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        yield "WARN", f"{where} does not answer ({reason})", "Start it, or unset PREFECT_API_URL."
        return
    if _loopback(parts.hostname):
        yield "OK", f"{where} asks for no credentials, and is on loopback: every process of this machine may use it", ""
    else:
        yield (
            "WARN", f"{where} is not on loopback and asks for no credentials: whoever reaches it may start runs",
            "Set PREFECT_SERVER_API_AUTH_STRING on the server and PREFECT_API_AUTH_STRING here, with TLS before it.",
        )  # fmt: skip
    yield from _open_pools(pools)


def _open_pools(pools: list[Any]) -> Iterator[Told]:
    """Process pools whose template lets a run say what is run."""
    for pool in pools:
        if not isinstance(pool, dict) or pool.get("type") != "process":
            continue
        template = pool.get("base_job_template") or {}
        variables = (template.get("variables") or {}).get("properties") or {}
        there = [name for name in OPEN_VARIABLES if name in variables]
        if there:
            yield (
                "WARN", f"work pool {pool.get('name')!r} takes {' and '.join(there)} from whoever may start a run",
                "Lock its template: examples/locked-work-pool.",
            )  # fmt: skip


def _asked(url: str) -> list[Any]:
    """Ask for the work pools, without credentials.

    Raises:
        HTTPError, OSError, ValueError: what urllib raises; an answer that is no list.
    """
    body = json.dumps({"limit": MOST_POOLS}).encode()
    request = urllib.request.Request(  # noqa: S310 (checked to be http)
        f"{url}/work_pools/filter", body, {"Content-Type": "application/json"}
    )
    host = urllib.parse.urlsplit(url).hostname or ""
    proxies = [urllib.request.ProxyHandler({})] if _loopback(host) else []
    with urllib.request.build_opener(*proxies).open(request, timeout=ANSWER_SECONDS) as answer:
        found = json.loads(answer.read(MOST_BYTES))
    if not isinstance(found, list):
        raise ValueError("not a list")  # noqa: TRY004 (as for any other answer that cannot be read)
    return found


def _loopback(host: str) -> bool:
    """Whether every address of a host is on loopback; one that cannot be looked up is not."""
    try:
        found = {each[4][0] for each in socket.getaddrinfo(host, None)}
        return bool(found) and all(ipaddress.ip_address(str(each).partition("%")[0]).is_loopback for each in found)
    except (OSError, ValueError):
        return False
