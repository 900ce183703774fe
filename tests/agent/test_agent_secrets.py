"""Secrets reach the training's environment, and nothing else: no file, no argument list, no message."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
from agent_harness import NodeUnderTest, wait_until

from mlinfra_prefect.agent import launcher, secrets, wire

CANARY = "canary-9f31c2"


def holds_canary(root: Path) -> list[str]:
    """All regular files below a directory that hold the canary."""
    return [
        str(path)
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes()
    ]


def test_a_secret_is_in_the_trainings_environment_and_nowhere_else(node: NodeUnderTest) -> None:
    """The canary: it is there for the training, and no file, no other process, no command line has it."""
    node.start()
    # Compared by its hash: a script that named the value would itself be a file that holds it.
    digest = hashlib.sha256(CANARY.encode()).hexdigest()
    script = f'printf %s "$HF_TOKEN" | sha256sum | grep -q {digest} && echo right; sleep 300'
    job = node.shell(script, secrets=("HF_TOKEN", "OTHER"))
    assert (job / wire.SECRETS).stat().st_mode & 0o777 == 0o600
    server = secrets.serve_secrets(job, {"HF_TOKEN": CANARY, "OTHER": "x" * 100_000})
    status = node.running(job)
    wait_until(lambda: "right" in (job / wire.LOG).read_text())
    assert server.served
    server.close()
    assert not (job / wire.SECRETS).exists()
    holders = set()
    for pid in node.processes():
        if CANARY in Path(f"/proc/{pid}/environ").read_text():
            holders.add(pid)
        assert CANARY not in Path(f"/proc/{pid}/cmdline").read_text()
    children = {int(text) for text in Path(f"/proc/{status.pid}/task/{status.pid}/children").read_text().split()}
    assert holders == {status.pid, *children}
    node.stop(job, "kill")
    node.wait(job)
    assert holds_canary(node.root / "uploads") + holds_canary(node.dir) + holds_canary(node.root / "cache") == []


def test_an_error_that_quotes_a_secret_is_redacted(node: NodeUnderTest) -> None:
    """Libraries put the token that was refused into the exception: neither status nor log may show it."""
    node.start()
    code = "import os\ndef train(): raise ValueError('bad token ' + os.environ['TOKEN'], 1)\n"
    job = node.submit(files={"t.py": code}, function="t.py:train", secrets=("TOKEN",))
    server = secrets.serve_secrets(job, {"TOKEN": CANARY})
    status = node.wait(job)
    server.close()
    assert status.error is not None
    assert status.error.args == ("bad token ***", 1)
    assert holds_canary(node.dir) == []


def test_secrets_that_nobody_answers_for_fail_by_name(node: NodeUnderTest, tmp_path: Path) -> None:
    """The launcher waits a bounded time, and names what it waited for."""
    secrets.make_fifo(tmp_path)
    with pytest.raises(secrets.SecretsUnavailable, match=r"HF_TOKEN, WANDB did not arrive within 0.2 s"):
        secrets.read_secrets(tmp_path, ("WANDB", "HF_TOKEN"), timeout=0.2)
    assert launcher.SECRETS_SECONDS == 30.0


def test_an_answer_that_lacks_a_secret_fails_by_name_and_says_no_value(tmp_path: Path) -> None:
    """The others' values are not in the message."""
    secrets.make_fifo(tmp_path)
    server = secrets.serve_secrets(tmp_path, {"A": CANARY})
    with pytest.raises(secrets.SecretsUnavailable, match="secrets B") as caught:
        secrets.read_secrets(tmp_path, ("A", "B"), timeout=5)
    server.close()
    assert CANARY not in str(caught.value)


def test_why_there_are_none_is_an_answer_too(tmp_path: Path) -> None:
    """The launcher fails with that sentence, and does not wait for its time to be over."""
    secrets.make_fifo(tmp_path)
    server = secrets.SecretServer(tmp_path, lambda: "secrets.A: it is not there")
    with pytest.raises(secrets.SecretsUnavailable, match=r"^secrets\.A: it is not there$"):
        secrets.read_secrets(tmp_path, ("A",), timeout=5)
    server.close()


def test_nothing_is_read_before_it_is_asked_for_and_nobody_waits_for_a_job_that_is_over(tmp_path: Path) -> None:
    """A node has many jobs that wait for their turn, and some that are stopped before it."""
    secrets.make_fifo(tmp_path)
    asked: list[str] = []
    over = threading.Event()
    before = set(threading.enumerate())
    server = secrets.SecretServer(tmp_path, lambda: asked.append("") or {}, over.is_set)  # type: ignore[func-returns-value]
    (thread,) = set(threading.enumerate()) - before
    over.set()
    thread.join(5.0)
    assert (thread.is_alive(), server.served, asked) == (False, False, [])


def test_a_pipe_that_is_not_one_is_not_read(tmp_path: Path) -> None:
    """A regular file or a link in its place could feed the training somebody else's values."""
    (tmp_path / wire.SECRETS).write_text('{"A": "planted"}\n')
    with pytest.raises(secrets.SecretsUnavailable, match="not a pipe"):
        secrets.read_secrets(tmp_path, ("A",), timeout=0.2)


def test_a_server_that_is_closed_answers_nobody(tmp_path: Path) -> None:
    """After close() there is no thread and no answer."""
    secrets.make_fifo(tmp_path)
    server = secrets.serve_secrets(tmp_path, {"A": "1"})
    server.close()
    server.close()
    assert not server.served
    with pytest.raises(secrets.SecretsUnavailable):
        secrets.read_secrets(tmp_path, ("A",), timeout=0.2)


def test_a_job_that_waits_for_secrets_can_still_be_stopped(node: NodeUnderTest) -> None:
    """Waiting never blocks the watching."""
    node.start()
    job = node.shell("true", secrets=("A",))
    wait_until(lambda: node.state()["jobs"].get("job-1") == "preparing")
    node.stop(job)
    assert node.wait(job, 3).state == "stopped"
    assert os.path.exists(job / wire.SECRETS)


def test_a_secret_that_is_too_long_for_an_environment_is_said_so(node: NodeUnderTest) -> None:
    """The kernel limits one variable; the error says that, and quotes nothing."""
    node.start()
    job = node.shell("true", secrets=("BIG",))
    server = secrets.serve_secrets(job, {"BIG": CANARY * 100_000})
    status = node.wait(job)
    server.close()
    assert "too large" in str(status.reason)
    assert holds_canary(node.dir) == []
