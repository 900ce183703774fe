"""What may happen between a node and its client: S3 fails, blocks are torn, clients die, nobody comes, GPUs are bad."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bucket_harness import Machine, wait_until

from mlinfra_prefect.agent.archive import build_archive
from mlinfra_prefect.aws import carrying, node as node_module
from mlinfra_prefect.aws.mailbox import MailboxUnavailable
from mlinfra_prefect.aws.node import BucketNode
from mlinfra_prefect.aws.sdk import client
from mlinfra_prefect.testing.emulator import MotoServer

LARGE = "for i in 1 2 3 4 5 6 7 8; do head -c 20000 /dev/urandom > $MLINFRA_OUTPUT_DIR/$i.bin; done"


@pytest.fixture(scope="module")
def server() -> Iterator[MotoServer]:
    with pytest.MonkeyPatch.context() as patch, MotoServer() as running:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def machine(tmp_path: Path, archive: Path, server: MotoServer) -> Iterator[Machine]:
    server.proxy.clear()
    name = f"artifacts-{uuid4().hex[:12]}"
    client().create_bucket(Bucket=name)
    made = Machine(tmp_path, archive, name, server.url)
    yield made
    server.proxy.clear()
    made.close()


def keys(machine: Machine, place: str) -> list[str]:
    found = client().list_objects_v2(Bucket=machine.bucket, Prefix=f"{machine.prefix}/{place}")
    return [each["Key"] for each in found.get("Contents", ())]


def over(node: BucketNode) -> bool:
    status = node.status("j1")
    return status is not None and status.ended


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500, "code": "InternalError"}, {"status": 503, "code": "SlowDown"}, {"drop_before": True},
        {"drop_after": True}, {"status": 500, "code": "InternalError", "executed": True},
    ],
    ids=["500", "throttled", "dropped", "done and dropped", "done and 500"],
)  # fmt: skip
def test_requests_fail_now_and_then_and_a_training_comes_home(
    machine: Machine, server: MotoServer, fault: dict
) -> None:
    """Writes, reads and listings of both sides fail now and then: the upload is whole, the log is whole."""
    machine.boot()
    node = machine.up()
    stop = threading.Event()

    def spoil() -> None:
        operations = {"PutObject": machine.instance_id, "GetObject": machine.instance_id, "ListObjectsV2": ""}
        while not stop.is_set():
            for operation, match in operations.items():
                server.proxy.fault(operation, match=match, **fault)
            stop.wait(1.5)  # so that no call of one client meets all of its tries spoiled
            server.proxy.clear()

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    try:
        machine.shell(node, "j1", f"for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done; {LARGE}", expects="model")
        status = machine.ended(node, "j1", 60)
    finally:
        stop.set()
        spoiler.join()
    assert status.state == "succeeded"
    assert node.file("j1", "log.txt").read_text() == "".join(f"line {i}\n" for i in range(1, 6))
    manifest = json.loads((machine.home / "uploads" / "j1" / "manifest.json").read_text())
    assert {each["path"] for each in manifest["files"]} == {f"{i}.bin" for i in range(1, 9)}


def test_a_bucket_that_nobody_reaches_ends_nothing(
    machine: Machine, server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training goes on, the client still takes the node for alive, and all of it arrives when S3 is back."""
    monkeypatch.setattr(node_module, "SECOND_LOOK_SECONDS", 0.5)
    machine.boot()
    node = machine.up()
    machine.shell(node, "j1", f"echo begun; sleep 2; {LARGE}; echo over", expects="model")
    wait_until(lambda: node.status("j1") and node.file("j1", "log.txt").exists(), why=machine.console)
    server.proxy.fault("*", times=None, status=503, code="SlowDown")
    done = machine.node_root / "uploads" / "j1" / "manifest.json"
    wait_until(done.exists, 30, why=machine.console)
    assert (node.lives(), node.alive()) == (True, True)
    assert not over(node)
    with pytest.raises(MailboxUnavailable):
        node.stop(None, grace_seconds=1.0)
    server.proxy.clear()
    assert machine.ended(node, "j1", 60).state == "succeeded"
    assert node.file("j1", "log.txt").read_text() == "begun\nover\n"


def test_a_deadline_ends_agent_and_machine_without_any_bucket(machine: Machine, server: MotoServer) -> None:
    """S3 is gone for good: the agent ends at its deadline, the machine is powered off."""
    machine.boot(seconds=4.0)
    node = machine.up()
    machine.shell(node, "j1", "sleep 60")
    wait_until(lambda: node.status("j1") and node.status("j1").state == "running", why=machine.console)
    server.proxy.fault("*", times=None, drop_before=True)
    assert machine.over(60) == "-P now"
    assert machine.processes() == set()


def test_a_deadline_is_told(machine: Machine) -> None:
    """What ran is stopped, and the last index says why."""
    machine.boot(seconds=4.0)
    node = machine.up()
    machine.shell(node, "j1", "sleep 60")
    status = machine.ended(node, "j1")
    assert (status.state, status.reason) == ("stopped", "the deadline passed")
    assert machine.over() == "-P now"
    wait_until(lambda: not node.alive())
    assert "deadline passed" in node.why_gone()


def test_a_node_that_nobody_comes_for_powers_itself_off_at_its_deadline(machine: Machine) -> None:
    """Without a grant there is no agent, and not for longer than the deadline."""
    machine.boot(seconds=2.0)
    assert machine.over() == "-P now"
    assert not (machine.node_root / "agent.json").exists()


def test_an_agent_does_not_outlive_its_deadline_when_its_courier_is_killed(machine: Machine) -> None:
    """SIGKILL of the courier: the training goes on and ends with the deadline, nothing starts it again."""
    machine.boot(seconds=5.0)
    node = machine.up()
    machine.shell(node, "j1", "sleep 60")
    wait_until(lambda: node.status("j1") and node.status("j1").state == "running", why=machine.console)
    machine.courier.kill()
    machine.courier.wait()
    assert machine.processes()
    wait_until(lambda: not machine.processes(), 20)


def test_a_silent_node_is_lost_by_the_clock_of_s3(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The courier hangs: after the time of silence neither `lives` nor `alive`, and both again when it goes on."""
    monkeypatch.setattr(node_module, "SILENT_SECONDS", 3.0)
    monkeypatch.setattr(node_module, "SECOND_LOOK_SECONDS", 0.5)
    machine.boot()
    node = machine.up()
    assert (node.lives(), node.alive()) == (True, True)
    os.kill(machine.courier.pid, signal.SIGSTOP)
    wait_until(lambda: not node.lives(), 20)
    assert not node.alive()
    os.kill(machine.courier.pid, signal.SIGCONT)
    wait_until(lambda: node.lives() and node.alive(), 20)


def test_a_grant_that_was_replaced_ends_the_agent(machine: Machine) -> None:
    """Another grant is another owner's."""
    machine.boot()
    node = machine.up()
    client().put_object(Bucket=machine.bucket, Key=f"{machine.prefix}/in/grant", Body=b"another")
    assert machine.over() == "-P now"
    wait_until(lambda: not node.alive())
    assert node.why_gone() == "the grant was replaced"


def test_a_listing_without_the_grant_is_not_enough(machine: Machine, server: MotoServer) -> None:
    """The grant is asked for by its name before a training ends: one wrong answer ends nothing."""
    machine.boot()
    node = machine.up()
    client().delete_object(Bucket=machine.bucket, Key=f"{machine.prefix}/in/grant")
    server.proxy.fault("GetObject", match="/in/grant", times=8, status=500, code="InternalError")
    server.proxy.wait_for("GetObject", match="/in/grant", times=3, since=server.proxy.requests)
    assert node.alive()
    assert machine.over() == "-P now"


CLIENT = """
import json, sys, time
from pathlib import Path
from mlinfra_prefect.aws.node import BucketNode
from mlinfra_prefect.aws.sdk import client
directory, bucket, prefix, staged, job = sys.argv[1:6]
node = BucketNode(Path(directory), client(), bucket, prefix, poll_seconds=0.05)
with node.submitted("j1", Path(staged), json.loads(job), {}):
    print("handed over", flush=True)
    while True:
        node.status("j1")
        time.sleep(0.05)
"""


def test_what_a_client_waited_for_is_brought_by_another_process(machine: Machine) -> None:
    """SIGKILL of the client that handed a job over: whoever has the mirror brings its upload and its checkpoint."""
    machine.boot()
    node = machine.up()
    script = (
        "echo begun; echo 1 > $MLINFRA_CHECKPOINT_DIR/n; $MLINFRA_PYTHON -I -S $MLINFRA_AGENT commit-checkpoint 1;"
        f"while [ ! -f {machine.root}/go ]; do sleep 0.05; done; {LARGE}; echo over"
    )
    job_id, staged, job = machine.job("j1", command=["sh", "-c", script], expects="model")
    words = [str(node.directory), machine.bucket, machine.prefix, str(staged), json.dumps(job)]
    command = [sys.executable, "-c", CLIENT, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "handed over\n"
        wait_until(lambda: (node.file(job_id, "log.txt")).exists(), why=machine.console)
        other.kill()
    (machine.root / "go").touch()
    assert node.jobs() == ["j1"]
    assert machine.ended(node, "j1").state == "succeeded"
    assert node.file("j1", "log.txt").read_text() == "begun\nover\n"
    assert (machine.home / "uploads" / "j1" / "files" / "8.bin").stat().st_size == 20000
    assert (machine.home / "checkpoints" / "j1" / "1" / "n").read_text() == "1\n"


def test_two_clients_of_one_mirror_bring_everything_once(machine: Machine) -> None:
    """Client and keeper follow the same job: the log has no line twice, the checkpoints are numbered once."""
    machine.boot()
    node = machine.up()
    script = (
        "for i in 1 2 3 4 5 6; do echo line $i; echo $i > $MLINFRA_CHECKPOINT_DIR/n;"
        "$MLINFRA_PYTHON -I -S $MLINFRA_AGENT commit-checkpoint $i; done"
    )
    machine.shell(node, "j1", script)
    follower = (
        "import sys, time\nfrom pathlib import Path\nfrom mlinfra_prefect.aws.node import BucketNode\n"
        "from mlinfra_prefect.aws.sdk import client\n"
        "node = BucketNode(Path(sys.argv[1]), client(), sys.argv[2], sys.argv[3], poll_seconds=0.02)\n"
        "while not ((status := node.status('j1')) and status.ended): time.sleep(0.01)\n"
    )
    words = [sys.executable, "-c", follower, str(node.directory), machine.bucket, machine.prefix]
    others = [subprocess.Popen(words) for _ in range(2)]
    threads = [threading.Thread(target=machine.ended, args=(machine.client(), "j1", 40)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert machine.ended(node, "j1", 40).state == "succeeded"
    for thread in threads:
        thread.join()
    assert [other.wait(30) for other in others] == [0, 0]
    assert node.file("j1", "log.txt").read_text() == "".join(f"line {i}\n" for i in range(1, 7))
    store = machine.home / "checkpoints" / "j1"
    numbers = sorted(int(each.name) for each in store.iterdir() if each.name.isdecimal())
    steps = [json.loads((store / str(number) / "manifest.json").read_text())["step"] for number in numbers]
    assert steps == sorted(set(steps))
    assert (steps[-1], (store / "LATEST").read_text()) == (6, str(numbers[-1]))


def test_a_torn_block_is_never_taken_and_a_later_look_finds_the_right_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are not what their name says are thrown away; the end of the job waits for the right ones."""
    monkeypatch.setattr(carrying, "SPOILED_SECONDS", 600.0)
    machine.boot()
    node = machine.up()
    machine.shell(node, "j1", LARGE, expects="model")
    wait_until(lambda: "succeeded" in machine_status(machine), 30, why=machine.console)
    (name,) = keys(machine, "out/packs/")
    right = client().get_object(Bucket=machine.bucket, Key=name)["Body"].read()
    for wrong in (right[:-1] + b"?", right[:1000], b""):
        client().put_object(Bucket=machine.bucket, Key=name, Body=wrong)
        time.sleep(0.1)
        assert not over(node)
    client().delete_object(Bucket=machine.bucket, Key=name)
    time.sleep(0.1)
    assert not over(node)
    assert not (machine.home / "uploads" / "j1" / "manifest.json").exists()
    client().put_object(Bucket=machine.bucket, Key=name, Body=right)
    assert machine.ended(node, "j1").state == "succeeded"
    assert (machine.home / "uploads" / "j1" / "files" / "1.bin").stat().st_size == 20000


def machine_status(machine: Machine) -> str:
    """What the bucket's own index says of the job."""
    body = client().get_object(Bucket=machine.bucket, Key=f"{machine.prefix}/out/index.json")["Body"].read()
    index = json.loads(body)
    inline = {name: base64.b64decode(text).decode(errors="replace") for name, text in index["inline"].items()}
    entry = index["files"].get("jobs/j1/status.json", {"blocks": []})
    return "".join(inline.get(name, "") for name in entry["blocks"])


def test_an_upload_that_stays_spoiled_is_found_corrupted_and_not_waited_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost block of an upload: the job's end is told after a while, and its upload is one that cannot be kept."""
    monkeypatch.setattr(carrying, "SPOILED_SECONDS", 0.5)
    machine.boot()
    node = machine.up()
    machine.shell(node, "j1", LARGE, expects="model")
    wait_until(lambda: "succeeded" in machine_status(machine), 30, why=machine.console)
    (name,) = keys(machine, "out/packs/")
    client().delete_object(Bucket=machine.bucket, Key=name)
    assert machine.ended(node, "j1").state == "succeeded"
    manifest = json.loads((machine.home / "uploads" / "j1" / "manifest.json").read_text())
    assert ("files" in manifest, "spoiled" in manifest) == (False, True)


def test_thousands_of_small_files_are_a_few_objects(machine: Machine, server: MotoServer) -> None:
    """An upload of many files is one stream: requests and index stay small."""
    machine.boot()
    node = machine.up()
    script = (
        "cd $MLINFRA_OUTPUT_DIR; mkdir d; i=0; while [ $i -lt 2000 ]; do echo $i > d/f$i; i=$((i+1)); done; touch z"
    )
    before = server.proxy.requests
    machine.shell(node, "j1", script, expects="model")
    assert machine.ended(node, "j1", 60).state == "succeeded"
    puts = server.proxy.count("PutObject", match="/out/packs/", since=before)
    gets = server.proxy.count("GetObject", match="/out/packs/", since=before)
    assert (puts, gets) == (1, 1)
    files = machine.home / "uploads" / "j1" / "files"
    assert len(list((files / "d").iterdir())) == 2000
    assert (files / "d" / "f1999").read_text() == "1999\n"
    index = client().get_object(Bucket=machine.bucket, Key=f"{machine.prefix}/out/index.json")["Body"].read()
    assert len(index) < 100_000


def test_a_huge_log_arrives_whole_and_costs_what_is_new(machine: Machine, server: MotoServer) -> None:
    """40 MB of log: the index stays small, and one more line is one more small block."""
    machine.boot()
    node = machine.up()
    script = f"seq 1 5500000; while [ ! -f {machine.root}/go ]; do sleep 0.05; done; echo last"
    machine.shell(node, "j1", script)
    expected = sum(len(str(i)) + 1 for i in range(1, 5500001))
    log = node.file("j1", "log.txt")
    wait_until(lambda: node.status("j1") and log.exists() and log.stat().st_size == expected, 90, why=machine.console)
    index = client().get_object(Bucket=machine.bucket, Key=f"{machine.prefix}/out/index.json")["Body"].read()
    assert len(index) < 100_000
    before = server.proxy.requests
    (machine.root / "go").touch()
    assert machine.ended(node, "j1", 60).state == "succeeded"
    assert server.proxy.count("GetObject", match="/out/blocks/", since=before) <= 3
    with log.open("rb") as stream:
        stream.seek(-12, os.SEEK_END)
        assert stream.read() == b"500000\nlast\n"[-12:]


@pytest.mark.parametrize(
    ("smi", "sentence"),
    [
        ("exit 127", "the machine image has no NVIDIA driver"),
        ("echo Xid 79 >&2; exit 9", "ended with 9: Xid 79"),
        ('echo "NVIDIA L4, 22888, emulated"', "has 1 GPU, and 2 were paid for"),
        ('echo "NVIDIA L4, 22888, emulated"; echo "NVIDIA L4, 9000, emulated"', "GPU 1 (NVIDIA L4) has 8.8 GiB"),
        ('echo "NVIDIA L4, 22888, 580.1"; echo "NVIDIA L4, 22888, 580.1"', "CUDA driver"),
    ],
)
def test_a_node_whose_gpus_are_not_what_was_paid_for_says_why_and_goes(
    machine: Machine, smi: str, sentence: str
) -> None:
    """One sentence names the step; nothing runs on the node, and without its grant it powers itself off."""
    machine.tool("nvidia-smi", smi)
    machine.boot(gpus=2, gib=24.0)
    node = machine.client()
    node.begin({})
    told = wait_until(node.unfit, why=machine.console)
    assert sentence in told
    assert (node.ready(), node.alive(), node.lives(), node.acceptance().fit) == (False, False, False, False)
    assert not (machine.node_root / "agent.json").exists()
    node.revoke()
    assert machine.over() == "-P now"


def test_an_emulated_driver_is_accepted_and_the_user_is_told_what_was_not_tested(machine: Machine) -> None:
    """Driver, count and memory are tested, CUDA is not; nothing but the driver's own word says so."""
    machine.tool("nvidia-smi", 'echo "NVIDIA L4, 22888, emulated"')
    machine.boot(gpus=1, gib=24.0)
    node = machine.up()
    found = node.acceptance()
    assert (found.state, found.driver, found.not_run) == ("passed", "emulated", "CUDA: not run: emulated driver")
    assert "CUDA was not" in found.sentence


@pytest.mark.parametrize("boot", ["%%%", "e30=", ""], ids=["no base64", "no fields", "nothing"])
def test_a_courier_that_cannot_begin_powers_the_machine_off(machine: Machine, archive: Path, boot: str) -> None:
    """What it was told at boot cannot be read: a machine without a courier only costs money."""
    environment = {"PATH": f"{machine.bin}:{os.environ['PATH']}", "MLINFRA_NODE_ROOT": str(machine.node_root)}
    command = [sys.executable, "-I", "-S", str(archive), "courier", boot]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("courier: boot: ")
    assert machine.shut_down.read_text() == "-P now\n"


def test_credentials_are_renewed_before_they_end(machine: Machine) -> None:
    """Sessions of a few minutes: the courier asks for new ones in time, and goes on with the old while it must."""
    machine.metadata.lifetime = 301.0
    machine.boot()
    node = machine.up()
    first = len([each for each in machine.metadata.served if each.endswith("/node-role")])
    wait_until(lambda: len([each for each in machine.metadata.served if each.endswith("/node-role")]) > first, 30)
    machine.metadata.broken = True
    machine.shell(node, "j1", "echo on")
    assert machine.ended(node, "j1").state == "succeeded"


def test_an_emptied_mailbox_leaves_nothing_in_the_bucket(machine: Machine) -> None:
    """After a release nothing of a node lies in the bucket; a second time changes nothing."""
    machine.boot()
    node = machine.up()
    machine.shell(node, "j1", LARGE, expects="model")
    assert machine.ended(node, "j1").state == "succeeded"
    node.revoke()
    machine.over()
    assert keys(machine, "")
    node.empty()
    node.empty()
    assert keys(machine, "") == []
