"""*Checkpoint now*, grace, kill, progress time-out: every way to end a training before it ends itself."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from agent_harness import NodeUnderTest, result_of, wait_until

from mlinfra_prefect.agent import codecs, wire
from mlinfra_prefect.agent.specs import Arguments, CheckpointRef

RESUMABLE = """
import time
from mlinfra_agent.node import node

def train(steps):
    n = node()
    at = int((n.checkpoint_dir / "step.txt").read_text()) if n.resumed else 0
    while at < steps:
        at += 1
        n.progress(at / steps)
        time.sleep(0.02)
        if n.should_stop:
            (n.checkpoint_dir / "step.txt").write_text(str(at))
            stored = n.commit_checkpoint(at)
            raise SystemExit(f"stopped at {at}, stored {stored}")
    return {"resumed": n.resumed, "at": at}
"""


def test_sigterm_commits_a_checkpoint_that_the_next_job_resumes(node: NodeUnderTest) -> None:
    """*Checkpoint now*: commit, exit within the grace; the same key continues there, on another node as well."""
    store = CheckpointRef("prod/lora", node.root / "checkpoints/lora")
    node.start()

    def train(job_id: str, steps: int) -> Path:
        arguments = Arguments((codecs.encode(steps, node.root, name="steps"),))
        return node.submit(job_id, files={"t.py": RESUMABLE}, function="t.py:train", args=arguments, checkpoint=store)

    first = train("job-1", 100_000)
    wait_until((first / wire.EVENTS).exists)
    node.stop(first)
    status = node.wait(first)
    assert (status.state, status.exit_code) == ("stopped", 1)
    assert "told to commit a checkpoint" in str(status.reason)
    assert "stored True" in (first / wire.LOG).read_text()

    second = train("job-2", 3)
    status = node.wait(second)
    assert (status.state, status.resumed_from) == ("succeeded", "prod/lora/1")
    result = result_of(second)
    assert result["resumed"] is True
    assert result["at"] >= 3


def test_a_callback_is_told_to_stop(node: NodeUnderTest) -> None:
    """on_stop runs in the training; what it raises is logged and the training goes on."""
    code = (
        "import time\n"
        "from mlinfra_agent.node import node\n"
        "def train():\n"
        "    told = []\n"
        "    node().on_stop(lambda: 1 / 0)\n"
        "    node().on_stop(lambda: told.append(1))\n"
        "    node().progress(0)\n"
        "    while not told: time.sleep(0.01)\n"
        "    node().on_stop(lambda: told.append(2))\n"
        "    return told\n"
    )
    node.start()
    job = node.submit(files={"t.py": code}, function="t.py:train")
    wait_until((job / wire.EVENTS).exists)
    node.stop(job)
    assert node.wait(job).state == "succeeded"
    assert result_of(job) == [1, 2]
    assert "ZeroDivisionError" in (job / wire.LOG).read_text()


def test_a_training_that_finishes_during_its_grace_has_succeeded(node: NodeUnderTest) -> None:
    """Exit code 0 with a model: the work is done, and is not thrown away because somebody wanted it to stop."""
    node.start()
    job = node.shell(
        "trap 'echo m > $MLINFRA_OUTPUT_DIR/m; exit 0' TERM; echo ready; while :; do sleep 0.05; done", expects="model"
    )
    wait_until(lambda: "ready" in (job / wire.LOG).read_text() if (job / wire.LOG).exists() else False)
    node.stop(job)
    assert node.wait(job).state == "succeeded"
    assert (node.root / "uploads/job-1/files/m").exists()


def test_a_training_that_ignores_sigterm_is_killed_after_its_grace(node: NodeUnderTest) -> None:
    """The grace is bounded; the reason says that it was used up."""
    node.start()
    job = node.shell("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    wait_until(lambda: (job / wire.LOG).exists() and "ready" in (job / wire.LOG).read_text())
    before = time.monotonic()
    node.stop(job, grace=0.3)
    status = node.wait(job)
    assert time.monotonic() - before >= 0.3
    assert (status.state, status.exit_code) == ("stopped", -signal.SIGKILL)
    assert "did not end within its grace" in str(status.reason)
    wait_until(lambda: node.processes() == {node.pid}, 2)


def test_checkpoint_now_tells_the_training_process_only(node: NodeUnderTest) -> None:
    """Its workers must go on while it writes; the whole group ends only with the grace."""
    node.start()
    job = node.shell(
        "sh -c 'trap \"echo child\" TERM; sleep 1.2; echo done' &"
        "trap 'echo leader; wait; exit 9' TERM; echo ready; wait"
    )
    wait_until(lambda: (job / wire.LOG).exists() and "ready" in (job / wire.LOG).read_text())
    node.stop(job)
    node.wait(job)
    assert (job / wire.LOG).read_text().splitlines() == ["ready", "leader", "done"]


def test_kill_ends_the_group_at_once(node: NodeUnderTest) -> None:
    """No grace, whatever was given."""
    node.start()
    job = node.shell("trap '' TERM; sleep 300 & while :; do sleep 0.05; done")
    node.running(job)
    node.stop(job, "kill", 30.0)
    status = node.wait(job, 3)
    assert status.state == "stopped"
    wait_until(lambda: node.processes() == {node.pid}, 2)


def test_a_stopped_node_takes_no_more_jobs(node: NodeUnderTest) -> None:
    """The running one is told, the queued and the new ones are stopped with the reason, and never run."""
    node.start()
    first = node.shell("trap 'exit 1' TERM; while :; do sleep 0.05; done", "job-1")
    queued = node.shell("touch ran", "job-2")
    node.running(first)
    node.stop(node.dir)
    late = node.shell("touch ran", "job-3")
    assert node.wait(first).state == "stopped"
    for job in (queued, late):
        status = node.wait(job)
        assert status.state == "stopped"
        assert "node was told to stop" in str(status.reason)
        assert not (job / wire.CODE).exists()


def test_a_queued_job_can_be_stopped_alone(node: NodeUnderTest) -> None:
    """The running one is not touched."""
    node.start()
    first = node.shell("sleep 0.5", "job-1")
    queued = node.shell("true", "job-2")
    node.stop(queued)
    assert node.wait(queued).state == "stopped"
    assert node.wait(first).state == "succeeded"


def test_a_job_without_progress_is_stopped_only_where_that_is_asked_for(node: NodeUnderTest) -> None:
    """The limit counts from the last event, and there is none unless the job sets one."""
    node.start()
    silent = node.shell(
        "for i in 1 2 3 4; do echo '{\"progress\": 0}' >> $MLINFRA_EVENTS; sleep 0.15; done; sleep 300",
        "job-1",
        progress_timeout_seconds=0.4,
        grace_seconds=0.2,
    )
    status = node.wait(silent)
    assert (status.state, status.reason) == ("stopped", "no progress for 0.4 s")
    assert (status.finished_at or 0) - (status.started_at or 0) > 0.8
    assert node.wait(node.shell("sleep 0.7", "job-2")).state == "succeeded"
