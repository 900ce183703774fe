"""Hypothesis strategies for every record: a property is proved over what the types allow, not over one sample."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mlinfra_prefect.model.accelerator import KNOWN, MAX_COUNT, Accelerator
from mlinfra_prefect.model.artifact import ArtifactFile, ModelArtifact
from mlinfra_prefect.model.card import Card
from mlinfra_prefect.model.declaration import EndpointDeclaration, ServingDeclaration
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord, Version, VersionState
from mlinfra_prefect.model.environment import Caps, Environment
from mlinfra_prefect.model.lease import Attempt, AttemptState, Client, JobNote, Keeper, LeaseRecord, State
from mlinfra_prefect.model.offer import Offer, Plan, PlannedResource
from mlinfra_prefect.model.probe import ProbeRequest
from mlinfra_prefect.model.process import Owner, ProcessIdentity
from mlinfra_prefect.model.receipt import Receipt, Search
from mlinfra_prefect.model.record import Record
from mlinfra_prefect.model.request import ServingRequest, TrainingJob, TrainingRequest

ids = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
text = st.text(st.characters(codec="utf-8"), max_size=12)
line = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=12)
word = st.text("abcXYZ_09é", min_size=1, max_size=8)
variable = st.from_regex(r"[A-LN-Z_][A-Z0-9_]{0,12}", fullmatch=True)
sha256 = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
moment = st.datetimes(timezones=st.just(UTC))
amount = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
money = st.floats(min_value=0.01, max_value=1e5)
number = st.integers(min_value=1, max_value=2**40)
minutes = st.integers(min_value=1, max_value=43_200)
share = st.integers(min_value=0, max_value=100)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)
objects = st.dictionaries(text, values, max_size=3)
lines = st.lists(line, max_size=2).map(tuple)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Give the strategy's values, or None."""
    return st.none() | strategy


def some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Give none to two of the strategy's values."""
    return st.lists(strategy, max_size=2).map(tuple)


gpus = st.sampled_from([name for name in KNOWN if name != "cpu"])
counts = st.integers(1, MAX_COUNT)
accelerators = st.just(Accelerator(name="cpu", count=0)) | st.builds(Accelerator, name=gpus, count=counts)
markets = st.sampled_from(["on-demand", "spot", "reserved"])
platforms = maybe(st.just("local"))
requests = st.builds(
    TrainingRequest,
    accelerator=accelerators,
    market=markets,
    name=ids,
    environment=ids,
    platform=platforms,
    max_minutes=maybe(minutes),
    max_usd=maybe(money),
    max_hourly_usd=maybe(money),
    on_client_lost=st.sampled_from(["checkpoint_then_release", "release_now"]),
    grace_seconds=st.floats(0.1, 3600),
) | st.builds(TrainingRequest, on_client_lost=st.just("keep"), keep_minutes=minutes)
jobs = st.builds(
    TrainingJob,
    target=st.builds("{}:{}".format, word, word) | st.lists(word, min_size=1, max_size=3).map(tuple),
    params=objects,
    inputs=st.dictionaries(variable, line, max_size=2),
    secrets=st.dictionaries(
        variable,
        st.builds("{}{}".format, st.sampled_from(["env:", "aws-sm:", "ssm:/"]), variable)
        | st.builds("aws-sm:{}#{}".format, variable, variable),
        max_size=2,
    ),
    requirements=st.lists(word, max_size=2).map(tuple),
    resume=maybe(line),
    grace_seconds=maybe(st.floats(0.1, 3600)),
    progress_timeout_minutes=maybe(st.floats(0.1, 43_200)),
)
servings = st.builds(
    ServingRequest,
    name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True),
    environment=ids,
    platform=platforms,
    expires_minutes=maybe(minutes),
    port=maybe(st.integers(1024, 65_535)),
    ready_seconds=st.floats(1, 3600),
    predictor=maybe(st.just("serve/it.py:predict")),
)
caps = st.builds(
    Caps,
    max_minutes=maybe(minutes),
    max_usd=maybe(money),
    max_hourly_usd=maybe(money),
    max_gpus=maybe(st.integers(0, 99)),
    max_leases=maybe(number),
)
environments = st.builds(
    Environment,
    name=ids,
    caps=caps,
    input_roots=some(word.map(lambda name: Path("/data") / name)),
    keeper_place=maybe(st.sampled_from(["process", "foreground", "service"])),
)
offers = st.builds(
    Offer,
    type=line,
    region=line,
    zones=lines,
    market=markets,
    usd_per_hour=amount,
    gpus=st.integers(0, 16),
    skipped=maybe(line),
)
plans = st.builds(
    Plan,
    request=requests,
    platform=line,
    offers=some(offers),
    offer=offers,
    stack=line,
    engine=line,
    resources=some(st.builds(PlannedResource, address=line, type=line, action=line)),
    max_minutes=number,
    estimate_usd=amount,
    code_files=lines,
    code_bytes=number,
    made_at=moment,
)
processes = st.builds(ProcessIdentity, host=line, boot=line, pid=number, start_time=text)
owners = st.builds(Owner, user=line, host=line, flow=maybe(line), flow_run=maybe(line), task_run=maybe(line))
attempts = st.builds(
    Attempt,
    number=number,
    state=st.sampled_from(AttemptState),
    offer=offers,
    stack=line,
    directory=text,
    node_dir=text,
    resources=lines,
    operation=maybe(line),
    operation_deadline=maybe(moment),
    applied_at=maybe(moment),
)
receipts = st.builds(
    Receipt,
    kind=st.sampled_from(["lease", "endpoint", "rollout"]),
    id=ids,
    ledger_id=line,
    reason=line,
    attempts=number,
    created=lines,
    destroyed=lines,
    searches=some(st.builds(Search, what=line, where=line, at=moment, found=lines, ended=lines)),
    requested_at=moment,
    released_at=moment,
    up_seconds=amount,
    trained_seconds=amount,
    idle_seconds=amount,
    cost_usd=amount,
)
artifacts = st.builds(
    ModelArtifact,
    id=ids,
    name=line,
    format=line,
    uri=line,
    sha256=sha256,
    files=some(st.builds(ArtifactFile, path=word, sha256=sha256, size=number)),
    metrics=st.dictionaries(text, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    params=objects,
    metadata=objects,
    versions=st.dictionaries(text, text, max_size=2),
    lease_id=ids,
    environment=ids,
    code_hash=text,
    request_hash=text,
    environment_hash=text,
    resumed_from=maybe(line),
    resumed_across_code=st.booleans(),
    created_at=moment,
)
kept: dict[str, st.SearchStrategy[Any]] = {
    "id": ids,
    "ledger_id": line,
    "name": ids,
    "environment": ids,
    "platform": line,
    "owner": owners,
    "state": st.sampled_from(State),
    "reason": line,
    "generation": number,
    "keeper": maybe(st.builds(Keeper, place=st.sampled_from(["process", "service"]), process=processes)),
    "client": st.builds(Client, kind=st.just("process"), process=processes, lost_at=maybe(moment)),
    "attempts": some(attempts),
    "created_at": moment,
    "renewed_until": moment,
    "ready_at": maybe(moment),
    "failures": number,
    "drain": st.booleans(),
    "receipt": maybe(receipts),
}
leases = st.builds(
    LeaseRecord,
    **kept,
    base=ids,
    round=number,
    request=requests,
    request_hash=text,
    deadline=moment,
    resume_holds=lines,
    jobs=some(st.builds(JobNote, job_id=ids, label=line, state=line, started_at=maybe(moment))),
)
endpoints = st.builds(
    EndpointRecord,
    **kept,
    serving=servings,
    url=line,
    port=st.integers(1, 65_535),
    expires_at=maybe(moment),
    versions=some(
        st.builds(
            Version, version=number, share=share, state=st.sampled_from(VersionState), sha256=sha256, artifact=artifacts
        )
    ),
)
probes = st.builds(ProbeRequest, seconds=st.floats(0, 86400), max_error_rate=st.floats(0, 1), samples=some(values))
rollouts = st.builds(
    RolloutRecord,
    **kept,
    endpoint=ids,
    version=number,
    serving=servings,
    artifact=artifacts,
    ports=some(st.integers(1, 65_535)),
    shares=some(share),
    probe=probes,
    until=moment,
    due=maybe(moment),
)
cards = st.builds(
    Card,
    kind=st.sampled_from(["lease", "endpoint", "rollout"]),
    id=ids,
    generation=number,
    state=text,
    client_pid=maybe(number),
    client_start_time=maybe(text),
    client_fifo=maybe(text),
    due=maybe(amount),
    renew=st.booleans(),
    lock_files=some(text),
)

declarations = st.builds(
    ServingDeclaration,
    endpoints=st.lists(
        st.builds(
            EndpointDeclaration,
            name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True),
            replicas=maybe(st.integers(1, 16)),
            retire_seconds=maybe(st.floats(0, 600)),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda each: each.name,
    ).map(tuple),
)

BY_MODEL: dict[type[Record], st.SearchStrategy[Any]] = {
    TrainingRequest: requests,
    TrainingJob: jobs,
    ServingRequest: servings,
    Environment: environments,
    Offer: offers,
    Plan: plans,
    LeaseRecord: leases,
    EndpointRecord: endpoints,
    RolloutRecord: rollouts,
    ProbeRequest: probes,
    ServingDeclaration: declarations,
    ModelArtifact: artifacts,
    Receipt: receipts,
    Card: cards,
}
