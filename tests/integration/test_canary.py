"""The probe as its user writes it: what counts as passed, and that nothing it does can harm more than its candidate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlinfra_prefect.errors import EndpointNotReady, InvalidInput
from mlinfra_prefect.integration.canary import Canary, as_probe, judged
from mlinfra_prefect.model.probe import ProbeRequest
from mlinfra_prefect.model.verdict import Verdict
from mlinfra_prefect.testing.records import sample_artifact

CANARY = Canary(
    name="churn", version=2, share=10, url="http://127.0.0.1:9", model=sample_artifact(), current_url=None,
    current_model=None,
)  # fmt: skip


def explodes(_: Canary) -> bool:
    raise KeyError("a column\nis gone")


@pytest.mark.parametrize(
    ("check", "passed", "reason"),
    [
        (lambda _: None, True, ""),
        (lambda _: True, True, ""),
        (lambda _: np.bool_(True), True, ""),
        (lambda _: Verdict(kind="probe", ok=True, reason="fine"), True, "fine"),
        (lambda _: False, False, "<lambda> returned False"),
        (lambda _: 0, False, "<lambda> returned 0"),
        (lambda _: "the mean is\noff by 3", False, "the mean is off by 3"),
        (lambda _: "", False, ""),
        (lambda _: Verdict(kind="probe", ok=False, reason="too slow"), False, "too slow"),
        (explodes, False, "the probe raised KeyError: "),
        (lambda _: np.array([True, True]), False, "the probe raised ValueError: The truth value of an array"),
        (lambda _, other: True, False, "the probe raised TypeError: "),
        (lambda canary: canary.predict_current([[0.0]]), False, "the probe raised EndpointNotReady: Endpoint 'churn'"),
        (lambda canary: canary.predict([[0.0]], timeout=1.0), False, "the probe raised "),
    ],
)  # fmt: skip
def test_only_what_says_nothing_or_yes_has_passed(check: Any, passed: bool, reason: str) -> None:
    """A sentence, a no, and whatever is raised are against the candidate, told in one line."""
    found, told = judged(check, CANARY)
    assert found is passed
    assert reason in told
    assert len(told.splitlines()) <= 1


def test_a_user_s_interrupt_is_not_a_verdict() -> None:
    """Ctrl-C ends who waits for the rollout, and its keeper takes the candidate back."""

    def interrupted(_: Canary) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(interrupted, CANARY)


@pytest.mark.parametrize("check", [None, explodes])
def test_criteria_are_the_keeper_s_and_the_function_is_the_client_s(check: Any) -> None:
    """The keeper asks the client exactly when there is a function."""
    wanted, found = as_probe({"max_error_rate": 0.2, "check": check})
    assert (wanted, found) == (ProbeRequest(max_error_rate=0.2, asks=check is not None), check)
    assert as_probe(check) == ((ProbeRequest(), None) if check is None else (ProbeRequest(asks=True), check))
    assert as_probe(wanted) == (wanted, None)


@pytest.mark.parametrize(
    ("probe", "field"),
    [
        (0.01, "probe"),
        ("fast", "probe"),
        ([1, 2], "probe"),
        ({"check": 3}, "probe.check"),
        ({"max_error_rate": 2}, "probe.max_error_rate"),
        ({"seconds": "soon"}, "probe.seconds"),
        ({"max_eror_rate": 0.1}, "probe.max_eror_rate"),
        ({"min_agreement": 0.9}, "probe"),
    ],
)
def test_a_probe_that_makes_no_sense_names_the_field(probe: Any, field: str) -> None:
    """Before anything is deployed."""
    with pytest.raises(InvalidInput) as refused:
        as_probe(probe)
    assert str(refused.value).startswith(f"{field}: ")


def test_a_first_version_has_nothing_to_be_compared_with() -> None:
    """The error says so, instead of a connection that fails."""
    with pytest.raises(EndpointNotReady, match="serves no version to compare with"):
        CANARY.predict_current([[0.0]])
