"""The verdict of a gate or a probe: passed or not, one sentence why, and every check with the numbers it compared.

It is false when it did not pass, so that ``if not verdict:`` reads as it should; and it keeps the checks that passed
too, because a person who promotes a model wants to see by how much.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlinfra_prefect.model.names import Line
from mlinfra_prefect.model.record import Record

_FAILED = {"gate": "refused", "probe": "failed"}


class Check(Record):
    """One comparison."""

    name: Line = Field(title="Name", description="What was compared.", examples=["auc", "error rate"])
    ok: bool = Field(title="Passed", description="Whether it holds.")
    candidate: float | None = Field(
        default=None, title="Candidate", description="What the candidate shows; None: not a number.", examples=[0.91]
    )
    current: float | None = Field(
        default=None, title="Current", description="What the current version shows; None: none is.", examples=[0.9]
    )
    threshold: float | None = Field(
        default=None, title="Threshold", description="What the candidate had to reach; None: none.", examples=[0.905]
    )
    detail: Line = Field(title="Detail", description="The comparison as a phrase.", examples=["0.91 is at least 0.905"])


class Verdict(Record):
    """What was decided about a candidate, and why. True when it passed."""

    kind: Literal["gate", "probe"] = Field(
        title="Kind", description="Whether metrics or a live canary were judged.", examples=["gate"]
    )
    ok: bool = Field(title="Passed", description="Whether every check holds.")
    reason: Line = Field(title="Reason", description="One line.", examples=["auc 0.89 is below 0.905"])
    checks: tuple[Check, ...] = Field(default=(), title="Checks", description="In the order in which they were made.")

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return f"{self.kind} {'passed' if self.ok else _FAILED[self.kind]}: {self.reason}"

    @property
    def table(self) -> str:
        """The checks as a markdown table, for an artifact."""
        rows = [
            f"| {_cell(check.name)} | {_number(check.candidate)} | {_number(check.current)} "
            f"| {_number(check.threshold)} | {'passed' if check.ok else '**' + _FAILED[self.kind] + '**'} "
            f"| {_cell(check.detail)} |"
            for check in self.checks
        ]
        head = ["| check | candidate | current | threshold | verdict | detail |", "|---|---:|---:|---:|---|---|"]
        return "\n".join([f"**{_cell(str(self))}**", "", *head, *rows])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _cell(text: str) -> str:
    # Names and sentences are other people's: none may end a cell, or become HTML on the page.
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
