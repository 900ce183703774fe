"""What happens to a job: how it runs, what it may say, and every way it can end."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_harness import NodeUnderTest, code_zip, result_of, wait_until

from mlinfra_prefect.agent import codecs, submission, wire
from mlinfra_prefect.agent.specs import Arguments, CodeRef, JobSpec
from mlinfra_prefect.agent.status import read_status

TRAIN = """
import asyncio, os, sys, time
from pathlib import Path
from mlinfra_agent.node import node

def add(a, b=1): return a + b
async def later(a): await asyncio.sleep(0); return {"async": a}
def numbers(): yield 1
def makes_generator(): return (n for n in range(3))
def raise_value(): raise ValueError("bad", 7)
class Mine(Exception): ...
def raise_mine(): raise Mine("own kind")
def raise_chain():
    try: {}["k"]
    except KeyError as error: raise RuntimeError("outer") from error
def leave(): sys.exit(3)
def leave_early(): sys.exit(0)
def interrupt(): raise KeyboardInterrupt
def shot(): os.kill(os.getpid(), 9)
def hard(): os._exit(0)
def unsendable(): return object()
def bad_metric(): node().metrics(loss=1.0); node().metrics(loss=float("nan")); return 1
def recovered(): node().metrics(loss=float("inf")); node().metrics(loss=0.5, auc=0.9, step=3); return 1
def bad_result(): return {"auc": float("inf")}
def model():
    (node().output_dir / "m.bin").write_bytes(b"weights")
    node().progress(0.5, "half")
    node().metrics(auc=0.75)
    return node().artifact(format="raw", name="churn", metrics={"f1": 0.5}, rows=3)
def no_model(): return None
def facts():
    n = node()
    return {"params": dict(n.params), "inputs": dict(n.inputs), "resumed": n.resumed, "stop": n.should_stop,
            "deadline": n.deadline, "cwd": Path.cwd().name, "argv": sys.argv, "main": "__main__" == __name__,
            "env": {k: v for k, v in os.environ.items() if k.startswith("MLINFRA_")}}
"""


def call(node: NodeUnderTest, function: str, *args: Any, job_id: str = "job-1", **job: Any) -> Path:
    """Run a function of TRAIN on the node."""
    arguments = Arguments(tuple(codecs.encode(arg, node.root / "never", name="a") for arg in args))
    return node.submit(job_id, files={"train.py": TRAIN}, function=f"train.py:{function}", args=arguments, **job)


# --- callables -------------------------------------------------------------------------------------------------------


def test_a_callable_returns_its_value(node: NodeUnderTest) -> None:
    """Arguments arrive, the result comes back, the status tells times and the exit code."""
    node.start()
    job = call(node, "add", 41)
    status = node.wait(job)
    assert (status.state, status.exit_code, status.error) == ("succeeded", 0, None)
    assert None not in {status.queued_at, status.started_at, status.finished_at}
    assert status.queued_at <= status.started_at <= status.finished_at
    assert result_of(job) == 42
    assert wire.read_json(node.root / "uploads/job-1/manifest.json")["files"] == []


def test_an_async_function_is_awaited(node: NodeUnderTest) -> None:
    """Coroutines are run to their end on the node."""
    node.start()
    job = call(node, "later", 5)
    assert node.wait(job).state == "succeeded"
    assert result_of(job) == {"async": 5}


def test_jobs_run_one_at_a_time_in_order_of_arrival(node: NodeUnderTest) -> None:
    """The second waits as `queued`; both see the GPU alone."""
    node.start()
    first = node.shell("sleep 0.4", "z-first")
    second = node.shell("true", "a-second")
    node.running(first)
    wait_until(lambda: node.state()["jobs"] == {"z-first": "running", "a-second": "queued"})
    one, two = node.wait(first), node.wait(second)
    assert one.finished_at is not None
    assert two.started_at is not None
    assert one.finished_at <= two.started_at


def test_a_job_beside_runs_at_once_and_is_ended_with_the_others(node: NodeUnderTest) -> None:
    """A look at a running training does not wait for its end; the grant's end is the end of both."""
    node.start()
    first = node.shell("sleep 60", "z-first")
    node.running(first)
    assert node.wait(node.shell("true", "b-look", beside=True)).state == "succeeded"
    long_look = node.shell("sleep 60", "c-look", beside=True)
    node.running(long_look)
    queued = node.shell("true", "d-queued")
    wait_until(lambda: node.state()["jobs"].get("d-queued") == "queued")
    node.grant.unlink()
    assert {node.wait(job).state for job in (first, long_look, queued)} == {"stopped"}


@pytest.mark.parametrize(
    ("function", "error_type", "message", "builtin", "args"),
    [
        ("raise_value", "ValueError", "('bad', 7)", True, ("bad", 7)),
        ("raise_mine", "train.Mine", "own kind", False, ()),
        ("raise_chain", "RuntimeError", "outer", True, ("outer",)),
        ("leave", "SystemExit", "3", True, (3,)),
        ("leave_early", "NoResult", "before the function returned", False, ()),
        ("interrupt", "KeyboardInterrupt", "", True, ()),
        ("unsendable", "CodecError", "return (object) has no codec", False, ()),
        ("numbers", "TypeError", "generator", True, None),
        ("makes_generator", "TypeError", "generator", True, None),
        ("bad_metric", "BadMetrics", "'loss'", False, ()),
        ("bad_result", "BadMetrics", "'auc'", False, ()),
        ("missing", "LoadFailed", "missing", False, ()),
        ("hard", "NoResult", "exited with 0 before", False, ()),
    ],
)
def test_every_error_of_a_callable_is_reported_by_its_type(
    node: NodeUnderTest, function: str, error_type: str, message: str, builtin: bool, args: tuple[Any, ...] | None
) -> None:
    """The client can raise a builtin again from its arguments; everything else keeps type, message and traceback."""
    node.start()
    status = node.wait(call(node, function))
    assert status.state == "failed"
    assert status.error is not None
    assert (status.error.type, status.error.builtin) == (error_type, builtin)
    assert message in status.error.message
    if args is not None:
        assert status.error.args == args
    assert not (node.root / "uploads/job-1/manifest.json").exists()


def test_a_traceback_shows_the_users_frames_and_causes_only(node: NodeUnderTest) -> None:
    """Nobody wants to read our frames; causes are what explains the error."""
    node.start()
    job = call(node, "raise_chain")
    error = node.wait(job).error
    assert error is not None
    assert "KeyError: 'k'" in error.traceback
    assert "train.py" in error.traceback
    assert "runner.py" not in error.traceback
    assert error.traceback in (job / wire.LOG).read_text()


def test_a_kill_from_outside_is_told_in_words(node: NodeUnderTest) -> None:
    """-9 means nothing to most people."""
    node.start()
    status = node.wait(call(node, "shot"))
    assert (status.state, status.exit_code) == ("failed", -9)
    assert "killed by SIGKILL" in str(status.reason)
    assert "memory" in str(status.reason)


def test_a_model_is_uploaded_with_its_metrics_and_draft(node: NodeUnderTest) -> None:
    """The manifest names every file with its sha256, the last metrics, and what the training said about the model."""
    node.start()
    job = call(node, "model", expects="model")
    assert node.wait(job).state == "succeeded"
    upload = node.root / "uploads/job-1"
    manifest = wire.read_json(upload / "manifest.json")
    assert manifest["files"] == [{"path": "m.bin", "sha256": hashlib.sha256(b"weights").hexdigest(), "size": 7}]
    assert (upload / "files/m.bin").read_bytes() == b"weights"
    assert manifest["metrics"] == {"auc": 0.75}
    assert manifest["draft"] == {"format": "raw", "name": "churn", "metrics": {"f1": 0.5}, "metadata": {"rows": 3}}
    assert result_of(job).name == "churn"
    lines = [json.loads(line) for line in (job / wire.EVENTS).read_text().splitlines()]
    assert [(line.get("progress"), line.get("message")) for line in lines] == [(0.5, "half"), (None, None)]


def test_a_training_without_a_model_fails(node: NodeUnderTest) -> None:
    """An empty output directory is not a model."""
    node.start()
    status = node.wait(call(node, "no_model", expects="model"))
    assert status.error is not None
    assert (status.state, status.error.type) == ("failed", "NoModel")


def test_a_metric_that_recovers_is_fine_and_unchecked_ones_are_kept(node: NodeUnderTest) -> None:
    """Only the last value counts; with check_metrics off even NaN is passed on, as text."""
    node.start()
    assert node.wait(call(node, "recovered")).state == "succeeded"
    manifest = wire.read_json(node.root / "uploads/job-1/manifest.json")
    assert manifest["metrics"] == {"loss": 0.5, "auc": 0.9}
    assert node.wait(call(node, "bad_metric", job_id="job-2", check_metrics=False)).state == "succeeded"
    assert wire.read_json(node.root / "uploads/job-2/manifest.json")["metrics"] == {"loss": "NaN"}


def test_a_training_knows_its_job(node: NodeUnderTest, tmp_path: Path) -> None:
    """Params, inputs by path and file:// address, deadline, working directory; inputs are used in place."""
    data = tmp_path / "some data.csv"
    data.touch()
    deadline = time.time() + 60
    node.start(deadline=deadline)
    job = call(node, "facts", params={"lr": 0.1}, inputs={"corpus": data.as_uri(), "Raw": str(data)}, expects="result")
    assert node.wait(job).state == "succeeded"
    facts = wire.read_json(job / wire.RESULT)  # the paths inside are copied into the result, so look at the JSON
    env = facts["value"]["value"]["env"]["value"]
    assert env["MLINFRA_INPUT_CORPUS"] == env["MLINFRA_INPUT_RAW"] == str(data)
    assert json.loads(env["MLINFRA_PARAMS"]) == {"lr": 0.1}
    assert env["MLINFRA_LEASE_ID"] == node.lease_id
    assert env["MLINFRA_ON_NODE"] == "1"
    found = result_of(job)
    assert (found["params"], found["deadline"], found["cwd"]) == ({"lr": 0.1}, deadline, "code")
    assert (found["resumed"], found["stop"], found["main"], found["argv"]) == (False, False, False, ["train.py"])


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"X": "s3://bucket/key"}, "cannot be fetched here"),
        ({"X": "rel/path"}, "cannot be fetched"),
        ({"X": "/no/such"}, "nothing at"),
    ],
)
def test_an_input_that_cannot_be_had_fails_by_its_name(node: NodeUnderTest, inputs: dict[str, str], said: str) -> None:
    """Only file:// and absolute paths here; the message names the input."""
    node.start()
    status = node.wait(node.shell("true", inputs=inputs))
    assert status.error is not None
    assert status.error.type == "InvalidInput"
    assert "inputs['X']" in status.error.message
    assert said in status.error.message


def test_a_script_without_its_guard_is_named(node: NodeUnderTest) -> None:
    """Importing the module on the node must not start the flow that leased the node."""
    node.start()
    files = {"flow.py": "import sys\ndef train(): return 1\nsys.exit(train())\n"}
    status = node.wait(node.submit(files=files, function="flow.py:train"))
    assert status.error is not None
    assert "__name__" in status.error.message


def test_prefect_works_on_the_node_as_far_as_it_can(node: NodeUnderTest) -> None:
    """The task's own function runs, without an engine or a server; its run logger writes into the training's log."""
    pytest.importorskip("prefect")
    node.start()
    code = (
        "import os\n"
        "from prefect import task, get_run_logger\n"
        "from prefect.logging import get_run_logger as other\n"
        "@task\n"
        "def train(x):\n"
        "    get_run_logger().info('hello %s', x); other().warning('twice')\n"
        "    return os.environ['PREFECT_SERVER_ALLOW_EPHEMERAL_MODE']\n"
    )
    arguments = Arguments((codecs.encode(3, node.root, name="x"),))
    job = node.submit(files={"train.py": code}, function="train.py:train", args=arguments)
    assert node.wait(job, 40).state == "succeeded"
    assert result_of(job) == "false"
    log = (job / wire.LOG).read_text()
    assert "hello 3" in log
    assert "WARNING" in log


def test_worker_processes_of_a_training_can_import_its_module(node: NodeUnderTest) -> None:
    """multiprocessing's spawn method starts a fresh interpreter, as data loaders do."""
    node.start()
    code = (
        "import multiprocessing\n"
        "def double(x): return 2 * x\n"
        "def train():\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool: return pool.map(double, [1, 2])\n"
    )
    job = node.submit(files={"pkg/train.py": code}, function="pkg/train.py:train")
    assert node.wait(job, 30).state == "succeeded"
    assert result_of(job) == [2, 4]


# --- commands --------------------------------------------------------------------------------------------------------


def test_a_command_trains_in_the_code_directory(node: NodeUnderTest) -> None:
    """The code root is its working directory, `python` the job's interpreter; output is the log, events are echoed."""
    node.start()
    script = (
        "cat data.txt; echo '{\"progress\": 0.5}' >> $MLINFRA_EVENTS; echo garbage >> $MLINFRA_EVENTS;"
        'echo \'{"metrics": {"auc": 0.5}}\' >> $MLINFRA_EVENTS; printf \'{"metrics": {"f1": 1}}\' >> $MLINFRA_EVENTS;'
        "echo weights > $MLINFRA_OUTPUT_DIR/m; python -c 'import sys; print(sys.executable)'; echo oops >&2"
    )
    job = node.submit(files={"data.txt": "from the code\n"}, command=("sh", "-c", script), expects="model")
    status = node.wait(job)
    assert (status.state, status.malformed_events) == ("succeeded", 1)
    log = (job / wire.LOG).read_text()
    assert log.startswith("from the code\n")
    assert "oops" in log
    assert Path(sys.executable).parent.as_posix() in log
    assert wire.read_json(node.root / "uploads/job-1/manifest.json")["metrics"] == {"auc": 0.5, "f1": 1.0}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("sh", "-c", "exit 5"), "exited with 5"),
        (("no-such-program",), "127 (the command was not found)"),
        (("sh", "-c", "kill -SEGV $$"), "SIGSEGV"),
    ],
)
def test_a_command_that_fails_says_how(node: NodeUnderTest, command: tuple[str, ...], said: str) -> None:
    """Exit codes and signals become sentences."""
    node.start()
    status = node.wait(node.submit(command=command, expects="none"))
    assert status.state == "failed"
    assert said in str(status.reason)


def test_an_executable_in_the_code_archive_can_be_run(node: NodeUnderTest) -> None:
    """The executable bit travels, and SIGPIPE is not ignored as Python leaves it: `yes` ends without a complaint."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("train.sh")
        entry.external_attr = 0o100755 << 16
        archive.writestr(entry, "#!/bin/sh\nyes | head -n 1\n")
    node.start()
    job = node.submit(code=buffer.getvalue(), command=("./train.sh",), expects="none")
    assert node.wait(job).state == "succeeded"
    assert (job / wire.LOG).read_text() == "y\n"


def test_what_a_command_leaves_running_ends_with_it(node: NodeUnderTest) -> None:
    """A background child would keep the GPU after its job."""
    node.start()
    assert node.wait(node.shell("sleep 300 & exit 0")).state == "succeeded"
    wait_until(lambda: node.processes() == {node.pid}, 2)


@pytest.mark.parametrize("plant", ["ln -s /etc/hostname $MLINFRA_OUTPUT_DIR/x", "mkfifo $MLINFRA_OUTPUT_DIR/x"])
def test_outputs_that_are_not_files_of_their_own_are_refused(node: NodeUnderTest, plant: str) -> None:
    """A link out of the outputs would upload somebody else's file; a pipe would block for ever."""
    node.start()
    status = node.wait(node.shell(plant))
    assert status.error is not None
    assert (status.state, status.error.type) == ("failed", "BadOutput")


# --- code archives ---------------------------------------------------------------------------------------------------


def test_a_code_archive_that_was_changed_is_refused(node: NodeUnderTest) -> None:
    """The hash in the job is the client's; other bytes are not run."""
    node.start()
    data = code_zip({"train.py": "def f(): return 1"})
    wrong = CodeRef("code.zip", hashlib.sha256(b"else").hexdigest())
    status = node.wait(_with_code(node, data, wrong))
    assert status.error is not None
    assert status.error.type == "CodeCorrupted"
    assert "sha256" in status.error.message


def _with_code(node: NodeUnderTest, data: bytes, code: CodeRef) -> Path:
    staging = submission.stage(node.dir, "job-1")
    (staging / "code.zip").write_bytes(data)
    job = JobSpec(
        "job-1",
        node.lease_id,
        1,
        "command",
        node.root / "up",
        command=("sh", "-c", "touch ran"),
        code=code,
        expects="none",
    )
    return submission.hand_in(node.dir, staging, job)


def _evil(name: str, mode: int = 0o100644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("x")
        entry.filename = name
        entry.external_attr = mode << 16
        archive.writestr(entry, "/etc")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        _evil("../escaped"),
        _evil("/tmp/escaped"),
        _evil("a/../../escaped"),
        _evil("..\\escaped"),
        _evil("link", stat.S_IFLNK | 0o777),
        b"not a zip",
        code_zip({"a": "b"})[:-30],
    ],
    ids=["parent", "absolute", "inner-parent", "backslash", "link", "no-zip", "cut"],
)
def test_a_code_archive_cannot_write_outside_its_directory(node: NodeUnderTest, data: bytes) -> None:
    """Zip-slip, links and damaged archives: refused, nothing is run, nothing lands elsewhere."""
    node.start()
    job = _with_code(node, data, CodeRef("code.zip", hashlib.sha256(data).hexdigest()))
    status = node.wait(job)
    assert status.error is not None
    assert status.error.type == "CodeCorrupted"
    assert not list(node.root.rglob("escaped*"))
    assert list((job / wire.CODE).iterdir()) == []


# --- the job's files -----------------------------------------------------------------------------------------------


def test_a_job_for_another_lease_is_not_run(node: NodeUnderTest) -> None:
    """A mixed-up directory must not train under somebody else's budget."""
    node.start()
    status = node.wait(node.shell("true", lease_id="lease-else"))
    assert status.state == "failed"
    assert "not for this node" in str(status.reason)


def test_files_of_a_job_are_private(node: NodeUnderTest) -> None:
    """0700 directories, 0600 files: outputs and uploads as well."""
    node.start()
    job = node.shell("echo x > $MLINFRA_OUTPUT_DIR/x; mkdir $MLINFRA_OUTPUT_DIR/d; echo y > $MLINFRA_OUTPUT_DIR/d/y")
    node.wait(job)
    for root in (job, node.root / "uploads/job-1"):
        for folder, _, files in os.walk(root):
            assert Path(folder).stat().st_mode & 0o077 == 0, folder
            for name in files:
                assert (Path(folder) / name).stat().st_mode & 0o077 == 0, name


def test_the_status_is_read_back_as_written(node: NodeUnderTest) -> None:
    """status.json carries its schema and is whole at every moment."""
    node.start()
    job = node.shell("exit 4")
    status = node.wait(job)
    assert wire.read_json(job / wire.STATUS)["schema"] == wire.STATUS_SCHEMA
    assert read_status(job) == status


@pytest.fixture
def small(node: NodeUnderTest) -> Iterator[Callable[[], None]]:
    """The node's disk is small; called, it is full."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small file system")
    argv = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(node.dir)]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs may not be mounted here")

    def fill() -> None:
        with contextlib.suppress(OSError), (node.dir / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(b"x" * 512)

    yield fill
    node.close()
    subprocess.run(["umount", "--lazy", str(node.dir)], check=True)


@pytest.mark.parametrize("killed", [False, True], ids=["its launcher lives", "its launcher is killed, too"])
def test_how_a_job_went_is_said_once_there_is_room(
    node: NodeUnderTest, small: Callable[[], None], killed: bool
) -> None:
    """A disk that is full at its very end delays the word and loses nothing: a release waits for it."""
    pipe = node.root / "pipe"
    os.mkfifo(pipe, 0o600)
    node.start()
    job = node.shell(f"read answer < {pipe}; exit 7")
    running = node.running(job)
    small()
    launcher = running.launcher_pid
    assert launcher is not None
    if killed:
        os.kill(launcher, signal.SIGKILL)
    else:
        pipe.write_text("go\n")
    wait_until(lambda: node.processes() <= {node.pid, launcher})
    time.sleep(0.5)  # for one that would give up at once
    status = read_status(job)
    assert status is not None
    assert status.state == "running"
    (node.dir / "ballast").unlink()
    status = wait_until(lambda: (found := read_status(job)) is not None and found.final and found)
    assert (status.state, status.exit_code) == ("failed", None if killed else 7)
    assert node.wait(job) == status
