"""The router of an endpoint: one small process behind the stable URL that divides requests among versions.

It exists because versions come and go while clients keep one URL. It is a program rather than a library (it imports
nothing of ours and also runs as ``python -I router.py``), because it must outlive whoever deployed it. It speaks
HTTP/1.1 by itself, on the standard library alone: an ASGI server and an HTTP client in between cost more than a small
model's whole prediction (the ADR has the figures), and would not pass messages on byte for byte. It refuses to listen
or to route anywhere else than on loopback (it has no TLS), to be unsure where a message ends, and to follow routes that
are malformed or older than those that it follows.

Usage::

    router.py --name NAME --routes FILE --fd N            # a listening socket that the supervisor holds and passes on
    router.py --name NAME --routes FILE --host 127.0.0.1 --port N
              [--token-file FILE]                         # what clients must show; without it, anybody may ask
              [--timeout-seconds 60]                      # of silence, for each try
              [--down-seconds 30]                         # of less load, before a scaled version has fewer servers

Routes: the keeper replaces FILE atomically, and requests that arrive 30 ms later follow it. Requests in progress end
where they are; connections to servers that have no route any more are closed as they fall idle::

    {"schema": "mlinfra-prefect/routes/1", "revision": 7, "name": "churn", "versions": [
        {"version": 1, "share": 90, "urls": ["http://127.0.0.1:9001"]},
        {"version": 2, "share": 10, "urls": ["http://127.0.0.1:9002"]}]}

Shares add up to 100, or to 0 while nothing serves (503, with Retry-After). A request that says ``Mlinfra-Version: 2``
goes to that version whatever its share (404 where it has no route); every answer says which version gave it.

A version with ``"scale": {"least": 1, "most": 3, "target": 4, "file": FILE}`` has as many servers as its requests in
flight, averaged over seconds, need at `target` each. The router writes ``{"replicas": 2}`` to that file, for whoever
runs them. A further server gets requests from its first good answer to ``/v2/health/ready`` on; one that is not needed
any more gets none, and is given up in the file once nothing is in flight there: scaling fails and retries no request.

A request whose server refuses it, hangs, or goes away before any of its answer was passed on is tried again: on another
replica, else on another version with a share, else 100 ms later on the same. Inference is idempotent. Methods, paths,
headers (hop-by-hop ones apart), bodies, statuses and reasons pass byte for byte; requests are buffered up to 64 MiB
(413), answers are streamed.

With a token file (one line, read once, at the start), a request must say ``Authorization: Bearer TOKEN``, or is refused
with 401 before its body is read. The header travels on: the servers ask for it, too. Only whether there is life may be
asked by anybody, by GET or HEAD: ``/mlinfra/health``, ``/v2/health/live`` and ``/v2/health/ready``.

Own pages: ``/mlinfra/health``, ``/mlinfra/state`` (JSON, schema mlinfra-prefect/router/1) and ``/mlinfra/metrics``
(Prometheus). SIGTERM: what is in progress gets 2 s.

Exit codes: 0 told to stop · 2 wrong arguments · 4 the port is taken. Every refusal is one sentence on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import errno
import gc
import hmac
import ipaddress
import json
import math
import os
import re
import resource
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

EXIT_USAGE, EXIT_PORT_TAKEN = 2, 4
ROUTES_SCHEMA = "mlinfra-prefect/routes/1"
STATE_SCHEMA = "mlinfra-prefect/router/1"

LOOK_SECONDS = 0.025  # between two looks at the routes
SETTLED_SECONDS = 0.1  # a file changed so lately may change again within the same tick of its file system's clock
AGAIN_SECONDS = 0.1  # before a request without an alternative is tried again on the same server
CONNECT_SECONDS = 5.0  # only a full backlog makes a connection on loopback wait at all
DRAIN_SECONDS = 1.8  # for requests in progress after SIGTERM; the rest of the promised 2 s is for the interpreter
QUIET_SECONDS = 0.2  # how long at least clients are told, by their answers, that their connection will be closed
IDLE_SECONDS = 120.0  # after which a client's connection that asks nothing, or half a question, is closed
SWEEP_SECONDS = 0.25  # between two looks at what is silent: no timer per request
LINGER_SECONDS = 2.0  # for a refused client to finish sending, or a reset would overtake the refusal
LOAD_SECONDS = 1.0  # between two decisions on how many servers a scaled version needs
LOAD_WEIGHT = 0.5  # of the last second in the moving average of requests in flight
DOWN_SECONDS = 30.0  # a scaled version keeps its servers for so long after it needed them
STEP_SECONDS = 0.2  # between two looks at servers that are to come or to go
PROBE_SECONDS = 1.0  # for such a server to answer
MOST_TRIES = 3
MOST_HEAD = 64 << 10  # bytes of a start line with its headers
MOST_BODY = 64 << 20  # bytes of a request
MOST_IDLE = 64  # connections kept to one server
BACKLOG = 1024

BOUNDS = tuple(round(10 ** (exponent / 5), 6) for exponent in range(-17, 10))
"""Upper bounds of the latency histogram, in seconds: five to the decade, 0.4 ms to 63 s."""

OPEN = frozenset({b"/mlinfra/health", b"/v2/health/live", b"/v2/health/ready"})
"""What a load balancer may ask without a token: each says no more than that there is life."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TOKEN_LINE = re.compile(rb"([A-Za-z0-9._~+/-]{16,512}=*)\n?")  # what RFC 6750 allows
_URL = re.compile(r"http://(?:(127(?:\.\d{1,3}){3}|localhost)|\[(::1)\]):(\d{1,5})/?")


class RefusedToRoute(Exception):
    """The router ends before it listens: a sentence for stderr and the exit code that names the reason."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# --- routes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scale:
    """How many servers a version has: from `least` to `most`, so that each has `target` requests in flight."""

    least: int
    most: int
    target: float
    file: str


@dataclass(frozen=True, slots=True)
class Version:
    """One version with its share in percent and the URLs of its replicas; with a scale, the first ones are in use."""

    version: int
    share: int
    urls: tuple[str, ...]
    scale: Scale | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The routes of one revision."""

    revision: int
    versions: tuple[Version, ...]


def parse_routes(content: bytes, name: str) -> Table:
    """Read the routes of the endpoint `name`. Pure.

    Raises:
        ValueError: a sentence that names the field.
    """
    told = json.loads(content)
    if not isinstance(told, dict) or told.get("schema") != ROUTES_SCHEMA:
        raise ValueError(f"schema is not {ROUTES_SCHEMA!r}")
    if told.get("name") != name:
        raise ValueError(f"name is {told.get('name')!r}, and this is the router of {name!r}")
    listed = told.get("versions")
    if not isinstance(listed, list):
        raise ValueError("versions must be a list")  # noqa: TRY004 (a file's content, like all that follows)
    versions = tuple(_parse_version(entry) for entry in listed)
    numbers = [each.version for each in versions]
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"versions lists a version twice: {numbers}")
    total = sum(each.share for each in versions)
    if total not in {0, 100}:
        raise ValueError(f"share adds up to {total}, not to 100")
    return Table(_count(told, "revision"), versions)


def _parse_version(entry: Any) -> Version:
    if not isinstance(entry, dict):
        raise ValueError(f"versions has an entry that is no object: {entry!r}")  # noqa: TRY004
    version, share, urls = _count(entry, "version"), _count(entry, "share"), entry.get("urls")
    if not isinstance(urls, list) or not all(isinstance(url, str) and _URL.fullmatch(url) for url in urls):
        raise ValueError(f"urls must be a list of http://127.0.0.1:PORT, in {entry!r}")
    if share and not urls:
        raise ValueError(f"urls is empty, but version {version} has a share")
    told = entry.get("scale")
    scale = None if told is None else _parse_scale(told, len(urls))
    return Version(version, share, tuple(url.rstrip("/") for url in urls), scale)


def _parse_scale(told: Any, urls: int) -> Scale:
    if not isinstance(told, dict):
        raise ValueError(f"scale must be an object, not {told!r}")  # noqa: TRY004
    least, most, target, file = _count(told, "least"), _count(told, "most"), told.get("target"), told.get("file")
    if not 1 <= least <= most or most != urls:
        raise ValueError(f"scale must have 1 <= least <= most, and most urls, in {told!r} with {urls} urls")
    if not isinstance(target, int | float) or isinstance(target, bool) or not 0 < target < math.inf:
        raise ValueError(f"target must be a number above 0, not {target!r}")
    if not isinstance(file, str) or not os.path.isabs(file) or "\0" in file:  # noqa: PTH117
        raise ValueError(f"file must be an absolute path, not {file!r}")
    return Scale(least, most, float(target), file)


def _count(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} must be a whole number from 0, not {value!r}")
    return value


def check_newer(table: Table, now: Table) -> None:
    """Refuse routes that are older than those of now, or others under the same revision. Pure.

    Raises:
        ValueError: a sentence.
    """
    if table.revision < now.revision:
        raise ValueError(f"revision {table.revision} is older than {now.revision}")
    if table.revision == now.revision and table != now and now.versions:
        raise ValueError(f"revision {table.revision} has other routes than it had")


class Picker:
    """Picks servers for requests by one table.

    Versions by smooth weighted round robin: after every hundred requests each version has had exactly its share, and
    its requests are spread among the others', so that small counts are near the shares, too. Replicas take turns.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.versions = {each.version: each for each in table.versions}
        self.used = {each.version: each.urls for each in table.versions}
        self.urls = frozenset(url for each in table.versions for url in each.urls)
        self._sharing = sorted((each for each in table.versions if each.share), key=lambda each: -each.share)
        self._credit = dict.fromkeys(self.versions, 0)
        self._turn = dict.fromkeys(self.versions, 0)

    def use(self, version: int, count: int) -> None:
        """Send a version's requests to its first servers only."""
        self.used[version] = self.versions[version].urls[:count]
        self.urls = frozenset(url for urls in self.used.values() for url in urls)

    def pick(self, wanted: int | None) -> tuple[Version, str] | None:
        """Return the next version (or the one that a request wants) and its next server; None: there is none."""
        chosen = self._next() if wanted is None else self.versions.get(wanted)
        if chosen is None or not chosen.urls:
            return None
        turn, urls = self._turn[chosen.version], self.used[chosen.version]
        self._turn[chosen.version] = turn + 1
        return chosen, urls[turn % len(urls)]

    def _next(self) -> Version | None:
        chosen = None
        for each in self._sharing:
            self._credit[each.version] += each.share
            if chosen is None or self._credit[each.version] > self._credit[chosen.version]:
                chosen = each
        if chosen is not None:
            self._credit[chosen.version] -= 100
        return chosen

    def other(self, failed: Version, tried: Sequence[str], wanted: int | None) -> tuple[Version, str] | None:
        """Return a server that was not tried: of the failed version, else of the one with the largest share."""
        own = self.versions.get(failed.version)
        if own is not None and not own.share and wanted is None:
            own = None  # it lost its share meanwhile
        for each in (*((own,) if own else ()), *(self._sharing if wanted is None else ())):
            for url in self.used[each.version]:
                if url not in tried:
                    return each, url
        return None


# --- scaling ---------------------------------------------------------------------------------------------------------


class Demand:
    """How many servers a version needs: up at once, down to the most that were needed in the last `patience` seconds.

    Knows no clock and no server; `now` is in seconds, and rises.
    """

    def __init__(self, scale: Scale, replicas: int, now: float, patience: float) -> None:
        self.wanted = replicas
        self._scale, self._patience = scale, patience
        self._average = 0.0
        self._needed = deque([(now, replicas)])

    def judge(self, in_flight: float, now: float) -> int:
        """Take the requests in flight over the last second, on average; return how many servers are wanted."""
        self._average += LOAD_WEIGHT * (in_flight - self._average)
        needed = min(max(math.ceil(self._average / self._scale.target), self._scale.least), self._scale.most)
        # Falls from left to right, so that the first is the most: what is outlived by a larger need is dropped.
        while self._needed and self._needed[-1][1] <= needed:
            self._needed.pop()
        self._needed.append((now, needed))
        while self._needed[0][0] < now and self._needed[0][0] <= now - self._patience:
            self._needed.popleft()
        self.wanted = self._needed[0][1]
        return self.wanted


class Scaler:
    """Brings a version's servers to the number that its load asks for, without touching any request.

    `live`: the first so many get requests. `asked`: so many shall run, as the file says. What is asked rises only when
    each server that was given up has been seen gone: one that is about to end would answer that it is ready, too.
    """

    def __init__(self, router: Router, version: Version, scale: Scale) -> None:
        self.router, self.version, self.scale = router, version, scale
        now = router.loop.time()
        self.asked = self._read()
        self.live = scale.least
        self.demand = Demand(scale, self.asked, now, router.patience)
        self._going = set(version.urls[self.asked :])  # by the router before this one, perhaps
        self._sum, self._samples, self._judged, self._stepped = 0, 0, now, 0.0
        self._looking: asyncio.Task[None] | None = None
        self._told = False

    def look(self, now: float) -> None:
        """Sample the load; now and then decide, and do what follows from it. Called all the time."""
        self._sum += self.router.tally(self.version.version).in_flight
        self._samples += 1
        if now - self._judged >= LOAD_SECONDS:
            self.demand.judge(self._sum / self._samples, now)
            self._sum, self._samples, self._judged = 0, 0, now
        if now - self._stepped >= STEP_SECONDS and self._looking is None:
            self._stepped = now
            self._step()

    def end(self) -> None:
        """The version has no routes any more."""
        if self._looking is not None:
            self._looking.cancel()

    def _step(self) -> None:
        wanted = self.demand.wanted
        if self.live > wanted:
            self._use(wanted)
        surplus = self.version.urls[wanted : self.asked]
        if surplus and not any(self.router.flying[url] for url in surplus):
            self._ask_for(wanted)
            self._going.update(surplus)
        elif wanted > self.asked and not self._going:
            self._ask_for(wanted)
        if self._going or self.live < min(wanted, self.asked):
            self._looking = self.router.loop.create_task(self._look_at_servers())

    async def _look_at_servers(self) -> None:
        try:
            for url in tuple(self._going):
                if await self.router.answers(url) is None:
                    self._going.discard(url)
            while self.live < min(self.demand.wanted, self.asked):
                if not await self.router.answers(self.version.urls[self.live]):
                    break
                self._use(self.live + 1)
        finally:
            self._looking = None

    def _use(self, count: int) -> None:
        self.live = count
        self.router.use(self.version.version, count)

    def _read(self) -> int:
        try:
            told = json.loads(Path(self.scale.file).read_bytes())["replicas"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            told = None
        if not isinstance(told, int) or isinstance(told, bool):
            return self.scale.least
        return min(max(told, self.scale.least), self.scale.most)

    def _ask_for(self, count: int) -> None:
        """Write how many servers shall run; where that fails, the next step tries again."""
        scratch = f"{self.scale.file}.{os.getpid()}.tmp"
        try:
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps({"replicas": count}).encode())
            Path(scratch).replace(self.scale.file)
        except OSError as error:
            if not self._told:
                sys.stderr.write(f"mlinfra-prefect router: {self.scale.file} cannot be written: {error.strerror}\n")
            self._told = True
        else:
            self.asked, self._told = count, False


# --- counting --------------------------------------------------------------------------------------------------------


def quantile(buckets: Sequence[tuple[float | None, int]], part: float) -> float | None:
    """Return the seconds below which a part (0 to 1) of the requests stayed; None without any. Pure.

    Args:
        buckets: (upper bound in seconds, None for the last; how many), rising, not cumulative.
        part: inside a bucket requests are taken to be spread evenly; those above all bounds count as the last bound.
    """
    rank, below = part * sum(count for _, count in buckets), 0.0
    if not rank:
        return None
    for bound, count in buckets:
        if bound is None:
            break
        if count >= rank:
            return below + (bound - below) * rank / count
        rank -= count
        below = bound
    return below


@dataclass(slots=True)
class Tally:
    """What one version did since this process began; numbers only rise, `in_flight` apart."""

    in_flight: int = 0
    requests: int = 0
    errors: int = 0
    client_errors: int = 0
    retried: int = 0
    seconds: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer that was passed on whole."""
        self.requests += 1
        self.errors += status >= 500
        self.client_errors += 400 <= status < 500
        self.seconds += seconds
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1

    @property
    def buckets(self) -> list[tuple[float | None, int]]:
        return list(zip((*BOUNDS, None), self.counts, strict=True))

    def as_json(self) -> dict[str, Any]:
        buckets = self.buckets
        marks = {f"p{percent}_ms": quantile(buckets, percent / 100) for percent in (50, 95, 99)}
        return {
            "in_flight": self.in_flight, "requests": self.requests, "errors": self.errors,
            "client_errors": self.client_errors, "retried": self.retried,
            "latency": {"count": sum(self.counts), "sum_seconds": round(self.seconds, 6), "buckets": buckets},
            **{key: None if mark is None else round(1000 * mark, 3) for key, mark in marks.items()},
        }  # fmt: skip


# --- messages --------------------------------------------------------------------------------------------------------

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~\x80-\xff]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [^\r\n\0]*)?")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb":[^\r\n\0]*\r\n)*")
_DIGITS = re.compile(rb"\d{1,15}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n\0]*)?")
_OF_ONE_HOP = (
    rb"connection|keep-alive|proxy-authenticate|proxy-authorization|proxy-connection|te|trailer|transfer-encoding"
    rb"|upgrade"
)
_FOR_US = rb"authorization|content-length|expect|host|mlinfra-version"
_TOLD = re.compile(
    rb"^(" + _OF_ONE_HOP + rb"|" + _FOR_US + rb"):[ \t]*([^\r]*?)[ \t]*\r\n", re.IGNORECASE | re.MULTILINE
)
_STAY = frozenset(_OF_ONE_HOP.split(b"|"))
_TRAVEL = frozenset(_FOR_US.split(b"|"))
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    413: "Content Too Large", 417: "Expectation Failed", 431: "Request Header Fields Too Large", 501: "Not Implemented",
    503: "Service Unavailable",
}  # fmt: skip


class Malformed(ValueError):
    """A message that cannot, or must not, be passed on: a sentence, and the status of the refusal."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def parse_fields(block: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the header lines that travel on, as they are, and the values that this hop has to know. Pure.

    Whatever could be read in two ways (a bare line feed, a folded line, two lengths) is refused rather than guessed:
    the server behind might guess otherwise, and take one client's bytes for another's request.
    """
    if not _FIELDS.fullmatch(block):
        raise Malformed("A header line is malformed.")
    told: dict[bytes, bytes] = {}
    stay = set()
    for name, value in _TOLD.findall(block):
        key = name.lower()
        if key in _STAY:
            stay.add(key)
            told[key] = told[key] + b"," + value if key in told else value
        elif key in told:
            raise Malformed(f"The header {name.decode()} is there twice.")
        else:
            told[key] = value
    if b"connection" in stay:
        stay |= {token.strip(b" \t").lower() for token in told[b"connection"].split(b",")} - _TRAVEL
    return without(block, stay) if stay else block, told


def without(block: bytes, names: Collection[bytes]) -> bytes:
    """Return header lines without those of some names. Pure."""
    lines = block.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].lower() not in names or not line)


def _closes(minor: bytes, told: dict[bytes, bytes]) -> bool:
    """Whether the connection ends with this message; HTTP/1.0 is not kept alive."""
    return minor == b"0" or b"close" in told.get(b"connection", b"").lower()


def _length(told: dict[bytes, bytes]) -> tuple[int | None, bool]:
    """Return the announced length (None: not announced), and whether the body comes in chunks."""
    coding, length = told.get(b"transfer-encoding"), told.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise Malformed("Content-Length and Transfer-Encoding exclude each other.")
        if coding.lower() != b"chunked":
            raise Malformed("The only transfer coding known here is chunked.", 501)
        return None, True
    if length is not None and not _DIGITS.fullmatch(length):
        raise Malformed("Content-Length is not a number.")
    return None if length is None else int(length), False


@dataclass(slots=True)
class Asked:
    """The head of a request: what is passed on, and what this hop has to know."""

    method: bytes
    target: bytes
    fields: bytes
    version: bytes | None
    credentials: bytes | None
    length: int
    chunked: bool
    waits: bool  # for "100 Continue"
    old: bool  # HTTP/1.0: knows no chunks
    closes: bool

    def message(self, body: bytes) -> tuple[bytes, ...]:
        """The request as the server gets it: in one piece, so that it arrives as one, where it is small."""
        end = b"Content-Length: %d\r\n\r\n" % len(body) if self.chunked else b"\r\n"
        head = b"%b %b HTTP/1.1\r\n%b%b" % (self.method, self.target, self.fields, end)
        return (head + body,) if len(body) < MOST_HEAD else (head, body)


def parse_request(block: bytes) -> Asked:
    """Read a request's head, without the empty line at its end. Pure."""
    line, _, rest = block.partition(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise Malformed("The request line is not one of HTTP/1.1.")
    method, target, minor = found.groups()
    if method == b"CONNECT":
        raise Malformed("This is no forward proxy.", 501)
    kept, told = parse_fields(rest)
    if b"host" not in told:
        if minor == b"1":
            raise Malformed("The header Host is missing.")
        kept = b"Host: localhost\r\n" + kept
    expects = told.get(b"expect")
    if expects is not None:
        if expects.lower() != b"100-continue":
            raise Malformed("The only expectation known here is 100-continue.", 417)
        kept = without(kept, (b"expect",))
    length, chunked = _length(told)
    if chunked and minor == b"0":
        raise Malformed("HTTP/1.0 knows no chunks.")
    if length is not None and length > MOST_BODY:
        raise Malformed(f"The request has {length} bytes; at most {MOST_BODY} are taken.", 413)
    waits = expects is not None and minor == b"1"
    return Asked(
        method, target, kept, told.get(b"mlinfra-version"), told.get(b"authorization"), length or 0, chunked, waits,
        minor == b"0", _closes(minor, told),
    )  # fmt: skip


def check_allowed(asked: Asked, token: bytes | None) -> None:
    """Refuse a request that does not show the token, where one is wanted and the page is not open. Pure.

    Raises:
        Malformed: with the status 401.
    """
    if token is None or (asked.target in OPEN and asked.method in {b"GET", b"HEAD"} and not asked.length):
        return
    scheme, _, shown = (asked.credentials or b"").partition(b" ")
    # Compared as a whole, in a time that does not tell how much of it was right.
    if not hmac.compare_digest(shown.strip(b" "), token) or scheme.lower() != b"bearer":
        told = "The token is missing" if asked.credentials is None else "The token is wrong"
        raise Malformed(f"{told}: send the header 'Authorization: Bearer TOKEN'.", 401)


@dataclass(slots=True)
class Answered:
    """The head of an answer; `length` is None where only its end tells."""

    status: int
    line: bytes
    fields: bytes
    length: int | None
    chunked: bool
    closes: bool


def parse_answer(block: bytes, method: bytes) -> Answered:
    """Read an answer's head, without the empty line at its end; what never has a body gets the length 0. Pure."""
    line, _, rest = block.partition(b"\r\n")
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise Malformed("it answers something else than HTTP/1.1")
    kept, told = parse_fields(rest)
    if b"mlinfra-version" in told:
        kept = without(kept, (b"mlinfra-version",))
    length, chunked = _length(told)
    status = int(found[2])
    if method == b"HEAD" or status in {204, 304}:
        length, chunked = 0, False
    # The status line is passed on with its reason; the version in it is that of this hop.
    return Answered(status, b"HTTP/1.1" + line[8:], kept, length, chunked, _closes(found[1], told))


class Body:
    """Cuts one message's body out of a stream: by its length, by chunks, or (neither known) until the end."""

    __slots__ = ("_chunked", "_left", "_pending", "_stage", "done")

    def __init__(self, length: int | None, *, chunked: bool) -> None:
        self._chunked = chunked
        self._left = length
        self._stage = "size"
        self._pending = b""
        self.done = length == 0

    @property
    def ends_with_connection(self) -> bool:
        return self._left is None and not self._chunked

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take what was received; return what of it is the body's content, and what comes after the body."""
        if self.done:
            return b"", data
        if self._chunked:
            return self._unchunk(self._pending + data)
        if self._left is None:
            return data, b""
        if len(data) < self._left:
            self._left -= len(data)
            return data, b""
        left, self._left, self.done = self._left, 0, True
        return (data, b"") if len(data) == left else (data[:left], data[left:])

    def _unchunk(self, data: bytes) -> tuple[bytes, bytes]:
        content, at = [], 0
        while not self.done:
            if self._stage == "data":
                piece = data[at : at + (self._left or 0)]
                content.append(piece)
                at += len(piece)
                self._left = (self._left or 0) - len(piece)
                if self._left:
                    break
                self._stage = "end"
            end = data.find(b"\r\n", at)
            if end < 0:
                if len(data) - at > MOST_HEAD:
                    raise Malformed("A line between two chunks is too long.")
                break
            self._line(data[at:end])
            at = end + 2
        self._pending = b"" if self.done else data[at:]
        return b"".join(content), data[at:] if self.done else b""

    def _line(self, line: bytes) -> None:
        if self._stage == "size":
            found = _CHUNK_LINE.fullmatch(line)
            if found is None:
                raise Malformed("The size of a chunk is malformed.")
            self._left = int(found[1], 16)
            self._stage = "data" if self._left else "trailer"
        elif self._stage == "end":
            if line:
                raise Malformed("A chunk is longer than it says.")
            self._stage = "size"
        else:  # trailers are of one hop
            self.done = not line


# --- towards the servers ---------------------------------------------------------------------------------------------


class Upstream(asyncio.Protocol):
    """One connection to a server: asks for one exchange at a time, idle in between."""

    def __init__(self, router: Router, url: str) -> None:
        self.router, self.url = router, url
        self.transport: asyncio.Transport
        self.exchange: Exchange | None = None
        self._head = b""
        self._answer: Answered | None = None
        self._body: Body | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, exchange: Exchange, message: Iterable[bytes]) -> None:
        """Send a request; what becomes of it, the exchange is told."""
        self.exchange, self._head, self._answer, self._body = exchange, b"", None, None
        for part in message:
            self.transport.write(part)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # nobody asked for that
            self.transport.abort()
            return
        try:
            head, content, rest = self._cut(self._head + data if self._head else data, exchange.asked.method)
        except Malformed as error:
            self.drop()
            exchange.broken(f"{error}".rstrip("."))
            return
        if self._body is None:
            return
        done = self._body.done
        if not done:
            exchange.passed(head, content, done=False)
            return
        assert self._answer is not None
        self.exchange = None
        # A server that answers before it has read the whole request cannot be asked a second one.
        if self._answer.closes or rest or self.transport.get_write_buffer_size():
            self.transport.close()
        else:
            self.transport.resume_reading()
            self.router.keep(self)
        exchange.passed(head, content, done=True)

    def _cut(self, data: bytes, method: bytes) -> tuple[Answered | None, bytes, bytes]:
        """Return the head (where it ends in this piece), content of the body, and what comes after the body."""
        began = None
        while self._body is None:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MOST_HEAD:
                    raise Malformed("its answer's head does not end")
                self._head = data
                return None, b"", b""
            answer = parse_answer(data[: end + 2], method)
            data = data[end + 4 :]
            if answer.status >= 200:  # those before are interim
                began = self._answer = answer
                self._head = b""
                self._body = Body(answer.length, chunked=answer.chunked)
        return began, *self._body.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.router.forget(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if exc is None and self._body is not None and self._body.ends_with_connection:
            exchange.passed(None, b"", done=True)
        else:
            exchange.broken(f"it closed the connection{'' if exc is None else f' ({exc})'}")

    def drop(self) -> None:
        """Let go of the exchange, and of the connection, on which its answer might still come."""
        self.exchange = None
        self.transport.abort()


class Exchange:
    """One request on its way: to a server, to the next if that one fails, and the answer back."""

    __slots__ = (
        "_again", "_began", "_connecting", "_fresh", "_heard", "_held", "_message", "_passing", "_rechunks", "_status",
        "_tally", "_tried", "_upstream", "_url", "_version", "asked", "client", "router", "wanted",
    )  # fmt: skip

    def __init__(self, router: Router, client: Client, asked: Asked, body: bytes) -> None:
        self.router, self.client, self.asked = router, client, asked
        self.wanted: int | None = None
        self._message = asked.message(body)
        self._tried: list[str] = []
        self._tally: Tally | None = None  # of the try in progress
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._fresh = False  # whether connections that lay idle are to be avoided
        self._passing = False  # whether the client has got anything of an answer
        self._held = b""
        self._rechunks = False
        self._status = 0

    def begin(self) -> None:
        """Try it on the version that its turn or its header picks."""
        asked = self.asked.version
        if asked is not None:
            self.wanted = int(asked) if _DIGITS.fullmatch(asked) else -1
            if self.wanted not in self.router.picker.versions:
                told = f"Endpoint {self.router.name!r} has no version {asked.decode(errors='replace')!r}"
                known = ", ".join(str(number) for number in self.router.picker.versions) or "none"
                self.client.answer(404, {"error": f"{told}; it has {known}."})
                return
        self._pick()

    def _pick(self) -> None:
        picked = self.router.picker.pick(self.wanted)
        if picked is None:
            self.client.answer(503, {"error": f"Endpoint {self.router.name!r} has no server yet; ask again soon."})
        else:
            self._try(*picked)

    def _try(self, version: Version, url: str) -> None:
        self._version, self._url = version, url
        self._tried.append(url)
        self._tally = self.router.tally(version.version)
        self._tally.in_flight += 1
        self.router.flying[url] += 1
        self._began = self._heard = self.router.loop.time()
        self._send()

    def _send(self) -> None:
        idle = None if self._fresh else self.router.idle(self._url)
        if idle is None:
            self._fresh = True
            self._connecting = self.router.loop.create_task(self._connect())
        else:
            self._upstream = idle
            idle.ask(self, self._message)

    async def _connect(self) -> None:
        try:
            upstream = await self.router.connect(self._url)
        except OSError as error:
            self._connecting = None
            self._failed(f"it cannot be reached ({error.strerror or type(error).__name__})")
        else:
            self._connecting = None
            self._upstream = upstream
            upstream.ask(self, self._message)

    def passed(self, head: Answered | None, content: bytes, *, done: bool) -> None:
        """Pass on what came of the answer: its head at the earliest with the first piece of a body that must come."""
        self._heard = self.router.loop.time()
        if head is not None:
            self._status = head.status
            self._held = self._head(head)
            if not done and not content and head.length is not None:
                return  # one write, one wake-up of the client, and until then the request can be tried again
        if self._rechunks:
            content = (b"%x\r\n%b\r\n" % (len(content), content) if content else b"") + (b"0\r\n\r\n" if done else b"")
        held, self._held = self._held, b""
        self._passing = True
        if held or content:
            self.client.transport.write(held + content)
        if not done:
            if self.client.paused and self._upstream is not None:
                self._upstream.transport.pause_reading()
            return
        tally = self._ended()
        tally.answered(self._status, self._heard - self._began)
        self.client.answered()

    def _head(self, head: Answered) -> bytes:
        client, asked = self.client, self.asked
        ours = b"Mlinfra-Version: %d\r\n" % self._version.version
        self._rechunks = head.length is None and not asked.old  # for HTTP/1.0 the connection's end is the answer's
        if self._rechunks:
            ours += b"Transfer-Encoding: chunked\r\n"
        client.closes |= self.router.draining
        if client.closes:
            ours += b"Connection: close\r\n"
        return b"%b\r\n%b%b\r\n" % (head.line, head.fields, ours)

    def broken(self, reason: str) -> None:
        """The connection ended before the answer did."""
        self._upstream = None
        if self._fresh or self._passing:
            self._failed(reason)
        else:
            # It had lain idle, and the server may have closed it as the request was sent: says nothing of the server.
            self._fresh, self._held = True, b""
            self._send()

    def look(self, now: float) -> None:
        """Give up the try in progress where nothing was heard for too long."""
        if self._tally is None or now - self._heard < self.router.timeout:
            return
        self._drop()
        if self.client.paused:  # it is the client that does not go on
            self._ended_by_client()
            self.client.cut()
        else:
            self._failed(f"it was silent for {self.router.timeout:g} s", again=False)

    def _failed(self, reason: str, *, again: bool = True) -> None:
        tally, picker = self._ended(), self.router.picker
        if self._passing:
            tally.requests += 1
            tally.errors += 1
            self.client.cut()  # whoever reads half an answer must not take it for a whole one
            return
        tries = len(self._tried)
        following = picker.other(self._version, self._tried, self.wanted) if tries < MOST_TRIES else None
        if following is not None:
            tally.retried += 1
            self._try(*following)
        elif again and tries == 1:
            tally.retried += 1
            self._again = self.router.loop.call_later(AGAIN_SECONDS, self._once_more)
        else:
            tally.requests += 1
            tally.errors += 1
            number = self._version.version
            told = f"No server of endpoint {self.router.name!r} answers; the last was version {number}: {reason}."
            self.client.answer(503, {"error": told}, [f"Mlinfra-Version: {number}"])

    def _once_more(self) -> None:
        self._again = None
        now = self.router.picker.versions.get(self._version.version)
        if (
            now is not None
            and self._url in self.router.picker.used[now.version]
            and (now.share or self.wanted is not None)
        ):
            self._try(now, self._url)
        else:  # its routes changed meanwhile
            self._pick()

    def pause(self) -> None:
        """The client does not read as fast as the server writes."""
        if self._upstream is not None:
            self._upstream.transport.pause_reading()

    def resume(self) -> None:
        """The client reads again."""
        self._heard = self.router.loop.time()
        if self._upstream is not None:
            self._upstream.transport.resume_reading()

    def abandon(self) -> None:
        """The client has gone."""
        if self._again is not None:
            self._again.cancel()
        self._drop()
        if self._tally is not None:
            self._ended_by_client()

    def _ended_by_client(self) -> None:
        tally = self._ended()
        tally.requests += 1
        tally.client_errors += 1

    def _drop(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None and upstream.exchange is self:
            upstream.drop()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def _ended(self) -> Tally:
        """End the try that is in progress."""
        tally, self._tally, self._upstream, self._held = self._tally, None, None, b""
        assert tally is not None
        tally.in_flight -= 1
        self.router.flying[self._url] -= 1
        return tally


# --- towards the clients ---------------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """One connection of a client: one request after the other."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.transport: asyncio.Transport
        self.exchange: Exchange | None = None
        self.closes = False  # after the answer
        self.paused = False  # it does not read
        self.since = router.loop.time()
        self._refused = False
        self._ahead = b""  # what it sent before it had its answer, or the beginning of a head
        self._due = False  # whether that is about to be read
        self._asked: Asked | None = None
        self._body: Body | None = None
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def busy(self) -> bool:
        """Whether it is asking, is being answered, or has not read all of its answer."""
        return bool(self.exchange or self._body or self.transport.get_write_buffer_size())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.router.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.router.clients.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.abandon()

    def eof_received(self) -> bool:
        # It may have closed its half only, and wait for its answer.
        self.closes = True
        return self.exchange is not None

    def pause_writing(self) -> None:
        self.paused = True
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        self.paused = False
        if self.exchange is not None:
            self.exchange.resume()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self.exchange is not None or self._due:
            self._ahead += data
            if len(self._ahead) > MOST_HEAD:
                self.transport.pause_reading()
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            if self._body is None:
                data = self._begin(self._ahead + data)
            if self._body is None:
                return
            content, self._ahead = self._body.feed(data)
        except Malformed as error:
            self._refuse(error)
            return
        self._size += len(content)
        if self._size > MOST_BODY:  # in chunks; an announced length was looked at with the head
            self._refuse(Malformed(f"The request has more than the {MOST_BODY} bytes that are taken.", 413))
            return
        if content:
            self._parts.append(content)
        if self._body.done:
            self._dispatch()

    def _begin(self, data: bytes) -> bytes:
        """Read a request's head; return what follows it. Without its end, there is no body yet."""
        data = data.removeprefix(b"\r\n")  # some clients end a body with one that does not belong to it
        end = data.find(b"\r\n\r\n")
        if (end if end >= 0 else len(data)) > MOST_HEAD:
            raise Malformed(f"The request's head is longer than {MOST_HEAD} bytes.", 431)
        if end < 0:
            self._ahead = data
            return b""
        self._ahead = b""
        self._asked = parse_request(data[: end + 2])
        check_allowed(self._asked, self.router.token)
        self._body = Body(None if self._asked.chunked else self._asked.length, chunked=self._asked.chunked)
        self.closes |= self._asked.closes
        rest = data[end + 4 :]
        if self._asked.waits and not rest and not self._body.done:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return rest

    def _dispatch(self) -> None:
        asked, content = self._asked, b"".join(self._parts)
        assert asked is not None
        self._body, self._parts, self._size = None, [], 0
        page = self.router.pages.get(asked.target.partition(b"?")[0])
        if page is None:
            self.exchange = Exchange(self.router, self, asked, content)
            self.exchange.begin()
        elif asked.method in {b"GET", b"HEAD"}:
            self.answer(200, page())
        else:
            self.answer(405, {"error": "This page can only be read."}, ["Allow: GET, HEAD"])

    def answer(self, status: int, payload: dict[str, Any] | str, headers: Iterable[str] = ()) -> None:
        """Answer the request in the router's own name."""
        self.closes |= self.router.draining
        kind = "text/plain; version=0.0.4" if isinstance(payload, str) else "application/json"
        content = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
        lines = [
            f"HTTP/1.1 {status} {_REASONS[status]}", f"Content-Type: {kind}", f"Content-Length: {len(content)}",
            *headers, *["Retry-After: 1"] * (status == 503), *["Connection: close"] * self.closes, "", "",
        ]  # fmt: skip
        with_body = self._asked is None or self._asked.method != b"HEAD"
        self.transport.write("\r\n".join(lines).encode() + (content if with_body else b""))
        self.answered()

    def answered(self) -> None:
        """Go on with the next request, which may have come already."""
        self.exchange, self._asked, self.since = None, None, self.router.loop.time()
        if self.closes:
            self.transport.close()
            return
        self.transport.resume_reading()
        if self._ahead:
            self._due = True
            self.router.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._due = False
        if not self.transport.is_closing():
            self._take(b"")

    def _refuse(self, error: Malformed) -> None:
        self._refused, self._body, self._parts, self._ahead = True, None, [], b""
        content = json.dumps({"error": str(error)}).encode()
        asks = ['WWW-Authenticate: Bearer realm="mlinfra-prefect"'] if error.status == 401 else []
        lines = [
            f"HTTP/1.1 {error.status} {_REASONS[error.status]}", "Content-Type: application/json",
            f"Content-Length: {len(content)}", *asks, "Connection: close", "", "",
        ]  # fmt: skip
        self.transport.write("\r\n".join(lines).encode() + content)
        self.transport.write_eof()
        self.router.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def cut(self) -> None:
        """End the connection in the middle of an answer."""
        self.exchange = None
        self.transport.abort()


# --- the router ------------------------------------------------------------------------------------------------------


class Router:
    """The routes, the connections and the counters of one endpoint; everything happens in one event loop."""

    def __init__(
        self, name: str, routes: Path, timeout: float, patience: float = DOWN_SECONDS, token: bytes | None = None
    ) -> None:
        self.name, self.routes, self.timeout, self.patience = name, routes, timeout, patience
        self.token = token
        self.loop = asyncio.get_running_loop()
        self.picker = Picker(Table(0, ()))
        self.problem: str | None = None
        self.clients: set[Client] = set()
        self.draining = False
        self.started = time.time()
        self.pages: dict[bytes, Callable[[], dict[str, Any] | str]] = {
            b"/mlinfra/health": self.health, b"/mlinfra/state": self.state, b"/mlinfra/metrics": self.metrics,
        }  # fmt: skip
        self._path = str(routes)
        self.flying: Counter[str] = Counter()
        self._tallies: dict[int, Tally] = {}
        self._scalers: dict[int, Scaler] = {}
        self._idle: dict[str, list[Upstream]] = {}
        self._seen: tuple[int, ...] | None = None
        self._swept = self.loop.time()

    def tally(self, version: int) -> Tally:
        """Return what is counted of a version, for as long as this process lives."""
        found = self._tallies.get(version)
        return self._tallies.setdefault(version, Tally()) if found is None else found

    # -- connections

    async def connect(self, url: str) -> Upstream:
        """Open a connection to a server.

        Raises:
            OSError: it cannot be reached.
        """
        found = _URL.fullmatch(url)
        assert found is not None
        async with asyncio.timeout(min(CONNECT_SECONDS, self.timeout)):
            host, port = found[1] or found[2], int(found[3])
            _, upstream = await self.loop.create_connection(lambda: Upstream(self, url), host, port)
        return upstream

    def idle(self, url: str) -> Upstream | None:
        """Return the connection to a server that fell idle last."""
        found = self._idle.get(url)
        while found:
            upstream = found.pop()
            if not upstream.transport.is_closing():
                return upstream
        return None

    def keep(self, upstream: Upstream) -> None:
        """Keep a connection for the next request, where there may be one."""
        kept = self._idle.setdefault(upstream.url, []) if upstream.url in self.picker.urls else None
        if kept is None or len(kept) >= MOST_IDLE:
            upstream.transport.close()
        else:
            kept.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """A connection has ended."""
        kept = self._idle.get(upstream.url, [])
        if upstream in kept:
            kept.remove(upstream)

    async def answers(self, url: str) -> bool | None:
        """Whether a server says that it is ready; None: nobody listens there."""
        found = _URL.fullmatch(url)
        assert found is not None
        host, port = found[1] or found[2], int(found[3])
        writer = None
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                status = _STATUS_LINE.fullmatch((await reader.readline()).rstrip(b"\r\n"))
                return status is not None and status[2] == b"200"
        except ConnectionRefusedError:
            return None
        except (OSError, ValueError):
            return False
        finally:
            if writer is not None:
                writer.transport.abort()

    def sweep(self) -> None:
        """Give up tries that hear nothing, and close the connections of clients that ask nothing."""
        self._swept = now = self.loop.time()
        for client in tuple(self.clients):
            if client.exchange is not None:
                client.exchange.look(now)
            elif now - client.since > IDLE_SECONDS:
                client.transport.abort()

    # -- routes

    def look(self) -> None:
        """Follow the routes file; whatever it is, the router goes on and looks again."""
        try:
            self._follow()
            for scaler in self._scalers.values():
                scaler.look(self.loop.time())
        finally:
            if self.loop.time() - self._swept > SWEEP_SECONDS:
                self.sweep()
            self.loop.call_later(LOOK_SECONDS, self.look)

    def _follow(self) -> None:
        try:
            status = os.stat(self._path)  # noqa: PTH116 (forty times a second: pathlib takes three times as long)
            seen = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
            if seen == self._seen:
                return
            content = self.routes.read_bytes()
        except OSError as error:
            self._seen = None
            self.problem = f"The routes in {self.routes} cannot be read ({error.strerror})."
            return
        self._seen = seen if abs(time.time() - status.st_ctime) > SETTLED_SECONDS else None
        now = self.picker.table
        try:
            table = parse_routes(content, self.name)
            check_newer(table, now)
        except (ValueError, RecursionError) as error:
            told = f"The routes in {self.routes} are not followed: {error}."
            self.problem = f"{told} Those of revision {now.revision} are."
            return
        self.problem = None
        if table != now:
            self.picker = Picker(table)
            self._scale()
            self._let_go()

    def _scale(self) -> None:
        """Have a scaler for each version that is to have one; one that has no reason to change goes on."""
        before, self._scalers = self._scalers, {}
        for version in self.picker.table.versions:
            if version.scale is None:
                continue
            kept = before.get(version.version)
            if kept is not None and (kept.scale, kept.version.urls) == (version.scale, version.urls):
                del before[version.version]
            else:
                kept = Scaler(self, version, version.scale)
            self._scalers[version.version] = kept
            self.picker.use(version.version, kept.live)
        for gone in before.values():
            gone.end()

    def use(self, version: int, count: int) -> None:
        """Send a version's requests to its first servers only; connections to the others close as they fall idle."""
        self.picker.use(version, count)
        self._let_go()

    def _let_go(self) -> None:
        for url in [url for url in self._idle if url not in self.picker.urls]:
            for upstream in self._idle.pop(url):
                upstream.transport.close()
        for url in [url for url, count in self.flying.items() if not count and url not in self.picker.urls]:
            del self.flying[url]

    # -- pages

    def health(self) -> dict[str, Any]:
        """That it serves, also without any version."""
        return {"live": True, "name": self.name, "revision": self.picker.table.revision}

    def state(self) -> dict[str, Any]:
        """What requests are routed by now, and what was counted; `gone` has what is in flight to removed versions."""
        table = self.picker.table
        gone = [number for number, tally in self._tallies.items() if tally.in_flight and not self._routes(number)]
        return {
            "schema": STATE_SCHEMA, "name": self.name, "pid": os.getpid(), "started": self.started,
            "revision": table.revision, "problem": self.problem,
            "versions": [self._told(each) for each in table.versions],
            "gone": [self._told(Version(number, 0, ())) for number in sorted(gone)],
        }  # fmt: skip

    def _routes(self, number: int) -> bool:
        return number in self.picker.versions

    def _told(self, version: Version) -> dict[str, Any]:
        tally = self.tally(version.version).as_json()
        used = self.picker.used.get(version.version, ())
        scaler = self._scalers.get(version.version)
        return {
            "version": version.version, "share": version.share, "urls": list(used), "replicas": len(used),
            "wanted": len(used) if scaler is None else scaler.demand.wanted, **tally,
        }  # fmt: skip

    def metrics(self) -> str:
        """The same counters for Prometheus; versions that have gone keep theirs."""
        prefix = "mlinfra_router"
        lines: list[str] = []
        tallies = {number: self.tally(number) for number in sorted({*self._tallies, *self.picker.versions})}

        def tell(what: str, kind: str, text: str, values: Iterable[tuple[str, float]]) -> None:
            lines.extend((f"# HELP {prefix}_{what} {text}", f"# TYPE {prefix}_{what} {kind}"))
            lines.extend(f"{prefix}_{what}{labels} {value}" for labels, value in values)

        def labels(number: int, more: str = "") -> str:
            return f'{{name="{self.name}",version="{number}"{more}}}'

        revision = self.picker.table.revision
        tell("revision", "gauge", "Of the routes followed.", [(f'{{name="{self.name}"}}', revision)])
        shares = {number: self.picker.versions.get(number) for number in tallies}
        found = [(labels(number), each.share if each else 0) for number, each in shares.items()]
        tell("share_percent", "gauge", "Of new requests.", found)
        replicas = [(labels(number), len(self.picker.used.get(number, ()))) for number in tallies]
        tell("replicas", "gauge", "Servers that get requests.", replicas)
        for what, kind, text in (
            ("in_flight", "gauge", "Requests not answered yet."),
            ("requests", "counter", "Requests answered, or given up."),
            ("errors", "counter", "Of these: answers of 5xx, and none at all."),
            ("client_errors", "counter", "Of these: answers of 4xx, and clients that went away."),
            ("retried", "counter", "Tries that failed and were made again, here or elsewhere."),
        ):
            values = [(labels(number), getattr(tally, what)) for number, tally in tallies.items()]
            tell(what if kind == "gauge" else f"{what}_total", kind, text, values)
        tell("seconds", "histogram", "From sending a request to the end of its answer.", ())
        for number, tally in tallies.items():
            total = 0
            for bound, count in tally.buckets:
                total += count
                mark = labels(number, ',le="+Inf"' if bound is None else f',le="{bound:g}"')
                lines.append(f"{prefix}_seconds_bucket{mark} {total}")
            lines.append(f"{prefix}_seconds_sum{labels(number)} {tally.seconds:.6f}")
            lines.append(f"{prefix}_seconds_count{labels(number)} {total}")
        return "\n".join(lines) + "\n"


async def route(arguments: argparse.Namespace, listening: socket.socket, token: bytes | None) -> None:
    """Route until SIGTERM or SIGINT, then let what is in progress end.

    Args:
        arguments: of the program.
        listening: where clients come.
        token: what requests must show; None: nothing.
    """
    router = Router(arguments.name, arguments.routes, arguments.timeout_seconds, arguments.down_seconds, token)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        router.loop.add_signal_handler(signum, stop.set)
    router.look()
    server = await router.loop.create_server(lambda: Client(router), sock=listening, backlog=BACKLOG)
    gc.freeze()  # what was made until here stays
    await stop.wait()
    # Only this process's descriptor is closed: behind a socket that the supervisor holds, new connections wait.
    server.close()
    router.draining = True
    began = router.loop.time()
    while (spent := router.loop.time() - began) < DRAIN_SECONDS:
        if spent > QUIET_SECONDS and not any(each.busy for each in router.clients):
            break
        await asyncio.sleep(0.01)


# --- the program -----------------------------------------------------------------------------------------------------


def reserve(host: str, port: int) -> socket.socket:
    """Bind the port; it listens when the router does."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise RefusedToRoute(EXIT_USAGE, f"--host {host!r} is not an IP address; use 127.0.0.1.") from None
    if not address.is_loopback:
        message = f"--host {host} is not loopback, and this router has no TLS; use 127.0.0.1."
        raise RefusedToRoute(EXIT_USAGE, message)
    if not 0 < port < 1 << 16:
        raise RefusedToRoute(EXIT_USAGE, f"--port {port} is not between 1 and 65535.")
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it, an answer can take 40 ms more.
    bound = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, proto=socket.IPPROTO_TCP)
    # A router restarted on its recorded port must not wait for the TIME_WAIT of its predecessor's connections.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((str(address), port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} is in use by another program; choose another port or end that program."
        elif error.errno == errno.EACCES:
            message = f"Port {port} may not be used by this user; choose one above 1023."
        else:
            raise
        raise RefusedToRoute(EXIT_PORT_TAKEN, message) from None
    return bound


def inherit(descriptor: int) -> socket.socket:
    """Take the supervisor's socket, where it is one that listens on loopback."""
    try:
        inherited = socket.socket(fileno=descriptor)
        listens = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except (OSError, ValueError, OverflowError):
        raise RefusedToRoute(EXIT_USAGE, f"--fd {descriptor} is not the descriptor of a socket.") from None
    if inherited.family not in {socket.AF_INET, socket.AF_INET6} or not listens:
        raise RefusedToRoute(EXIT_USAGE, f"--fd {descriptor} is not a TCP socket that listens.")
    host = inherited.getsockname()[0]
    if not ipaddress.ip_address(host).is_loopback:
        message = f"--fd {descriptor} listens on {host}, not on loopback, and this router has no TLS."
        raise RefusedToRoute(EXIT_USAGE, message)
    return inherited


def read_token(path: Path | None) -> bytes | None:
    """Return the token in a file; None where none is wanted. What is in the file is never told."""
    if path is None:
        return None
    try:
        found = _TOKEN_LINE.fullmatch(path.read_bytes())
    except OSError as error:
        raise RefusedToRoute(EXIT_USAGE, f"--token-file {path} cannot be read ({error.strerror}).") from None
    if found is None:
        raise RefusedToRoute(EXIT_USAGE, f"--token-file {path} is not one line with a token of 16 characters or more.")
    return found[1]


def _allow_connections() -> None:
    """Each request in progress holds two descriptors, and the customary limit of a process is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _stop(_signum: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="router.py", allow_abbrev=False, description="Route one endpoint's requests.")
    parser.add_argument("--name", required=True, help="the endpoint's")
    parser.add_argument("--routes", type=Path, required=True, metavar="FILE")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, metavar="N", help="an inherited socket that listens on loopback")
    where.add_argument("--port", type=int, metavar="N")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address, with --port")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="what requests must show")
    parser.add_argument("--timeout-seconds", type=float, default=60.0, metavar="S", help="of silence, for each try")
    parser.add_argument("--down-seconds", type=float, default=DOWN_SECONDS, metavar="S", help="of less load")
    arguments = parser.parse_args(argv)
    if not _NAME.fullmatch(arguments.name):
        parser.error(f"--name {arguments.name!r} must match {_NAME.pattern}")
    if not 0 < arguments.timeout_seconds <= 86400:
        parser.error(f"--timeout-seconds {arguments.timeout_seconds:g} is not between 0 and 86400")
    if not 0 <= arguments.down_seconds <= 86400:
        parser.error(f"--down-seconds {arguments.down_seconds:g} is not between 0 and 86400")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Route until told to stop; return the exit code (see the module's docstring)."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    try:
        token = read_token(arguments.token_file)
        given = arguments.fd is not None
        listening = inherit(arguments.fd) if given else reserve(arguments.host, arguments.port)
    except RefusedToRoute as refusal:
        sys.stderr.write(f"mlinfra-prefect router: {refusal}\n")
        return refusal.code
    _allow_connections()
    asyncio.run(route(arguments, listening, token))
    return 0


if __name__ == "__main__":
    sys.exit(main())
