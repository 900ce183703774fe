"""A home on an emulated AWS of its own, with an environment that was initialised: given back whole, as every home."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlinfra_prefect.lifecycle import cloud_access
from mlinfra_prefect.testing.aws import Emulator
from tests.benchmarks.homes import Bench, bench

INIT_SECONDS = 600.0
S3 = ("GetObject", "PutObject", "HeadObject", "DeleteObject", "DeleteObjects", "ListObjectsV2")
"""What nodes and clients talk by; everything else is control."""
ENDS = frozenset({"DeleteFleets", "TerminateInstances"})
"""What stops a meter."""


@dataclass(frozen=True, slots=True)
class CloudBench:
    """A home, the emulator that it leases from, and what was asked of that."""

    here: Bench
    aws: Emulator

    def calls(self, since: int) -> tuple[int, int]:
        """How many requests there were after the first `since`: of control, and of S3."""
        found = [each for each in self.aws.proxy.log if each.phase == "received" and each.request > since]
        of_s3 = sum(each.operation in S3 for each in found)
        return len(found) - of_s3, of_s3

    def ended_at(self, since: int) -> float:
        """When the first request to end a machine came, after the first `since` requests; of `time.monotonic`."""
        return next(
            each.at for each in self.aws.proxy.log
            if each.phase == "received" and each.request > since and each.operation in ENDS
        )  # fmt: skip


@contextmanager
def cloud_bench() -> Iterator[CloudBench]:
    """Start an emulator, make a home that reaches it and nothing else, and ``init aws`` there.

    Raises:
        RuntimeError: it cannot be initialised; with the end of what it said.
    """
    before = dict(os.environ)
    for name in cloud_access.variables():
        del os.environ[name]
    try:
        with Emulator() as aws:
            os.environ.update(aws.environment)
            with bench() as here:
                argv = [sys.executable, "-m", "mlinfra_prefect", "init", "aws", "--environment", "dev", "--yes"]
                done = subprocess.run(
                    argv, cwd=here.project, env=here.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                    timeout=INIT_SECONDS, check=False,
                )  # fmt: skip
                if done.returncode:
                    raise RuntimeError(f"init aws failed ({done.returncode}): {done.stderr[-2000:]}")
                yield CloudBench(here, aws)
    finally:
        os.environ.clear()
        os.environ.update(before)
