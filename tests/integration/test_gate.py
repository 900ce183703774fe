"""The gate in Prefect: a task of its own in a run, Completed when it refused; a plain function outside of one."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from integration_harness import eventually
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType

from mlinfra_prefect.errors import BadMetrics, InvalidInput
from mlinfra_prefect.integration.gate import gate, gate_refused

SCORES = {"candidate": {"auc": 0.85}, "current": {"auc": 0.9}}


@flow
def nightly(by: float):
    verdict = gate(SCORES, by=by)
    return verdict or gate_refused(verdict)


def test_a_refused_model_ends_the_run_completed_with_the_reason() -> None:
    """The run is named GateRefused and says why; its gate is a task of the graph, Completed, and not an error."""
    state = nightly(0.01, return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", "GateRefused")
    assert state.message == "auc 0.85 is below 0.91 (current 0.9 + 0.01)"
    of_this_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        # Prefect writes task runs down from events, a moment later.
        assert eventually(
            lambda: (
                [each.state_type for each in client.read_task_runs(flow_run_filter=of_this_run)]
                == [StateType.COMPLETED]
            )
        )
        (gate_run,) = client.read_task_runs(flow_run_filter=of_this_run)
    assert gate_run.name.startswith("gate")


def test_a_flow_called_as_a_function_returns_the_verdict() -> None:
    """Refused or passed; a state without a result would be an error of Prefect's there."""
    assert not nightly(0.01)
    assert nightly(-0.1).ok


def test_two_gates_in_a_run_are_two_decisions() -> None:
    """Nothing of it is cached: the same metrics may be judged again, by a check that looks elsewhere."""
    asked = []

    @flow
    def twice() -> list[bool]:
        return [bool(gate({"auc": 1.0}, check=lambda new, old: asked.append(new))) for _ in range(2)]

    assert twice() == [True, True]
    assert len(asked) == 2


def test_a_gate_that_cannot_decide_fails_the_run() -> None:
    """A metric that is NaN is an error, and the model is not served."""

    @flow
    def broken():
        return gate({"auc": float("nan")}, floors={"auc": 0.5})

    with pytest.raises(BadMetrics, match=r"candidate\.auc"):
        broken()


def test_a_passed_verdict_is_no_refusal() -> None:
    """A forgotten `not` is an error, and not a run that says a good model was refused."""
    with pytest.raises(InvalidInput, match="passed"):
        gate_refused(gate({"auc": 0.9}, floors={"auc": 0.5}))


def test_outside_of_a_run_it_says_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """To this package's logger: a refusal is a warning."""
    with caplog.at_level(logging.INFO, logger="mlinfra_prefect"):
        gate(SCORES, by=0.01)
    assert [(each.levelname, each.message) for each in caplog.records if each.name == "mlinfra_prefect"] == [
        ("WARNING", "gate refused: auc 0.85 is below 0.91 (current 0.9 + 0.01)")
    ]


def test_outside_of_a_run_it_starts_no_server() -> None:
    """A plain function: nothing of Prefect's API is asked, so a script without a server gets no temporary one."""
    script = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('it went to the network')\n"
        "from mlinfra_prefect.integration.gate import gate\n"
        "socket.socket.connect = refuse\n"
        "import subprocess; subprocess.Popen = refuse\n"
        "print(gate({'auc': 0.9}, floors={'auc': 0.5}))\n"
    )
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "gate passed: auc 0.9 is at least 0.5\n", done.stderr
