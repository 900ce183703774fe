"""What AWS said of things that are the same for everybody, kept for a while: types, where they are, list prices.

A plan would otherwise wait seconds for facts that change by the month. Nothing of an account is kept here (no quota,
no instance), so a file may be shared by all homes of one user. Facts of an emulator and of AWS never meet: the address
that was asked is part of the file's name. What cannot be read or written is as if it were not there.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.agent.wire import SpecError, read_json, write_json

SCHEMA = "mlinfra-prefect/aws-facts/1"
DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that was said, and when (epoch seconds of this host)."""

    value: Any
    at: float


class Facts:
    """A file of facts of one kind and region, by name. Safe for threads; of two processes the later write stays.

    Args:
        directory: where; made when it is written. None: nothing is kept.
        kind: what they are about, a file name: ``on-demand``.
        region: of AWS.
        now: epoch seconds.
    """

    def __init__(self, directory: Path | None, kind: str, region: str, *, now: Callable[[], float] = time.time) -> None:
        asked = "\0".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if "AWS_ENDPOINT_URL" in name)
        place = f"-{hashlib.sha256(asked.encode()).hexdigest()[:8]}" if asked else ""
        self._path = directory / f"{kind}-{region}{place}.json" if directory is not None else None
        self._now = now

    def get(self, names: Iterable[str], within: float) -> dict[str, Fact]:
        """Return the facts of these names that are not older than `within` seconds."""
        kept, now = self._read(), self._now()
        found = {}
        for name in names:
            fact = kept.get(name)
            # One from the future was written by a clock that was wrong.
            if isinstance(fact, dict) and isinstance(at := fact.get("at"), (int, float)) and 0 <= now - at <= within:
                found[name] = Fact(fact.get("value"), float(at))
        return found

    def put(self, values: Mapping[str, Any]) -> dict[str, Fact]:
        """Keep facts that were said just now, and return them; what is older than a day is forgotten."""
        now = self._now()
        if values and self._path is not None:
            with _writing, suppress(OSError, ValueError, TypeError):
                kept = {
                    name: fact for name, fact in self._read().items()
                    if isinstance(fact, dict) and now - fact.get("at", 0) <= DAY
                }  # fmt: skip
                kept |= {name: {"at": now, "value": value} for name, value in values.items()}
                private_folder(self._path.parent)
                write_json(self._path, {"schema": SCHEMA, "facts": kept})
        return {name: Fact(value, now) for name, value in values.items()}

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            content = read_json(self._path)
        except (OSError, SpecError, ValueError):
            return {}
        facts = content.get("facts")
        return facts if content.get("schema") == SCHEMA and isinstance(facts, dict) else {}


_writing = threading.Lock()


def _unlock() -> None:
    global _writing  # noqa: PLW0603 (a fork copies a lock that another thread holds, and nobody would free it)
    _writing = threading.Lock()


os.register_at_fork(after_in_child=_unlock)
