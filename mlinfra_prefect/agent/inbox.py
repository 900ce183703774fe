"""What comes into the node: the grant, stop orders and jobs, found by one listing of ``in/`` at every look."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

from .bucket import BucketError
from .unpacking import BLOCKS, Unpacker
from .wire import JOBS, STOP, write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .bucket import Bucket, Listed
    from .unpacking import Secrets

SPEC: Final = "spec.json"
GRANT: Final = "grant"
REVOKED: Final = "revoked"
"""Lies there once the grant is taken away: a node that never saw the grant does not wait for one any more."""
STOPS: Final = "stops/"
TAKEN: Final = "taken/"
LONGEST: Final = 1 << 20
"""Of everything but jobs."""


class Inbox:
    """One look after the other at ``in/``. One thread calls it.

    Args:
        bucket: the bucket.
        prefix: ``nodes/<id>/in/``.
        root: the node's directory.
        say: writes a line into the courier's log.
        secrets: see `unpacking.Unpacker`.

    Attributes:
        spec: the node's spec as it came, or None.
        grant: the grant's text, or None before there was one.
        revoked: why the grant is over, or None while it holds.
        taken: of each job the number of the last checkpoint that the client has.
    """

    def __init__(self, bucket: Bucket, prefix: str, root: Path, say: Callable[[str], None], secrets: Secrets) -> None:
        self._bucket, self._prefix, self._root = bucket, prefix, root
        self._seen: dict[str, str] = {}
        self._orders: dict[str, dict[str, Any]] = {}
        self.jobs = Unpacker(bucket, prefix, root, say, stopped=self._is_stopped, secrets=secrets)
        self.spec: dict[str, Any] | None = None
        self.grant: str | None = None
        self.revoked: str | None = None
        self.taken: dict[str, int] = {}

    def look(self, *, with_jobs: bool) -> None:
        """Look at what there is, and carry out what is new; jobs only where there is an agent for them.

        Raises:
            OSError: it could not be looked at; what was found before stays.
        """
        # Blocks are named by jobs and come first in the listing: there may be many of them.
        listed = self._bucket.list(self._prefix, after=f"{self._prefix}{BLOCKS[:-1]}0")
        found = {each.key.removeprefix(self._prefix): each for each in listed}
        self._look_at_grant(found.get(GRANT), over=REVOKED in found)
        if self.spec is None and SPEC in found:
            self.spec = json.loads(self._bucket.get(self._prefix + SPEC, most=LONGEST))
        for name, each in sorted(found.items(), key=lambda item: (item[1].modified, item[0])):
            if self._seen.get(name) == each.etag:
                continue
            if name == STOP or name.startswith(STOPS):
                job = "" if name == STOP else name.removeprefix(STOPS).removesuffix(".json")
                self._orders[job] = json.loads(self._bucket.get(self._prefix + name, most=LONGEST))
            elif name.startswith(TAKEN):
                with contextlib.suppress(ValueError):
                    self.taken[name.removeprefix(TAKEN)] = int(self._bucket.get(self._prefix + name, most=LONGEST))
            elif name.startswith(f"{JOBS}/") and with_jobs:
                self.jobs.take(name.removeprefix(f"{JOBS}/").removesuffix(".json"))
            else:
                continue
            self._seen[name] = each.etag
        self.obey()

    def obey(self) -> None:
        """Write the stop orders to where the agent and its jobs look for them, as soon as there is such a place."""
        for job, order in self._orders.items():
            place = self._root / JOBS / job if job else self._root
            path = place / STOP
            with contextlib.suppress(OSError):
                if place.is_dir() and (not path.exists() or json.loads(path.read_bytes()) != order):
                    write_json(path, order)

    def _is_stopped(self, job: str) -> bool:
        return job in self._orders or "" in self._orders

    def _look_at_grant(self, found: Listed | None, *, over: bool) -> None:
        if self.revoked is not None or (found is not None and self._seen.get(GRANT) == found.etag):
            return
        if over:
            self.revoked = "the grant was revoked"
            return
        if found is None and self.grant is None:
            return
        try:
            text = self._bucket.get(self._prefix + GRANT, most=LONGEST).decode("utf-8", "replace").strip()
        except BucketError as error:
            if not error.absent:
                raise
            if self.grant is not None:  # asked for by its name, too: one listing is not enough to end a training
                self.revoked = "the grant was revoked"
            return
        if self.grant is None and text:
            self.grant = text
        if text != self.grant:
            self.revoked = "the grant was replaced"
        elif found is not None:
            self._seen[GRANT] = found.etag
