"""Rules of the artifact store: what is committed survives a power cut, and nobody waits for ever to commit."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from mlinfra_prefect.agent.status import JobStatus
from mlinfra_prefect.artifacts import ArtifactStore, Lineage, store
from mlinfra_prefect.errors import OperationTimedOut
from mlinfra_prefect.ledger import revise
from mlinfra_prefect.lifecycle import collecting
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.provisioning import provision
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.model.lease import AttemptState, JobNote, LeaseRecord, State

LINEAGE = Lineage(
    name="churn", lease_id="l0-1", environment="dev", code_hash="c", request_hash="r", environment_hash="e"
)


def uploaded(kept: ArtifactStore) -> Path:
    incoming = kept.incoming("l0-1", "j1")
    entries = []
    for name in ("model.bin", "deep/er/model.bin"):
        path = incoming / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        entries.append({"path": name, "sha256": sha256(name.encode()).hexdigest(), "size": len(name)})
    (incoming / "manifest.json").write_text(json.dumps({"files": entries, "metrics": {}, "draft": {}}))
    return incoming


def test_everything_is_on_the_disk_before_the_upload_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact is the only copy then: each file, each directory and the record were synced."""
    kept, synced = ArtifactStore(tmp_path / "artifacts"), set()
    incoming = uploaded(kept)
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(os.stat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    artifact = kept.commit(incoming, LINEAGE)
    assert not incoming.exists()
    root = tmp_path / "artifacts" / artifact.id
    whole = [root, *root.rglob("*")]
    assert len(whole) == 7
    assert [str(path) for path in whole if path.stat().st_ino not in synced] == []


def test_a_commit_that_stands_still_does_not_hold_the_next_one_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow that was stopped in the middle of it: a release says so, and goes on with what costs money."""
    kept = ArtifactStore(tmp_path / "artifacts")
    incoming = uploaded(kept)
    monkeypatch.setattr(store, "COMMIT_SECONDS", 0.2)
    staging = tmp_path / "artifacts" / ".staged"
    staging.mkdir()
    with (staging / f"{kept.id_of(incoming)}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OperationTimedOut, match="has been committing"):
            kept.commit(incoming, LINEAGE)
    assert kept.commit(incoming, LINEAGE).path.is_dir()


def test_what_cannot_be_kept_now_is_kept_by_another_pass(
    context: Context, asked: Callable[..., LeaseRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job is not written down as ended without it; after a few passes the reason is written down instead."""
    record = provision(context, asked())
    note = JobNote(job_id="j1", label="train", state="running")
    revise(context.ledger, record.id, lambda it: it.revised(jobs=(note,)), actor="test", reason="it trains")
    node = context.platform("local").node(record.attempts[0])
    monkeypatch.setattr(type(node), "status", lambda *_: JobStatus(state="succeeded"))

    def busy(*_: object) -> None:
        raise OperationTimedOut("Another process commits it.")

    monkeypatch.setattr(collecting, "collect", busy)
    with pytest.raises(OperationTimedOut):
        collecting.collect_all(context, context.lease(record.id))
    assert context.lease(record.id).jobs == (note,)
    begin_release(context, record.id, reason="done")
    first = release_pass(context, context.record(record.id))
    assert "could not be kept" in first.reason
    assert first.attempts[0].state is AttemptState.RELEASED  # what costs money does not wait for it
    for _ in range(collecting.PATIENT_PASSES):
        first = release_pass(context, context.record(record.id))
    assert first.state is State.RELEASED
    assert isinstance(first, LeaseRecord)
    assert (first.jobs[0].state, first.jobs[0].artifact_id) == ("succeeded", None)
    assert any("its artifact could not be kept" in line.reason for line in context.ledger.history(record.id))
