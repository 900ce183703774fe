"""Directories of a node brought to where they belong: results, uploads and checkpoints, once each and whole.

Where uploads and checkpoints of a job go stands in a file of the mirror, and so does what was brought: a keeper brings
what a client that died had waited for. Nothing is visible before its last block is there; what a broken transfer left
behind is used by the next one. Checkpoints of a training that runs are brought behind the caller's back.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent import blocks, checkpoints
from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.agent.outbox import PACK_BLOCKS
from mlinfra_prefect.agent.transfer import TransferError
from mlinfra_prefect.agent.wire import MANIFEST, read_json_if_there, sync_directory, write_json
from mlinfra_prefect.aws.index import Index
from mlinfra_prefect.aws.mailbox import Mailbox, MailboxUnavailable, in_lanes

PLACE = ".mailbox"
"""In the mirror: what the mirror itself has to remember."""
CARRY_SECONDS = 3600.0
"""How long to wait for another process that brings what an ended job left."""
SPOILED_SECONDS = 15.0
"""How long a directory may be incomplete in the bucket; then it is spoiled, and nobody waits for it any longer."""

Wanted = list[tuple[str, str]]
"""Jobs and their packs, in the order in which they are brought."""


class Carrier:
    """Brings the directories of one node. Safe for threads and for several processes.

    Args:
        directory: the mirror.
        mailbox: the node's.
    """

    def __init__(self, directory: Path, mailbox: Mailbox) -> None:
        self._directory, self._mailbox = directory, mailbox
        self._thread: threading.Thread | None = None
        self._spoiled: dict[str, float] = {}

    def note(self, job_id: str, upload_dir: str, store: str) -> None:
        """Write down where a job's upload and checkpoints go (`store` may be empty). Durable; raises OSError."""
        place = private_folder(self._directory / PLACE / "handed")
        write_json(place / f"{job_id}.json", {"upload_dir": upload_dir, "store": store}, durable=True)

    def carry(self, index: Index, over: Mapping[str, bool]) -> None:
        """Bring what ended jobs left, and begin to bring what the others have committed.

        Args:
            index: the node's.
            over: of each job whether it has ended.
        """
        wanted = self.wanted(index, over)
        now = [each for each in wanted if over[each[0]]]
        if now:
            if self._thread is not None:
                self._thread.join()
            self._bring_all(index, now, over, CARRY_SECONDS)
        elif wanted and (self._thread is None or not self._thread.is_alive()):
            # It ends with the process: what it has brought by then is used by the next one.
            self._thread = threading.Thread(
                target=self._bring_all, args=(index, wanted, over, 0.0), name="mlinfra-carrier", daemon=True
            )
            self._thread.start()

    def has(self, index: Index, job_id: str) -> bool:
        """Whether all that an ended job left is here."""
        return not self._wanted(index, job_id, ended=True)

    def wanted(self, index: Index, over: Mapping[str, bool]) -> Wanted:
        """What is still to be brought."""
        return [(job, name) for job, ended in over.items() for name in self._wanted(index, job, ended=ended)]

    def _wanted(self, index: Index, job_id: str, *, ended: bool) -> list[str]:
        noted = self._read("handed", job_id)
        if not noted:
            return []  # nobody here waits for it
        brought, found = self._read("brought", job_id), []
        left = [number for number in index.checkpoints(job_id) if number > brought.get("checkpoint", 0)]
        if left and noted.get("store"):
            # While the training runs its oldest stays until it was taken, so one that has begun comes to its end.
            found.append(f"checkpoints/{job_id}/{left[-1] if ended else left[0]}")
        result, upload = f"jobs/{job_id}/result", f"uploads/{job_id}"
        if ended and result in index.packs and not (self._directory / result).exists():
            found.append(result)
        if ended and upload in index.packs and not brought.get("uploaded"):
            found.append(upload)
        return found

    def _read(self, what: str, job_id: str) -> dict[str, Any]:
        return read_json_if_there(self._directory / PLACE / what / f"{job_id}.json") or {}

    def _note_brought(self, job_id: str, **what: Any) -> None:
        place = private_folder(self._directory / PLACE / "brought")
        write_json(place / f"{job_id}.json", {**self._read("brought", job_id), **what}, durable=True)

    def _bring_all(self, index: Index, wanted: Wanted, over: Mapping[str, bool], patience: float) -> None:
        with locked(self._directory, "carrying", patience) as ours:
            for job_id, name in wanted if ours else ():
                if name in self._wanted(index, job_id, ended=over[job_id]):  # nobody else has brought it meanwhile
                    with suppress(MailboxUnavailable, OSError):
                        try:
                            self._bring(index, job_id, name)
                        except TransferError as error:
                            self._give_up(job_id, name, str(error))

    def _bring(self, index: Index, job_id: str, name: str) -> None:
        scratch = self._directory / PLACE / "incoming" / name.replace("/", "+")
        pack = blocks.Pack.from_listing(index.content(self._mailbox, index.packs[name]))
        cut = blocks.spans(pack.size)
        assembly = blocks.Assembly(scratch, pack)

        def bring(number: int) -> None:
            start, end = cut[number]
            assembly.write(number, index.block(self._mailbox, PACK_BLOCKS, pack.blocks[number], end - start))

        in_lanes(bring, assembly.missing())
        assembly.finish()
        if name.startswith("checkpoints/"):
            self._keep_checkpoint(job_id, int(name.rpartition("/")[2]), scratch)
        elif name.startswith("uploads/"):
            self._keep_upload(job_id, scratch)
        else:
            scratch.rename(private_folder(self._directory / "jobs" / job_id) / "result")
        shutil.rmtree(scratch, ignore_errors=True)

    def _give_up(self, job_id: str, name: str, why: str) -> None:
        """Do without what stays spoiled: an end that is never told would cost the node until its deadline."""
        if time.monotonic() - self._spoiled.setdefault(name, time.monotonic()) < SPOILED_SECONDS:
            return
        if name.startswith("checkpoints/"):
            self._note_brought(job_id, checkpoint=int(name.rpartition("/")[2]))
        elif name.startswith("uploads/"):
            # Whoever collects it is to find it corrupted, and not to find none.
            target = private_folder(Path(self._read("handed", job_id)["upload_dir"]))
            private_folder(target / "files")
            (target / "files" / "spoiled").write_text(why, encoding="utf-8")
            write_json(target / MANIFEST, {"spoiled": why})
            self._note_brought(job_id, uploaded=True)
        else:
            private_folder(self._directory / name)

    def _keep_upload(self, job_id: str, scratch: Path) -> None:
        """Put an upload where it is collected: its files first, and its manifest last."""
        target = private_folder(Path(self._read("handed", job_id)["upload_dir"]))
        if not (target / MANIFEST).exists():
            shutil.rmtree(target / "files", ignore_errors=True)
            _move(private_folder(scratch / "files"), target / "files")
            sync_directory(target)
            _move(scratch / MANIFEST, target / MANIFEST)
            sync_directory(target)
        self._note_brought(job_id, uploaded=True)

    def _keep_checkpoint(self, job_id: str, number: int, scratch: Path) -> None:
        """Store a commit as an agent stores one on local, once; then the node may forget it."""
        store = Path(self._read("handed", job_id)["store"])
        commit = checkpoints.read_commit(scratch)
        if commit is None:
            raise TransferError("a checkpoint without its manifest")
        known = (place for place in private_folder(store).iterdir() if place.name.isdecimal())
        if not any(_commit_id(place) == commit.id for place in known):
            checkpoints.store(scratch, commit, store)
        self._note_brought(job_id, checkpoint=number)
        self._mailbox.put(f"taken/{job_id}", str(number).encode("ascii"))


@contextmanager
def locked(directory: Path, name: str, patience: float) -> Iterator[bool]:
    """Hold a lock of a mirror; False: another process or thread had it for all of that time (seconds)."""
    try:
        path = private_folder(directory / PLACE) / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        yield _taken(descriptor, time.monotonic() + patience)
    finally:
        os.close(descriptor)


def _taken(descriptor: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        else:
            return True


def _commit_id(place: Path) -> str | None:
    try:
        found = checkpoints.read_commit(place)
    except TransferError:
        return None
    return None if found is None else found.id


def _move(source: Path, target: Path) -> None:
    """Rename, or copy where the mirror is on another file system."""
    try:
        source.rename(target)
    except OSError:
        shutil.move(source, target)
