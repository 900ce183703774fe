"""Single files on their way into the bucket: read when they changed, kept as blocks, the small blocks in the index."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from . import blocks
from .bucket import BucketError

if TYPE_CHECKING:
    from pathlib import Path

    from .outpacks import BlockStore

SMALL: Final = 4 << 10
"""Blocks up to this size are offered to the index instead of being written as objects."""
INLINE_BYTES: Final = 96 << 10
"""How much of them one index carries."""
MOST_GROWTH: Final = 64 << 20
"""Of one log in one index: the rest goes with the next one, so that beats are never late."""

Signature = tuple[int, ...]


@dataclass
class _Read:
    """What was read of one file: how it stood then, its blocks, and the small ones among them."""

    signature: Signature
    names: dict[blocks.Span, str]
    small: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return max((end for _, end in self.names), default=0)


class OutFiles:
    """The files of one index after the other. One thread calls it.

    Args:
        store: where their blocks go.
        root: names are paths below it.
    """

    def __init__(self, store: BlockStore, root: Path) -> None:
        self._store, self._root = store, root
        self._read: dict[str, _Read] = {}
        self._small: dict[str, bytes] = {}

    def signature(self, name: str) -> Signature | None:
        """What tells cheaply that a file changed; None: there is no such file."""
        try:
            status = (self._root / name).lstat()
        except OSError:
            return None
        return (status.st_ino, status.st_size, status.st_mtime_ns)

    def begin(self) -> None:
        """A new index begins."""
        self._small = {}

    def entry(self, name: str, *, growing: bool = False) -> dict[str, Any] | None:
        """How a file stands in the index; None where there is none. Its blocks are written, but the small ones.

        Raises:
            OSError: a block cannot be written.
        """
        signature = self.signature(name)
        found = self._read.get(name)
        if signature is None:
            return None
        if found is None or found.signature != signature or found.size != signature[1]:
            try:
                found = self._again(name, found, growing=growing)
            except BucketError:
                raise
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError:  # a link where a file was, a disk that hiccups: what was read before stays
                return None if found is None else self._named(found)
            self._read[name] = found
        return self._named(found)

    def said(self, data: bytes) -> dict[str, Any]:
        """How bytes that are no file stand in the index, such as the listing of a pack. As `entry`."""
        found = _Read((), {})
        for span in blocks.spans(len(data)):
            self._take(found, span, data[span[0] : span[1]])
        return self._named(found)

    def offer(self, small: dict[str, bytes]) -> None:
        """Small blocks that the index names elsewhere."""
        self._small.update(small)

    def whole(self, name: str) -> bool:
        """Whether the last `entry` of a file had all that there was of it."""
        found = self._read.get(name)
        return found is None or found.size >= found.signature[1]

    def inline(self) -> dict[str, str]:
        """The small blocks that the index carries itself; what does not fit is written now. Raises OSError."""
        room, found = INLINE_BYTES, dict[str, str]()
        for name, data in self._small.items():
            if len(data) <= room and not self._store.has(name):
                room -= len(data)
                found[name] = base64.b64encode(data).decode("ascii")
            else:
                self._store.put(name, data)
        return found

    def _again(self, name: str, before: _Read | None, *, growing: bool) -> _Read:
        descriptor = os.open(self._root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            size = status.st_size
            known: dict[blocks.Span, str] = {}
            if growing:
                if before is not None and before.signature[0] == status.st_ino and before.size <= size:
                    known = before.names
                size = min(size, max((end for _, end in known), default=0) + MOST_GROWTH)
            found = _Read((status.st_ino, status.st_size, status.st_mtime_ns), {})
            for span in blocks.spans(size, growing=growing):
                whole = span[1] - span[0] in {blocks.TAIL, blocks.SEALED}
                if whole and span in known:
                    found.names[span] = known[span]
                    continue
                stream.seek(span[0])
                data = stream.read(span[1] - span[0])
                if len(data) < span[1] - span[0]:
                    raise FileNotFoundError(f"{name} became shorter")
                self._take(found, span, data)
        return found

    def _take(self, found: _Read, span: blocks.Span, data: bytes) -> None:
        name = blocks.sha256(data)
        if len(data) <= SMALL:
            found.small[name] = data
        else:
            self._store.put(name, data)
        found.names[span] = name

    def _named(self, found: _Read) -> dict[str, Any]:
        self._small.update(found.small)
        return {"size": found.size, "blocks": list(found.names.values())}
