"""A node spoken to through a bucket does what a local one does: the real courier and agent, S3 on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bucket_harness import Machine, wait_until

from mlinfra_prefect.agent import codecs
from mlinfra_prefect.agent.archive import build_archive
from mlinfra_prefect.aws.sdk import client
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.testing.emulator import MotoServer


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


def test_a_training_runs_through_the_bucket_and_its_revoked_grant_ends_the_machine(machine: Machine) -> None:
    """Boot, job, log, result, upload; then the grant is taken away and nothing is left."""
    machine.boot()
    node = machine.up()
    assert (node.alive(), node.lives(), node.jobs()) == (True, True, [])
    script = 'echo hello; echo "{\\"progress\\": 0.5}" >> $MLINFRA_EVENTS; echo model > $MLINFRA_OUTPUT_DIR/m.txt'
    machine.shell(node, "j1", script, expects="model")
    status = machine.ended(node, "j1")
    assert (status.state, status.exit_code) == ("succeeded", 0)
    assert node.file("j1", "log.txt").read_text() == "hello\n"
    assert json.loads(node.file("j1", "events.jsonl").read_text())["progress"] == 0.5
    upload = machine.home / "uploads" / "j1"
    assert (upload / "files" / "m.txt").read_text() == "model\n"
    assert json.loads((upload / "manifest.json").read_text())["files"][0]["path"] == "m.txt"
    assert node.jobs() == ["j1"]
    node.revoke()
    assert machine.over() == "-P now"
    assert machine.processes() == set()
    wait_until(lambda: not node.lives())
    assert (node.alive(), node.why_gone()) == (False, "the grant was revoked")


def code_of(sources: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in sources.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def test_a_callable_gets_its_arguments_and_an_artifact_and_gives_its_result(machine: Machine, tmp_path: Path) -> None:
    """Code, arguments with files, an artifact among them, and a result with a file: all as on local."""
    machine.boot()
    node = machine.up()
    artifact = tmp_path / "artifact"
    (artifact / "files").mkdir(parents=True)
    (artifact / "files" / "w.bin").write_bytes(b"weights" * 10000)
    given = tmp_path / "given.txt"
    given.write_text("given")
    job_id, staged, job = machine.job("j1", kind="callable", expects="result")
    source = (
        "import json, os, pathlib\n"
        "def train(path, number):\n"
        "    job = json.loads((pathlib.Path(os.environ['MLINFRA_OUTPUT_DIR']).parent / 'job.json').read_text())\n"
        "    weights = pathlib.Path(job['artifacts']['a1'], 'files', 'w.bin').read_bytes()\n"
        "    out = pathlib.Path('out.txt'); out.write_text(path.read_text() * number)\n"
        "    return {'out': out, 'weights': len(weights)}\n"
    )
    code = code_of({"work.py": source})
    (staged / "code.zip").write_bytes(code)
    job |= {
        "callable": {"module": None, "file": "work.py", "qualname": "train", "import_root": ""},
        "code": {"archive": "code.zip", "sha256": hashlib.sha256(code).hexdigest()},
        "args": {
            "args": [codecs.encode(given, staged / "args", name="path"), codecs.encode(3, staged / "args", name="n")],
            "kwargs": {},
        },
        "artifacts": {"a1": str(artifact)},
    }
    with node.submitted(job_id, staged, job, {}):
        status = machine.ended(node, "j1")
    assert status.state == "succeeded", (status, node.file("j1", "log.txt").read_text())
    result = node.file("j1", "result.json")
    value = codecs.decode(json.loads(result.read_bytes())["value"], result.parent / "result")
    assert (Path(value["out"]).read_text(), value["weights"]) == ("given" * 3, 70000)
    assert not staged.exists()


def test_inputs_come_from_this_machine_and_from_s3(machine: Machine, tmp_path: Path) -> None:
    """Directories and files travel, objects are fetched by their own addresses; a prefix is not its namesake."""
    machine.boot()
    node = machine.up()
    folder = tmp_path / "folder"
    (folder / "deep" / "empty").mkdir(parents=True)
    (folder / "deep" / "x.bin").write_bytes(os.urandom(300_000))
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    for key, body in {"data/a.txt": b"a", "data/sub/b.txt": b"bb", "data2/no": b"no", "data/none": b""}.items():
        client().put_object(Bucket=machine.bucket, Key=key, Body=body)
    script = (
        'cd "$MLINFRA_INPUT_FOLDER" && sha256sum deep/x.bin && test -x run.sh && test -d deep/empty;'
        'cat "$MLINFRA_INPUT_FILE"; cd "$MLINFRA_INPUT_OBJECTS" && find . -type f | sort; cat sub/b.txt;'
        'basename "$MLINFRA_INPUT_OBJECT"; cat "$MLINFRA_INPUT_OBJECT"'
    )
    inputs = {
        "folder": str(folder), "file": f"file://{folder}/run.sh", "objects": f"s3://{machine.bucket}/data/",
        "object": f"s3://{machine.bucket}/data/a.txt",
    }  # fmt: skip
    machine.shell(node, "j1", script, inputs=inputs)
    assert machine.ended(node, "j1").state == "succeeded", node.file("j1", "log.txt").read_text()
    digest = hashlib.sha256((folder / "deep" / "x.bin").read_bytes()).hexdigest()
    said = node.file("j1", "log.txt").read_text()
    assert said == f"{digest}  deep/x.bin\n#!/bin/sh\n./a.txt\n./none\n./sub/b.txt\nbba.txt\na"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("/nowhere/at/all", "does not exist"), ("s3://{bucket}/nothing", "there is nothing"),
        ("s3://no-such-bucket-here/x", "cannot be listed"), ("https://example.org/x", "cannot be read"),
        ("{large}", "GiB"), ("{leads_out}", "link"),
    ],
)  # fmt: skip
def test_an_input_that_cannot_travel_is_named_before_anything_is_handed_over(
    machine: Machine, tmp_path: Path, uri: str, problem: str
) -> None:
    """The field is in the error, and the node sees no job."""
    large, leads_out = tmp_path / "large", tmp_path / "leads_out"
    with large.open("wb") as file:
        file.truncate(3 << 30)
    leads_out.mkdir()
    (leads_out / "link").symlink_to("/etc/hostname")
    uri = uri.format(bucket=machine.bucket, large=large, leads_out=leads_out)
    node = machine.client()
    with pytest.raises(InvalidInput, match=r"inputs\.data: .*" + problem):
        machine.shell(node, "j1", "true", inputs={"data": uri})
    assert node.jobs() == []
    assert "Contents" not in client().list_objects_v2(Bucket=machine.bucket, Prefix=f"{machine.prefix}/in/jobs/")


CANARY = f"canary-{uuid4().hex}"
KNOWS = f'printf %s "$TOKEN" | sha256sum | grep -q {hashlib.sha256(CANARY.encode()).hexdigest()} && echo "knows $KEY"; '
IN_TURN = KNOWS + "while [ ! -e {go} ]; do sleep 0.05; done"


def holding(machine: Machine) -> list[str]:
    """Where the canary lies: files of the machine and of the client, and objects of the bucket."""
    found = [
        str(path) for path in machine.root.rglob("*")
        if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes()
    ]  # fmt: skip
    s3 = client()
    listed = s3.list_objects_v2(Bucket=machine.bucket).get("Contents", ())
    assert listed
    bodies = {each["Key"]: s3.get_object(Bucket=machine.bucket, Key=each["Key"])["Body"].read() for each in listed}
    return found + [key for key, body in bodies.items() if CANARY.encode() in body]


def test_a_secret_is_read_by_the_node_and_lies_nowhere(machine: Machine, tmp_path: Path) -> None:
    """The references travel; the training has the values, and no file, no object and no other process does."""
    client("secretsmanager").create_secret(Name="hf-token", SecretString=json.dumps({"token": CANARY}))
    client("ssm").put_parameter(Name="/ours/wandb", Value="key-of-wandb", Type="SecureString")
    machine.boot()
    node = machine.up()
    secrets = {"TOKEN": "aws-sm:hf-token#token", "KEY": "ssm:/ours/wandb"}
    go = tmp_path / "go"
    job = machine.job("j1", command=["sh", "-c", IN_TURN.format(go=go)], secrets=sorted(secrets))
    with node.submitted(*job, secrets):
        log = node.file("j1", "log.txt")
        wait_until(lambda: node.status("j1") and log.exists() and "knows" in log.read_text(), why=machine.console)
    assert log.read_text() == "knows key-of-wandb\n"
    training = json.loads((machine.node_root / "jobs" / "j1" / "status.json").read_bytes())["pid"]
    holders = {pid for pid in machine.processes() if CANARY in Path(f"/proc/{pid}/environ").read_text()}
    children = {int(each) for each in Path(f"/proc/{training}/task/{training}/children").read_text().split()}
    assert holders - children == {training}
    assert not any(CANARY in Path(f"/proc/{pid}/cmdline").read_text() for pid in machine.processes())
    assert holding(machine) == []
    go.touch()
    assert machine.ended(node, "j1").state == "succeeded"
    assert holding(machine) == []


def test_a_secret_that_the_node_cannot_read_fails_the_job_by_its_name(machine: Machine) -> None:
    """The error says which, where it was looked for, and nothing of the others; the next job runs."""
    client("ssm").put_parameter(Name="/ours/canary", Value=CANARY, Type="SecureString")
    machine.boot()
    node = machine.up()
    secrets = {"A": "ssm:/ours/canary", "B": "aws-sm:no-such-secret"}
    with node.submitted(*machine.job("j1", command=["true"], secrets=sorted(secrets)), secrets):
        status = machine.ended(node, "j1")
    assert (status.state, status.error["type"]) == ("failed", "SecretsUnavailable")
    said = "secrets.B: aws-sm:no-such-secret: there is none in us-east-1 (ResourceNotFoundException)"
    assert status.error["message"] == said
    machine.shell(node, "j2", "true")
    assert machine.ended(node, "j2").state == "succeeded"
    assert holding(machine) == []


TRAINING = (
    "n=0; [ -f $MLINFRA_CHECKPOINT_DIR/n ] && n=$(cat $MLINFRA_CHECKPOINT_DIR/n); echo from $n;"
    "save() { echo $n > $MLINFRA_CHECKPOINT_DIR/n; $MLINFRA_PYTHON -I -S $MLINFRA_AGENT commit-checkpoint $n; };"
    'trap "save; exit 0" TERM; n=$((n+1)); save; while :; do sleep 0.05; done'
)


def test_a_job_that_is_told_to_stop_commits_and_the_next_one_resumes_from_it(machine: Machine) -> None:
    """The checkpoint comes to the client's store, committed and numbered as on local, and goes to the next node."""
    machine.boot()
    node = machine.up()
    store = machine.home / "checkpoints" / "shared"
    machine.shell(node, "j1", TRAINING, key="shared")
    wait_until(lambda: node.status("j1") and (store / "1" / "manifest.json").exists(), why=machine.console)
    assert ((store / "1" / "n").read_text(), (store / "LATEST").read_text()) == ("1\n", "1")
    node.stop("j1", grace_seconds=5.0)
    status = machine.ended(node, "j1")
    assert status.state == "stopped", status
    assert ((store / "2" / "n").read_text(), (store / "LATEST").read_text()) == ("1\n", "2")
    machine.shell(node, "j2", TRAINING, key="shared")
    wait_until(lambda: node.status("j2") and (store / "3" / "manifest.json").exists(), why=machine.console)
    assert node.file("j2", "log.txt").read_text().startswith("from 1\n")
    assert (store / "3" / "n").read_text() == "2\n"
    node.stop(None, grace_seconds=5.0)
    assert machine.ended(node, "j2").resumed_from == "key/2"
    assert machine.ended(node, "j2").state == "stopped"


def test_a_look_at_a_running_training_does_not_wait_for_its_end(machine: Machine) -> None:
    """What runs beside (``exec``) starts at once; killing one job leaves the other."""
    machine.boot()
    node = machine.up()
    machine.shell(node, "j1", "echo begun; sleep 60")
    wait_until(lambda: node.status("j1") and node.file("j1", "log.txt").exists(), why=machine.console)
    machine.shell(node, "e1", "echo looked; exit 3", beside=True)
    status = machine.ended(node, "e1")
    assert (status.state, status.exit_code) == ("failed", 3)
    assert node.file("e1", "log.txt").read_text() == "looked\n"
    assert node.status("j1").state == "running"
    node.stop("j1", grace_seconds=0.1, kill=True)
    assert machine.ended(node, "j1").state == "stopped"
    assert node.alive()


def test_another_home_brings_what_a_job_of_a_lost_one_left(machine: Machine) -> None:
    """All that is left is the mailbox: it tells where the job comes from, where the node cannot write."""
    machine.boot()
    first = machine.up()
    origin = {"lineage": {"name": "a.b:train", "makers": []}, "key": "key"}
    script = 'echo weights > "$MLINFRA_OUTPUT_DIR/w.bin";'
    job = machine.job("j1", command=["sh", "-c", script], expects="model")
    with first.submitted(*job, {}, origin=origin):
        machine.ended(first, "j1")
    shutil.rmtree(machine.home / "uploads")
    shutil.rmtree(first.directory)

    other = machine.client("other")
    assert other.jobs() == []
    status = machine.ended(other, "j1")  # somebody looked before it was adopted: nothing is brought for nobody
    assert status.state == "succeeded"
    assert other.origin("j1") == origin
    assert other.origin("j2") is None
    incoming, store = machine.home / "incoming" / "j1", machine.home / "store"
    other.expect("j1", incoming, store)
    assert other.jobs() == ["j1"]
    assert machine.ended(other, "j1").state == "succeeded"
    assert (incoming / "files" / "w.bin").read_text() == "weights\n"
    assert (incoming / "manifest.json").exists()
