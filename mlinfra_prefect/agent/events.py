"""Progress and metrics: one JSON object per line, appended to the file in ``MLINFRA_EVENTS``.

Any language can write them::

    echo '{"progress": 0.5, "message": "epoch 5 of 10"}' >> "$MLINFRA_EVENTS"
    echo '{"metrics": {"loss": 0.12}, "step": 500}' >> "$MLINFRA_EVENTS"

``time`` (epoch seconds) may be left out. Reading is lenient, because a line may be half written by a process that was
killed: what cannot be read is counted, never fatal. NaN and infinities are written as the texts ``NaN``, ``Infinity``
and ``-Infinity``.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SPECIAL = {"nan": math.nan, "infinity": math.inf, "inf": math.inf, "-infinity": -math.inf, "-inf": -math.inf}
_LONGEST_LINE = 1 << 20


def append(path: Path, event: Mapping[str, Any]) -> None:
    """Append one event by a single write, so that lines of several processes never mix."""
    line = (json.dumps(dict(event), allow_nan=False) + "\n").encode("ascii")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def as_json(value: float) -> float | str:
    """A float as strict JSON knows it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def as_float(value: object) -> float | None:
    """What `as_json` or a script wrote, or None when it is not a number."""
    if isinstance(value, str):
        return _SPECIAL.get(value.strip().lower())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


class EventTail:
    """Follows an events file while it grows.

    Attributes:
        metrics: the last value of each metric.
        progress: the last fraction, or None.
        malformed: how many lines could not be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self.metrics: dict[str, float] = {}
        self.progress: float | None = None
        self.malformed = 0

    def read(self) -> int:
        """Take in what was appended since the last call; returns the number of events. An absent file has none."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == self._offset:
                    return 0
                file.seek(self._offset)
                fresh = file.read()
        except OSError:
            return 0
        self._offset += len(fresh)
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            self._rest = b""
            self.malformed += 1
        return sum(self._take(line) for line in lines if line.strip())

    def finish(self) -> None:
        """The writer is gone: a last line without its newline counts too."""
        self.read()
        if self._rest.strip():
            self._take(self._rest)
        self._rest = b""

    def _take(self, line: bytes) -> int:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        known = isinstance(event, dict) and self._apply(event)
        self.malformed += not known
        return int(known)

    def _apply(self, event: dict[str, Any]) -> bool:
        metrics = event.get("metrics", {})
        if not isinstance(metrics, dict) or not ({"progress", "metrics", "message"} & event.keys()):
            return False
        values = {str(name): as_float(value) for name, value in metrics.items()}
        progress = as_float(event["progress"]) if "progress" in event else None
        if None in values.values() or ("progress" in event and (progress is None or math.isnan(progress))):
            return False
        self.metrics.update({name: value for name, value in values.items() if value is not None})
        if progress is not None:
            self.progress = min(1.0, max(0.0, progress))
        return True
