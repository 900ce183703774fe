"""Finds the blocks and attributes of a Terraform file without evaluating anything.

Three questions must be answered before any process starts: which variables a module declares (an unknown key is only a
warning to Terraform), which local modules it calls, and whether it needs ``init`` at all. They need block headers and
raw attribute text, nothing more. Both syntaxes come out in the same shape. What this cannot follow it passes over: the
file is Terraform's to judge, and Terraform says what is wrong with it and where.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GAP = re.compile(r"(?:\s+|#[^\n]*|//[^\n]*|/\*.*?(?:\*/|\Z))+", re.DOTALL)
_LINE_GAP = re.compile(r"(?:[ \t]+|/\*.*?(?:\*/|\Z))+", re.DOTALL)
_IDENTIFIER = re.compile(r"[^\W\d][\w-]*")
_HEREDOC = re.compile(r"<<-?([^\W\d][\w-]*)[ \t\r]*\n")
_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_TEMPLATE = ("${", "%{")
_LITERAL_TEMPLATE = ("$${", "%%{")


@dataclass(frozen=True, slots=True)
class Block:
    """One block: ``resource "aws_instance" "a" { ... }`` has type ``resource`` and two labels.

    ``attributes`` maps names to raw expression text in native syntax (JSON templates are unwrapped to it);
    ``blocks`` holds nested blocks.
    """

    type: str
    labels: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()


def read(path: Path) -> tuple[Block, ...]:
    """Reads the top-level blocks of a ``.tf`` or ``.tf.json`` file.

    Raises:
        InvalidInput: the file is not UTF-8, or not JSON where its name says so.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return _from_json(json.loads(text)) if path.name.endswith(".json") else native(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("module", f"{path} cannot be read: {error}") from error


# --- native syntax ---------------------------------------------------------------------------------------------------


def native(text: str) -> tuple[Block, ...]:
    """Returns the top-level blocks of a text in native syntax."""
    return _body("", (), text).blocks


def _body(kind: str, labels: tuple[str, ...], text: str) -> Block:
    attributes: dict[str, str] = {}
    blocks: list[Block] = []
    at = 0
    while at < len(text):
        if gap := _GAP.match(text, at):
            at = gap.end()
            continue
        name = _IDENTIFIER.match(text, at)
        if not name:
            at = _after(text, at)
            continue
        found, at = _labels(text, name.end())
        if text.startswith("{", at):
            end = _after(text, at)
            blocks.append(_body(name[0], found, text[at + 1 : end - 1]))
            at = end
        elif text.startswith("=", at) and not found:
            end = _end_of_expression(text, at + 1)
            attributes[name[0]] = _without_comments(text[at + 1 : end])
            at = end
    return Block(kind, labels, attributes, tuple(blocks))


def _labels(text: str, at: int) -> tuple[tuple[str, ...], int]:
    labels: list[str] = []
    while True:
        if gap := _LINE_GAP.match(text, at):
            at = gap.end()
        if text.startswith('"', at):
            end = _after(text, at)
            labels.append(text[at + 1 : end - 1])
            at = end
        elif identifier := _IDENTIFIER.match(text, at):
            labels.append(identifier[0])
            at = identifier.end()
        else:
            return tuple(labels), at


def _end_of_expression(text: str, at: int) -> int:
    while at < len(text) and text[at] != "\n":
        if text.startswith(("#", "//"), at):
            at = text.find("\n", at)
            return at if at >= 0 else len(text)
        at = _after(text, at)
    return at


def _without_comments(expression: str) -> str:
    text = expression.strip()
    return text if '"' in text else _GAP.sub(" ", text).strip()


def _after(text: str, at: int) -> int:
    """Returns where the token at ``at`` ends: a string, here-document, comment, bracketed group or one character."""
    nesting: list[str] = []
    while at < len(text):
        if nesting and nesting[-1] == '"':
            at = _in_string(text, at, nesting)
        elif (gap := _GAP.match(text, at)) and (nesting or text[at] in "#/"):
            at = gap.end()
        elif heredoc := _HEREDOC.match(text, at):
            end = re.compile(rf"^[ \t]*{re.escape(heredoc[1])}[ \t\r]*$", re.MULTILINE).search(text, heredoc.end())
            at = end.end() if end else len(text)
        else:
            char = text[at]
            at += 1
            if char == '"' or char in _CLOSERS:
                nesting.append(_CLOSERS.get(char, char))
            elif nesting and char == nesting[-1]:
                nesting.pop()
        if not nesting:
            return at
    return at


def _in_string(text: str, at: int, nesting: list[str]) -> int:
    if text[at] == "\\":
        return at + 2
    if text.startswith(_LITERAL_TEMPLATE, at):
        return at + 3
    if text.startswith(_TEMPLATE, at):
        nesting.append("}")
        return at + 2
    if text[at] == '"':
        nesting.pop()
    return at + 1


# --- JSON syntax -----------------------------------------------------------------------------------------------------

_LABELS = {"resource": 2, "data": 2, "ephemeral": 2, "variable": 1, "output": 1, "module": 1, "provider": 1}
_NESTED_LABELS = {"backend": 1, "provisioner": 1}


def _from_json(document: Any) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for item in _items(document):
        for kind, value in item.items():
            if kind != "//":
                blocks.extend(_labelled(kind, (), value, _LABELS.get(kind, 0)))
    return tuple(blocks)


def _labelled(kind: str, labels: tuple[str, ...], value: Any, depth: int) -> Iterator[Block]:
    for item in _items(value):
        if depth == 0:
            yield _json_block(kind, labels, item)
            continue
        for label, inner in item.items():
            if label != "//":
                yield from _labelled(kind, (*labels, label), inner, depth - 1)


def _json_block(kind: str, labels: tuple[str, ...], value: dict[str, Any]) -> Block:
    attributes: dict[str, str] = {}
    blocks: list[Block] = []
    for name, inner in value.items():
        # JSON cannot tell an attribute with an object from a block; both readings are offered.
        if isinstance(inner, dict | list):
            blocks.extend(_labelled(name, (), inner, _NESTED_LABELS.get(name, 0)))
        template = re.fullmatch(r"\$\{\s*([^{}]*?)\s*\}", inner) if isinstance(inner, str) else None
        attributes[name] = template[1] if template else json.dumps(inner)
    return Block(kind, labels, attributes, tuple(blocks))


def _items(value: Any) -> list[dict[str, Any]]:
    """JSON syntax allows one object or a list of them wherever a block may stand."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]
