"""Lines become typed events, and diagnostics become decisions; both are tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mlinfra_prefect.errors import (
    CapacityUnavailable,
    PermanentError,
    PlanStale,
    QuotaExceeded,
    StateLocked,
    TemporaryError,
    TerraformFailed,
)
from mlinfra_prefect.terraform import events
from mlinfra_prefect.terraform.decisions import failure
from mlinfra_prefect.terraform.events import Diagnostic

if TYPE_CHECKING:
    from pathlib import Path

HOOK = {"resource": {"addr": "a.b[0]"}, "action": "create", "id_value": "i-1", "elapsed_seconds": 3}
PROVISION = {"resource": {"addr": "a.b"}, "provisioner": "local-exec", "output": "hi"}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"type": "version", "terraform": "1.11.4", "ui": "1.2"}, events.Version("m", "t", "1.11.4", "1.2")),
        ({"type": "version", "tofu": "1.10.0", "ui": "1.2"}, events.Version("m", "t", "1.10.0", "1.2")),
        (
            {"type": "planned_change", "change": {"resource": {"addr": "a.b"}, "action": "create"}},
            events.ChangePlanned("m", "t", "a.b", "create"),
        ),
        (
            {"type": "change_summary", "changes": {"add": 2, "change": 0, "remove": 1, "operation": "apply"}},
            events.ChangeSummary("m", "t", "apply", 2, 0, 1),
        ),
        ({"type": "apply_start", "hook": HOOK}, events.Apply("m", "t", "start", "a.b[0]", "create", "i-1", 3.0)),
        ({"type": "apply_progress", "hook": HOOK}, events.Apply("m", "t", "progress", "a.b[0]", "create", "i-1", 3.0)),
        ({"type": "apply_complete", "hook": HOOK}, events.Apply("m", "t", "complete", "a.b[0]", "create", "i-1", 3.0)),
        ({"type": "apply_errored", "hook": HOOK}, events.Apply("m", "t", "errored", "a.b[0]", "create", "i-1", 3.0)),
        (
            {"type": "provision_progress", "hook": PROVISION},
            events.Provision("m", "t", "progress", "a.b", "local-exec", "hi"),
        ),
        (
            {
                "type": "diagnostic",
                "diagnostic": {"severity": "error", "summary": "s", "detail": "d", "address": "a.b"},
            },
            events.Diagnostic("m", "t", "error", "s", "d", "a.b"),
        ),
        (
            {"type": "outputs", "outputs": {"b": {"sensitive": True, "value": "canary"}, "a": {"value": 1}}},
            events.Outputs("m", "t", ("a", "b"), ("b",)),
        ),
        ({"type": "refresh_start", "hook": HOOK}, events.Other("m", "t", "refresh_start")),
        ({"type": "not_invented_yet", "x": [1]}, events.Other("m", "t", "not_invented_yet")),
    ],
)
def test_a_line_becomes_a_typed_event(document: dict[str, Any], expected: events.Event) -> None:
    """Unknown types are kept, and output values are not."""
    parsed = events.parse(json.dumps({"@message": "m", "@timestamp": "t", **document}))
    assert parsed == expected
    assert "canary" not in repr(parsed)


@pytest.mark.parametrize(
    "line",
    ["", "{", "[1]", "null", "3", "panic: boom", '{"type": 3}', '{"type": "apply_start", "hook": "x"}',
     '{"type": "change_summary", "changes": {"add": "x"}}', '{"type": "outputs", "outputs": [1]}', "[" * 100_000],
)  # fmt: skip
def test_a_malformed_line_never_raises(line: str) -> None:
    """It is kept as text."""
    assert isinstance(events.parse(line), events.Other)


def test_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    """A reader of a growing file sees each event once, and half of one not at all."""
    path = tmp_path / "out"
    reader = events.Reader(path)
    assert reader.read() == []
    line = json.dumps({"type": "x", "@message": "é\u2028", "@timestamp": ""}, ensure_ascii=False).encode()
    path.write_bytes(line + b"\n" + line[:20])
    assert reader.read() == [events.Other("é\u2028", "", "x")]
    path.write_bytes(line + b"\n" + line)
    assert reader.read() == []
    assert reader.read(final=True) == [events.Other("é\u2028", "", "x")]


def _diagnostic(text: str, severity: str = "error") -> Diagnostic:
    return Diagnostic(text, "", severity, text, "", "aws_x.y")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("InsufficientInstanceCapacity: We currently do not have sufficient p5 capacity", CapacityUnavailable),
        ("creating EC2 Fleet: UnfulfillableCapacity: Unable to fulfill capacity", CapacityUnavailable),
        ("InsufficientCapacityError: no capacity", CapacityUnavailable),
        ("SpotMaxPriceTooLow: Your Spot request price", CapacityUnavailable),
        ("Unsupported: Your requested instance type (p5.48xlarge) is not supported in us-east-1e", CapacityUnavailable),
        ("VcpuLimitExceeded: You have requested more vCPU capacity than your current limit", QuotaExceeded),
        ("MaxSpotInstanceCountExceeded: Max spot instance count exceeded", QuotaExceeded),
        ("ResourceLimitExceeded: The account-level service limit 'ml.g5.xlarge for endpoint usage'", QuotaExceeded),
        ('pods "x" is forbidden: exceeded quota: gpu', QuotaExceeded),
        ("Error acquiring the state lock", StateLocked),
        ("No valid credential sources found", PermanentError),
        ("InvalidClientTokenId: The security token included in the request is invalid", PermanentError),
        ("ExpiredTokenException: expired", PermanentError),
        ("UnauthorizedOperation: You are not authorized to perform this operation", PermanentError),
        ("No value for required variable", PermanentError),
        ("Unsupported argument", PermanentError),
        ("Saved plan is stale", PlanStale),
        ("Inconsistent dependency lock file", PermanentError),
        ("local-exec provisioner error", TerraformFailed),
        ("RequestError: send request failed: connection reset", TerraformFailed),
        ("waiting for EC2 Instance: timeout while waiting for state; the limit of the API is unknown", TerraformFailed),
    ],
)
def test_a_diagnostic_becomes_a_decision(text: str, expected: type[Exception]) -> None:
    """The class says what to do next; the message keeps the diagnostic and where it belongs."""
    error = failure("apply", [_diagnostic("irrelevant", "warning"), _diagnostic(text)], stderr="", returncode=1)
    assert type(error) is expected
    assert text in str(error)
    assert "aws_x.y" in str(error)
    assert isinstance(error, TemporaryError) is not isinstance(error, PermanentError)


def test_a_warning_decides_nothing() -> None:
    """Only errors are read, and stderr where there are none."""
    error = failure("plan", [_diagnostic("InsufficientInstanceCapacity", "warning")], stderr="boom", returncode=1)
    assert type(error) is TerraformFailed
    assert "boom" in str(error)


def test_a_certain_stop_outweighs_a_maybe() -> None:
    """Wrong credentials beside missing capacity: trying the next offer would only fail again."""
    found = [_diagnostic("InsufficientInstanceCapacity"), _diagnostic("ExpiredToken")]
    assert type(failure("apply", found, stderr="", returncode=1)) is PermanentError
