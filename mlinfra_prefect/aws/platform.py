"""The platform AWS: an instant fleet is the node of an attempt, and its mailbox lies in the artifact bucket.

What Terraform makes is small (a launch template and a fleet) and carries our tags from birth, so everything here can be
found again from the tags alone: no release waits for a state that is lost. Training only: what is served lives on
another platform.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlinfra_prefect.agent.archive import build_archive
from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.agent.leftovers import keep_logs_only
from mlinfra_prefect.aws import (
    environment as environments,
    fleets,
    granting,
    images,
    kinds,
    meter,
    offers,
    rungs,
    snapshot,
    sweeping,
    tags,
)
from mlinfra_prefect.aws.asking import Refused
from mlinfra_prefect.aws.environment import AwsEnvironment
from mlinfra_prefect.aws.node import BucketNode, NoNode
from mlinfra_prefect.aws.prices import HOURS_IN_MONTH
from mlinfra_prefect.aws.sdk import client, link, refused
from mlinfra_prefect.aws.training_only import TrainingOnly, not_served
from mlinfra_prefect.errors import InvalidInput, NodeLost, NotYetDestroyed, PermanentError
from mlinfra_prefect.model.endpoint import KeptRecord, account_of
from mlinfra_prefect.model.environment import AwsSettings
from mlinfra_prefect.model.lease import Attempt, LeaseRecord
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.receipt import Search
from mlinfra_prefect.model.record import moment
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.model.stack import Found, Late, PartlyEnded, StackInput

AGENT_URL_SECONDS = 3600
"""For how long a node that boots may fetch the agent's archive."""
MAILBOX_TRIES = 6
"""Of one call: a job that is handed over while S3 throttles waits some seconds instead of failing."""
LATE_LOOKS = (30.0, 60.0, 120.0, 300.0, 600.0)
"""EC2 shows a machine within seconds of its launch, usually, and launches what it has taken on within minutes."""
POLL_SECONDS = 0.25
LOOK_SECONDS = 10.0
"""How often a machine that has not reported yet is looked at: it may be gone."""
ENDPOINT_VARIABLE = "AWS_ENDPOINT_URL"


class AwsPlatform(TrainingOnly):
    """See `lifecycle.platform.Platform`.

    Args:
        cache: what can be made again: prices, types, the agent's archive.
        place: of the home, where initialised environments are noted.
        stacks: the package's root modules.
        settings: the project's settings for an environment, by its name.
        here: a moment of the ledger's clock as epoch seconds of this host's.
    """

    name = "aws"
    found_by_mark = True
    most_attempts = 12
    destroys_later = True
    late_looks = LATE_LOOKS
    has_packages_of_flow = False

    def __init__(
        self, *, cache: Path, place: Path, stacks: Path, settings: Callable[[str], AwsSettings],
        here: Callable[[datetime], float] = datetime.timestamp,
    ) -> None:  # fmt: skip
        self._cache, self._place, self._stacks = cache, place, stacks
        self._settings, self._here = settings, here
        self.remarks: tuple[str, ...] = ()

    @property
    def emulated(self) -> bool:
        """Whether AWS is emulated on this host: what is rented ends with it."""
        host = urlsplit(os.environ.get(ENDPOINT_VARIABLE, "")).hostname or ""
        return host in {"127.0.0.1", "localhost", "::1"}

    @property
    def settle_seconds(self) -> float:
        """How long a machine and its disk usually take to go: at once where it is emulated."""
        return 10.0 if self.emulated else 240.0

    @property
    def consistency_seconds(self) -> float:
        """How long EC2 may take to show what was made: less where it is emulated."""
        return 0.5 if self.emulated else 10.0

    # --- before anything exists ---------------------------------------------------------------------------------------

    def offers(self, request: TrainingRequest) -> tuple[Offer, ...]:
        """The ladder: types, zones and regions, best first; those that cannot be taken say why."""
        made = self.environment(request.environment)
        settings = self._settings(request.environment)
        wanted = settings.regions or tuple(each.name for each in made.regions)
        if request.ami is not None:
            wanted = _with_image(request, wanted)
        zones = {name: tuple(sorted(made.region(name).subnets)) for name in wanted}
        public = any(made.region(name).public_ip for name in wanted)
        return offers.find(request, zones, cache=self._cache / "aws", disk_gib=settings.disk_gib, public_ip=public)

    def environment(self, name: str) -> AwsEnvironment:
        """What `init aws` made for an environment.

        Raises:
            NotInitialised: nothing yet.
        """
        return environments.load(name, self._place)

    def python_of(self, request: TrainingRequest) -> str | None:
        """That of the default images; an image that a request names may have any, and so has an emulated machine."""
        return None if request.ami is not None or self.emulated else images.PYTHON

    def take_secrets(self, environment: str, references: Mapping[str, str]) -> Mapping[str, str]:
        """The references, for the node resolves them with its role. Each must be granted by the environment.

        Raises:
            InvalidInput: one is a variable of the flow's process, is malformed, or is not granted.
        """

        def known() -> AwsEnvironment:
            return self.environment(environment)

        return granting.take(
            references, known, lambda: environments.reload(environment, self._place, known().home_region)
        )

    def account(self, environment: str) -> str:
        """The account that an environment was initialised in, and that this process is logged in to now.

        Asked each time: prices and quotas are remembered, and a login can have expired since.

        Raises:
            PermanentError: this process is logged in to another account.
            MlinfraError: it is logged in to none.
        """
        made, mine = self.environment(environment).account, environments.account()
        if mine != made:
            raise PermanentError(
                f"Environment {environment!r} is in account {made}, and this login is of account {mine}. "
                "Nothing was created.",
                f"Log in to account {made}, or make an environment there: mlinfra-prefect init aws",
            )
        return made

    def check_login(self, record: KeptRecord) -> None:
        """In another account nothing of a record is there, which must not read as gone.

        Raises:
            PermanentError: this process is logged in to another account, or to none.
        """
        account = account_of(record)
        mine = environments.account_here()
        if account and mine != account:
            raise PermanentError(
                f"{record.id} is in account {account}, and this login is of account {mine}: nothing of it can be seen.",
                f"Log in to account {account} and release it again: mlinfra-prefect release {record.id}",
            )

    def stack(self, record: KeptRecord, attempt: Attempt) -> StackInput:
        """The stack of an attempt: its fleet, and what its nodes are told. Puts the agent's archive into the bucket."""
        lease = _lease(record)
        self.check_login(record)
        made = self.environment(record.environment)
        rung = attempt.candidates or (attempt.offer,)
        deadline = self._here(lease.deadline)
        ids = {"ledger_id": record.ledger_id, "lease_id": record.id, "attempt": attempt.number}
        told = rungs.boot(
            made, rung, self._agent(made), endpoint=os.environ.get(ENDPOINT_VARIABLE, ""), ids=ids, deadline=deadline
        )
        marks = tags.of(lease, attempt.number)
        mlinfra = {**ids, "deadline": str(deadline), "environment": record.environment, "tags": marks}
        left = deadline - time.time()
        return self._stack_input(lease.request, rung, made, mlinfra=mlinfra, boot=told, seconds_left=left)

    def plan_stack(self, request: TrainingRequest, rung: tuple[Offer, ...]) -> StackInput:
        """The same stack with placeholders; creates nothing."""
        made = self.environment(request.environment)
        agent = rungs.Agent("https://planned.invalid/agent.pyz", "0" * 64)
        ids = {"ledger_id": "plan", "lease_id": "plan", "attempt": 1}
        told = rungs.boot(made, rung, agent, endpoint="", ids=ids, deadline=0.0)
        marks = tags.planned(request.environment)
        mlinfra = {**ids, "deadline": "", "environment": request.environment, "tags": marks}
        left = 60.0 * request.life_minutes
        return self._stack_input(request, rung, made, mlinfra=mlinfra, boot=told, seconds_left=left)

    def _stack_input(
        self, request: TrainingRequest, rung: tuple[Offer, ...], made: AwsEnvironment, *,
        mlinfra: Mapping[str, Any], boot: str, seconds_left: float,
    ) -> StackInput:  # fmt: skip
        image = images.lookup_image(rung[0].region, "gpu" if rung[0].gpus else "cpu", request.ami)
        remarks = (*self.remarks, image.remark, self._other_python(request))
        self.remarks = tuple(dict.fromkeys(filter(None, remarks)))
        settings, region = self._settings(request.environment), made.region(rung[0].region)
        beside = snapshot.disk_usd_per_gib_month(region.name) * settings.disk_gib / HOURS_IN_MONTH
        beside += snapshot.address_usd_per_hour() if region.public_ip else 0.0
        return StackInput(
            name="aws-gpu",
            root_module=self._stacks / "aws-gpu",
            variables=rungs.variables(
                mlinfra, rung, made, image,
                disk_gib=settings.disk_gib, beside_usd=beside, boot=boot, seconds_left=seconds_left,
            ),
            within=self._stacks.parent,
            tags=dict(mlinfra["tags"]),
            egress=made.egress,
        )  # fmt: skip

    def _other_python(self, request: TrainingRequest) -> str:
        """What to know where nodes have another Python than this process; empty: the same, or nobody can say."""
        here, there = f"{sys.version_info.major}.{sys.version_info.minor}", self.python_of(request)
        if there in {None, here}:
            return ""
        return (
            f"Nodes have Python {there}, and this is Python {here}: functions sent by value are refused, and versions "
            f"in the project's requirements must be there for Python {there}."
        )

    def _agent(self, made: AwsEnvironment) -> rungs.Agent:
        archive = build_archive(self._cache)
        content = archive.read_bytes()
        s3, key = client("s3", made.home_region), f"agents/{archive.name}"
        try:
            # Always: whoever asks whether it is there pays as much, and what lies there may be somebody else's.
            s3.put_object(Bucket=made.artifact_bucket, Key=key, Body=content, ExpectedBucketOwner=made.account)
        except Exception as error:
            raise refused(error, f"writing s3://{made.artifact_bucket}/{key}") from error
        url = link(made.artifact_bucket, key, region=made.home_region, seconds=AGENT_URL_SECONDS)
        return rungs.Agent(url, hashlib.sha256(content).hexdigest())

    # --- what exists --------------------------------------------------------------------------------------------------

    def check_up(
        self, record: KeptRecord, attempt: Attempt, outputs: Mapping[str, Any], deadline: float,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Found:  # fmt: skip
        """Success is the machine that exists, whose agent reports, and which passed its acceptance test.

        Raises:
            CapacityUnavailable, QuotaExceeded: the fleet is empty, and that is why.
            PermanentError: the fleet is empty, and another one would be.
            NodeLost: the machine ended, did not report in time, or is unfit.
        """
        made, region = self.environment(record.environment), attempt.offer.region
        listed = tuple(str(each["id"]) for each in outputs.get("nodes") or ())
        zones = {subnet: zone for zone, subnet in made.region(region).subnets.items()}
        outcome = fleets.outcome(client, region, str(outputs["fleet_id"]), listed, zones=zones)
        if not outcome.instances:
            raise fleets.decision(outcome.errors)
        machine = outcome.instances[0]
        mailbox = f"s3://{made.artifact_bucket}/nodes/{made.node_role_id}:{machine.id}"
        node = self._open(mailbox, self._mirror(attempt))
        node.begin({"sync_seconds": 0.2} if self.emulated else {})
        self._wait(node, region, machine.id, deadline, wanted)
        return Found(
            nodes=tuple(each.id for each in outcome.instances),
            fleet=str(outputs["fleet_id"]),
            mailbox=mailbox,
            launched_at=machine.launched_at,
            offer=_became(attempt, machine),
        )

    def _wait(self, node: BucketNode, region: str, machine: str, deadline: float, wanted: Callable[[], bool]) -> None:
        look = time.monotonic() + LOOK_SECONDS
        while not node.ready():
            why = node.unfit()
            if why:
                raise NodeLost(f"The machine {machine} is unfit: {why}", "Another one is tried.")
            if time.time() >= deadline or not wanted():
                last = "its lease is not wanted any more" if time.time() < deadline else "its time was over"
                raise NodeLost(f"The machine {machine} in {region} did not report before {last}. {node.why_gone()}")
            if time.monotonic() >= look:
                if not fleets.alive(client, region, machine):
                    raise NodeLost(f"The machine {machine} in {region} ended while it booted. {node.why_gone()}")
                look = time.monotonic() + LOOK_SECONDS
            time.sleep(POLL_SECONDS)

    def is_up(self, record: KeptRecord, attempt: Attempt) -> bool:
        """Whether its node lives; of one that nobody has spoken to yet, whether there is a machine."""
        self.check_login(record)
        if attempt.mailbox is not None:
            return self.node(attempt).alive()
        selection = tags.of_lease(record.ledger_id, record.id, attempt.number)
        try:
            return any(each.lives for each in kinds.describe(client, attempt.offer.region, kinds.INSTANCE, selection))
        except Refused as why:
            raise why.error(f"Looking for the machines of {record.id}/{attempt.number}") from why

    def node(self, attempt: Attempt) -> BucketNode | NoNode:
        """The node of an attempt; one that was never up says so."""
        if attempt.mailbox is None:
            return NoNode(self._mirror(attempt))
        return self._open(attempt.mailbox, self._mirror(attempt))

    def _mirror(self, attempt: Attempt) -> Path:
        """Where what a node says is read: in this home, whichever host has begun with it."""
        return self._place.parent.joinpath("work", *Path(attempt.node_dir).parts[-3:])

    @staticmethod
    def _open(mailbox: str, directory: Path) -> BucketNode:
        private_folder(directory)
        bucket, _, prefix = mailbox.removeprefix("s3://").partition("/")
        return BucketNode(directory, client("s3", region_of(bucket), tries=MAILBOX_TRIES), bucket, prefix)

    def stop_meter(self, record: KeptRecord, attempt: Attempt) -> None:
        """End its machines: the fleet by its id, and whatever carries its tags. Idempotent; waits for nothing."""
        if attempt.applied_at is None:
            return
        self.check_login(record)
        meter.stop(
            client, attempt.offer.region, ledger_id=record.ledger_id, lease_id=record.id, attempt=attempt.number,
            fleet_id=attempt.fleet, instance_ids=attempt.nodes, spot=attempt.offer.market == "spot",
        )  # fmt: skip

    def end_late(self, record: KeptRecord, attempts: Sequence[Attempt]) -> tuple[Late, ...]:
        """End the machines of these attempts that appeared late. One call for each region, two where it was spot."""
        self.check_login(record)
        found: list[Late] = []
        problem: NotYetDestroyed | None = None
        for region in dict.fromkeys(each.offer.region for each in attempts):
            there = [each for each in attempts if each.offer.region == region]
            ended, refused_there = meter.stop_late(
                client, region, ledger_id=record.ledger_id, lease_id=record.id,
                attempts={each.number for each in there}, spot=any(each.offer.market == "spot" for each in there),
            )  # fmt: skip
            found += [Late(each.marks.attempt or 0, each.id, moment(each.created)) for each in ended]
            problem = problem or refused_there
        if problem is not None:
            raise PartlyEnded(problem.message, problem.remedy, found=tuple(found))
        return tuple(found)

    def sweep(self, record: KeptRecord) -> Search:
        """Look for anything that carries the record's tags, in every region that any attempt named, and end it."""
        regions = tuple(dict.fromkeys(each.offer.region for each in record.attempts if each.applied_at is not None))
        if regions:
            self.check_login(record)
        found: list[str] = []
        ended: list[str] = []
        going: list[str] = []
        for region in regions:
            known = tuple(each.fleet for each in record.attempts if each.fleet and each.offer.region == region)
            seen = sweeping.search(client, region, ledger_id=record.ledger_id, lease_id=record.id, fleets=known)
            refusals = {each.name: str(each) for each in seen.refused}
            found += [refusals.get(name, name) for name in seen.found]
            ended += seen.ended
            going += seen.going
        return Search(
            what=f"{sweeping.KINDS} tagged {tags.LEDGER}={record.ledger_id}, {tags.LEASE}={record.id}",
            where=as_line(", ".join(regions) or "no region: nothing was applied"),
            at=datetime.now(UTC),
            found=tuple(map(as_line, found)),
            ended=tuple(map(as_line, ended)),
            going=tuple(map(as_line, going)),
        )

    def tidy(self, record: KeptRecord, attempt: Attempt) -> None:
        """Keep a released node's logs; delete its mirror and its mailbox. Idempotent; files never stop a release.

        A mailbox stays in which something lies that could not be kept: the bucket forgets it after its days.
        """
        left = {each.left_at for each in record.jobs} if isinstance(record, LeaseRecord) else set()
        if attempt.mailbox is not None and attempt.mailbox not in left:
            with contextlib.suppress(Exception):  # the bucket forgets mailboxes by itself, after some days
                self._open(attempt.mailbox, self._mirror(attempt)).empty()
        keep_logs_only(self._mirror(attempt), attempt.number)


def region_of(bucket: str) -> str:
    """The region of a bucket of ours: its name ends with account and region. Pure."""
    found = re.search(r"-\d{12}-(.+)$", bucket)
    assert found is not None  # `environment.artifact_bucket` made it
    return found[1]


def _with_image(request: TrainingRequest, regions: tuple[str, ...]) -> tuple[str, ...]:
    """The regions that have the image that a request names: an id is of one region, unless it was copied.

    Raises:
        InvalidInput: none of them has it, or it cannot serve.
    """
    found: list[str] = []
    problem: InvalidInput | None = None
    for region in regions:
        try:
            images.lookup_image(region, "gpu" if request.accelerator.count else "cpu", request.ami)
            found.append(region)
        except InvalidInput as error:
            problem = problem or error
    if problem is not None and not found:
        raise problem
    return tuple(found)


def _became(attempt: Attempt, machine: fleets.Machine) -> Offer | None:
    for offer in attempt.candidates or (attempt.offer,):
        if offer.type == machine.type:
            return offer.revised(zones=(machine.zone,))
    return None


def _lease(record: KeptRecord) -> LeaseRecord:
    if not isinstance(record, LeaseRecord):
        not_served()
    return record
