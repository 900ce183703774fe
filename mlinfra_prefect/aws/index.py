"""The index of a node's ``out/`` as the client reads it: data of a stranger, checked where it enters."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mlinfra_prefect.agent import blocks
from mlinfra_prefect.agent.outbox import FILE_BLOCKS, GROWING, OUTBOX_SCHEMA
from mlinfra_prefect.agent.outfiles import SMALL
from mlinfra_prefect.agent.transfer import TransferError
from mlinfra_prefect.aws.mailbox import Mailbox

MOST_BYTES = 256 << 20
"""Of one status, result or listing: a result that large is a model, and belongs into the outputs."""
ENDED = frozenset({"succeeded", "failed", "stopped"})
_JOB = r"[a-z0-9][a-z0-9._-]{0,127}"
_FILE = re.compile(
    rf"agent\.log|courier\.log|acceptance\.json|"
    rf"jobs/{_JOB}/(?:log\.txt|events\.jsonl|result\.json|draft\.json|error\.json)"
)
_STATUS = re.compile(rf"jobs/({_JOB})/status\.json")
_CHECKPOINT = re.compile(rf"checkpoints/({_JOB})/([1-9][0-9]{{0,17}})")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or the listing of a pack: its size in bytes and its blocks."""

    size: int
    blocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """One index of a node: its version and time, what it says of the agent, its files and packs, and small blocks."""

    version: int
    at: float
    agent: Mapping[str, Any]
    files: Mapping[str, Entry]
    packs: Mapping[str, Entry]
    inline: Mapping[str, str] = field(repr=False)

    @property
    def state(self) -> str:
        """The agent's: ``booting``, ``unfit``, ``up`` or ``gone``."""
        return str(self.agent.get("state") or "")

    def statuses(self) -> dict[str, Entry]:
        """The status of each job that has one."""
        return {found[1]: entry for name, entry in self.files.items() if (found := _STATUS.fullmatch(name))}

    def others(self) -> dict[str, Entry]:
        """The files that are mirrored, but the statuses; names that are not the mailbox's own are left out."""
        return {name: entry for name, entry in self.files.items() if _FILE.fullmatch(name)}

    def checkpoints(self, job_id: str) -> list[int]:
        """The numbers of a job's checkpoints, in order."""
        found = (_CHECKPOINT.fullmatch(name) for name in self.packs)
        return sorted(int(each[2]) for each in found if each is not None and each[1] == job_id)

    def block(self, mailbox: Mailbox, place: str, name: str, size: int) -> bytes:
        """A block of this index, checked. Raises TransferError, MailboxUnavailable."""
        text = self.inline.get(name)
        if isinstance(text, str):
            with suppress(binascii.Error, ValueError):
                data = base64.b64decode(text, validate=True)
                if len(data) == size and blocks.sha256(data) == name:
                    return data
        # Small blocks lie with the files', whatever they are of.
        return mailbox.block((FILE_BLOCKS if size <= SMALL else place).rstrip("/"), name, size)

    def content(self, mailbox: Mailbox, entry: Entry) -> bytes:
        """The bytes of a file that does not grow. Raises TransferError, MailboxUnavailable."""
        if entry.size > MOST_BYTES:  # it is put together in memory, and whoever wrote the index may want that full
            raise TransferError(f"a file of {entry.size} bytes is larger than {MOST_BYTES}")
        pairs = zip(entry.blocks, cut(entry, growing=False), strict=True)
        return b"".join(self.block(mailbox, FILE_BLOCKS, name, end - start) for name, (start, end) in pairs)


def grows(name: str) -> bool:
    """Whether a file of the mailbox is one that grows. Pure."""
    return name.rpartition("/")[2] in GROWING


def cut(entry: Entry, *, growing: bool) -> list[blocks.Span]:
    """Where each block of an entry begins and ends. Raises TransferError where it names another number of them."""
    found = blocks.spans(entry.size, growing=growing)
    if len(found) != len(entry.blocks):
        raise TransferError("an entry of the index does not name its blocks")
    return found


def parsed(body: bytes) -> Index:
    """Read an index; raises ValueError where it is none. Pure."""
    try:
        told = json.loads(body)
        if told["schema"] != OUTBOX_SCHEMA:
            raise ValueError("an index of another schema")
        places = {name: {each: _entry(found) for each, found in told[name].items()} for name in ("files", "packs")}
        version, at = told["version"], float(told["at"])
        if type(version) is not int or not math.isfinite(at):
            raise ValueError("an index without a version or a time")
        return Index(version, at, dict(told["agent"]), **places, inline=dict(told["inline"]))
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the index of a node cannot be read ({type(error).__name__}: {error})") from error


def _entry(told: Any) -> Entry:
    size, names = told["size"], told["blocks"]
    if type(size) is not int or size < 0 or not isinstance(names, list) or not all(map(blocks.is_sha256, names)):
        raise ValueError("an entry of the index is no file")
    return Entry(size, tuple(names))


def ended(status: bytes) -> bool:
    """Whether a status is final. Pure."""
    try:
        return json.loads(status)["state"] in ENDED
    except (ValueError, KeyError, TypeError):
        return False
