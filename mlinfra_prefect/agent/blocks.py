"""Files as blocks that are named by their sha256, which is how they cross a bucket: nothing half, nothing twice.

Two shapes. A *growing* file (a log) is one stream of its own: new bytes are new blocks, so following it costs what is
new. A *pack* is a directory that will not change any more, its files one after the other in one stream: ten thousand
small files are one block. Whoever assembles checks every block before a byte of it lies under its name.

Pure but for the files themselves: it knows no bucket. Directories are `transfer.tree`'s: no link leads out of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .folders import private_folder
from .transfer import TransferError, check_relative, tree
from .wire import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACK_SCHEMA: Final = "mlinfra-prefect/pack/1"
BLOCK: Final = 32 << 20
TAIL: Final = 64 << 10
"""The last part of a growing file is in blocks of this size."""
SEALED: Final = 4 << 20
"""What lies at least one such block behind the end of a growing file is in blocks of this size."""
_HEX = frozenset("0123456789abcdef")

Span = tuple[int, int]


def sha256(data: bytes) -> str:
    """The name of a block."""
    return hashlib.sha256(data).hexdigest()


def is_sha256(text: object) -> bool:
    """Whether a text can be the name of a block."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= _HEX


def spans(size: int, *, growing: bool = False) -> list[Span]:
    """The blocks of a stream as ``(start, end)``. Pure: both sides know them from the size alone."""
    sealed = max(0, size // SEALED - 1) * SEALED if growing else 0
    cuts = list(range(0, sealed, SEALED))
    cuts += range(sealed, size, TAIL if growing else BLOCK)
    return list(zip(cuts, [*cuts[1:], size], strict=True)) if cuts else []


@dataclass(frozen=True)
class Packed:
    """A file or an empty directory of a pack: posix path, bytes, ``f`` file, ``x`` executable, ``d`` directory."""

    path: str
    size: int
    kind: str


@dataclass(frozen=True)
class Pack:
    """A directory as one stream: its files in order, and the blocks of the stream."""

    files: tuple[Packed, ...]
    blocks: tuple[str, ...]

    @property
    def size(self) -> int:
        """Of the stream, in bytes."""
        return sum(each.size for each in self.files)

    def listing(self) -> bytes:
        """As JSON."""
        files = [[each.path, each.size, each.kind] for each in self.files]
        return json.dumps({"schema": PACK_SCHEMA, "files": files, "blocks": list(self.blocks)}).encode("ascii")

    @classmethod
    def from_listing(cls, data: bytes) -> Pack:
        """Check and build; raises TransferError."""
        try:
            told = json.loads(data)
            if told["schema"] != PACK_SCHEMA:
                raise TransferError(f"a pack of another schema: {told['schema']!r}")
            files = tuple(_packed(each) for each in told["files"])
            blocks = tuple(told["blocks"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, TransferError):
                raise
            raise TransferError(f"the listing of a pack cannot be read ({type(error).__name__})") from error
        found = cls(files, blocks)
        if len({each.path for each in files}) != len(files):
            raise TransferError("the listing of a pack names a file twice")
        if not all(is_sha256(each) for each in blocks) or len(blocks) != len(spans(found.size)):
            raise TransferError("the listing of a pack does not name its blocks")
        return found


def _packed(told: Any) -> Packed:
    path, size, kind = told
    if not isinstance(path, str) or type(size) is not int or size < 0 or kind not in {"f", "x", "d"}:
        raise TransferError("the listing of a pack has an entry that is no file")
    check_relative(path)
    return Packed(path, size, kind)


def listed(root: Path) -> tuple[Packed, ...]:
    """What a directory holds, in order.

    Raises:
        TransferError: a link that leads out of it, a socket, a pipe or a device.
    """
    found = []
    for name in tree(root):
        status = (root / name).stat()
        found.append(Packed(name, status.st_size, "x" if status.st_mode & stat.S_IXUSR else "f"))
    folders = (folder for folder, names, files in os.walk(root) if not names and not files)
    found += [Packed(os.path.relpath(folder, root), 0, "d") for folder in sorted(folders) if folder != str(root)]
    return tuple(found)


def stream(root: Path, files: tuple[Packed, ...]) -> Iterator[bytes]:
    """The blocks of a directory's stream, one after the other.

    Raises:
        TransferError: a file is not as long any more as it was.
        OSError: a file cannot be read, or is gone.
    """
    buffer = bytearray()
    for each in files:
        if each.kind == "d":
            continue
        left = each.size
        with (root / each.path).open("rb") as source:
            while left:
                chunk = source.read(min(left, BLOCK - len(buffer)))
                if not chunk:
                    raise TransferError(f"{each.path} changed while it was read")
                buffer += chunk
                left -= len(chunk)
                if len(buffer) == BLOCK:
                    yield bytes(buffer)
                    buffer.clear()
    if buffer:
        yield bytes(buffer)


class Assembly:
    """A pack on its way into a directory. Blocks may come in any order, and from several threads.

    What an assembly that was killed left in the directory is used again, block by block, as far as it is right.

    Args:
        root: the directory; it is made, and whoever waits for it must not look before `finish`.
        pack: what shall lie there.
    """

    def __init__(self, root: Path, pack: Pack) -> None:
        self._root, self._pack = root, pack
        self._spans = spans(pack.size)
        self._starts: list[int] = []
        start = 0
        for each in pack.files:
            self._starts.append(start)
            start += each.size
        private_folder(root)
        for each in pack.files:
            path = root / each.path
            private_folder(path if each.kind == "d" else path.parent)
            if each.kind != "d":
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o700 if each.kind == "x" else 0o600)
                try:
                    if os.fstat(descriptor).st_size > each.size:
                        os.ftruncate(descriptor, each.size)
                finally:
                    os.close(descriptor)

    def missing(self) -> list[int]:
        """The numbers of the blocks that are not there yet. Reads all that is there."""
        return [number for number in range(len(self._spans)) if not self._is_there(number)]

    def write(self, number: int, data: bytes) -> None:
        """Take one block.

        Raises:
            TransferError: these bytes are not that block: nothing was written.
            OSError: they cannot be written.
        """
        start, end = self._spans[number]
        if len(data) != end - start or sha256(data) != self._pack.blocks[number]:
            raise TransferError(f"block {number} is not what its name says")
        view = memoryview(data)
        for path, offset, first, last in self._parts(start, end):
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                while first < last:
                    written = os.pwrite(descriptor, view[first:last], offset)
                    first, offset = first + written, offset + written  # noqa: PLW2901 (until all of it is written)
            finally:
                os.close(descriptor)

    def finish(self) -> None:
        """Make all of it durable. Raises OSError."""
        folders = {self._root}
        for each in self._pack.files:
            path = self._root / each.path
            if each.kind != "d":
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            folders.update(parent for parent in path.parents if parent.is_relative_to(self._root))
        for folder in folders:
            sync_directory(folder)

    def _is_there(self, number: int) -> bool:
        start, end = self._spans[number]
        total, left = hashlib.sha256(), end - start
        for path, offset, first, last in self._parts(start, end):
            with path.open("rb") as source:
                source.seek(offset)
                for size in _pieces(last - first):
                    data = source.read(size)
                    if len(data) != size:
                        return False
                    total.update(data)
                    left -= size
        return left == 0 and total.hexdigest() == self._pack.blocks[number]

    def _parts(self, start: int, end: int) -> Iterator[tuple[Path, int, int, int]]:
        """The pieces of files that a span covers: path, offset in the file, and from where to where in the block."""
        for number in range(max(0, bisect_right(self._starts, start) - 1), len(self._starts)):
            each, begin = self._pack.files[number], self._starts[number]
            if begin >= end:
                return
            first, last = max(start, begin), min(end, begin + each.size)
            if first < last:
                yield self._root / each.path, first - begin, first - start, last - start


def _pieces(size: int, largest: int = 4 << 20) -> Iterator[int]:
    while size:
        yield min(size, largest)
        size -= min(size, largest)
