"""What a node wrote into the bucket, brought to this machine: the mirror that everybody here reads as on local.

The mirror is the attempt's node directory. Client and keeper may both bring: files appear by atomic replacement or by
appending under a lock, and a job's final status last, when its result, upload and checkpoint are here. What the node
wrote is taken as data: names that are not the mailbox's own are not followed, and every block is checked.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.agent.outbox import FILE_BLOCKS
from mlinfra_prefect.agent.transfer import TransferError
from mlinfra_prefect.agent.wire import read_json_if_there, write_json
from mlinfra_prefect.aws.carrying import PLACE, Carrier, locked
from mlinfra_prefect.aws.index import Entry, Index, cut, ended, grows, parsed
from mlinfra_prefect.aws.mailbox import Mailbox, MailboxUnavailable

POLL_SECONDS = 0.25
LOCK_SECONDS = 10.0
"""How long to wait for another process that brings something; then its state is read as it is."""


class Mirror:
    """The mirror of one node. Safe for threads and for several processes.

    Args:
        directory: the attempt's node directory.
        mailbox: the node's.
        poll_seconds: how often the index is asked for, at most.

    Attributes:
        age: how long the node had been silent at the last look that S3 answered, in seconds of S3's clock.
        answered: whether S3 has answered a look of this process.
        problem: why the last look told nothing; empty where it did.
        carrier: brings the directories.
    """

    def __init__(self, directory: Path, mailbox: Mailbox, poll_seconds: float = POLL_SECONDS) -> None:
        self.directory, self.mailbox = directory, mailbox
        self.carrier = Carrier(directory, mailbox)
        self.age, self.answered, self.problem = 0.0, False, ""
        self._poll_seconds = poll_seconds
        self._polling = threading.Lock()
        self._polled = float("-inf")
        self._etag = ""
        self._index: Index | None = None
        self._whole: Index | None = None
        self._have: dict[str, Entry] = {}
        self._final: dict[Entry, bool] = {}

    def look(self) -> Index | None:
        """The node's index, as new as `poll_seconds` allow, or None before there is one. One request at most.

        Where S3 does not answer it is the one of the last look.
        """
        with self._polling:
            if time.monotonic() - self._polled < self._poll_seconds:
                return self._index
            try:
                found = self.mailbox.look(self._etag)
                self.answered = True
                self.age = found.age if found is not None else 0.0
                if found is not None and found.body is not None:
                    self._index = parsed(found.body)
                    self._etag = found.etag
                self.problem = ""
            except (MailboxUnavailable, ValueError) as error:
                self.problem = str(error)
            self._polled = time.monotonic()
            return self._index

    def expect(self, job_id: str, upload_dir: str, store: str) -> None:
        """Write down where what a job leaves goes, and look once more at what was brought without it."""
        self.carrier.note(job_id, upload_dir, store)
        self._whole = None

    def bring(self) -> Index | None:
        """Look, and bring what is new; blocks while a job that has ended is brought. Returns the index.

        What cannot be brought now stays as it was, and is tried again by the next call.
        """
        index = self.look()
        if index is None or index is self._whole or not self.directory.is_dir():
            return index
        statuses = index.statuses()
        over = {job: self._is_final(index, entry) for job, entry in statuses.items()}
        whole = self._bring_files(index, {job: entry for job, entry in statuses.items() if not over[job]})
        self.carrier.carry(index, over)
        complete = {job: entry for job, entry in statuses.items() if over[job] and self.carrier.has(index, job)}
        whole = self._bring_files(index, complete) and whole
        if whole and len(complete) == sum(over.values()) and not self.carrier.wanted(index, over):
            self._whole = index
        return index

    def _is_final(self, index: Index, entry: Entry) -> bool:
        if entry not in self._final:
            try:
                self._final[entry] = ended(index.content(self.mailbox, entry))
            except (TransferError, MailboxUnavailable):
                return False
        return self._final[entry]

    def _bring_files(self, index: Index, statuses: dict[str, Entry]) -> bool:
        """Bring all files, and these statuses last; returns whether all of them are here."""
        files = {**index.others(), **{f"jobs/{job}/status.json": entry for job, entry in statuses.items()}}
        new = [name for name, entry in files.items() if self._have.get(name) != entry]
        with locked(self.directory, "lock", LOCK_SECONDS) as ours:
            if not ours or self._older(index):
                return False
            with suppress(OSError):
                self._write("agent.json", json.dumps(dict(index.agent)).encode())
            for name in new:
                try:
                    if grows(name):
                        self._append(index, self.directory / name, files[name])
                    else:
                        self._write(name, index.content(self.mailbox, files[name]))
                except (TransferError, MailboxUnavailable, OSError):
                    return False  # in this order or not at all: a status does not overtake the log that it ends
                self._have[name] = files[name]
        return True

    def _older(self, index: Index) -> bool:
        """Whether another process has brought a newer index already."""
        path = self.directory / PLACE / "version.json"
        seen = read_json_if_there(path) or {}
        version, at = seen.get("version", 0), seen.get("at", 0.0)
        if index.version < version and index.at < at:
            return True
        if (index.version, index.at) != (version, at):
            with suppress(OSError):
                write_json(path, {"version": index.version, "at": index.at})
        return False

    def _append(self, index: Index, path: Path, entry: Entry) -> None:
        """Append what is new of a file that grows; what is there was checked when it came."""
        private_folder(path.parent)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as stream:
            have = os.fstat(descriptor).st_size
            if have > entry.size:
                os.ftruncate(descriptor, 0)
                have = 0
            for name, (start, end) in zip(entry.blocks, cut(entry, growing=True), strict=True):
                if end > have:
                    data = index.block(self.mailbox, FILE_BLOCKS, name, end - start)
                    stream.write(memoryview(data)[max(0, have - start) :])
                    stream.flush()

    def _write(self, name: str, data: bytes) -> None:
        """Replace a file of the mirror; one that is the same already is left alone."""
        path = self.directory / name
        with suppress(OSError):
            if path.stat().st_size == len(data) and path.read_bytes() == data:
                return
        private_folder(path.parent)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            scratch.replace(path)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
