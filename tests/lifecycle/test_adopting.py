"""Rule: what a job of a lost host left is kept by whoever takes its lease over, or stays where it is, and is told."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlinfra_prefect.artifacts import Lineage
from mlinfra_prefect.errors import TemporaryError
from mlinfra_prefect.ledger import revise
from mlinfra_prefect.lifecycle.adopting import adopt_jobs, is_ours, origin_of
from mlinfra_prefect.lifecycle.collecting import PATIENT_PASSES, collect_all
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.receipts import work_left
from mlinfra_prefect.lifecycle.resuming import ResumePlace
from mlinfra_prefect.model.lease import AttemptState, JobNote, LeaseRecord, State
from mlinfra_prefect.model.stack import JobStatus
from mlinfra_prefect.testing.records import MOMENT, path_to, sample_attempt, sample_lease

MAILBOX = "s3://mlinfra-prefect-artifacts-dev-123456789012-us-east-1/nodes/AROAEXAMPLE:i-0a"
WEIGHTS = b"weights"


def origin(record: LeaseRecord) -> dict[str, Any]:
    """As the lost home has told it, through the mailbox and so through JSON."""
    lineage = Lineage(
        name="acme.churn:train", lease_id=record.id, environment="dev", code_hash="theirs", request_hash="r",
        environment_hash="e", params={"rate": 0.1},
    )  # fmt: skip
    told = origin_of(lineage, ResumePlace("key", Path("/gone"), ({"after": 0, "code_hash": "older"},)))
    return dict(json.loads(json.dumps(told)))


class Node:
    """A node whose machine is gone: its mailbox brings what it holds to where it is expected."""

    def __init__(self, told: dict[str, Any] | None, *, state: str = "succeeded", down: bool = False) -> None:
        self.told, self.state, self.down, self.asked = told, state, down, 0
        self.upload_dir: Path | None = None
        self.store: Path | None = None

    def origin(self, _: str) -> dict[str, Any] | None:
        self.asked += 1
        if self.down:
            raise TemporaryError("S3 does not answer")
        return self.told

    def expect(self, _: str, upload_dir: Path, store: Path) -> None:
        self.upload_dir, self.store = upload_dir, store

    def status(self, _: str) -> JobStatus | None:
        if self.down:
            return None
        if self.upload_dir is not None and self.state == "succeeded" and not self.upload_dir.exists():
            (self.upload_dir / "files").mkdir(parents=True)
            (self.upload_dir / "files" / "w.bin").write_bytes(WEIGHTS)
            files = [{"path": "w.bin", "sha256": sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)}]
            (self.upload_dir / "manifest.json").write_text(json.dumps({"files": files, "metrics": {}, "draft": {}}))
        return JobStatus(state=self.state, finished_at=MOMENT.timestamp(), resumed_from="key/1")


@pytest.fixture
def there(context: Context, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Take over a lease whose one job another home has handed over."""

    def take(node: Node, **changes: Any) -> LeaseRecord:
        monkeypatch.setattr(context, "platform", lambda _: SimpleNamespace(node=lambda _: node))
        record = sample_lease(ledger_id=context.ledger.ledger_id, platform="aws", keeper=None)
        seen = context.ledger.create(record, actor="test", reason="written by a test")
        up = sample_attempt(mailbox=MAILBOX)
        for step in path_to(State.RELEASING):
            seen = context.ledger.replace(seen, seen.record.revised(state=step, attempts=(up,)), actor="t", reason="")
        for state in (AttemptState.APPLYING, AttemptState.UP):
            over = seen.record.revised(attempts=(up.revised(state=state, applied_at=MOMENT),))
            seen = context.ledger.replace(seen, over, actor="t", reason="")
        job = JobNote(job_id="j1", label="acme.churn:train", state="submitted")
        seen = context.ledger.replace(seen, seen.record.revised(jobs=(job,), **changes), actor="t", reason="")
        assert isinstance(seen.record, LeaseRecord)
        return seen.record

    return take


def job_of(context: Context, record: LeaseRecord) -> JobNote:
    return context.lease(record.id).jobs[0]


def test_the_work_of_a_lost_host_is_kept_by_who_takes_its_lease_over(context: Context, there: Any) -> None:
    """With the lineage that the lost home told, and not one that the node could tell (R15)."""
    node = Node(None)
    record = there(node)
    node.told = origin(record)
    collect_all(context, record)
    job = job_of(context, record)
    assert (job.state, job.left_at) == ("succeeded", "")
    kept = context.artifacts.verified(job.artifact_id or "")
    assert (kept.path / "w.bin").read_bytes() == WEIGHTS
    assert (kept.code_hash, kept.name, dict(kept.params)) == ("theirs", "acme.churn:train", {"rate": 0.1})
    assert kept.resumed_across_code  # from a checkpoint that older code had made
    assert work_left(context, context.lease(record.id)) == []
    assert node.store is not None
    assert node.store.is_relative_to(context.home.checkpoints)
    assert json.loads((node.store / "makers.json").read_text())["makers"] == [{"after": 0, "code_hash": "theirs"}]


def test_what_this_home_has_adopted_is_asked_for_once(context: Context, there: Any) -> None:
    """A drain, a collection and the passes after them: one request for each job."""
    node = Node(None)
    record = there(node)
    node.told = origin(record)
    for _ in range(3):
        adopt_jobs(context, record)
    assert node.asked == 1
    assert is_ours(context, record, "j1")


@pytest.mark.parametrize("told", [None, {"lineage": {"name": "n"}, "key": "k"}, {"lineage": 7, "key": "k"}])
@pytest.mark.parametrize("state", ["succeeded", "stopped"])
def test_what_cannot_be_adopted_stays_and_the_receipt_says_where(
    context: Context, there: Any, told: Any, state: str
) -> None:
    """An earlier version handed it over: its artifact, or its checkpoint, lies in the mailbox and nowhere else."""
    record = there(Node(told, state=state))
    collect_all(context, record)
    job = job_of(context, record)
    assert (job.state, job.artifact_id, job.left_at) == (state, None, MAILBOX)
    assert MAILBOX in context.ledger.history(record.id)[-1].reason
    (left,) = work_left(context, context.lease(record.id))
    assert left.where == MAILBOX
    assert left.found == ("job j1 (acme.churn:train)",)


def test_a_mailbox_that_does_not_answer_is_waited_for_a_few_passes(context: Context, there: Any) -> None:
    """A release does not fail for ever because of it."""
    node = Node(None, down=True)
    record = there(node)
    with pytest.raises(TemporaryError):
        collect_all(context, record)
    assert job_of(context, record).state == "submitted"

    def later(now: Any) -> Any:
        return now.revised(failures=PATIENT_PASSES)

    late = revise(context.ledger, record.id, later, actor="t", reason="failed")
    assert isinstance(late, LeaseRecord)
    collect_all(context, late)
    assert job_of(context, record).state == "stopped"
