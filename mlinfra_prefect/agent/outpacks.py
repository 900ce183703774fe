"""Directories on their way from the node into the bucket: uploads, results and checkpoints, behind the courier's back.

They may be a hundred gigabytes, and meanwhile the node must go on saying that it lives; so they are sent by threads of
their own. Each is sent once it is complete on the disk and will not change any more, and counts once all its blocks
are there. What can pass is tried again for ever.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from . import blocks
from .bucket import BucketError
from .outfiles import SMALL
from .transfer import TransferError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .bucket import Bucket

LANES: Final = 4
AGAIN_SECONDS: Final = 2.0
KEPT_SECONDS: Final = 60.0
"""For how long a block that nothing names any more stays: a client may just be reading an older index."""


class BlockStore:
    """Blocks below one prefix of the bucket, written by one thread at a time, and deleted when they are old.

    Args:
        bucket: the bucket.
        prefix: with its slash at the end.
    """

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix
        self._there: set[str] = set()
        self._dying: dict[str, float] = {}

    def has(self, name: str) -> bool:
        """Whether the block was written."""
        return name in self._there

    def put(self, name: str, data: bytes) -> None:
        """Write a block that is not there. Raises BucketError."""
        self._dying.pop(name, None)
        if name not in self._there:
            self._bucket.put(self._prefix + name, data)
            self._there.add(name)

    def keep_only(self, named: set[str], now: float) -> None:
        """Delete what was not named for `KEPT_SECONDS`. What cannot be deleted now is tried again by the next call."""
        for name in self._there - named:
            self._dying.setdefault(name, now)
        for name in [name for name in self._dying if name in named]:
            del self._dying[name]
        for name, since in list(self._dying.items()):
            if now - since >= KEPT_SECONDS:
                try:
                    self._bucket.delete(self._prefix + name)
                except OSError:
                    return
                self._there.discard(name)
                del self._dying[name]


@dataclass(frozen=True)
class Sent:
    """A pack whose blocks are there, but the small ones, which the index carries or writes."""

    pack: blocks.Pack
    small: dict[str, bytes] = field(repr=False)


class OutPacks:
    """The packs that were asked for. Every method returns at once.

    Args:
        bucket: the bucket.
        prefix: of the blocks, with its slash at the end.
        root: the node's directory; packs are named by their path below it.
        say: writes a line into the courier's log.
    """

    def __init__(self, bucket: Bucket, prefix: str, root: Path, say: Callable[[str], None]) -> None:
        self._store = BlockStore(bucket, prefix)
        self._root, self._say = root, say
        self._found: dict[str, Sent | None] = {}
        self._asked: set[str] = set()
        self._order = ThreadPoolExecutor(1, "mlinfra-packs")
        self._lanes = ThreadPoolExecutor(LANES, "mlinfra-lane")
        self._closed = threading.Event()
        self._sweeping = False

    def ask(self, name: str) -> None:
        """Have a directory sent; a second time changes nothing."""
        if name not in self._asked:
            self._asked.add(name)
            self._order.submit(self._send_until_there, name)

    def sent(self, name: str) -> Sent | None:
        """The pack, once it is there; None before, and for one that could not be sent."""
        return self._found.get(name)

    def open(self, name: str) -> bool:
        """Whether it is still on its way: asked for, and neither there nor given up."""
        return name in self._asked and name not in self._found

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not any(self.open(name) for name in self._asked)

    def forget(self, name: str) -> None:
        """The index does not name it any more."""
        self._found.pop(name, None)
        self._asked.discard(name)

    def sweep(self) -> None:
        """Delete old blocks, when the thread that sends has time for it."""
        # That thread: a block that is deleted cannot be one that a pack on its way counts on.
        if not self._sweeping:
            self._sweeping = True
            self._order.submit(self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        named = {block for each in list(self._found.values()) if each is not None for block in each.pack.blocks}
        self._store.keep_only(named, time.monotonic())

    def close(self) -> None:
        """Take nothing more on; what is on its way is left where it is."""
        self._closed.set()
        self._order.shutdown(wait=False, cancel_futures=True)
        self._lanes.shutdown(wait=False, cancel_futures=True)

    def _send_until_there(self, name: str) -> None:
        said = ""
        while not self._closed.is_set():
            try:
                self._found[name] = self._send(name)
                return
            except (TransferError, FileNotFoundError, NotADirectoryError) as error:
                self._say(f"{name} was not sent: {error}")
                self._found[name] = None
                return
            except OSError as error:
                if str(error) != said:
                    self._say(f"{name} is not sent yet: {error}")
                    said = str(error)
            self._closed.wait(AGAIN_SECONDS)

    def _send(self, name: str) -> Sent:
        place = self._root / name
        if not place.is_dir():
            raise FileNotFoundError(f"{name} is gone")
        files = blocks.listed(place)
        small: dict[str, bytes] = {}
        names: list[str] = []
        going: deque[tuple[Future[None], str]] = deque()
        for data in blocks.stream(place, files):
            if self._closed.is_set():
                raise BucketError("Closed", 0, name)
            block = blocks.sha256(data)
            names.append(block)
            if len(data) <= SMALL:
                small[block] = data
            else:
                going.append((self._lanes.submit(self._store.put, block, data), block))
            while len(going) > LANES:
                going.popleft()[0].result()
        for future, _ in going:
            future.result()
        return Sent(blocks.Pack(files, tuple(names)), small)
