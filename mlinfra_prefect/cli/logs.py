"""``logs``: the whole log of what ran on a lease, or of an endpoint's server; while it lives, and after its release.

The log moves when a lease is released: from the node's directory to ``logs`` beside it. A follower goes on there.
"""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlinfra_prefect.cli.opening import meant, opened
from mlinfra_prefect.cli.outcome import DONE, complain
from mlinfra_prefect.errors import NotFound
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.lease import LeaseRecord, State

POLL_SECONDS = 0.2
LEDGER_SECONDS = 1.0
CHUNK = 1 << 16
ENDED = frozenset({"succeeded", "failed", "stopped"})


@dataclass
class Source:
    """One log, where it lies now, and how far it has been printed."""

    name: str
    label: str
    live: tuple[Path, ...]
    kept: Path
    offset: int = 0

    def opened(self) -> BinaryIO | None:
        """Open the log where it lies now, at what is new; None where nothing was written yet."""
        for path in (*self.live, self.kept):
            try:
                stream = path.open("rb")
            except (FileNotFoundError, NotADirectoryError):
                continue  # not there yet, or moved a moment ago: then the next place has it
            stream.seek(self.offset)
            return stream
        return None


def logs(wanted: str, *, job: str | None, follow: bool) -> int:
    """Print logs to standard output as they are; with `follow` until the job has ended or the record is released.

    Raises:
        NotFound: no such record, or no such job on it.
    """
    context = opened()
    record = meant(context, wanted)
    printer = Printer()
    sources = {source.name: source for source in _sources(context, record)}
    if job is not None and job not in sources and not follow:
        raise NotFound(f"No job {job!r} ran on {record.id}.", f"There is: {', '.join(sources) or 'none'}.")
    if not follow:
        printer.several = len(sources) > 1 and job is None
        for name, source in sources.items():
            if job in {None, name}:
                printer.print(source)
        if not printer.printed:
            complain(f"nothing has been logged by {record.id} yet", word="note")
        return DONE
    _follow(context, record, job, sources, printer)
    return DONE


def _follow(
    context: Context, record: KeptRecord, job: str | None, sources: dict[str, Source], printer: Printer
) -> None:
    next_look = 0.0
    while True:
        # Whether it is over is read before the log, so that the last lines are printed and not missed.
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + LEDGER_SECONDS
            record = context.record(record.id)
        over = record.state is State.RELEASED or (job is not None and _ended(context, record, job))
        for source in _sources(context, record):
            sources.setdefault(source.name, source).live = source.live
        printer.several = job is None and len(sources) > 1
        for name, source in sources.items():
            if job in {None, name}:
                printer.print(source)
        if over:
            return
        time.sleep(POLL_SECONDS)


def kept_log(context: Context, record_id: str, name: str) -> Path:
    """Where the platform keeps a job's log once the node is gone."""
    return context.home.record_dir(record_id) / "logs" / f"{name}.log.txt"


def _sources(context: Context, record: KeptRecord) -> list[Source]:
    nodes = [Path(attempt.node_dir) for attempt in reversed(record.attempts)]
    if isinstance(record, LeaseRecord):
        return [
            Source(
                note.job_id, note.label, tuple(node / "jobs" / note.job_id / "log.txt" for node in nodes),
                kept_log(context, record.id, note.job_id),
            )
            for note in record.jobs
        ]  # fmt: skip
    return [
        Source(f"{each.number}", f"server {each.number}", (Path(each.node_dir) / "server.log",),
               context.home.record_dir(record.id) / "logs" / f"{each.number}.server.log")
        for each in record.attempts
    ]  # fmt: skip


def _ended(context: Context, record: KeptRecord, job: str) -> bool:
    if not isinstance(record, LeaseRecord):
        return False
    if any(note.job_id == job and note.state in ENDED for note in record.jobs):
        return True
    attempt = record.attempt
    status = context.platform(record.platform).node(attempt).status(job) if attempt else None
    return status is not None and status.ended


class Printer:
    """Copies logs to standard output byte by byte, with a line between them where there are several."""

    def __init__(self) -> None:
        self.several = False
        self.printed = False
        self._last: str | None = None
        self._unfinished = False

    def print(self, source: Source) -> None:
        stream = source.opened()
        if stream is None:
            return
        with stream:
            while chunk := stream.read(CHUNK):
                self._head(source)
                # Ctrl-C between the two would have the same bytes printed again.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    sys.stdout.buffer.write(chunk)
                    source.offset += len(chunk)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                self._unfinished = not chunk.endswith(b"\n")
                self.printed = True
        sys.stdout.buffer.flush()

    def _head(self, source: Source) -> None:
        if self.several and self._last != source.name:
            text = f"{chr(10) if self._unfinished else ''}==> {source.name} {source.label} <==\n"
            sys.stdout.buffer.write(text.encode(errors="replace"))
        self._last = source.name
