"""What goes out of the node: the agent's words, logs, statuses, results, uploads and checkpoints, as one index.

``out/index.json`` names everything by its blocks and is written after them, so whoever reads it can have all of it. It
carries small blocks itself: the end of a short training is known with one request. A job's final status waits until
its log, its result and its upload are in the bucket: who reads ``succeeded`` finds the rest there.

A request that fails fails one push; the next one does it again, with what is there already left out.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Final

from .committing import FORWARDED
from .outfiles import OutFiles
from .outpacks import BlockStore, OutPacks
from .wire import (
    AGENT_LOG,
    DRAFT,
    ERROR,
    EVENTS,
    FINAL_STATES,
    JOBS,
    LOG,
    MANIFEST,
    RESULT,
    RESULT_FILES,
    STATUS,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .bucket import Bucket

OUTBOX_SCHEMA: Final = "mlinfra-prefect/outbox/1"
INDEX: Final = "index.json"
FILE_BLOCKS: Final = "blocks/"
PACK_BLOCKS: Final = "packs/"
UPLOADS: Final = "uploads"
CHECKPOINTS: Final = "checkpoints"
COURIER_LOG: Final = "courier.log"
ACCEPTANCE: Final = "acceptance.json"
BEAT_SECONDS: Final = 5.0
"""How often the index is written although nothing in it changed: a client counts 30 seconds of silence."""
CHATTER_SECONDS: Final = 0.5
"""How often it is written for the sake of log lines only."""
GROWING: Final = frozenset({LOG, EVENTS, AGENT_LOG, COURIER_LOG})
_OF_A_JOB = (LOG, EVENTS, RESULT, DRAFT, ERROR)


class Outbox:
    """The node's side of ``out/``. One thread calls it.

    Args:
        bucket: the bucket.
        prefix: ``nodes/<id>/out/``.
        root: the node's directory.
        say: writes a line into the courier's log.

    Attributes:
        said: what the courier itself says of jobs that the agent does not have (yet), by the job's id.
        taken: of each job the number of the last checkpoint that the client has, or gave.
    """

    def __init__(self, bucket: Bucket, prefix: str, root: Path, say: Callable[[str], None]) -> None:
        self._bucket, self._prefix, self._root, self._say = bucket, prefix, root, say
        self._store = BlockStore(bucket, prefix + FILE_BLOCKS)
        self._files = OutFiles(self._store, root)
        self._packs = OutPacks(bucket, prefix + PACK_BLOCKS, root, say)
        self._status: dict[str, bytes] = {}
        self._offered: dict[str, list[int]] = {}
        self._refused: set[str] = set()
        self._version = 0
        self._seen: tuple[object, object] | None = None
        self._pushed_at, self._whole = float("-inf"), False
        self.said: dict[str, dict[str, Any]] = {}
        self.taken: dict[str, int] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing big is on its way."""
        return self._packs.idle

    def push(self, agent: dict[str, Any], *, force: bool = False) -> bool:
        """Write the index if there is something new, or a beat is due; returns whether the index has all there is.

        Args:
            agent: what is said of the agent, ``state`` first of all; ``beat`` and ``heartbeat`` are no news.
            force: write it in any case.

        Raises:
            OSError: it could not be written.
        """
        jobs = self._jobs()
        # In this order: a status that changes while it is read is read again, and what is found after it belongs to it.
        marks = {job: self._files.signature(f"{JOBS}/{job}/{STATUS}") for job in jobs}
        statuses = {job: self._told(job) for job in jobs}
        packs = self._packs_of_all(jobs)
        news, chatter = self._look(agent, jobs, packs, marks)
        now = time.monotonic()
        if not force and now - self._pushed_at < BEAT_SECONDS:
            if (news, chatter) == self._seen:
                return self._whole
            if self._seen is not None and news == self._seen[0] and now - self._pushed_at < CHATTER_SECONDS:
                return False
        self._files.begin()
        files, behind, held = self._entries(statuses, packs)
        index = {
            "schema": OUTBOX_SCHEMA,
            "version": self._version + 1,
            "at": time.time(),
            "agent": agent,
            "files": files,
            "packs": {name: entry for name in packs if (entry := self._listing(name)) is not None},
            "inline": self._files.inline(),
        }
        self._bucket.put(self._prefix + INDEX, json.dumps(index, allow_nan=False).encode("ascii"))
        self._version += 1
        self._pushed_at = now
        self._seen = None if behind else (news, chatter)
        self._whole = not behind and not held
        self._after(index)
        return self._whole

    def close(self) -> None:
        """Send nothing more."""
        self._packs.close()

    # --- files --------------------------------------------------------------------------------------------------------

    def _jobs(self) -> list[str]:
        """The jobs that the agent has, and those of which only the courier speaks."""
        found = set(self.said)
        with contextlib.suppress(OSError):
            found.update(each.name for each in (self._root / JOBS).iterdir() if each.name[0] != ".")
        return sorted(found)

    def _names(self, jobs: list[str]) -> list[str]:
        """The files that are mirrored, but the statuses."""
        return [ACCEPTANCE, AGENT_LOG, COURIER_LOG, *(f"{JOBS}/{job}/{name}" for job in jobs for name in _OF_A_JOB)]

    def _look(self, agent: dict[str, Any], jobs: list[str], packs: list[str], marks: object) -> tuple[object, object]:
        """What tells cheaply whether there is something new: first what is told at once, then what may wait a bit."""
        names = self._names(jobs)
        news = [self._files.signature(name) for name in names if not _grows(name)]
        told = {name: value for name, value in agent.items() if name not in {"heartbeat", "beat"}}
        ways = [(name, self._packs.sent(name) is None, self._packs.open(name)) for name in packs]
        chatter = [self._files.signature(name) for name in names if _grows(name)]
        return (marks, news, ways, json.dumps([told, self.said])), chatter

    def _entries(self, statuses: dict[str, bytes | None], packs: list[str]) -> tuple[dict[str, Any], bool, bool]:
        """The files as they stand in the index; whether one goes on in the next; whether a status is held back."""
        found = {name: self._files.entry(name, growing=_grows(name)) for name in self._names(list(statuses))}
        files = {name: entry for name, entry in found.items() if entry is not None}
        behind = {name for name in files if not self._files.whole(name)}
        held = False
        for job, told in statuses.items():
            waits = any(f"{JOBS}/{job}/{name}" in behind for name in (LOG, EVENTS))
            waits = waits or any(name.split("/")[1] == job and self._packs.open(name) for name in packs)
            if told is not None and (not waits or not _final(told)):
                self._status[job] = told
            elif told is not None:
                held = True
            if job in self._status:
                files[f"{JOBS}/{job}/{STATUS}"] = self._files.said(self._status[job])
        return files, bool(behind), held

    def _told(self, job: str) -> bytes | None:
        """A job's status: what the agent says of it, else what the courier does."""
        path = self._root / JOBS / job / STATUS
        with contextlib.suppress(OSError):
            if not path.is_symlink():
                return path.read_bytes()
        said = self.said.get(job)
        return None if said is None else json.dumps(said).encode("ascii")

    # --- packs --------------------------------------------------------------------------------------------------------

    def _packs_of(self, job: str) -> list[str]:
        """The directories of a job that are complete and belong to its end; they are asked for."""
        found = []
        with contextlib.suppress(OSError):
            if (self._root / JOBS / job / RESULT).exists() and any((self._root / JOBS / job / RESULT_FILES).iterdir()):
                found.append(f"{JOBS}/{job}/{RESULT_FILES}")
        if (self._root / UPLOADS / job / MANIFEST).exists():
            found.append(f"{UPLOADS}/{job}")
        for name in found:
            self._packs.ask(name)
        return found

    def _packs_of_all(self, jobs: list[str]) -> list[str]:
        """All directories that are sent or on their way."""
        found = [name for job in jobs for name in self._packs_of(job)]
        with contextlib.suppress(OSError):
            for each in sorted((self._root / CHECKPOINTS).iterdir()):
                found += [f"{CHECKPOINTS}/{each.name}/{number}" for number in self._checkpoints_of(each)]
        return found

    def _checkpoints_of(self, store: Path) -> list[int]:
        """The checkpoints of a job that are offered: the oldest that the client has not taken, and the newest.

        A client that fetches more slowly than the training commits still gets one whole: its oldest stays until then.
        """
        job, taken = store.name, self.taken.get(store.name, 0)
        offered = self._offered.setdefault(job, [])
        for number in list(offered):
            name = f"{CHECKPOINTS}/{job}/{number}"
            gone = not self._packs.open(name) and self._packs.sent(name) is None
            if gone:
                self._refused.add(name)
            there = [each for each in offered if self._packs.sent(f"{CHECKPOINTS}/{job}/{each}") is not None]
            if gone or number <= taken or number in there[1:-1]:
                offered.remove(number)
                self._packs.forget(name)
        newest = max((int(each.name) for each in store.iterdir() if each.name.isdecimal()), default=0)
        name = f"{CHECKPOINTS}/{job}/{newest}"
        waiting = any(self._packs.open(f"{CHECKPOINTS}/{job}/{number}") for number in offered)
        if newest > max(offered, default=taken) and name not in self._refused and not waiting:
            self._packs.ask(name)
            offered.append(newest)
        return list(offered)

    def _listing(self, name: str) -> dict[str, Any] | None:
        """How a pack stands in the index: by the blocks of its listing; None while it is not there."""
        sent = self._packs.sent(name)
        if sent is None:
            return None
        self._files.offer(sent.small)
        return self._files.said(sent.pack.listing())

    def _after(self, index: dict[str, Any]) -> None:
        """The index is there: what it does not name any more may go, and trainings hear of their checkpoints."""
        named = {block for entry in (*index["files"].values(), *index["packs"].values()) for block in entry["blocks"]}
        sent = [found for name in index["packs"] if (found := self._packs.sent(name)) is not None]
        named |= {block for each in sent for block in each.small}
        self._store.keep_only(named, time.monotonic())
        self._packs.sweep()
        for job, numbers in self._offered.items():
            there = [number for number in numbers if f"{CHECKPOINTS}/{job}/{number}" in index["packs"]]
            if there:
                self._forwarded(self._root / CHECKPOINTS / job, max(there))

    def _forwarded(self, store: Path, number: int) -> None:
        path = store / FORWARDED
        with contextlib.suppress(OSError):
            if not path.exists() or path.read_text("ascii") != str(number):
                scratch = path.with_name(f".{FORWARDED}")
                scratch.write_text(str(number), "ascii")
                scratch.replace(path)


def _grows(name: str) -> bool:
    return name.rpartition("/")[2] in GROWING


def _final(status: bytes) -> bool:
    try:
        return json.loads(status)["state"] in FINAL_STATES
    except (ValueError, KeyError, TypeError):
        return False
