"""What may stand where a requirement is asked for: one rule for requests, a project's file and the node. Pure."""

from __future__ import annotations


def refusal(text: str) -> str | None:
    """Why a line cannot be handed to pip as a requirement; None: it can.

    Options of pip are refused, because they can name files, indexes and code. What follows a requirement in its line
    (``--hash``) belongs to it. Indexes and mirrors are the machine's own settings (``PIP_*``).
    """
    if not text.strip():
        return "is empty"
    if text.splitlines() != [text]:  # as pip reads a file: a form feed begins a line too
        return "has a line break"
    return "is an option of pip" if text.lstrip().startswith("-") else None
