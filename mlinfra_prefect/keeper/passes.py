"""What a pass of the reaper says: one line per record or leftover, so that people and checks can act on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlinfra_prefect.model.names import Id, Line, as_line
from mlinfra_prefect.model.record import Record

LISTS = ("released", "stuck", "skipped", "orphans", "planned")


class Finding(Record):
    """What a pass did with one thing, or why it left it alone."""

    id: Id | Line
    reason: Line
    again: bool = False
    """Whether another pass may find it otherwise: it is on its way, or what stood in the way will not last."""


class Pass(Record):
    """What one pass of the reaper found. Nothing reapable is left when `stuck` is empty and it is `quiet`.

    `orphans` is what had no open record: ended, or told and left. `planned` is what a pass would do; only a dry run
    has it, and does none of it.
    """

    released: tuple[Finding, ...] = ()
    stuck: tuple[Finding, ...] = ()
    skipped: tuple[Finding, ...] = ()
    orphans: tuple[Finding, ...] = ()
    planned: tuple[Finding, ...] = ()
    dry_run: bool = False

    @property
    def quiet(self) -> bool:
        """Whether another pass would find nothing to do now: what is left lives, or is stuck."""
        return not any(each.again for each in (*self.skipped, *self.orphans))


@dataclass(slots=True)
class Notes:
    """A pass while it is being made: each thing stands in one list, under its last word."""

    _kept: dict[str, dict[str, Finding]] = field(default_factory=lambda: {name: {} for name in LISTS})

    def add(self, where: str, what: str, why: str, *, again: bool = False) -> None:
        """Note a finding."""
        for listed in self._kept.values():
            listed.pop(what, None)
        self._kept[where][what] = Finding(id=what, reason=as_line(why), again=again)

    def done(self, *, dry_run: bool = False) -> Pass:
        """Return the pass."""
        return Pass(**{name: tuple(kept.values()) for name, kept in self._kept.items()}, dry_run=dry_run)


def merged(before: Pass, after: Pass) -> Pass:
    """Return two passes as one: what was done in either, and what is left after the later one."""

    def both(name: str) -> tuple[Finding, ...]:
        listed = {each.id: each for each in (*getattr(before, name), *getattr(after, name))}
        return tuple(listed.values())

    return after.revised(released=both("released"), orphans=both("orphans"))


def as_json(found: Pass) -> dict[str, Any]:
    """The stable JSON of a pass: lists of {id, reason, again}, and whether it was a dry run."""
    return found.model_dump(mode="json")
