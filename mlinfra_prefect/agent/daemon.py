"""How an agent comes up: out of Terraform's process tree, in a session of its own, with nothing inherited.

Terraform's local-exec waits for its child, lets it inherit the descriptor of the state lock, and kills what it can
still reach. So `spawn` starts the agent as a new program (its ``/proc`` environment then carries the lease's marks and
nothing else) in a new session, waits until it says that it is up, and ends; the agent belongs to init from then on.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from . import allowlist, identity
from .life import Life
from .specs import AgentSpec
from .wire import AGENT_LOCK, AGENT_LOG, AGENT_STATE, SpecError, read_json, read_json_if_there

if TYPE_CHECKING:
    from pathlib import Path

SPAWN_SECONDS: Final = 15.0
LOCKED: Final = 3
_POLL_SECONDS: Final = 0.01


def load_spec(path: Path) -> AgentSpec:
    """Read an agent spec; raises SpecError with a sentence, also when the file is absent."""
    try:
        return AgentSpec.from_payload(read_json(path))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error


def live_agent(spec: AgentSpec) -> int | None:
    """The pid of the agent that is up in this node directory for this lease and attempt, or None.

    Raises:
        SpecError: another lease's agent lives there.
    """
    state = read_json_if_there(spec.node_dir / AGENT_STATE)
    if state is None or state.get("state") != "up" or not isinstance(state.get("pid"), int):
        return None
    if not identity.is_alive(state["pid"], state.get("start_time")):
        return None
    if (state.get("lease_id"), state.get("attempt")) != (spec.lease_id, spec.attempt):
        raise SpecError(
            f"{spec.node_dir}: the agent of lease {state.get('lease_id')!r}, attempt {state.get('attempt')}, lives here"
        )
    return int(state["pid"])


def spawn(spec_path: Path, archive: Path, *, timeout: float = SPAWN_SECONDS) -> int:
    """Bring an agent up and return its pid; a live one is success at once (idempotent). Blocks for ``timeout`` at most.

    Raises:
        SpecError: it did not come up; the message says why, and no agent of ours is left.
    """
    spec = load_spec(spec_path)
    reason = _not_granted(spec)
    if reason:
        raise SpecError(f"the agent was not started: {reason}")
    spec.node_dir.mkdir(mode=0o700, exist_ok=True)
    running = live_agent(spec)
    if running is not None:
        return running
    log = os.open(spec.node_dir / AGENT_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    offset = os.fstat(log).st_size
    try:
        agent = subprocess.Popen(
            [str(spec.python), "-I", "-S", str(archive), "run", str(spec_path)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
            env={**allowlist.inherited(pip=True), **allowlist.marks(spec)},
        )  # fmt: skip
    except OSError as error:
        raise SpecError(f"{spec.python}: cannot be started ({error.strerror})") from error
    finally:
        os.close(log)
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        running = live_agent(spec)
        if running is not None:
            return running
        if agent.poll() not in {None, LOCKED}:  # the one that holds the lock is another spawn's, and coming up
            raise SpecError(f"the agent ended with {agent.returncode} before it was up: {_last_words(spec, offset)}")
        time.sleep(_POLL_SECONDS)
    agent.kill()
    agent.wait()
    raise SpecError(f"the agent was not up after {timeout:g} s: {_last_words(spec, offset)}")


def _not_granted(spec: AgentSpec) -> str | None:
    """The reasons that hold before there is a lock: said by spawn itself, so that Terraform shows them."""
    if spec.deadline is not None and time.time() >= spec.deadline:
        return "the deadline passed"
    try:
        token = spec.grant.read_text(encoding="utf-8").strip()
    except OSError:
        return f"there is no grant at {spec.grant}"
    return None if token.partition("\n")[0].strip() == spec.grant_token.strip() else "the grant is another one"


def _last_words(spec: AgentSpec, offset: int) -> str:
    try:
        with (spec.node_dir / AGENT_LOG).open("rb") as log:
            log.seek(offset)
            text = log.read(20_000).decode(errors="replace").strip()
    except OSError:
        return "it left no log"
    return text.splitlines()[-1] if text else "it said nothing"


def take_lock(spec: AgentSpec, life: Life) -> int | None:
    """Hold ``agent.lock`` exclusively; returns the descriptor, or None when another agent holds it.

    The descriptor is not inheritable: the lock is free exactly when the agent is dead.
    """
    path = spec.node_dir / AGENT_LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        status = os.fstat(descriptor)
        try:
            same = os.path.samestat(status, path.stat())
        except FileNotFoundError:
            same = False
        if same:
            life.hold(status)
            return descriptor
        os.close(descriptor)  # the file was replaced between open and flock: lock the new one


def run(spec_path: Path, archive: Path) -> int:
    """Be the agent until its life ends; returns the exit code. A second agent for the same directory exits `LOCKED`."""
    from .supervise import Agent

    os.umask(0o077)
    spec = load_spec(spec_path)
    life = Life(spec)
    lock = take_lock(spec, life)
    if lock is None:
        sys.stderr.write("another agent holds the lock of this node directory\n")
        return LOCKED
    return Agent(spec, spec_path, archive, life).run()
