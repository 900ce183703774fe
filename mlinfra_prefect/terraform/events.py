"""Turns the lines of ``terraform ... -json`` into typed events, so that nothing else ever reads Terraform's text.

Unknown types are kept as `Other` (newer versions add some), and a line that is not an event never raises: the output of
a running process may end in the middle of a line, and a provider may print what it likes. Output *values* are left out
on purpose: they may be secret, and the state has them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Event:
    """One line. ``message`` is Terraform's own sentence, ``at`` its time stamp (RFC 3339)."""

    message: str
    at: str


@dataclass(frozen=True, slots=True)
class Version(Event):
    """The first line: which engine and which version of this format."""

    terraform: str
    ui: str


@dataclass(frozen=True, slots=True)
class ChangePlanned(Event):
    """Terraform means to do ``action`` to ``address``."""

    address: str
    action: str


@dataclass(frozen=True, slots=True)
class ChangeSummary(Event):
    """Counts at the end of ``operation`` (plan, apply or destroy)."""

    operation: str
    add: int
    change: int
    remove: int


@dataclass(frozen=True, slots=True)
class Apply(Event):
    """A resource is being changed. ``identity`` is the provider's id where it is known, ``seconds`` the time so far."""

    stage: Literal["start", "progress", "complete", "errored"]
    address: str
    action: str
    identity: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Provision(Event):
    """A provisioner runs on a resource; ``output`` is one line of what it printed."""

    stage: Literal["start", "progress", "complete", "errored"]
    address: str
    provisioner: str
    output: str


@dataclass(frozen=True, slots=True)
class Diagnostic(Event):
    """An error or a warning of Terraform or a provider; ``address`` is empty where it belongs to no resource."""

    severity: str
    summary: str
    detail: str
    address: str


@dataclass(frozen=True, slots=True)
class Outputs(Event):
    """Names of the root module's outputs, and which of them are sensitive; no values."""

    names: tuple[str, ...]
    sensitive: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Other(Event):
    """A line of a type that this package does not use; ``type`` is empty where the line is not an event at all."""

    type: str


def parse(line: str) -> Event:
    """Parses one line; never raises."""
    try:
        document = json.loads(line)
        if isinstance(document, dict):
            return _typed(document)
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    return Other(message=line.rstrip("\n"), at="", type="")


class Reader:
    """Reads a growing event file: each call returns the events of the whole lines that were added since the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self, *, final: bool = False) -> list[Event]:
        """Returns new events; with ``final`` a last line without its newline counts too. No file yet: no events."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = len(data) if final else data.rfind(b"\n") + 1
        self._offset += whole
        # Split at newline bytes only: str.splitlines would also split at U+2028 inside a message.
        return [parse(line.decode(errors="replace")) for line in data[:whole].split(b"\n") if line.strip()]


def _typed(document: Mapping[str, Any]) -> Event:
    kind = _text(document.get("type"))
    message, at = _text(document.get("@message")), _text(document.get("@timestamp"))
    hook = document.get("hook") or {}
    stage: Any = kind.rpartition("_")[2]
    match kind:
        case "version":
            return Version(
                message, at, _text(document.get("terraform") or document.get("tofu")), _text(document.get("ui"))
            )
        case "planned_change":
            change = document.get("change") or {}
            return ChangePlanned(message, at, _address(change), _text(change.get("action")))
        case "change_summary":
            counts = document.get("changes") or {}
            numbers = (int(counts.get(name) or 0) for name in ("add", "change", "remove"))
            return ChangeSummary(message, at, _text(counts.get("operation")), *numbers)
        case "apply_start" | "apply_progress" | "apply_complete" | "apply_errored":
            seconds = float(hook.get("elapsed_seconds") or 0)
            return Apply(
                message, at, stage, _address(hook), _text(hook.get("action")), _text(hook.get("id_value")), seconds
            )
        case "provision_start" | "provision_progress" | "provision_complete" | "provision_errored":
            return Provision(
                message, at, stage, _address(hook), _text(hook.get("provisioner")), _text(hook.get("output"))
            )
        case "diagnostic":
            found = document.get("diagnostic") or {}
            texts = (_text(found.get(name)) for name in ("severity", "summary", "detail", "address"))
            return Diagnostic(message, at, *texts)
        case "outputs":
            outputs = document.get("outputs") or {}
            sensitive = tuple(sorted(name for name, output in outputs.items() if output.get("sensitive")))
            return Outputs(message, at, tuple(sorted(outputs)), sensitive)
    return Other(message, at, kind)


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _address(holder: Mapping[str, Any]) -> str:
    return _text((holder.get("resource") or {}).get("addr"))
