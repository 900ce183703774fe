"""The launcher: one process per job, between the agent and the training, and a dead-man for both.

It prepares the job, starts the training in a process group of its own, and watches: for the end of the training, for
stop orders, for committed checkpoints, for progress, and for the end of its own right to live. It asks `life.Life`
itself instead of trusting the agent to be there: when the agent is killed, the training is gone within a second.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import subprocess
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import allowlist, environments, groups, identity, preparing, secrets, upload, verdict
from .committing import CommitTaker
from .events import EventTail
from .exits import oom_kills
from .job_queue import read_stop
from .specs import StopOrder
from .status import JobFailure, JobStatus, read_status
from .transfer import TransferError
from .wire import CHECKPOINT, EVENTS, FAILED, LOG, OUTPUTS, PREPARING, RUNNING, STOPPED, SUCCEEDED, UPLOADING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .life import Life
    from .specs import AgentSpec, JobSpec

END_GRACE_SECONDS = 1.0
SECRETS_SECONDS = 30.0
ENDING_SECONDS = 60.0
"""For how long a launcher tries to write how its job went; then the agent says that it could not."""


class Ended(Exception):
    """The launcher must end now: the agent ended, or its right to live did."""


class Told(Exception):
    """The job was told to stop before its training ran."""


class Launcher:
    """Runs one job from its directory to its final status.

    Args:
        spec: the agent's spec.
        job: the job.
        job_dir: its directory.
        archive: the archive the agent runs from.
        agent: the agent's pid, which is this process's parent while the agent lives.
        life: the agent's right to live.
    """

    def __init__(self, spec: AgentSpec, job: JobSpec, job_dir: Path, *, archive: Path, agent: int, life: Life) -> None:
        self._spec = spec
        self._job = job
        self._dir = job_dir
        self._archive = archive
        self._agent = agent
        self._life = life
        self._told_to_end = False
        pid, started = identity.mine()
        queued = read_status(job_dir) or JobStatus(queued_at=time.time())
        self._status = replace(queued, launcher_pid=pid, launcher_start_time=started)
        self._guardian = groups.Guardian()
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._waker = groups.Waker()
        self._log = os.open(job_dir / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._events = EventTail(job_dir / EVENTS)
        self._training: subprocess.Popen[bytes] | None = None
        self._group_ended = False
        self._order: StopOrder | None = None
        self._why = ""
        self._kill_at = math.inf
        self._commits = CommitTaker(job_dir, job.checkpoint, self._say)
        self._checked = -math.inf
        self._oom = oom_kills()

    def run(self) -> int:
        """Run the job; returns 0 when its final status was written."""
        final: JobStatus
        try:
            final = self._run()
        except Ended as end:
            final = self._status.ended(STOPPED, str(end))
        except Told as told:
            final = self._status.ended(STOPPED, str(told))
        except preparing.Refused as refused:
            final = self._ended(verdict.failed(refused.type, refused.message))
        except Exception as error:  # noqa: BLE001  (the last boundary: whatever it is, the client must hear of it)
            text = f"{type(error).__name__}: {error}"
            final = self._status.ended(
                FAILED, f"the launcher failed: {text}", JobFailure("LauncherFailed", text, traceback.format_exc())
            )
        finally:
            self._end_training()
            self._guardian.close()
        return self._say_ending(final)

    def _say_ending(self, final: JobStatus) -> int:
        """Write how it went: on a full disk for a while again and again, for nobody else knows it as well."""
        until = time.monotonic() + ENDING_SECONDS
        while True:
            try:
                final.write(self._dir)
            except OSError as error:
                gone = isinstance(error, FileNotFoundError | NotADirectoryError)  # with the lease
                try:
                    self._check_life()
                except Ended:
                    return 1
                if gone or time.monotonic() >= until:
                    return 1
                self._waker.wait(self._spec.poll_seconds)
            else:
                return 0

    # --- the phases ---------------------------------------------------------------------------------------------------

    def _run(self) -> JobStatus:
        self._say_state(PREPARING, started_at=time.time())
        argv, cwd, environment = self._prepare()
        self._start(argv, cwd, environment)
        code = self._watch()
        outcome = verdict.judge(
            self._job, self._dir, code, self._events.metrics,
            stopped=self._why if self._order is not None else None, out_of_memory=oom_kills() > self._oom,
        )  # fmt: skip
        if outcome is not None:
            return self._ended(outcome)
        self._say_state(UPLOADING)
        try:
            upload.upload(self._dir, self._job.upload_dir, self._events.metrics, self._uploading)
        except (OSError, TransferError) as error:
            return self._ended(verdict.failed("UploadFailed", f"the outputs could not be uploaded: {error}"))
        return self._status.ended(SUCCEEDED, None)

    def _prepare(self) -> tuple[list[str], Path, dict[str, str]]:
        job = self._job
        for name in (OUTPUTS, CHECKPOINT):
            (self._dir / name).mkdir(mode=0o700, exist_ok=True)
        code = preparing.unpack_code(self._dir, job.code)
        inputs = preparing.find_inputs(job.inputs)
        pip_env = {**allowlist.inherited(pip=True), **allowlist.marks(self._spec)}
        try:
            python = environments.ensure(
                self._spec.cache_dir, self._spec.python, job.requirements, inherit=job.inherit,
                log=self._log, env=pip_env, tick=self._preparing, guardian=self._guardian,
            )  # fmt: skip
        except environments.EnvironmentFailed as error:
            raise preparing.Refused("EnvironmentFailed", f"requirements: {error}") from error
        resumed = self._commits.bring(self._preparing)
        self._status = replace(self._status, resumed_from=resumed)
        environment = preparing.training_env(
            job, self._dir, self._spec, archive=self._archive, python=python, inputs=inputs, resumed_from=resumed
        )
        try:
            values = secrets.read_secrets(self._dir, job.secrets, timeout=SECRETS_SECONDS, tick=self._preparing)
        except secrets.SecretsUnavailable as error:
            raise preparing.Refused("SecretsUnavailable", str(error)) from error
        me = str(os.getpid())
        if job.command is not None:
            argv = [str(python), "-I", "-S", str(self._archive), "exec", me, "--", *job.command]
        else:
            argv = [str(python), str(self._archive), "train", str(self._dir), "--launcher", me]
        # Our own names win over a secret as they win over the job's: a secret cannot be called MLINFRA_*.
        return argv, code, {**environment, **values}

    def _start(self, argv: list[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self._preparing()
        # From the main thread, always: the kernel's "parent died" signal is tied to the thread that forks.
        try:
            self._training = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, cwd=cwd, env=dict(environment),
                process_group=0,
            )  # fmt: skip
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            # From None: the frames of a launcher that knows secrets have no place in a message.
            text = "params, env, secrets: one value, or all of them together, are too large for a process's environment"
            raise preparing.Refused("InvalidInput", text) from None
        self._guardian.watch(self._training.pid)
        self._say_state(RUNNING, pid=self._training.pid, start_time=identity.start_time(self._training.pid))

    def _watch(self) -> int:
        training = self._training
        assert training is not None
        moved = time.monotonic()
        while True:
            self._check_life()
            code = training.poll()
            # A commit is progress, and while it is stored the training may be waiting for it.
            news = self._events.read()
            if self._commits.take(self._copying) or news:
                moved = time.monotonic()
            if code is not None:
                break
            limit = self._job.progress_timeout_seconds
            if limit is not None and time.monotonic() - moved > limit and self._order is None:
                self._obey("checkpoint", self._job.grace_seconds, f"no progress for {limit:g} s")
            self._obey_orders()
            self._waker.wait(self._spec.poll_seconds)
        self._end_training()
        self._events.finish()
        self._commits.take(self._copying)
        self._status = replace(self._status, exit_code=code, malformed_events=self._events.malformed)
        return code

    # --- watching -----------------------------------------------------------------------------------------------------

    def _on_sigterm(self, *_: object) -> None:
        self._told_to_end = True

    def _check_life(self) -> None:
        now = time.monotonic()
        if now - self._checked < self._spec.poll_seconds / 2:  # called between chunks of copies, too
            return
        self._checked = now
        if os.getppid() != self._agent:
            raise Ended("the agent died")
        reason = self._life.ended()
        if reason is not None or self._told_to_end:
            raise Ended(reason or "the agent ended")

    def _find_order(self) -> StopOrder | None:
        return read_stop(self._dir) or read_stop(self._spec.node_dir)

    def _preparing(self) -> None:
        self._check_life()
        if self._find_order() is not None:
            raise Told("the job was told to stop before its training ran")

    def _uploading(self) -> None:
        self._check_life()
        order = self._find_order()
        if order is not None and order.action == "kill":
            raise Told("the job was told to end at once while its outputs were uploaded")

    def _copying(self) -> None:
        self._check_life()
        self._obey_orders()

    def _obey_orders(self) -> None:
        order = self._find_order()
        if order is not None and order != self._order:
            what = "told to commit a checkpoint and stop" if order.action == "checkpoint" else "told to end at once"
            self._obey(order.action, order.grace_seconds, f"the job was {what}", order)
        if time.monotonic() >= self._kill_at:
            self._why += "; it did not end within its grace and was killed"
            self._end_training(grace=0.0)
            self._kill_at = math.inf

    def _obey(self, action: str, grace: float, why: str, order: StopOrder | None = None) -> None:
        first = self._order is None
        self._order = order or StopOrder("checkpoint", grace)
        self._why = self._why or why
        if self._training is None:
            return
        if action == "kill":
            self._end_training(grace=0.0)
            return
        if first:  # a repeated order may move the end, but SIGTERM is said once
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._training.pid, signal.SIGTERM)
        self._kill_at = time.monotonic() + grace

    def _end_training(self, grace: float = END_GRACE_SECONDS) -> None:
        """End the training's whole group; also what an ended training left behind in it."""
        # Once only: a group id that ended long ago may be somebody else's by now.
        if self._training is None or self._group_ended:
            return
        groups.end(self._training, grace)
        self._group_ended = True
        self._guardian.forget(self._training.pid)

    # --- saying -------------------------------------------------------------------------------------------------------

    def _say_state(self, state: str, **changes: Any) -> None:
        self._status = replace(self._status, state=state, **changes)
        self._status.write(self._dir)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the training for want of a log line
            os.write(self._log, f"[mlinfra] {text}\n".encode())

    def _ended(self, outcome: verdict.Verdict) -> JobStatus:
        return self._status.ended(outcome.state, outcome.reason, outcome.error)
