"""The second dead-man: a scheduled function in the account that ends machines past the deadline on their tags (R10).

It is the reaper's own sweep in a function of its own, for the day on which keeper, reaper and ledger are all gone. It
knows no ledger, so it may act on one thing only: a deadline that a machine itself carries, and that has passed by more
than a grace. It touches nothing that carries no lease, nothing of another environment, nothing whose deadline cannot be
read (that it reports), and nothing that does not compute: disks and addresses wait for a reaper.

Settings are environment variables: ``ENVIRONMENT`` (required), ``REGIONS`` (separated by commas; default
``AWS_REGION``), ``GRACE_SECONDS`` (default 300).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from mlinfra_prefect.aws import sweeping, tags
from mlinfra_prefect.aws.asking import Clients, listed
from mlinfra_prefect.aws.kinds import COMPUTE
from mlinfra_prefect.errors import InvalidInput, NotYetDestroyed

GRACE_SECONDS = 300.0
"""Past the deadline: keeper, reaper and the machine's own timer come first."""
CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
TRIES = 5
HANDLER = "mlinfra_prefect.aws.deadman.handler"
"""What the function is configured with."""

Log = Callable[[Mapping[str, Any]], None]


def handler(event: Any = None, context: Any = None) -> dict[str, int]:
    """End what is past its deadline in every region; what the scheduler calls. Idempotent.

    Writes one line of JSON for each thing. Returns how many things were looked at, ended, and malformed.

    Raises:
        InvalidInput: a setting is missing or wrong; nothing was touched.
        NotYetDestroyed: something could not be ended or looked at; the rest was ended all the same. The function's
            error metric shows it.
    """
    del event, context
    environment = os.environ.get("ENVIRONMENT", "")
    if not environment:
        raise InvalidInput("ENVIRONMENT", "it is not set", "Set the environment whose machines the function ends.")
    regions = (os.environ.get("REGIONS") or os.environ.get("AWS_REGION", "")).replace(",", " ").split()
    if not regions:
        raise InvalidInput("REGIONS", "neither it nor AWS_REGION is set", "Set the regions of the environment.")
    grace = _grace(os.environ.get("GRACE_SECONDS") or str(GRACE_SECONDS))
    return sweep(_client, regions, environment=environment, grace_seconds=grace, now=time.time(), log=_print)


def sweep(
    clients: Clients, regions: Iterable[str], *, environment: str, grace_seconds: float, now: float, log: Log
) -> dict[str, int]:
    """See `handler`. Four calls in a region where nothing is due and nothing names an instant fleet.

    Args:
        clients: of the SDK.
        regions: where to look.
        environment: whose leases; of any ledger.
        grace_seconds: between a deadline and the end.
        now: epoch seconds.
        log: gets one mapping for each thing.
    """
    run = _Run(clients, environment, now - grace_seconds, log)
    for region in dict.fromkeys(regions):
        try:
            run.sweep(region)
        except Exception as error:  # noqa: BLE001 (a region that is no region must not keep the others' machines alive)
            run.problem(region, event="not-seen", what="everything", region=region, reason=str(error))
    log({"event": "done", "environment": environment, "problems": len(run.problems), **run.counts})
    if run.problems:
        raise NotYetDestroyed(
            f"Past their deadline and not ended, or not seen: {listed(run.problems, '; ')}.",
            "The next run tries again; the function's log has one line for each.",
        )
    return run.counts


@dataclass(slots=True)
class _Run:
    """One run: what it found, and what stood in its way."""

    clients: Clients
    environment: str
    due: float
    log: Log
    counts: dict[str, int] = field(default_factory=lambda: {"seen": 0, "ended": 0, "malformed": 0})
    problems: list[str] = field(default_factory=list)

    def sweep(self, region: str) -> None:
        sight = sweeping.seen(self.clients, region, tags.of_any_lease(environment=self.environment), only=COMPUTE)
        for each in sight.unseen:
            self.problem(str(each), event="not-seen", what=each.what, region=region, reason=each.why.reason)
        for carried in sight.carried:
            self.counts["seen"] += len(carried.things)
            whose = {"ledger": carried.ledger_id, "lease": carried.lease_id, "region": region}
            for thing in carried.things:
                if thing.marks.deadline is None:
                    self.counts["malformed"] += 1
                    self.log({"event": "no-deadline", "thing": thing.name, **whose})
            late = carried.overdue(self.due)
            if late is not None:
                self.end(late, whose)

    def end(self, late: sweeping.Carried, whose: Mapping[str, str]) -> None:
        found = sweeping.end(self.clients, late)
        self.counts["ended"] += len(found.ended)
        for name in found.ended:
            self.log({"event": "ended", "thing": name, "deadline": late.deadline, **whose})
        for each in found.refused:
            self.problem(str(each), event="refused", thing=each.name, reason=each.reason, **whose)

    def problem(self, told: str, **line: str) -> None:
        self.problems.append(told)
        self.log(line)


def _grace(text: str) -> float:
    try:
        grace = float(text)
    except ValueError:
        grace = math.nan
    if not (math.isfinite(grace) and grace >= 0):
        raise InvalidInput("GRACE_SECONDS", f"{text!r} is no number of seconds")
    return grace


@functools.cache
def _client(service: str, region: str) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        user_agent_extra="mlinfra_prefect-dead-man",
    )
    return boto3.session.Session().client(service, region_name=region, config=config)


def _print(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 (a function's standard output is its log)


# --- as one file ------------------------------------------------------------------------------------------------------

MODULES = (
    "aws/asking.py", "aws/deadman.py", "aws/ending.py", "aws/kinds.py", "aws/refusals.py", "aws/sweeping.py",
    "aws/tags.py", "errors.py",
)  # fmt: skip
"""All that the function imports of ours, beside the packages themselves; its runtime has boto3."""
_PACKAGES = ("__init__.py", "aws/__init__.py")
_PACKAGE = '"""A part of the package: what the dead-man needs."""\n'
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Archive:
    """The function as a zip: where it lies, and its sha256 in base64, by which AWS knows whether it changed."""

    path: Path
    sha256: str


def build_archive(path: Path) -> Archive:
    """Write the function's zip and return it. Atomic, idempotent; the same sources give the same bytes everywhere."""
    root = Path(__file__).parent.parent
    sources = {name: _PACKAGE.encode() for name in _PACKAGES} | {name: (root / name).read_bytes() for name in MODULES}
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # compressors differ between builds
        for name, source in sorted(sources.items()):
            entry = zipfile.ZipInfo(f"{root.name}/{name}", _EPOCH)
            entry.create_system = 3  # Unix, whoever builds it
            entry.external_attr = 0o100644 << 16  # the function runs as another user
            archive.writestr(entry, source)
    content = buffer.getvalue()
    descriptor, scratch = tempfile.mkstemp(prefix=".dead-man-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(scratch).replace(path)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return Archive(path, base64.b64encode(hashlib.sha256(content).digest()).decode())
