"""A node on AWS, spoken to through a bucket: the same words as on local, for whoever waits for a training.

There is no connection to the machine and no open port. What the client wants lies in ``in/``, what the node says is
mirrored into the attempt's node directory, and read there. A node counts as silent by S3's own clock, and only while S3
answers: a client without a network has lost nothing but its view.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.acceptance import Acceptance
from mlinfra_prefect.agent.boot import NODE_SCHEMA, NodeSpec
from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.agent.inbox import GRANT, REVOKED, SPEC
from mlinfra_prefect.agent.wire import SpecError, read_json_if_there, write_json
from mlinfra_prefect.aws.carrying import PLACE
from mlinfra_prefect.aws.handover import Handover
from mlinfra_prefect.aws.index import Index
from mlinfra_prefect.aws.mailbox import Mailbox
from mlinfra_prefect.aws.mirror import POLL_SECONDS, Mirror
from mlinfra_prefect.errors import NodeLost
from mlinfra_prefect.model.names import token
from mlinfra_prefect.model.stack import JobStatus

SILENT_SECONDS = 30.0
"""A node whose index, or whose agent's beat, is older than this may be gone or hang."""
SECOND_LOOK_SECONDS = 6.0
LOOK_SECONDS = 0.25
OVER = frozenset({"gone", "unfit"})


class BucketNode:
    """One node of the platform AWS. See `lifecycle.platform.Node`. Safe for threads and several processes.

    Args:
        directory: the attempt's node directory on this machine, which becomes the mirror.
        client: an S3 client of boto3.
        bucket: the artifact bucket.
        prefix: ``nodes/<role id>:<instance id>``.
        poll_seconds: how often the node's index is asked for, at most.
    """

    def __init__(
        self, directory: Path, client: Any, bucket: str, prefix: str, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self.directory = directory
        self._mirror = _mirror(directory, client, bucket, prefix.rstrip("/"), poll_seconds)
        self._mailbox = self._mirror.mailbox

    # --- its beginning and its end ------------------------------------------------------------------------------------

    def begin(self, spec: Mapping[str, Any]) -> None:
        """Give a node its spec and its grant: it starts its agent when its GPUs are accepted. Idempotent.

        Args:
            spec: fields of `agent.boot.NodeSpec`, as far as they shall not be the defaults.

        Raises:
            SpecError: the spec has a field that is none.
            MailboxUnavailable: S3 does not answer, or refuses.
        """
        self.put_spec(spec)
        self.grant()

    def put_spec(self, spec: Mapping[str, Any]) -> None:
        """Write the node's spec; see `begin`."""
        checked = NodeSpec.from_payload({"schema": NODE_SCHEMA, **spec})
        self._mailbox.put(SPEC, json.dumps(checked.to_payload()).encode("ascii"))

    def grant(self) -> None:
        """Let the node live until the grant is revoked, or its deadline. The same grant every time."""
        path = private_folder(self.directory / PLACE) / "grant.json"
        kept = read_json_if_there(path)
        if kept is None:
            kept = {"token": token()}
            write_json(path, kept, durable=True)
        self._mailbox.put(GRANT, f"{kept['token']}\n".encode("ascii"))

    def revoke(self) -> None:
        """Take the grant away for good: the agent ends, and its machine powers itself off. Idempotent."""
        self._mailbox.put(REVOKED, b"")
        self._mailbox.delete(GRANT)

    def empty(self) -> None:
        """Delete the node's whole mailbox from the bucket. Idempotent; for a node that is gone."""
        self._mailbox.erase()

    # --- whether it is there ------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether its GPUs are accepted and its agent is up."""
        index = self._mirror.bring()
        return index is not None and index.state == "up"

    def unfit(self) -> str:
        """Why it will never be ready; empty while it may."""
        index = self._mirror.look()
        return self.why_gone() if index is not None and index.state in OVER else ""

    def acceptance(self) -> Acceptance | None:
        """How the test of its GPUs went; None before it has ended."""
        self._mirror.bring()
        try:
            return Acceptance.from_payload(read_json_if_there(self.directory / "acceptance.json"))
        except SpecError:
            return None

    def lives(self) -> bool:
        """Whether the node speaks, though its agent may hang or be ending. One request at most."""
        return self._lives(self._mirror.look())

    def _lives(self, index: Index | None) -> bool:
        if not self._mirror.answered:
            # Nobody can say: what it said last holds until somebody can.
            state = (read_json_if_there(self.directory / "agent.json") or {}).get("state")
            return state is not None and state not in OVER
        return index is not None and index.state not in OVER and self._mirror.age < SILENT_SECONDS

    def alive(self) -> bool:
        """Whether the agent is up and beats. Blocks for `SECOND_LOOK_SECONDS` at most, where it is silent."""
        until = time.monotonic() + SECOND_LOOK_SECONDS
        first = self._mirror.look()
        while True:
            index = self._mirror.look()
            if index is None or index.state != "up":
                # The bucket has never answered this process: as `lives`.
                return not self._mirror.answered and self._lives(index)
            if self._lives(index) and _beats(index):
                return True
            if first is not None and (index.version, index.at) != (first.version, first.at) and _beats(index):
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(LOOK_SECONDS)

    def why_gone(self) -> str:
        """What was last said of the agent's end, or why nobody can say; empty when nothing was said."""
        index = self._mirror.look()
        told = index.agent if index is not None else read_json_if_there(self.directory / "agent.json") or {}
        return str(told.get("reason") or self._mirror.problem)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def submitted(
        self, job_id: str, staged: Path, job: Mapping[str, Any], secrets: Mapping[str, str], *,
        origin: Mapping[str, Any] | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """Hand a staged job over; it has arrived in the bucket when the block begins.

        Args:
            job_id: the job's.
            staged: its directory.
            job: what the agent is told.
            secrets: references, which the node resolves.
            origin: what a keeper in another home is to know of it (`origin`).

        Raises:
            InvalidInput: an input cannot travel.
            MailboxUnavailable: S3 does not answer, or refuses: nothing was handed over.
        """
        told = dict(job)
        store = str((told.get("checkpoint") or {}).get("store") or "")
        self._mirror.carrier.note(job_id, str(told["upload_dir"]), store)
        handover = Handover(
            self._mailbox, told, lambda _: self._mailbox.client, secrets=secrets, origin=dict(origin or {})
        )
        handover.take_all(staged)
        handover.finish()
        private_folder(self.directory / "jobs" / job_id)
        shutil.rmtree(staged, ignore_errors=True)
        yield

    def origin(self, job_id: str) -> Mapping[str, Any] | None:
        """What `submitted` was told of a job, read from where its node cannot write. One request.

        Raises:
            MailboxUnavailable: S3 does not answer, or refuses.
        """
        body = self._mailbox.get(f"jobs/{job_id}.json")
        try:
            found = None if body is None else json.loads(body).get("origin")
        except (ValueError, AttributeError):
            return None
        return found if isinstance(found, dict) and found else None

    def expect(self, job_id: str, upload_dir: Path, store: Path) -> None:
        """Have what a job leaves brought to these places from now on, as if it had been handed over here."""
        private_folder(self.directory / "jobs" / job_id)
        self._mirror.expect(job_id, str(upload_dir), str(store))

    @contextmanager
    def answering(self, job_id: str, secrets: Mapping[str, str]) -> Iterator[None]:
        """Nothing is asked by a node on AWS: it resolves references itself."""
        del job_id, secrets
        yield

    def status(self, job_id: str) -> JobStatus | None:
        """What the node says of a job; None before it has said anything.

        Blocks while what a job that has ended left behind is brought: a final status means that it is here.
        """
        self._mirror.bring()
        found = read_json_if_there(self.directory / "jobs" / job_id / "status.json")
        if found is None or "state" not in found:
            return None
        return JobStatus(**{name: found[name] for name in JobStatus.__slots__ if found.get(name) is not None})

    def jobs(self) -> list[str]:
        """The ids of all jobs handed to it."""
        place = self.directory / "jobs"
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else []

    def file(self, job_id: str, name: str) -> Path:
        """The path of a file of a job in the mirror."""
        return self.directory / "jobs" / job_id / name

    def stop(self, job_id: str | None, *, grace_seconds: float, kill: bool = False) -> None:
        """Ask for *checkpoint now* (or a kill) of one job, or of all and no new one. Returns at once; idempotent.

        Raises:
            MailboxUnavailable: S3 does not answer, or refuses.
        """
        if job_id is not None and job_id not in self.jobs():
            return
        order = {"action": "kill" if kill else "checkpoint", "grace_seconds": grace_seconds}
        name = "stop.json" if job_id is None else f"stops/{job_id}.json"
        self._mailbox.put(name, json.dumps(order).encode("ascii"))


class NoNode:
    """The node of an attempt that never had one. See `lifecycle.platform.Node`; its mirror may hold logs.

    Args:
        directory: the attempt's node directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def lives(self) -> bool:
        """It does not."""
        return False

    def alive(self) -> bool:
        """It is not."""
        return False

    def why_gone(self) -> str:
        """It never was."""
        return "It has never been up."

    @contextmanager
    def submitted(
        self, job_id: str, staged: Path, job: Mapping[str, Any], secrets: Mapping[str, str], *,
        origin: Mapping[str, Any] | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """Raises NodeLost: nothing can be handed to it."""
        del staged, job, secrets, origin
        raise NodeLost(f"Job {job_id} cannot be handed over: its node has never been up.")
        yield

    def origin(self, job_id: str) -> Mapping[str, Any] | None:
        """It was handed nothing."""
        del job_id
        return None

    def expect(self, job_id: str, upload_dir: Path, store: Path) -> None:
        """Nothing comes from it."""

    @contextmanager
    def answering(self, job_id: str, secrets: Mapping[str, str]) -> Iterator[None]:
        """Raises NodeLost: it asks nothing."""
        del secrets
        raise NodeLost(f"Job {job_id} has no node: it has never been up.")
        yield

    def status(self, job_id: str) -> JobStatus | None:
        """It says nothing."""
        del job_id
        return None

    def jobs(self) -> list[str]:
        """It has none."""
        return []

    def file(self, job_id: str, name: str) -> Path:
        """Where a file of a job would be."""
        return self.directory / "jobs" / job_id / name

    def stop(self, job_id: str | None, *, grace_seconds: float, kill: bool = False) -> None:
        """There is nothing to stop."""


@functools.lru_cache(maxsize=64)
def _mirror(directory: Path, client: Any, bucket: str, prefix: str, poll_seconds: float) -> Mirror:
    """One mirror of a node in a process: what it has seen last is known to all who speak to the node."""
    return Mirror(directory, Mailbox(client, bucket, prefix), poll_seconds)


def _beats(index: Index) -> bool:
    """Whether the agent itself showed life shortly before the index was written: both times are the node's own."""
    beat = index.agent.get("beat")
    return isinstance(beat, int | float) and index.at - beat < SILENT_SECONDS
