"""Only what was committed is resumed, and a damaged commit is stepped over."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_harness import NodeUnderTest, wait_until

from mlinfra_prefect.agent import checkpoints, wire
from mlinfra_prefect.agent.specs import CheckpointRef
from mlinfra_prefect.agent.transfer import TransferError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkpoint directory with two files."""
    directory = tmp_path / "checkpoint"
    (directory / "sub").mkdir(parents=True)
    (directory / "w.bin").write_bytes(b"one")
    (directory / "sub/opt.bin").write_bytes(b"two")
    return directory


def stored(place: Path, store: Path, content: bytes) -> int:
    (place / "w.bin").write_bytes(content)
    return checkpoints.store(place, checkpoints.commit(place, 1), store)


def test_a_commit_is_restored_as_it_was(place: Path, tmp_path: Path) -> None:
    """Every file, no manifest (it would look like a new commit), and what the directory held before is gone."""
    store, fresh = tmp_path / "store", tmp_path / "fresh"
    assert stored(place, store, b"one") == 1
    assert (store / checkpoints.LATEST).read_text() == "1"
    fresh.mkdir()
    (fresh / "stale").touch()
    assert checkpoints.restore(store, fresh, pytest.fail) == 1
    files = {path.relative_to(fresh).as_posix(): path.read_bytes() for path in fresh.rglob("*") if path.is_file()}
    assert files == {"w.bin": b"one", "sub/opt.bin": b"two"}


def test_nothing_committed_is_nothing_resumed(tmp_path: Path) -> None:
    """An absent store, or one without LATEST, starts from the beginning."""
    assert checkpoints.restore(tmp_path / "none", tmp_path / "fresh", pytest.fail) is None
    (tmp_path / "store/1").mkdir(parents=True)
    assert checkpoints.restore(tmp_path / "store", tmp_path / "fresh", pytest.fail) is None


def test_a_corrupt_commit_is_skipped_for_the_one_before(place: Path, tmp_path: Path) -> None:
    """Said once per skipped commit; with none intact the training starts from the beginning, in an empty directory."""
    store, fresh, said = tmp_path / "store", tmp_path / "fresh", []
    stored(place, store, b"old")
    stored(place, store, b"new")
    (store / "2/w.bin").write_bytes(b"rot")
    assert checkpoints.restore(store, fresh, said.append) == 1
    assert (fresh / "w.bin").read_bytes() == b"old"
    assert len(said) == 1
    assert "checkpoint 2 is skipped" in said[0]
    (store / "1/manifest.json").write_text("{")
    assert checkpoints.restore(store, fresh, said.append) is None
    assert list(fresh.iterdir()) == []


def test_a_checkpoint_that_changes_while_it_is_stored_is_thrown_away(place: Path, tmp_path: Path) -> None:
    """A mix of two steps would resume into nonsense: the commit before it stays the latest."""
    store = tmp_path / "store"
    stored(place, store, b"one")
    second = checkpoints.commit(place, 2)
    (place / "w.bin").write_bytes(b"three")
    with pytest.raises(TransferError, match="changed"):
        checkpoints.store(place, second, store)
    (place / "w.bin").unlink()
    with pytest.raises(TransferError, match="changed"):
        checkpoints.store(place, second, store)
    assert (store / checkpoints.LATEST).read_text() == "1"
    assert sorted(path.name for path in store.iterdir()) == ["1", "LATEST"]


def test_only_the_last_three_commits_are_kept(place: Path, tmp_path: Path) -> None:
    """Checkpoints are large."""
    for number in range(5):
        assert stored(place, tmp_path / "store", str(number).encode()) == number + 1
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["3", "4", "5", "LATEST"]


def test_an_empty_directory_is_no_checkpoint(tmp_path: Path) -> None:
    """Committing nothing is a mistake in the training, not a checkpoint to resume from."""
    with pytest.raises(ValueError, match="empty"):
        checkpoints.commit(tmp_path)


def test_a_manifest_that_leads_elsewhere_is_not_followed(place: Path, tmp_path: Path) -> None:
    """The manifest was written by training code, which is arbitrary code."""
    checkpoints.commit(place)
    text = (place / "manifest.json").read_text().replace("w.bin", "../outside")
    (place / "manifest.json").write_text(text)
    (tmp_path / "outside").write_bytes(b"secret")
    with pytest.raises(TransferError, match="leads out"):
        checkpoints.read_commit(place)


def test_a_shell_script_commits_and_resumes(node: NodeUnderTest) -> None:
    """The documented two lines work without Python in the training; an uncommitted file is not resumed."""
    store = node.root / "store"
    node.start()
    commit = '"$MLINFRA_PYTHON" "$MLINFRA_AGENT" commit-checkpoint'
    script = f"cd $MLINFRA_CHECKPOINT_DIR; echo 5 > step; {commit} 5 && echo committed; echo 6 > step; sleep 300"
    first = node.shell(script, checkpoint=CheckpointRef("key", store))
    wait_until(lambda: (first / wire.LOG).exists() and "committed" in (first / wire.LOG).read_text())
    node.stop(first, "kill")
    node.wait(first)
    second = node.shell(
        "cat $MLINFRA_CHECKPOINT_DIR/step; echo from=$MLINFRA_RESUMED_FROM",
        "job-2",
        checkpoint=CheckpointRef("key", store),
    )
    assert node.wait(second).resumed_from == "key/1"
    assert (second / wire.LOG).read_text() == "5\nfrom=key/1\n"


def test_a_commit_outside_a_training_is_refused(node: NodeUnderTest) -> None:
    """The verb needs the training's environment, and says so."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, str(node.archive), "commit-checkpoint"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "only inside a training" in done.stderr
