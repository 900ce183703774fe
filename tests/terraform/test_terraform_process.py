"""Terraform runs alone: no death or panic of its parent reaches it, and only its deadline ends it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mlinfra_prefect
from mlinfra_prefect.agent import identity
from mlinfra_prefect.errors import EngineMissing, OperationTimedOut
from mlinfra_prefect.terraform import Stack, events, in_flight, lock, process

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlinfra_prefect.terraform import Engine

    Write = Callable[..., Path]

# The provisioner holds the apply until the test lets go; a test that dies lets it end by itself.
GATED = """
variable "gate" { type = string }
resource "terraform_data" "gated" {
  provisioner "local-exec" {
    command = "touch ${var.gate}.reached; for i in $(seq 400); do test -e ${var.gate} && exit; sleep 0.05; done; exit 1"
  }
}
resource "terraform_data" "after" { input = terraform_data.gated.id }
"""

CHILD = """
import sys, time
from pathlib import Path
from mlinfra_prefect.terraform import Engine, Slots, Stack
directory, path, name, version, slots = sys.argv[1:]
Stack(Path(directory), engine=Engine(Path(path), name, version), slots=Slots(Path(slots), 2), env={}).apply(
    deadline=time.time() + 60)
"""


def _until(condition: Callable[[], bool], what: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s"
        time.sleep(0.01)


def _planned(stack: Stack, module: Path, gate: Path, deadline: float) -> None:
    stack.prepare(module, {"gate": str(gate)}, deadline=deadline)
    stack.plan(deadline=deadline)


def _output(stack: Stack, name: str) -> list[events.Event]:
    (path,) = (stack.directory / "output").glob(f"*-{name}.out")
    return events.Reader(path).read(final=True)


def _assert_whole(stack: Stack) -> None:
    seen = _output(stack, "apply")
    assert isinstance(seen[0], events.Version)
    assert isinstance(seen[-1], events.Outputs)
    assert not any(isinstance(event, events.Other) and not event.type for event in seen)
    assert set(stack.resources()) == {"terraform_data.gated", "terraform_data.after"}
    assert not stack.suspect


def test_terraform_survives_the_sigkill_of_its_parent(
    stack: Stack, engine: Engine, write_module: Write, tmp_path: Path, deadline: float
) -> None:
    """It finishes, its state and output are whole, and the inherited lock tells when: True until then, then False."""
    gate = tmp_path / "gate"
    _planned(stack, write_module(GATED), gate, deadline)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(stack.directory), str(engine.path), engine.name, engine.version,
         str(tmp_path / "slots")],
        env={**os.environ, "PYTHONPATH": str(Path(mlinfra_prefect.__path__[0]).parent)},
    )  # fmt: skip
    try:
        _until(gate.with_name("gate.reached").exists, "the provisioner")
    finally:
        child.kill()
        child.wait()
    assert in_flight(stack.lock_file)
    assert stack.in_flight()
    gate.touch()
    _until(lambda: not stack.in_flight(), "the end of the apply")
    _assert_whole(stack)
    assert len(stack.destroy(deadline=deadline).destroyed) == 2


class TerminationSignal(BaseException):
    """What Prefect raises in the main thread."""


@pytest.mark.parametrize("panic", [KeyboardInterrupt, SystemExit, TerminationSignal])
def test_an_exception_in_the_waiting_thread_leaves_terraform_running(
    stack: Stack, write_module: Write, tmp_path: Path, deadline: float, panic: type[BaseException]
) -> None:
    """It passes through at once; Terraform is not signalled and finishes."""
    gate = tmp_path / "gate"
    _planned(stack, write_module(GATED), gate, deadline)

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.Provision):
            raise panic

    with pytest.raises(panic):
        stack.apply(deadline=deadline, on_event=on_event)
    assert stack.in_flight()
    gate.touch()
    _until(lambda: not stack.in_flight(), "the end of the apply")
    _assert_whole(stack)


def test_a_real_sigint_to_the_parent_does_not_reach_terraform(
    stack: Stack, write_module: Write, tmp_path: Path, deadline: float
) -> None:
    """Its session is its own: what a terminal or a runner sends to the parent's group stays there."""
    gate = tmp_path / "gate"
    _planned(stack, write_module(GATED), gate, deadline)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        with pytest.raises(KeyboardInterrupt):
            stack.apply(deadline=deadline)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert stack.in_flight()
    gate.touch()
    _until(lambda: not stack.in_flight(), "the end of the apply")
    _assert_whole(stack)


def test_only_the_deadline_stops_terraform(stack: Stack, write_module: Write, tmp_path: Path, deadline: float) -> None:
    """SIGINT first, so that the state is written; the stack is suspect, idle, and can be destroyed."""
    _planned(stack, write_module(GATED), tmp_path / "never", deadline)
    started = time.monotonic()
    with pytest.raises(OperationTimedOut, match="went past its deadline"):
        stack.apply(deadline=time.time() + 0.5)
    assert 0.5 <= time.monotonic() - started < 5
    assert not stack.in_flight()
    assert stack.suspect
    assert "terraform_data.gated" in stack.resources()
    assert any("Interrupt received" in event.message for event in _output(stack, "apply"))
    assert stack.destroy(deadline=deadline).remaining == ()
    assert stack.suspect


def _run(argv: list[str], tmp_path: Path, *, deadline: float, grace: float = 5) -> tuple[process.Finished, list[str]]:
    reasons: list[str] = []
    finished = process.run(
        argv, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, lock_file=tmp_path / "lock", output=tmp_path / "o",
        deadline=deadline, suspect=reasons.append, grace=grace,
    )  # fmt: skip
    return finished, reasons


def test_past_the_deadline_and_the_grace_the_whole_group_is_killed(tmp_path: Path) -> None:
    """A program that ignores SIGINT, and its child that does so too, are gone; suspicion was noted before."""
    script = "trap '' INT; sleep 60 & echo $! > child; wait; wait"
    with pytest.raises(OperationTimedOut):
        _run(["/bin/sh", "-c", script], tmp_path, deadline=time.time() + 0.3, grace=0.1)
    pid = int((tmp_path / "child").read_text())

    def ended() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    _until(ended, "the end of the child")
    assert not in_flight(tmp_path / "lock")


def test_a_deadline_that_is_past_starts_nothing(tmp_path: Path) -> None:
    """And makes nothing suspect."""
    with pytest.raises(OperationTimedOut, match="nothing was started"):
        _run(["/bin/sh", "-c", "touch started"], tmp_path, deadline=time.time() - 1)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_dies_by_a_signal_is_suspect(tmp_path: Path, deadline: float) -> None:
    """The out-of-memory killer leaves a state that may miss resources."""
    finished, reasons = _run(["/bin/sh", "-c", "kill -9 $$"], tmp_path, deadline=deadline)
    assert finished.returncode == -signal.SIGKILL
    assert reasons == ["terraform -c was ended by signal 9"]


def test_providers_do_not_outlive_a_terraform_that_was_killed(
    tmp_path: Path, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle, one would hold the stack's lock for ever: nobody could destroy what the apply had made."""
    monkeypatch.setattr(process, "ORPHAN_SECONDS", 0.2)
    finished, _ = _run(["/bin/sh", "-c", "sleep 60 & echo $! > child; kill -9 $$"], tmp_path, deadline=deadline)
    assert finished.returncode == -signal.SIGKILL
    pid = int((tmp_path / "child").read_text())
    _until(lambda: identity.start_time(pid) is None, "the end of the provider")
    assert not in_flight(tmp_path / "lock")


def test_a_program_that_does_not_start_is_a_missing_engine(tmp_path: Path, deadline: float) -> None:
    """One sentence with its path, and the lock is free again."""
    with pytest.raises(EngineMissing, match="/nonexistent/terraform does not start"):
        _run(["/nonexistent/terraform", "plan"], tmp_path, deadline=deadline)
    assert not in_flight(tmp_path / "lock")


def test_streams_are_private_files_and_stdin_is_empty(tmp_path: Path, deadline: float) -> None:
    """Nothing can block on reading, or die on a pipe; the session is its own."""
    script = "cat; echo out; echo err >&2; ps -o sid= -p $$ 2>/dev/null || cut -d' ' -f6 /proc/$$/stat; echo $$; umask"
    ours, (reading, writing) = os.dup(0), os.pipe()
    os.write(writing, b"what a person typed")
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    try:
        finished, reasons = _run(["/bin/sh", "-c", script], tmp_path, deadline=deadline)
    finally:
        os.dup2(ours, 0)
        os.close(ours)
    out, session, pid, mask = finished.stdout.read_text().split()
    assert (out, session, mask, reasons) == ("out", pid, "0077", [])
    assert finished.stderr.read_text() == "err\n"
    assert finished.stdout.stat().st_mode & 0o777 == finished.stderr.stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_keeps_its_descriptors_does_not_keep_the_stack_busy(tmp_path: Path, deadline: float) -> None:
    """Terraform ended by itself: what a provisioner left behind is not Terraform."""
    _run(["/bin/sh", "-c", "sleep 30 & echo $! > daemon"], tmp_path, deadline=deadline)
    try:
        assert not in_flight(tmp_path / "lock")
    finally:
        os.kill(int((tmp_path / "daemon").read_text()), signal.SIGKILL)


def test_asking_never_makes_a_start_fail(tmp_path: Path) -> None:
    """A look at the lock holds it for an instant; a start waits that long."""
    path = tmp_path / "lock"
    looking = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(0.05, os.close, [looking])
    timer.start()
    held = lock.acquire(path)
    timer.join()
    assert in_flight(path)
    os.close(held)
    assert not in_flight(path)
    assert not in_flight(tmp_path / "absent")


def test_the_parents_environment_does_not_leak(
    stack: Stack, write_module: Write, tmp_path: Path, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither into Terraform's behaviour nor to what the module starts; named variables do arrive."""
    monkeypatch.setenv("CANARY", "bird")
    monkeypatch.setenv("TF_CLI_ARGS", "-lock=false")
    monkeypatch.setenv("TF_CLI_ARGS_plan", "-no-such-flag")
    monkeypatch.setenv("TF_CLI_ARGS_apply", "-no-such-flag")
    monkeypatch.setenv("TF_VAR_file", "/nonexistent/from-environment")
    monkeypatch.setenv("TF_LOG", "trace")
    monkeypatch.setenv("TF_WORKSPACE", "other")
    monkeypatch.setenv("TF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "bird")
    seen = tmp_path / "seen"
    module = write_module(f"""
        variable "file" {{ default = "{seen}" }}
        resource "terraform_data" "a" {{
          provisioner "local-exec" {{ command = "env > ${{var.file}}" }}
        }}
    """)
    named = Stack(stack.directory, engine=stack.engine, slots=stack._runner.slots, env={"MLINFRA_LEASE_ID": "l-1"})  # noqa: SLF001
    named.prepare(module, {}, deadline=deadline)
    named.plan(deadline=deadline)
    named.apply(deadline=deadline)
    text = seen.read_text()
    assert "MLINFRA_LEASE_ID=l-1" in text
    assert "bird" not in text
    assert not [line for line in text.splitlines() if line.startswith(("TF_CLI_ARGS", "TF_VAR", "TF_LOG", "TF_DATA"))]
    assert all(path.stat().st_size == 0 for path in (stack.directory / "output").glob("*.err"))
