"""The courier: the node's one connection to the world, between the bucket and the agent's directory.

The agent and everything it starts know only directories, as on local. The courier carries: what the client wrote into
``in/`` appears there, what appears there goes to ``out/``; and it answers a job's question for secrets, with what the
node's role may read. It decides nothing but when the machine is not needed any more, and then powers it off: the agent
has ended (by its grant or its deadline), the GPUs are not what was paid for, or nobody came. A bucket that cannot be
reached ends nothing: the training goes on, and the deadline holds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import groups, identity
from .acceptance import NOTHING_TESTED, Acceptance, Examination
from .boot import Boot, NodeSpec
from .bucket import Bucket
from .daemon import spawn
from .folders import private_folder
from .imds import Imds, ImdsError
from .inbox import Inbox
from .outbox import ACCEPTANCE, COURIER_LOG, Outbox
from .secret_stores import SecretStores
from .specs import AgentSpec
from .wire import AGENT_STATE, SpecError, read_json_if_there, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = "/var/lib/mlinfra-prefect"
ROOT_VARIABLE: Final = "MLINFRA_NODE_ROOT"
UNFIT_SECONDS: Final = 60.0
"""How long a node that failed its test stays, so that its client can read why."""
END_SECONDS: Final = 15.0
"""What the last push may take, big files on their way included."""
TOLD_SECONDS: Final = 3.0
"""The same where the machine is going down already."""
AGENT_SECONDS: Final = 6.0
"""How long an agent may take to end without its grant."""
IMDS_SECONDS: Final = 5.0
QUICK_SECONDS: Final = 0.2
"""How often a node that has just booted looks for its grant: somebody waits for it."""
QUICK_FOR_SECONDS: Final = 600.0


class Courier:
    """One node's courier, which lives in this process.

    Args:
        boot: what the node was told.
        root: its private directory.
        archive: the archive it runs from; the agent runs from it too.
    """

    def __init__(self, boot: Boot, root: Path, archive: Path) -> None:
        self._boot, self._root, self._archive = boot, root, archive
        self._spec = NodeSpec()
        self._told: str | None = None
        self._agent: tuple[int, str] | None = None
        self._acceptance: Acceptance | None = None
        self._problems: dict[str, str] = {}
        self._looked_at = float("-inf")
        self._quick_until = time.monotonic() + QUICK_FOR_SECONDS
        self._gone: str | None = None
        self._last_state: dict[str, Any] = {}

    def run(self) -> None:
        """Carry until the machine is not needed any more. Never raises for what a bucket or a disk may do."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        private_folder(self._root)
        imds = Imds()
        instance = self._instance(imds)
        if instance is None:
            return
        bucket = Bucket(self._boot.bucket, self._boot.region, self._boot.endpoint, imds.credentials)
        prefix = f"nodes/{self._boot.role_id}:{instance}/"
        # A client of the metadata service is not safe for threads, and each job asks from its own.
        stores = SecretStores(self._boot.region, self._boot.endpoint, lambda: Imds().credentials())
        inbox = Inbox(bucket, f"{prefix}in/", self._root, self._say, stores.answer)
        outbox = Outbox(bucket, f"{prefix}out/", self._root, self._say)
        try:
            self._carry(inbox, outbox)
        finally:
            inbox.jobs.close()
            outbox.close()

    def _on_sigterm(self, *_: object) -> None:
        self._told = "the courier was told to end (SIGTERM)"

    def _instance(self, imds: Imds) -> str | None:
        while not self._over():
            found: str | None = self._tried("metadata", imds.instance_id)
            if found:
                return found
            time.sleep(IMDS_SECONDS)
        return None

    def _over(self) -> str | None:
        """What ends a courier whether or not there is an agent."""
        return self._told or ("the deadline passed" if time.time() >= self._boot.deadline else None)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _carry(self, inbox: Inbox, outbox: Outbox) -> None:
        self._tried("out", lambda: outbox.push(self._state(), force=True))  # the client sees the node
        examination = self._examination()
        reason = None
        while reason is None:
            self._look(inbox, outbox)
            if examination is not None and self._acceptance is None:
                self._take_acceptance(examination.ended())
            reason = self._over() or inbox.revoked
            if self._acceptance is not None and not self._acceptance.fit and reason is None:
                self._stay_unfit(inbox, outbox)
                reason = self._acceptance.sentence
            if reason is None:
                reason = self._bring_up(inbox) if self._agent is None else self._agent_gone()
            self._tried("out", lambda: outbox.push(self._state()))
            time.sleep(self._spec.look_seconds)
        if examination is not None:
            examination.kill()
        self._say(f"ending: {reason}")
        self._end(reason, inbox, outbox)

    def _examination(self) -> Examination | None:
        """Begin the test of the GPUs; without any there is nothing to begin."""
        if self._boot.gpus:
            return Examination(sys.executable, self._archive, self._boot.gpus, self._boot.gpu_memory_gib)
        self._take_acceptance(NOTHING_TESTED)
        return None

    def _look(self, inbox: Inbox, outbox: Outbox) -> None:
        waits = self._agent is None and time.monotonic() < self._quick_until
        if time.monotonic() - self._looked_at >= (QUICK_SECONDS if waits else self._spec.sync_seconds):
            self._looked_at = time.monotonic()
            self._tried("in", lambda: inbox.look(with_jobs=self._agent is not None))
        else:
            inbox.obey()  # a job that has just arrived may have been told to stop on its way
        outbox.said = inbox.jobs.said
        outbox.taken = {
            job: max(inbox.taken.get(job, 0), inbox.jobs.given.get(job, 0))
            for job in inbox.taken.keys() | inbox.jobs.given.keys()
        }

    def _take_acceptance(self, found: Acceptance | None) -> None:
        if found is not None:
            self._acceptance = found
            self._say(found.sentence)
            self._tried("disk", lambda: write_json(self._root / ACCEPTANCE, found.to_payload()))

    def _stay_unfit(self, inbox: Inbox, outbox: Outbox) -> None:
        until = time.monotonic() + UNFIT_SECONDS
        while time.monotonic() < until and not self._over() and inbox.revoked is None:
            self._look(inbox, outbox)
            self._tried("out", lambda: outbox.push(self._state()))
            time.sleep(self._spec.look_seconds)

    def _bring_up(self, inbox: Inbox) -> str | None:
        """Start the agent, once there is all that it takes; returns why it could not be started."""
        if self._acceptance is None or inbox.spec is None or inbox.grant is None:
            return None
        grant, place = self._root / "grant", self._root / "agent-spec.json"
        try:
            self._spec = NodeSpec.from_payload(inbox.spec)
            spec = AgentSpec(
                ledger_id=self._boot.ledger_id, lease_id=self._boot.lease_id, attempt=self._boot.attempt, role="node",
                deadline=self._boot.deadline, node_dir=self._root, grant=grant, grant_token=inbox.grant,
                heartbeat_seconds=self._spec.heartbeat_seconds, poll_seconds=self._spec.poll_seconds,
                python=Path(sys.executable), cache_dir=self._root / "cache",
            )  # fmt: skip
            write_json(place, spec.to_payload())
            descriptor = os.open(grant, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{inbox.grant}\n")
            pid = spawn(place, self._archive)
        except (SpecError, OSError) as error:
            return f"the agent cannot be started: {error}"
        self._agent = (pid, identity.start_time(pid) or "")
        self._looked_at = float("-inf")  # jobs may lie there already
        return None

    def _agent_gone(self) -> str | None:
        assert self._agent is not None
        if identity.is_alive(*self._agent):
            return None
        state = read_json_if_there(self._root / AGENT_STATE) or {}
        return str(state.get("reason") or "the agent's process died")

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end(self, reason: str, inbox: Inbox, outbox: Outbox) -> None:
        """End the agent, and say what there is to say; bounded."""
        until = time.monotonic() + (TOLD_SECONDS if self._told else END_SECONDS)
        (self._root / "grant").unlink(missing_ok=True)
        if self._agent is not None:
            ended_by = time.monotonic() + AGENT_SECONDS
            while identity.is_alive(*self._agent) and time.monotonic() < ended_by:
                time.sleep(0.02)
            groups.kill(*self._agent)
        self._gone = reason
        while True:
            done = self._tried("out", lambda: outbox.push(self._state(), force=True))
            if (done and outbox.idle) or time.monotonic() >= until:
                return
            self._look(inbox, outbox)
            time.sleep(self._spec.look_seconds)

    def _state(self) -> dict[str, Any]:
        """What the index says of the agent: its own words while it lives, ours before and after."""
        if self._agent is None or self._gone is not None:
            state = "booting" if self._gone is None else "gone"
            reason = self._gone
            if self._acceptance is not None and not self._acceptance.fit:
                state, reason = "unfit", self._acceptance.sentence
            return {"state": state, "reason": reason, "beat": time.time()}
        found = self._last_state = read_json_if_there(self._root / AGENT_STATE) or self._last_state
        with contextlib.suppress(OSError, ValueError, TypeError):
            # On a full disk the agent touches what it wrote last.
            found["beat"] = max(float(found["heartbeat"]), (self._root / AGENT_STATE).stat().st_mtime)
        return found

    # --- saying -------------------------------------------------------------------------------------------------------

    def _tried(self, what: str, act: Callable[[], Any]) -> Any:
        """What an act returns; None where it failed, which is said once until it succeeds again."""
        try:
            found = act()
        except (OSError, ValueError, KeyError, TypeError) as error:
            if self._problems.get(what) is None:
                self._say(f"{what}: {error}")
                if not isinstance(error, OSError):
                    self._say(traceback.format_exc())
            self._problems[what] = str(error)
            return None
        if self._problems.pop(what, None) is not None:
            self._say(f"{what}: works again")
        return found

    def _say(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n"
        with contextlib.suppress(OSError):
            sys.stderr.write(line)
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            descriptor = os.open(self._root / COURIER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "a") as file:
                file.write(line)


def run(encoded: str, archive: Path) -> int:
    """The verb ``courier``: carry, and power the machine off in the end, whatever happened. Returns the exit code."""
    os.umask(0o077)
    code = 1
    try:
        boot = Boot.from_text(encoded)
        Courier(boot, Path(os.environ.get(ROOT_VARIABLE) or ROOT), archive).run()
        code = 0
    except (SpecError, ImdsError, OSError) as error:
        sys.stderr.write(f"courier: {error}\n")
    except Exception:  # noqa: BLE001  (a machine without a courier only costs money)
        traceback.print_exc()
    power_off()
    sys.stderr.flush()
    os._exit(code)  # threads that still send have nothing more to send to


def power_off() -> None:
    """Ask the machine to power off; where that fails, the dead-man that was armed at boot does it."""
    for command in (["shutdown", "-P", "now"], ["poweroff"]):
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            sys.stderr.write(f"{command[0]}: {error}\n")
            continue
        if done.returncode == 0:
            return
