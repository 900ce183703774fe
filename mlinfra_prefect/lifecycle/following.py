"""Follow a job: its log, progress and metrics as they come, until it has ended or its node is gone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlinfra_prefect.errors import NodeLost, TrainingStopped
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.platform import Node
from mlinfra_prefect.model.lease import LeaseRecord
from mlinfra_prefect.model.stack import JobStatus

POLL_SECONDS = 0.05
LEDGER_SECONDS = 1.0
"""How often a follower looks whether its lease still lives."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a follower is told: new log text, progress, or metrics."""

    log: str = ""
    fraction: float | None = None
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None


def follow(
    context: Context, record: LeaseRecord, node: Node, job_id: str, on_progress: Callable[[Progress], None]
) -> JobStatus:
    """Follow a job until it has ended, telling its news. Blocking.

    Raises:
        NodeLost: the node went away before the job had ended.
        TrainingStopped: the lease was given back before the job had ended.
    """
    log, events = _Tail(node.file(job_id, "log.txt")), _Tail(node.file(job_id, "events.jsonl"))
    next_look = time.monotonic() + LEDGER_SECONDS
    while True:
        status = node.status(job_id)  # read before the tails, so that nothing written before the end is missed
        for progress in (*_log_news(log), *_event_news(events)):
            on_progress(progress)
        if status is not None and status.ended:
            return status
        if time.monotonic() >= next_look:
            if not node.alive():
                status = node.status(job_id)
                if status is None or not status.ended:
                    raise _gone(context.lease(record.id), node, job_id)
                continue
            next_look = time.monotonic() + LEDGER_SECONDS
        time.sleep(POLL_SECONDS)


def _gone(current: LeaseRecord, node: Node, job_id: str) -> NodeLost | TrainingStopped:
    if current.live or current.error == NodeLost.__name__:
        return NodeLost(
            f"The node of lease {current.id} went away during {job_id}. {node.why_gone()}".strip(),
            "A retry of the flow run resumes from the last checkpoint.",
        )
    return TrainingStopped(f"Lease {current.id} is {current.state}: {current.reason}.")


class _Tail:
    """Reads what a growing file has got since the last look, in whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> list[str]:
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                chunk = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return []
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        # Not splitlines(): it ends a line at every carriage return, and a progress bar would become a hundred lines.
        return whole.decode(errors="replace").split("\n")[:-1]


def _log_news(tail: _Tail) -> Iterator[Progress]:
    for line in tail.lines():
        yield Progress(log=line.rstrip("\r").rsplit("\r", 1)[-1])


def _event_news(tail: _Tail) -> Iterator[Progress]:
    for line in tail.lines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(event, dict):
            continue
        fraction = event.get("progress")
        metrics = event.get("metrics")
        yield Progress(
            fraction=float(fraction) if isinstance(fraction, int | float) else None,
            message=str(event.get("message") or ""),
            metrics=_numbers(metrics) if isinstance(metrics, dict) else {},
            step=event.get("step") if isinstance(event.get("step"), int) else None,
        )


def _numbers(metrics: Mapping[object, object]) -> dict[str, float]:
    return {str(name): value for name, value in metrics.items() if isinstance(value, int | float)}
