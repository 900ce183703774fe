"""Rule: a training that hangs while every process lives is told *checkpoint now*, and an unattended lease goes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from keeper_harness import House

from mlinfra_prefect.lifecycle.progress import LAUNCHER_SECONDS, UNATTENDED_SECONDS, why_hung
from mlinfra_prefect.local.node import LocalNode
from mlinfra_prefect.model.lease import JobNote


def test_a_hung_training_commits_and_its_lease_goes_with_the_reason(house: House) -> None:
    """Silent for its limit: the checkpoint first. Its client hangs, too, and notes nothing: the keeper releases."""
    client = house.client("""
        import mlinfra_prefect.keeper.starting as starting
        starting.RENEW_SECONDS = 0.5
        train(ready(), 'until_told', progress_timeout_seconds=1.0)
    """)
    lease = client.hears("ready")["id"]
    job = client.hears("job")["job"]
    client.hears("news", log="training, resumed=False")
    os.kill(client.process.pid, signal.SIGSTOP)
    told = Path(house.record(lease)["attempts"][0]["node_dir"]) / "jobs" / job / "status.json"

    def stopped() -> dict[str, object] | None:
        status: dict[str, object] = json.loads(told.read_text())
        return status if status["state"] == "stopped" else None

    status = house.until(stopped, "the launcher has ended it")
    assert "no progress for 1 s" in str(status["reason"])
    assert list(house.home.glob("checkpoints/dev/*/1/manifest.json"))
    assert house.record(lease)["state"] == "ready"  # whoever follows it decides, for a while
    told.write_text(json.dumps(status | {"finished_at": float(str(status["finished_at"])) - UNATTENDED_SECONDS}))
    record = house.becomes(lease, "released")
    assert "no progress for 1 s" in record["receipt"]["reason"]
    assert "nobody attends to it" in record["receipt"]["reason"]
    assert record["error"] == "TrainingStopped"


@pytest.mark.parametrize(
    ("limit", "state", "reason", "seconds", "noted", "hung"),
    [
        (10.0, "running", "", 10 + 5 + LAUNCHER_SECONDS + 1, "running", True),
        (10.0, "running", "", 10 + 5 + LAUNCHER_SECONDS - 1, "running", False),
        (None, "running", "", 100_000, "running", False),
        (10.0, "stopped", "no progress for 10 s", UNATTENDED_SECONDS + 1, "running", True),
        (10.0, "stopped", "no progress for 10 s", UNATTENDED_SECONDS - 1, "running", False),
        (10.0, "stopped", "no progress for 10 s", UNATTENDED_SECONDS + 1, "stopped", False),
        (10.0, "stopped", "the job was told to end at once", UNATTENDED_SECONDS + 1, "running", False),
        (10.0, "succeeded", "", UNATTENDED_SECONDS + 1, "running", False),
    ],
    ids=["launcher hangs", "in time", "no limit", "unattended", "just ended", "noted", "told to", "done"],
)
def test_only_what_is_silent_beyond_its_limit_is_hung(
    tmp_path: Path, limit: float | None, state: str, reason: str, seconds: float, noted: str, hung: bool
) -> None:
    """By an injected clock: the launcher first, the keeper for what nobody attends to, never without a limit."""
    place = tmp_path / "jobs" / "j1"
    place.mkdir(parents=True)
    (place / "job.json").write_text(json.dumps({"progress_timeout_seconds": limit, "grace_seconds": 5.0}))
    status = {"state": state, "reason": reason, "started_at": 1000.0, "finished_at": 2000.0}
    (place / "status.json").write_text(json.dumps(status))
    (place / "events.jsonl").touch()
    os.utime(place / "events.jsonl", (1500.0, 1500.0))
    last = 1500.0 if state == "running" else 2000.0
    found = why_hung(LocalNode(tmp_path), (JobNote(job_id="j1", label="a", state=noted),), last + seconds)
    assert (found is not None) == hung
