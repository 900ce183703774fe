"""The table of shipped deployments: exact names, forms of flat scalars, and a prefect.yaml that says the same."""

from __future__ import annotations

import inspect
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.events import DeploymentTriggerTypes
from prefect.events.schemas.automations import Posture
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from pydantic import TypeAdapter

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.flows import digits, model_lifecycle as lifecycle
from mlinfra_prefect.flows.reap import told
from mlinfra_prefect.integration.automations import ENDED, release_run, release_triggers
from mlinfra_prefect.integration.deployments import deployment_of, shipped
from mlinfra_prefect.keeper.reap import Finding, Pass
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Client, LeaseRecord
from mlinfra_prefect.model.process import Owner, ProcessIdentity
from mlinfra_prefect.testing.records import sample_lease

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_HEARTBEAT = 180
TRIGGER: TypeAdapter[Any] = TypeAdapter(DeploymentTriggerTypes)
RUN, OTHER_RUN = "0b6f8f1e-7f0a-4d0e-9a53-0f6f6c1d2b11", "11111111-7f0a-4d0e-9a53-0f6f6c1d2b11"


def test_the_names_are_fixed() -> None:
    """People and other programs start them by these names."""
    assert [each.full_name for each in shipped()] == [
        "model-lifecycle/on-demand", "model-lifecycle/nightly", "model-lifecycle/on-dataset", "reap/every-minute",
        "release/for-run",
    ]  # fmt: skip


@pytest.mark.parametrize("each", shipped(), ids=lambda each: each.full_name)
def test_a_deployment_names_a_flow_of_its_name_by_module_path(each) -> None:
    """A colon would make Prefect look for a file in the worker's directory, where the wheel's modules are not."""
    assert ":" not in each.entrypoint
    flow = load_flow_from_entrypoint(each.entrypoint, use_placeholder_flow=False)
    assert flow.name == each.flow
    made = deployment_of(each, "pool", "UTC")
    assert made.entrypoint == each.entrypoint
    assert made.storage is None
    flow.validate_parameters(
        {**dict.fromkeys({"flow_run_id"} & set(flow.parameters.properties), RUN), **each.parameters}
    )


@pytest.mark.parametrize("entrypoint", sorted({each.entrypoint for each in shipped()}))
def test_every_parameter_is_a_flat_scalar_with_a_sentence(entrypoint) -> None:
    """Scalars render as fields; a model, a list or a union would not fit one line of a form."""
    flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    schema = parameter_schema(flow)
    assert not schema.definitions
    assert list(schema.properties) == list(inspect.signature(flow.fn).parameters)
    for name, field in schema.properties.items():
        assert field["type"] in {"string", "integer", "number", "boolean"}, name
        assert field["description"].endswith("."), name


def test_prefect_yaml_says_what_the_table_says() -> None:
    """`prefect deploy --all` in a checkout and `register` from a wheel make the same deployments."""
    written = PrefectYamlModel.model_validate(yaml.safe_load((CHECKOUT / "prefect.yaml").read_text()))
    table = shipped(heartbeat_seconds=DEFAULT_HEARTBEAT)
    assert written.pull == []
    assert [each.name for each in written.deployments] == [each.name for each in table]
    for there, here in zip(written.deployments, table, strict=True):
        assert (there.entrypoint, there.description, there.parameters) == (
            here.entrypoint, here.description, dict(here.parameters),
        )  # fmt: skip
        assert [(each.cron, each.timezone, each.slug) for each in there.schedules or []] == (
            [(here.cron, "UTC", here.name)] if here.cron else []
        )
        limit = there.concurrency_limit
        assert (
            (limit.limit, limit.collision_strategy) == (here.limit, here.collision.value) if limit else not here.limit
        )
        assert [TRIGGER.validate_python(each) for each in there.triggers or []] == list(here.triggers)


def test_the_events_of_retraining_name_the_parameters_of_the_flow() -> None:
    """What an event's payload fills in are parameters that the form has, too."""
    (on_dataset,) = (each for each in shipped() if each.name == "on-dataset")
    form = set(inspect.signature(lifecycle.model_lifecycle.fn).parameters)
    events = {event for trigger in on_dataset.triggers for event in trigger.expect}
    assert events == {"mlinfra-prefect.dataset.updated", "mlinfra-prefect.drift.detected"}
    for trigger in on_dataset.triggers:
        assert set(trigger.parameters) <= form


def test_a_dead_run_starts_a_release_and_a_dead_release_does_not() -> None:
    """Leaving our own flows out is what keeps a release that crashes from starting releases for ever."""
    ended, silent = release_triggers(DEFAULT_HEARTBEAT)
    assert ended.expect == set(ENDED)
    assert (silent.posture, silent.within) == (Posture.Proactive, timedelta(seconds=3 * DEFAULT_HEARTBEAT))
    for trigger in (ended, silent):
        for flow, starts in (("churn", True), ("release", False), ("reap", False)):
            resource = {"prefect.resource.id": "prefect.flow.1", "prefect.resource.role": "flow"}
            assert all(spec.matches({**resource, "prefect.resource.name": flow}) for spec in trigger.match_related) is (
                starts
            )


def test_without_heartbeats_nobody_waits_for_them() -> None:
    """A run that sends none would be found silent always."""
    assert len(release_triggers(None)) == 1
    assert not next(each for each in shipped(automation=False) if each.flow == "release").triggers


@pytest.mark.parametrize(("canary", "shares"), [("", None), (" ", None), ("10,50,100", [10, 50, 100]), ("100", [100])])
def test_shares_are_read_from_one_line(canary, shares) -> None:
    assert lifecycle.shares(canary) == shares


@pytest.mark.parametrize("canary", ["50,10,100", "10,50", "0,100", "10;100", "ten", "10,10,100", "-1,100", "10,,100"])
def test_shares_that_make_no_sense_name_the_field(canary) -> None:
    with pytest.raises(InvalidInput, match=r"^canary: "):
        lifecycle.shares(canary)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"accelerator": "NOPE"}, "accelerator"),
        ({"accelerator": "/etc/request.yaml"}, "accelerator"),
        ({"canary": "100,10"}, "canary"),
        ({"endpoint": "../x"}, "endpoint"),
        ({"environment": "nowhere"}, "environment"),
        ({"dataset": "/nowhere.npz"}, "dataset"),
    ],
)
def test_a_wrong_form_names_its_field_before_anything_is_created(home, parameters, field) -> None:
    """Called without Prefect, as the run's body: one error, and a ledger without records."""
    with pytest.raises(InvalidInput) as error:
        lifecycle.model_lifecycle.fn(**parameters)
    assert error.value.field == field
    assert "\n" not in str(error.value)
    assert not Context(Home.from_environment()).ledger.records()


def test_a_data_set_of_your_own_is_split_like_the_shipped_one(tmp_path) -> None:
    """Same shape, same split; what is not a data set is named."""
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    assert all((a == b).all() for a, b in zip(digits.split(), digits.split(tmp_path / "own.npz"), strict=True))
    np.savez(tmp_path / "half.npz", images=images)
    np.savez(tmp_path / "wrong.npz", images=images[:, :10], labels=labels)
    for name, says in (("half", "has no labels"), ("wrong", r"not \(n, 64\)")):
        with pytest.raises(ValueError, match=says):
            digits.split(tmp_path / f"{name}.npz")


def test_what_is_stuck_makes_the_pass_red_and_what_is_quiet_says_one_line() -> None:
    """Unattended, a pass is either one line or a failure that says what and why."""
    assert told(Pass()).message == "Nothing to release."
    red = told(Pass(stuck=(Finding(id="l1", reason="no such region"),)))
    assert red.is_failed()
    assert "l1: no such region" in red.message


def lease_of(context: Context, name: str, run: str, client: Client) -> LeaseRecord:
    now = context.ledger.now()
    record = sample_lease(
        name, ledger_id=context.ledger.ledger_id, owner=Owner(user="ada", host="here", flow_run_id=run), client=client,
        keeper=None, created_at=now, renewed_until=now + timedelta(minutes=2), deadline=now + timedelta(hours=1),
    )  # fmt: skip
    context.ledger.create(record, actor="test", reason="asked for")
    return record


def dead_process() -> ProcessIdentity:
    ended = subprocess.Popen(["sleep", "60"])
    found = identify(ended.pid)
    ended.kill()
    ended.wait()
    return found


def test_only_what_a_dead_process_of_that_run_leased_is_released(home) -> None:
    """A live client, nobody's lease and another run's are left alone, and it is said why. Twice is as good as once."""
    context = Context(Home.from_environment())
    alive = Client(kind="process", process=identify())
    dead = lease_of(context, "dead", RUN, Client(kind="process", process=dead_process()))
    living = lease_of(context, "living", RUN, alive)
    nobodys = lease_of(context, "nobodys", RUN, Client(kind="none"))
    foreign = lease_of(context, "foreign", OTHER_RUN, alive)

    found = release_run(context, RUN, settle_seconds=60, reason="prefect.flow-run.Crashed")

    assert [each.id for each in found.released] == [dead.id]
    assert "prefect.flow-run.Crashed" in found.released[0].reason
    assert {each.id: each.reason for each in found.skipped} == {
        living.id: f"its client, pid {identify().pid}, is alive",
        nobodys.id: "it has no client, by design",
    }
    assert context.record(foreign.id).live
    assert not release_run(context, RUN, settle_seconds=60).released


@pytest.mark.parametrize("text", ["", "not-a-uuid", "../x", f"{RUN}\n\n{RUN}"])
def test_what_is_no_run_is_refused(home, text) -> None:
    with pytest.raises(InvalidInput, match=r"^flow_run_id: "):
        release_run(Context(Home.from_environment()), text, settle_seconds=0)
