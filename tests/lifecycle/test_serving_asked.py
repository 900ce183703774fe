"""Asking for a serving change: what is written ahead, and what is refused before anything is written."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest

from mlinfra_prefect.artifacts import Lineage
from mlinfra_prefect.errors import (
    ArtifactCorrupted,
    EndpointExists,
    InvalidInput,
    LeaseHeld,
    MlinfraError,
    NotFound,
    RolloutHeld,
)
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle import serving, versions
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.serving import ServingAsked, ask_to_serve, canary_shares
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import Client, State
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import ServingRequest
from mlinfra_prefect.testing.records import sample_artifact

Ask = Callable[..., ServingAsked]


@pytest.fixture
def model(context: Context) -> ModelArtifact:
    """A stored artifact of a format whose content nobody looks into before it is served."""
    incoming = context.artifacts.incoming("l0-1", "j1")
    (incoming / "files").mkdir(parents=True)
    content = b"def load(path): ...\n"
    (incoming / "files" / "predictor.py").write_bytes(content)
    entry = {"path": "predictor.py", "sha256": sha256(content).hexdigest(), "size": len(content)}
    (incoming / "manifest.json").write_text(
        json.dumps({"files": [entry], "metrics": {}, "draft": {"format": "python"}})
    )
    lineage = Lineage(
        name="churn", lease_id="l0-1", environment="dev", code_hash="c", request_hash="r", environment_hash="e",
        versions={},
    )  # fmt: skip
    return context.artifacts.commit(incoming, lineage)


@pytest.fixture
def asks(context: Context, model: ModelArtifact) -> Ask:
    """Asks for `churn` to be served, as a client that is nobody."""

    def ask(artifact: ModelArtifact = model, **given: Any) -> ServingAsked:
        options = {
            name: given.pop(name) for name in ("canary", "probe", "promote", "announce", "withdraw") if name in given
        }
        wanted = ServingRequest(**{"name": "churn", "predictor": "predictor.py:load", **given})
        owner = Owner(user="ada", host="laptop")
        return ask_to_serve(context, artifact, wanted, owner=owner, client=Client(kind="none"), **options)

    return ask


def kept(context: Context) -> list[tuple[KeptRecord, int]]:
    return [(seen.record, seen.version) for seen in context.ledger.records()]


def test_the_first_deployment_writes_an_endpoint_and_its_first_rollout(context: Context, asks: Ask) -> None:
    """Both are durable, with name and ports held, before anything runs; the endpoint names version 1 as deploying."""
    found = asks(replicas=2, canary=[10, 50, 100])
    endpoint, rollout = context.endpoint("churn"), found.rollout
    assert (found.endpoint.id, endpoint.state, rollout.state) == (endpoint.id, State.REQUESTED, State.REQUESTED)
    assert (rollout.endpoint, rollout.version, rollout.shares, rollout.promote) == (endpoint.id, 1, (10, 50), True)
    (version,) = endpoint.versions
    assert (version.version, version.share, version.state) == (1, 0, "deploying")
    assert (version.rollout, version.urls, version.sha256) == (rollout.id, rollout.urls, rollout.artifact.sha256)
    assert context.ledger.holder("endpoint:dev:churn") == context.ledger.holder(f"port:{endpoint.port}") == endpoint.id
    assert len({*rollout.ports, endpoint.port}) == 3
    assert {context.ledger.holder(f"port:{port}") for port in rollout.ports} == {rollout.id}


def test_a_version_that_may_scale_has_the_ports_of_all_and_one_file_for_their_number(
    context: Context, asks: Ask
) -> None:
    """All are reserved before anything runs; as many at most as at least is no scaling."""
    rollout = asks(replicas=1, max_replicas=3, target_in_flight=2.5).rollout
    (version,) = context.endpoint("churn").versions
    assert len(set(rollout.ports)) == 3
    assert version.urls == rollout.urls
    scale = version.scale
    assert scale is not None
    assert (scale.least, scale.most, scale.target) == (1, 3, 2.5)
    assert scale.file == str(context.home.record_dir(rollout.id) / "replicas.json")
    same = asks(name="other", replicas=2, max_replicas=2)
    assert len(same.rollout.ports) == 2
    assert context.endpoint("other").versions[0].scale is None


def test_a_later_deployment_writes_a_rollout_and_leaves_the_url(context: Context, asks: Ask) -> None:
    """Version 2 of the same endpoint, on ports of its own; the endpoint is not made again."""
    first = asks()
    versions.promote(context, first.rollout.endpoint, 1)
    url = context.endpoint("churn").url
    second = asks(port=context.endpoint("churn").port)
    assert second.endpoint is None
    assert (second.rollout.endpoint, second.rollout.version) == (first.rollout.endpoint, 2)
    endpoint = context.endpoint("churn")
    assert endpoint.url == url
    assert [(v.version, v.share, v.state.value) for v in endpoint.versions] == [
        (1, 100, "serving"), (2, 0, "deploying"),
    ]  # fmt: skip
    assert not {*first.rollout.ports} & {*second.rollout.ports}


@pytest.mark.parametrize(
    ("canary", "shares"),
    [(None, ()), (10, (10,)), (100, ()), ([], ()), ([100], ()), ([10, 50, 100], (10, 50)), ((1, 99), (1, 99))],
)
def test_a_hundred_percent_at_the_end_is_the_promotion(canary: object, shares: tuple[int, ...]) -> None:
    """The steps before it are what is probed."""
    assert canary_shares(canary) == shares


@pytest.mark.parametrize(
    "canary", [0, 101, -1, True, 10.0, "10", "ten", [10, 10], [50, 10], [0, 50], [10, "50"], [10, None], {"a": 1}, b"a"]
)
def test_a_canary_that_makes_no_sense_names_the_field(canary: object) -> None:
    """And says how it is written."""
    with pytest.raises(InvalidInput, match=r"^canary: .*(Write canary=\[10, 50, 100\])"):
        canary_shares(canary)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def changed(model: ModelArtifact) -> None:
    (model.path / "predictor.py").write_bytes(b"def load(path): pass")


@pytest.mark.parametrize("standing", [False, True], ids=["first", "second"])
@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda asks, model, _: (changed(model), asks()), ArtifactCorrupted, r"predictor\.py"),
        (lambda asks, *_: asks(sample_artifact(format="python")), NotFound, "a0f3c5d7e9b1a2c4d6e8f"),
        (lambda asks, *_: asks(sample_artifact(format="gguf"), predictor=None), InvalidInput, "^model: .*gguf"),
        (lambda asks, *_: asks(predictor=None), InvalidInput, r"^serving\.predictor: "),
        (lambda asks, _, taken: asks(port=taken), InvalidInput, r"^(serving\.)?port: "),
        (lambda asks, *_: asks(canary=[50, 10]), InvalidInput, "^canary: "),
        (lambda asks, *_: asks(trusted_types=("a.B",)), InvalidInput, r"^serving\.trusted_types: "),
        (lambda asks, *_: asks(environment="nowhere"), MlinfraError, "nowhere"),
    ],
    ids=["hash changed", "not stored", "format", "no predictor", "port in use", "canary", "types", "environment"],
)
def test_what_cannot_be_served_is_refused_before_anything_is_written(
    context: Context, asks: Ask, model: ModelArtifact, taken: int, wrong: Any, error: type[MlinfraError], says: str,
    standing: bool,
) -> None:  # fmt: skip
    """One clear error; the ledger is as it was, and so is what serves."""
    if standing:
        versions.promote(context, asks().rollout.endpoint, 1)
    before = kept(context)
    with pytest.raises(error, match=says):
        wrong(asks, model, taken)
    assert kept(context) == before


def test_a_second_rollout_is_refused_while_one_is_in_flight(context: Context, asks: Ask) -> None:
    """It is told which version is in its way; nothing of it is written."""
    first = asks()
    before = kept(context)
    with pytest.raises(RolloutHeld, match=f"version 1 of endpoint 'churn'.*{first.rollout.id}"):
        asks()
    assert kept(context) == before


def test_an_endpoint_that_is_given_back_takes_no_version(context: Context, asks: Ask) -> None:
    """Its name is free when it is gone."""
    first = asks()
    begin_release(context, first.rollout.endpoint, reason="done", drain=False)
    before = kept(context)
    with pytest.raises(EndpointExists, match="being given back.*Try again"):
        asks()
    assert kept(context) == before


def test_whoever_is_slower_takes_the_endpoint_that_the_faster_one_made(
    context: Context, asks: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two first deployments at once: one endpoint, one rollout; what the slower one announced it withdraws."""
    real, told = serving._create_endpoint, []
    slower: dict[str, Any] = {
        "announce": lambda record: told.append(("announced", record.id)),
        "withdraw": lambda record: told.append(("withdrawn", record.id)),
    }

    def late(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(serving, "_create_endpoint", real)
        asks()  # the faster one, between the look and the write of the slower one
        return real(*args, **options)

    monkeypatch.setattr(serving, "_create_endpoint", late)
    with pytest.raises(RolloutHeld):
        asks(**slower)
    (endpoint, _), (rollout, _) = kept(context)
    assert [line for line, _ in told] == ["announced", "withdrawn"]
    assert (endpoint.kind, rollout.kind, endpoint.live, rollout.live) == ("endpoint", "rollout", True, True)


def test_an_endpoint_whose_first_rollout_cannot_be_written_is_given_back(
    context: Context, asks: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is left with an empty endpoint that holds a name."""

    def full(*_: Any, **__: Any) -> Any:
        raise LeaseHeld("The disk is full.")

    monkeypatch.setattr(serving, "_create_rollout", full)
    with pytest.raises(LeaseHeld, match="disk is full"):
        asks()
    ((endpoint, _),) = kept(context)
    assert (endpoint.state, endpoint.reason, endpoint.error) == (State.RELEASING, "The disk is full.", "LeaseHeld")


def test_a_rollout_that_lost_the_race_into_its_endpoint_is_given_back(
    context: Context, asks: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record was written, and another one was named first: it goes, and what serves is as it was."""
    first = asks()
    versions.promote(context, first.rollout.endpoint, 1)
    real = serving.enter

    def late(here: Context, rollout: Any) -> Any:
        monkeypatch.setattr(serving, "enter", real)
        asks()
        return real(here, rollout)

    monkeypatch.setattr(serving, "enter", late)
    with pytest.raises(RolloutHeld):
        asks()
    rollouts = [record for record, _ in kept(context) if record.kind == "rollout"]
    assert [(r.version, r.state.value) for r in rollouts] == [(1, "requested"), (2, "releasing"), (3, "requested")]
    assert [(v.version, v.state.value) for v in context.endpoint("churn").versions] == [
        (1, "serving"), (3, "deploying"),
    ]  # fmt: skip
