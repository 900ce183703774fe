"""An emulated AWS account for runs: initialised once, with decoys planted by hand, and lent to one run at a time.

Every run has a ledger of its own, and nobody else uses the account meanwhile: so what is there after a run and was not
there before it was left by that run, tagged or not. An account in which a run leaked, or went wrong, is not lent again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from mlinfra_prefect.chaos import judge_account
from mlinfra_prefect.chaos.judge_account import Thing

ACCOUNT = Path(__file__).with_name("scripts") / "account.py"
HOME_REGION = "us-east-1"
REGIONS = (HOME_REGION, "us-west-2")
MINUTE_SECONDS = 10.0
"""How long a minute of an emulated machine's dead-man is. An ordinary request asks for two hours, so twenty minutes."""
BEGIN_SECONDS = 120.0
INIT_SECONDS = 900.0
SETTLE_SECONDS = 20.0
OTHERS_DEADLINE_SECONDS = 7 * 86400.0
"""Until when the decoys of another ledger are wanted."""


class Cloud:
    """One emulated account, in a process of its own. A context manager.

    Args:
        cache: Terraform's providers and what else can be made again.
        engine: of Terraform, as a path.
        scratch: where its directory is made.
        regions: in which it is initialised; the first is home.
    """

    def __init__(
        self, cache: Path, engine: str, scratch: Path, regions: tuple[str, ...] = (HOME_REGION,)
    ) -> None:  # fmt: skip
        self._cache, self._engine, self.regions = cache, engine, regions
        self.root = Path(tempfile.mkdtemp(prefix="mla-", dir=scratch))
        self.environment: dict[str, str] = {}
        self._baseline: dict[tuple[str, str], Thing] = {}
        self._since, self._began = 0, 0.0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
            self.initialise()
            self._plant()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and everything that runs in it. Idempotent."""
        if self._process is not None:
            with contextlib.suppress(OSError, ValueError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            try:
                self._process.wait(SETTLE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
        shutil.rmtree(self.root, ignore_errors=True)

    # --- its beginning ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        passed = {name: value for name, value in os.environ.items() if not name.startswith(("MLINFRA_", "AWS_"))}
        with (self.root / "account.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(ACCOUNT), str(MINUTE_SECONDS)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, env={**passed, "TMPDIR": str(self.root)},
                start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"the emulator did not begin: {(self.root / 'account.log').read_text()[-1000:]}")
        self.environment = json.loads(line)

    def initialise(self) -> None:
        """Make what an environment shares, as people do.

        Raises:
            OSError: it cannot be made.
        """
        passed = {name: value for name, value in os.environ.items() if not name.startswith(("MLINFRA_", "AWS_"))}
        env = {
            **passed, **self.environment, "MLINFRA_HOME": str(self.root / "home"), "MLINFRA_CACHE": str(self._cache),
            "MLINFRA_TERRAFORM": self._engine, "TMPDIR": str(self.root),
        }  # fmt: skip
        regions = [word for name in self.regions for word in ("--region", name)]
        argv = [sys.executable, "-m", "mlinfra_prefect", "init", "aws", "--environment", "dev", *regions, "--yes"]
        ran = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=INIT_SECONDS)
        if ran.returncode != 0:
            raise OSError(f"init aws failed: {ran.stdout[-1000:]}{ran.stderr[-2000:]}")

    def _plant(self) -> None:
        """Decoys: what nobody tagged, what another ledger still wants, and what the environment shares."""
        told = json.loads(self.note.read_bytes())
        wanted = time.time() + OTHERS_DEADLINE_SECONDS
        tags = {"ledger": "7d0f3f0c-0000-4000-8000-000000000001", "lease": "l292f2fc7a43acfeea5b0-1", "attempt": "1",
                "flow-run": "none", "owner": "ada", "environment": "dev", "deadline": str(int(wanted))}  # fmt: skip
        another = {f"mlinfra-prefect:{key}": value for key, value in tags.items()}
        for number, region in enumerate(self.regions):
            network = next(each for each in told["regions"] if each["name"] == region)
            zone, subnet = min(network["subnets"].items())
            images = self.ec2(region, "DescribeImages", **{"Owner.1": "amazon"})
            image = images.findtext("./imagesSet/item/imageId") or ""
            for marks in ({}, another):
                launch = {"ImageId": image, "InstanceType": "t3.micro", "MinCount": "1", "MaxCount": "1",
                          "SubnetId": subnet}  # fmt: skip
                self.ec2(region, "RunInstances", **launch, **_tagged("instance", marks))
                disk = {"AvailabilityZone": zone, "Size": "1"}
                self.ec2(region, "CreateVolume", **disk, **_tagged("volume", marks))
                self.ec2(region, "CreateNetworkInterface", SubnetId=subnet, **_tagged("network-interface", marks))
                template = {"LaunchTemplateName": f"decoy-{number}-{len(marks)}",
                            "LaunchTemplateData.ImageId": image}  # fmt: skip
                self.ec2(region, "CreateLaunchTemplate", **template, **_tagged("launch-template", marks))
        self.settle()

    @property
    def note(self) -> Path:
        """The home's copy of the environment, to be copied into the home of each run."""
        return self.root / "home" / "aws" / "dev.json"

    # --- a run --------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Note what there is before a run; no fault holds."""
        self.clear()
        self._since, self._began = self.last_request(), time.time()
        self._baseline = judge_account.survey(self.url, self.regions)

    def findings(self) -> list[str]:
        """What is there and was not, and what of others is not as it was, in words."""
        now = judge_account.survey(self.url, self.regions)
        return judge_account.compared(self._baseline, now) + judge_account.orphaned(self.url)

    def live(self) -> dict[str, Thing]:
        """The run's instances that are not terminated, in every region."""
        there = judge_account.living(self.url)
        return {each.id: each for each in there.values() if ("instance", each.id) not in self._baseline}

    def pids(self) -> list[int]:
        """The processes of the run's machines."""
        there = judge_account.instances(self.url)
        return [pid for each in there if ("instance", each["id"]) not in self._baseline for pid in each["pids"]]

    def words(self) -> list[str]:
        """What was asked in this run but for its polling, and what the machines said, for a look."""
        dull = {"GetObject", "PutObject", "ListObjectsV2", "DeleteObject", "GetProducts"}
        asked = [f"{each['at']:.3f} {each['request']} {each['phase']} {each['operation']} {each['status'] or ''}"
                 for each in self._log(self._since) if each["operation"] not in dull]  # fmt: skip
        said = [f"--- console of {each['id']}\n{each['console'][-2000:]}" for each in judge_account.instances(self.url)
                if ("instance", each["id"]) not in self._baseline and each["launched_at"] >= self._began]  # fmt: skip
        return asked[-400:] + said

    def came(self) -> list[str]:
        """What of anything is there and was not, in words: a whole survey, so not for every moment."""
        now = judge_account.survey(self.url, self.regions)
        return [str(now[key]) for key in sorted(set(now) - set(self._baseline))]

    def remembered(self) -> dict[tuple[str, str], Thing]:
        """What there was before the run."""
        return dict(self._baseline)

    def restore(self, before: dict[tuple[str, str], Thing]) -> None:
        """Judge by what there was before another moment."""
        self._baseline = before

    def remove_what_is_free(self) -> None:
        """Delete by hand the run's fleets without machines and its launch templates: nobody is left who would."""
        now = judge_account.survey(self.url, self.regions)
        for kind, named in sorted(set(now) - set(self._baseline)):
            region = now[kind, named].region
            if kind == "fleet":
                self.ec2(region, "DeleteFleets", **{"FleetId.1": named, "TerminateInstances": "true"})
            if kind == "launch template":
                self.ec2(region, "DeleteLaunchTemplate", LaunchTemplateId=named)

    # --- what it does badly -------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.environment["AWS_ENDPOINT_URL"]

    def ec2(self, region: str, action: str, **parameters: str) -> Any:
        """Ask EC2, as somebody who is not of this package; see `judge_account.ec2`."""
        return judge_account.ec2(self.url, region, action, **parameters)

    def fault(self, name: str, **arguments: Any) -> None:
        """Have it do something badly: a method of the emulator's faults, by name."""
        self._control("POST", "faults", {"fault": name, **arguments})

    def clear(self) -> None:
        """End every fault."""
        self.fault("clear_faults")

    def settle(self) -> None:
        """Return when every machine is as its instance."""
        self._control("POST", "settle", {})

    def last_request(self) -> int:
        """The number of the last request."""
        return max((int(each["request"]) for each in self._log(self._since)), default=self._since)

    def seen(self, operation: str, phase: str = "received") -> int:
        """How many requests of an operation have come to a phase in this run."""
        return sum(each["operation"] == operation and each["phase"] == phase for each in self._log(self._since))

    def calls(self, since: int) -> Counter[str]:
        """What was asked after a request, by operation."""
        return Counter(str(each["operation"]) for each in self._log(since) if each["phase"] == "received")

    def _log(self, since: int) -> list[dict[str, Any]]:
        return list(self._control("GET", f"log?since={since}")["requests"])

    def _control(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 (http, loopback)
            f"{self.url}/_emulator/{path}", None if body is None else json.dumps(body).encode(), method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=BEGIN_SECONDS) as answer:  # noqa: S310 (the same)
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise OSError(f"the emulator says {error}: {error.read()!r}") from error


class Clouds:
    """The accounts of a campaign: as many as runs go on at a time, made when they are needed. Safe for threads.

    Args:
        make: an account that was not begun yet.
    """

    def __init__(self, make: Callable[[], Cloud]) -> None:
        self._make = make
        self._free: list[Cloud] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lent(self) -> Iterator[_Lent]:
        """Lend an account to one run, which says whether it may be lent again.

        Raises:
            OSError: none can be made.
        """
        with self._lock:
            cloud = self._free.pop() if self._free else None
        lent = _Lent(cloud or self._make().__enter__())
        try:
            lent.cloud.begin()
            yield lent
        except BaseException:
            lent.spoilt = True
            raise
        finally:
            if lent.spoilt:
                lent.cloud.close()
            else:
                with self._lock:
                    self._free.append(lent.cloud)

    def close(self) -> None:
        """End every account. Idempotent."""
        with self._lock:
            for cloud in self._free:
                cloud.close()
            self._free.clear()


class _Lent:
    """An account that is lent, and whether somebody spoilt it."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud, self.spoilt = cloud, False


def _tagged(kind: str, tags: dict[str, str]) -> dict[str, str]:
    if not tags:
        return {}
    found = {"TagSpecification.1.ResourceType": kind}
    for number, (key, value) in enumerate(sorted(tags.items()), 1):
        found[f"TagSpecification.1.Tag.{number}.Key"], found[f"TagSpecification.1.Tag.{number}.Value"] = key, value
    return found
