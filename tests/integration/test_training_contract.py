"""What comes back from a node: results, models, metrics, errors, and the end of what does not end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import node_work
import pytest
from integration_harness import Asked, eventually, row

from mlinfra_prefect import Infra, ModelArtifact, TrainingJob, deploy, evaluate, lease, provision, release, train
from mlinfra_prefect.errors import BadMetrics, InvalidInput, NodeError, NoModel, TrainingStopped
from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.model.lease import State


@pytest.fixture(scope="module")
def infra(home: Path) -> Iterator[Infra]:
    """One node for all tests here that leave it alive."""
    with lease("cpu", max_minutes=10, name="shared", grace_seconds=0.2) as infra:
        yield infra


@pytest.fixture(scope="module")
def model(infra: Infra) -> ModelArtifact:
    return infra.run(node_work.fit, 0.75)


@row("run-model")
def test_a_function_that_returns_a_model_gives_the_stored_artifact(model: ModelArtifact, infra: Infra) -> None:
    """`ModelArtifact`: its files stored and verified in the flow's home, with metrics, parameters and lineage."""
    assert (model.path / "model.json").is_file()
    assert model.path.is_relative_to(context().home.artifacts)
    assert model.metrics == {"loss": 0.25}
    assert model.params == {"weight": 0.75}
    assert (model.lease_id, model.environment) == (infra.id, "dev")


@row("run-artifact-argument")
def test_a_model_goes_to_the_node_as_the_path_of_its_files(model: ModelArtifact, infra: Infra) -> None:
    """A `ModelArtifact` as an argument annotated `Path` is on the node as its files."""
    assert infra.run(node_work.weight_of, model) == 0.75


@row("train-job")
def test_a_training_job_names_a_function(infra: Infra) -> None:
    """`train` with `module:function` or `file.py:function` and JSON parameters."""
    for target in ("node_work:fit", "node_work.py:fit"):
        model = train.fn(infra, TrainingJob(target=target, params={"weight": 0.5}))
        assert model.metrics == {"loss": 0.5}
    assert infra.train({"target": "node_work:fit"}).metrics == {"loss": 0.0}


@row("train-command")
def test_a_training_job_is_a_command(infra: Infra) -> None:
    """`train` with a command as a list: it sees MLINFRA_PARAMS, and what it writes is the model."""
    model = train.fn(infra, {"target": [sys.executable, "-m", "node_work"], "params": {"n": 1}})
    assert (model.path / "weights.txt").read_text() == '{"n": 1}'


@row("train-no-model")
def test_a_training_that_writes_nothing_is_no_model(infra: Infra) -> None:
    """No file in the output directory: `NoModel`, and it says where to write."""
    with pytest.raises(NoModel, match="output"):
        train.fn(infra, node_work.fit_nothing)
    with pytest.raises(NoModel, match="output"):
        train.fn(infra, {"target": [sys.executable, "-c", "pass"]})


@row("train-nan")
def test_nan_metrics_are_no_model(infra: Infra) -> None:
    """The last value of a metric is NaN: `BadMetrics`, and no artifact is stored."""
    before = set(context().home.artifacts.iterdir())
    with pytest.raises(BadMetrics, match="loss"):
        train.fn(infra, node_work.fit_badly)
    assert [path for path in set(context().home.artifacts.iterdir()) - before if path.name.startswith("a")] == []


@row("evaluate-bad")
def test_evaluate_returns_finite_numbers_or_raises(infra: Infra) -> None:
    """`evaluate`: numbers come back as floats; NaN, infinity, words and no mapping are `BadMetrics`."""
    assert evaluate.fn(infra, node_work.score, 1) == {"auc": 1.0}
    for value in (float("nan"), float("inf")):
        with pytest.raises(BadMetrics, match="auc"):
            evaluate.fn(infra, node_work.score, value)
    with pytest.raises(BadMetrics, match=r"auc.*'good'"):
        evaluate.fn(infra, node_work.score_words)
    with pytest.raises(BadMetrics, match="not a mapping"):
        evaluate.fn(infra, node_work.add, 1)


@row("run-error")
def test_builtin_errors_come_back_as_themselves_and_others_as_node_errors(infra: Infra) -> None:
    """`ValueError` with its arguments and the node's traceback; the user's own class as `NodeError` with its name."""
    with pytest.raises(ValueError, match="a") as builtin:
        infra.run(node_work.raises, "builtin")
    assert type(builtin.value) is ValueError
    assert builtin.value.args == ("a", 1)
    assert "node_work.py" in "".join(builtin.value.__notes__)
    with pytest.raises(NodeError, match=r"node_work\.Refused: by hand") as custom:
        infra.run(node_work.raises, "custom")
    assert custom.value.type_name == "node_work.Refused"
    assert "node_work.py" in custom.value.traceback
    assert infra.state is State.READY


@row("train-ignores-sigterm")
def test_a_training_that_ignores_sigterm_is_killed_after_its_grace(asked: Asked, tmp_path: Path) -> None:
    """Release with a training that will not stop: killed after the grace; the client hears that it was stopped."""
    infra = provision.fn("cpu", max_minutes=5, grace_seconds=0.3, name="stubborn")
    future = infra.submit(node_work.never_stops, str(tmp_path / "on"))
    assert eventually((tmp_path / "on").exists)
    release.fn(infra)
    with pytest.raises(TrainingStopped):
        future.result(timeout=30)
    assert asked.all_released(1)


@row("train-silent")
def test_a_training_that_tells_no_progress_is_stopped(infra: Infra, tmp_path: Path) -> None:
    """`progress_timeout_minutes`: a silent training is told to stop, and the lease lives on."""
    silent = infra.with_options(progress_timeout_minutes=0.01, grace_seconds=0.2)
    with pytest.raises(TrainingStopped, match="no progress"):
        silent.run(node_work.never_stops, str(tmp_path / "on"))
    assert infra.state is State.READY


@row("deploy-refused")
def test_what_cannot_be_deployed_names_the_field(model: ModelArtifact) -> None:
    """Wrong input to `deploy` is one sentence, and no endpoint was written down."""
    for field, options in (
        ("model", {}),
        ("canary", {"canary": [50, 10]}),
        ("canary", {"canary": "half"}),
        ("probe", {"probe": 0.5}),
        ("probe.max_error_rate", {"probe": {"max_error_rate": 2}}),
        ("probe.check", {"probe": {"check": "it"}}),
        ("expires_minutes", {"expires_minutes": "soon"}),
        ("shares", {"shares": [1]}),
    ):
        with pytest.raises(InvalidInput, match=field.replace(".", r"\.")):
            deploy.fn(model, serving="digits", **options)
    with pytest.raises(InvalidInput, match="^model: "):
        deploy.fn("a model", serving="digits")  # type: ignore[arg-type]
    assert {seen.record.kind for seen in context().ledger.records()} == {"lease"}
