"""What ends an agent, what does not, and that nothing it started outlives it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_harness import NodeUnderTest, processes_with, wait_until

from mlinfra_prefect.agent import identity, wire
from mlinfra_prefect.agent.life import Life
from mlinfra_prefect.agent.specs import ServeSpec

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")

FAMILY = "sleep 300 & sleep 300 & wait"


def revoke(node: NodeUnderTest) -> None:
    node.grant.unlink()


def change_token(node: NodeUnderTest) -> None:
    node.grant.write_text("token-2")


def remove_lock(node: NodeUnderTest) -> None:
    (node.dir / wire.AGENT_LOCK).unlink()


def replace_lock(node: NodeUnderTest) -> None:
    (node.root / "other").touch()
    (node.root / "other").replace(node.dir / wire.AGENT_LOCK)


def sigterm(node: NodeUnderTest) -> None:
    os.kill(node.pid, signal.SIGTERM)


def remove_directory(node: NodeUnderTest) -> None:
    shutil.rmtree(node.dir, ignore_errors=True)


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (revoke, "grant was revoked"),
        (change_token, "grant was replaced"),
        (remove_lock, "agent.lock is gone"),
        (replace_lock, "agent.lock was replaced"),
        (sigterm, "SIGTERM"),
        (remove_directory, None),
    ],
)
def test_every_cause_of_death_ends_the_agent_and_all_it_started(
    node: NodeUnderTest, cause: Callable[[NodeUnderTest], None], reason: str | None
) -> None:
    """Grant, lock, SIGTERM, node directory: each ends agent, launcher, guardian, training and its grandchildren."""
    node.start()
    node.running(node.shell(FAMILY))
    node.family(6)  # agent, launcher, guardian, sh, two sleeps

    cause(node)

    wait_until(lambda: not node.processes(), 4)
    if reason is not None:
        state = node.state()
        assert state["state"] == "gone"
        assert reason in state["reason"]
        assert state["jobs"] == {"job-1": "stopped"}


def test_the_deadline_ends_the_agent(node: NodeUnderTest) -> None:
    """Past its deadline nothing of a lease runs, whoever else is alive; the jobs say why."""
    node.start(deadline=time.time() + 2.5)
    job = node.shell(FAMILY)
    node.running(job)
    wait_until(lambda: not node.processes(), 8)
    assert "deadline" in node.state()["reason"]
    assert "deadline" in wire.read_json(job / wire.STATUS)["reason"]


def test_a_training_that_ignores_sigterm_is_killed_with_the_agent(node: NodeUnderTest) -> None:
    """The grace at the end of an agent is two seconds, not as long as the training likes."""
    node.start()
    node.running(node.shell("trap '' TERM; while :; do sleep 0.1; done"))
    node.grant.unlink()
    wait_until(lambda: not node.processes(), 3.5)


def test_sigkill_of_the_agent_ends_the_training_within_three_seconds(node: NodeUnderTest) -> None:
    """The launcher is a dead-man: it sees that its agent is gone, kills the group and says so."""
    node.start()
    job = node.shell(FAMILY)
    node.running(job)
    node.family(6)
    os.kill(node.pid, signal.SIGKILL)
    wait_until(lambda: not node.processes(), 3)
    status = wire.read_json(job / wire.STATUS)
    assert (status["state"], status["reason"]) == ("stopped", "the agent died")


def test_sigkill_of_agent_and_launcher_at_once_ends_the_training(node: NodeUnderTest) -> None:
    """With both watchers dead in the same instant, the guardian and the kernel still end the whole group."""
    node.start()
    status = node.running(node.shell(FAMILY))
    node.family(6)
    assert status.launcher_pid is not None
    for pid in (node.pid, status.launcher_pid):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not node.processes(), 3)


def test_a_launcher_killed_alone_fails_its_job_and_not_the_agent(node: NodeUnderTest) -> None:
    """The agent goes on with the next job; the job that lost its launcher is failed, and its training is gone."""
    node.start()
    first = node.shell(FAMILY)
    status = node.running(first)
    assert status.launcher_pid is not None
    os.kill(status.launcher_pid, signal.SIGKILL)
    lost = node.wait(first)
    assert lost.state == "failed"
    assert "launcher" in str(lost.reason)
    assert node.wait(node.shell("true", "job-2")).state == "succeeded"
    wait_until(lambda: node.processes() == {node.pid}, 3)


def test_spawn_of_a_live_agent_is_a_success_that_changes_nothing(node: NodeUnderTest) -> None:
    """Terraform may run local-exec again: one agent, the same one."""
    node.start()
    pid = node.pid
    assert node.spawn().returncode == 0
    assert node.pid == pid
    assert node.processes() == {pid}


def test_two_spawns_at_once_leave_one_agent(node: NodeUnderTest) -> None:
    """The lock decides; the one that lost it reports the winner's success."""
    node.write_spec()
    argv = [sys.executable, "-I", "-S", str(node.archive), "spawn", str(node.spec_path)]
    racers = [subprocess.Popen(argv, stderr=subprocess.PIPE) for _ in range(3)]
    codes = [racer.wait(timeout=20) for racer in racers]
    for racer in racers:
        assert racer.stderr is not None
        racer.stderr.close()
    node.pids.append(node.state()["pid"])
    assert codes == [0, 0, 0]
    wait_until(lambda: node.processes() == {node.pid})


def test_a_spawn_that_lost_the_lock_waits_for_the_winner(node: NodeUnderTest) -> None:
    """Its own agent ends because another holds the lock: that one is coming up, and is what counts."""
    node.write_spec()
    holder = os.open(node.dir / wire.AGENT_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(holder, fcntl.LOCK_EX)
    argv = [sys.executable, "-I", "-S", str(node.archive)]
    loser = subprocess.Popen([*argv, "spawn", str(node.spec_path)], stderr=subprocess.DEVNULL)
    wait_until(lambda: "another agent" in log.read_text() if (log := node.dir / wire.AGENT_LOG).exists() else False)
    time.sleep(0.1)  # its agent has said so, and ended
    os.close(holder)
    winner = subprocess.Popen([*argv, "run", str(node.spec_path)], stderr=subprocess.DEVNULL)
    assert loser.wait(timeout=10) == 0
    assert node.state()["pid"] == winner.pid
    node.grant.unlink()
    assert winner.wait(timeout=5) == 0


def test_a_new_agent_may_follow_a_dead_one(node: NodeUnderTest) -> None:
    """A stale agent.json and a free lock are no agent; a job it left half-done is failed, not run again."""
    node.start()
    job = node.shell(FAMILY)
    status = node.running(job)
    for pid in (node.pid, status.launcher_pid):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    wait_until(node.gone)
    assert node.spawn().returncode == 0
    assert len(set(node.pids)) == 2
    assert node.wait(job).state == "failed"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda node: node.spec_path.write_text("{"), "not valid JSON"),
        (lambda node: node.spec_path.unlink(), "cannot be read"),
        (lambda node: node.grant.unlink(), "no grant"),
        (lambda node: node.grant.write_text("else"), "grant is another one"),
        (lambda node: node.write_spec(deadline=1.0), "deadline passed"),
        (lambda node: node.write_spec(python=Path("/nonexistent/python")), "cannot be started"),
        (lambda node: node.write_spec(attempt=2, node_dir=node.root / "no" / "such"), "No such file"),
    ],
)
def test_a_spawn_that_cannot_succeed_says_why_and_leaves_nothing(
    node: NodeUnderTest, spoil: Callable[[NodeUnderTest], object], said: str
) -> None:
    """Exit code 1, one sentence on stderr for Terraform to show, no process."""
    node.write_spec()
    spoil(node)
    done = node.spawn()
    assert done.returncode == 1
    assert said in done.stderr
    assert node.processes() == set()


def test_another_leases_agent_is_never_taken_for_ours(node: NodeUnderTest) -> None:
    """Idempotence is for the same lease and attempt only."""
    node.start()
    node.write_spec(attempt=2)
    done = node.spawn()
    assert done.returncode == 1
    assert "lives here" in done.stderr


def test_inherited_descriptors_are_closed_in_every_process(node: NodeUnderTest, tmp_path: Path) -> None:
    """Terraform's state lock is a descriptor that local-exec inherits: nobody of ours may keep it open."""
    lock = tmp_path / "terraform.lock"
    lock.touch()
    node.write_spec()
    descriptor = os.open(lock, os.O_RDWR)
    try:
        assert node.spawn(pass_fds=(descriptor,)).returncode == 0
    finally:
        os.close(descriptor)
    node.running(node.shell(FAMILY))
    for pid in node.processes():
        opened = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
        assert str(lock) not in opened
        assert not any(target.endswith("agent.lock") for target in opened) or pid == node.pid


def test_the_agent_closes_what_it_inherited_however_it_was_started(node: NodeUnderTest, tmp_path: Path) -> None:
    """Also without `spawn`, and `spawn` itself while it waits: the descriptor goes before anything else is done."""
    lock = tmp_path / "terraform.lock"
    lock.touch()
    node.write_spec()
    descriptor = os.open(lock, os.O_RDWR)
    argv = [sys.executable, "-I", "-S", str(node.archive), "run", str(node.spec_path)]
    agent = subprocess.Popen(argv, pass_fds=(descriptor,), stderr=subprocess.DEVNULL, start_new_session=True)
    os.close(descriptor)
    wait_until((node.dir / wire.AGENT_STATE).exists)
    assert str(lock) not in {os.readlink(path) for path in Path(f"/proc/{agent.pid}/fd").iterdir()}
    node.grant.unlink()
    assert agent.wait(timeout=5) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_kernel_ends_a_training_that_lost_all_its_watchers(node: NodeUnderTest) -> None:
    """Agent, launcher and guardian killed in one instant: the training process itself still ends."""
    node.start()
    status = node.running(node.shell("while :; do sleep 0.05; done"))
    assert status.pid is not None
    wait_until(lambda: b"while" in Path(f"/proc/{status.pid}/cmdline").read_bytes().split(b"\0exec\0")[0])
    for pid in node.processes():
        if os.getpgid(pid) != status.pid:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not identity.is_alive(status.pid or 0, status.start_time), 2)


def test_the_agent_leaves_the_session_and_the_tree_of_its_spawner(node: NodeUnderTest) -> None:
    """A killed process group, a closed terminal or a dead Terraform cannot reach it."""
    node.start()
    assert os.getsid(node.pid) == node.pid
    assert os.readlink(f"/proc/{node.pid}/fd/0") == "/dev/null"
    parent = int(Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent != os.getpid()
    assert (node.dir / wire.AGENT_LOG).stat().st_mode & 0o777 == 0o600


def test_only_allow_listed_variables_reach_the_agent_and_the_training(node: NodeUnderTest) -> None:
    """Cloud keys and Prefect's key of the worker never reach training code; PIP_* reaches only who runs pip."""
    planted = {
        "AWS_SECRET_ACCESS_KEY": "canary-aws",
        "PREFECT_API_KEY": "canary-prefect",
        "TF_VAR_x": "canary-tf",
        "PIP_INDEX_URL": "canary-pip",
        "LC_TIME": "C",
        "HTTPS_PROXY": "http://proxy.invalid",
    }
    node.start(env=planted)
    training = node.running(node.shell(FAMILY, env={"CHOSEN": "yes"})).pid
    for pid in node.processes():
        text = Path(f"/proc/{pid}/environ").read_text()
        assert "canary-aws" not in text
        assert "canary-prefect" not in text
        assert "canary-tf" not in text
        assert "LC_TIME=C" in text
        assert "http://proxy.invalid" in text
    text = Path(f"/proc/{training}/environ").read_text()
    assert "canary-pip" not in text
    assert "CHOSEN=yes" in text


def test_every_started_process_carries_the_four_marks(node: NodeUnderTest) -> None:
    """A sweep finds each of them, whatever died before it: agent, launcher, guardian, training, grandchildren."""
    deadline = time.time() + 60
    node.start(deadline=deadline)
    node.running(node.shell(FAMILY))
    pids = node.family(6)
    for mark in ("MLINFRA_LEDGER_ID=ledger-1", "MLINFRA_ATTEMPT=1", f"MLINFRA_DEADLINE={deadline!r}"):
        assert processes_with(mark) >= pids


def test_the_heartbeat_moves_while_the_agent_lives(node: NodeUnderTest) -> None:
    """agent.json is rewritten at its interval even when nothing happens, atomically and 0600."""
    node.start(heartbeat_seconds=0.05)
    first = node.state()["heartbeat"]
    wait_until(lambda: node.state()["heartbeat"] > first)
    assert (node.dir / wire.AGENT_STATE).stat().st_mode & 0o777 == 0o600


def test_a_broken_job_file_fails_that_job_only(node: NodeUnderTest) -> None:
    """Garbage in one job directory is that job's failure."""
    node.start()
    broken = node.dir / wire.JOBS / "broken"
    broken.mkdir(parents=True)
    (broken / wire.JOB).write_text("{]")
    assert "JSON" in str(node.wait(broken).reason)
    assert node.wait(node.shell("true")).state == "succeeded"


def test_a_server_that_ends_right_after_its_start_ends_its_agent(endpoint: Callable[..., NodeUnderTest]) -> None:
    """It said why, and would say it again: a silent crash loop helps nobody."""
    node = endpoint("echo served $SERVER_SETTING; sleep 0.3; exit 7")
    wait_until(node.gone)
    assert node.state()["state"] == "gone"
    assert node.state()["reason"] == "server exited with 7"
    assert (node.dir / wire.SERVER_LOG).read_text() == "served on\n"
    assert node.processes() == set()


def test_a_server_that_is_killed_is_started_again(endpoint: Callable[..., NodeUnderTest]) -> None:
    """A router or a replica that is killed must not take the endpoint with it."""
    node = endpoint("echo up; exec sleep 60")
    wait_until(lambda: (node.dir / wire.SERVER_LOG).read_text() == "up\n")
    first = node.state()["servers"][0]["pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: (node.dir / wire.SERVER_LOG).read_text() == "up\nup\n")
    wait_until(lambda: node.state()["servers"][0] is not None and node.state()["servers"][0]["pid"] != first)
    assert node.state()["state"] == "up"


def test_a_server_that_is_killed_again_and_again_ends_its_agent(endpoint: Callable[..., NodeUnderTest]) -> None:
    """Starting it for ever would change nothing."""
    node = endpoint("kill -9 $$")
    wait_until(node.gone, 15)
    assert node.state()["reason"] == "server exited with -9"


def test_the_agent_holds_the_socket_so_that_who_asks_meanwhile_waits(endpoint: Callable[..., NodeUnderTest]) -> None:
    """Nobody is refused between the death of a server and the start of the next one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = (
        "import os, socket, sys\n"
        "bound = socket.socket(fileno=int(sys.argv[-1]))\n"
        "while True:\n"
        "    line, _ = bound.accept()\n"
        "    line.sendall(str(os.getpid()).encode())\n"
        "    line.close()\n"
    )
    node = endpoint(argvs=[[sys.executable, "-c", serve]], listen=port)

    def answer() -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            return int(line.recv(64))

    first = answer()
    os.kill(first, signal.SIGKILL)
    assert answer() != first
    assert node.state()["state"] == "up"


def running_servers(node: NodeUnderTest) -> list[int]:
    return [each["pid"] for each in node.state()["servers"] if each is not None]


def test_as_many_servers_run_as_a_file_says(node: NodeUnderTest) -> None:
    """From the least to all; what is not a number changes nothing, and no server that is let go is missed."""
    file = node.root / "replicas.json"
    serve = ServeSpec((("sleep", "60"),) * 3, {}, node.root, scale=file, least=1)
    node.start(role="endpoint", serve=serve)
    bare = len(node.family(3))  # agent, guardian, one server
    (first,) = running_servers(node)

    def become(count: int) -> None:
        wait_until(lambda: len(running_servers(node)) == count)
        wait_until(lambda: len(node.processes()) == bare - 1 + count)
        assert running_servers(node)[0] == first

    for told, count in (("3", 3), ("2", 2), ("99", 3), ("0", 1), ("2", 2)):
        file.write_text(f'{{"replicas": {told}}}')
        become(count)
    for content in ("{", "[2]", '{"replicas": "3"}', '{"replicas": true}', "{}"):
        file.write_text(content)
        time.sleep(0.1)
    file.unlink()
    time.sleep(0.4)  # a heartbeat
    become(2)
    assert node.state()["state"] == "up"
    assert "exited" not in (node.dir / wire.AGENT_LOG).read_text()


def test_a_file_that_is_there_already_says_how_many_servers_start(node: NodeUnderTest) -> None:
    """Servers that are repaired are as many as before, and those beyond the first are started again, too."""
    file = node.root / "replicas.json"
    file.write_text('{"replicas": 2}')
    node.start(role="endpoint", serve=ServeSpec((("sleep", "60"),) * 3, {}, node.root, scale=file, least=1))
    first, second = wait_until(lambda: len(found := running_servers(node)) == 2 and found)
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: len(found := running_servers(node)) == 2 and second not in found)
    assert first in running_servers(node)


def test_a_further_server_that_cannot_start_does_not_end_the_others(node: NodeUnderTest) -> None:
    """Its port was taken meanwhile, say; the first ones serve on, and it is tried again later."""
    file = node.root / "replicas.json"
    file.write_text('{"replicas": 2}')
    argvs = (("sleep", "60"), ("sh", "-c", "echo tried; exit 4"))
    node.start(role="endpoint", serve=ServeSpec(argvs, {}, node.root, final=(4,), scale=file, least=1))
    log = node.dir / wire.AGENT_LOG
    wait_until(lambda: "server 2 exited with 4: trying again" in log.read_text())
    time.sleep(0.3)
    assert node.state()["state"] == "up"
    assert (node.dir / wire.SERVER_LOG).read_text() == "tried\n"
    assert len(running_servers(node)) == 1


def test_a_grant_may_carry_a_later_deadline(endpoint: Callable[..., NodeUnderTest]) -> None:
    """A served model that is deployed again lives on; and an earlier deadline ends it."""
    node = endpoint(FAMILY, deadline=time.time() + 1.0)
    node.family(5)
    token = node.grant.read_text().strip()

    def grants(until: str) -> None:
        # Replaced, as the platform does it: an agent that reads a half-written grant takes it for another one's.
        scratch = node.grant.with_name(".grant")
        scratch.write_text(f"{token}\n{until}\n")
        scratch.replace(node.grant)

    grants("inf")
    time.sleep(1.3)
    assert node.state()["state"] == "up"
    grants(str(time.time()))
    wait_until(node.gone, 4)
    assert "deadline" in node.state()["reason"]


def test_a_server_dies_with_its_agent_even_by_sigkill(endpoint: Callable[..., NodeUnderTest]) -> None:
    """Nobody would end it at its deadline otherwise."""
    node = endpoint(FAMILY)
    node.family(5)  # agent, guardian, sh, two sleeps
    os.kill(node.pid, signal.SIGKILL)
    wait_until(lambda: not node.processes(), 3)


def test_an_endpoint_ends_at_its_deadline(endpoint: Callable[..., NodeUnderTest]) -> None:
    """expires_at needs nobody: no keeper, no reaper."""
    node = endpoint(FAMILY, deadline=time.time() + 0.6)
    wait_until(lambda: not node.processes(), 4)
    assert "deadline" in node.state()["reason"]


def test_a_disk_that_hiccups_does_not_end_a_training(
    node: NodeUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreadable grant is not a revoked one until it stays unreadable for ten seconds."""
    spec = node.write_spec(grant=tmp_path / "grant")
    (node.dir / wire.AGENT_LOCK).touch()
    now = [0.0]
    life = Life(spec, monotonic=lambda: now[0])
    assert life.ended() is None

    def fail(self: Path) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", fail)
        assert life.ended() is None
        now[0] = 9.0
        assert life.ended() is None
        now[0] = 10.5
        assert "could not be read" in str(life.ended())
    assert life.ended() is None


def test_a_reused_pid_is_not_taken_for_the_old_process() -> None:
    """Pid and start time together name a process."""
    pid, started = identity.mine()
    assert identity.is_alive(pid, started)
    assert not identity.is_alive(pid, "1")
    child = subprocess.Popen(["true"])
    wait_until(lambda: identity.start_time(child.pid) is None)  # a zombie is not alive
    child.wait()


def test_an_agent_that_cannot_write_still_shows_that_it_lives(node: NodeUnderTest) -> None:
    """A full disk: what it wrote last gets a new age, which needs no room."""
    node.start()
    told = node.dir / wire.AGENT_STATE
    wait_until(told.exists)
    told.unlink()
    told.mkdir()  # nothing can be moved to its place
    os.utime(told, (0, 0))
    wait_until(lambda: told.stat().st_mtime > 1, 5)
    told.rmdir()
    wait_until(told.is_file, 5)
