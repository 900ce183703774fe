"""Colour: for terminals only, and never against ``NO_COLOR``."""

from __future__ import annotations

import os
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "underline": "4", "red": "31", "green": "32", "yellow": "33", "magenta": "35"}


def wants_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose user wants colour."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, style: str) -> str:
    """Return a text in a style such as ``bold red``; as it is where the style is empty."""
    if not style or not text:
        return text
    return f"\033[{';'.join(_CODES[word] for word in style.split())}m{text}\033[0m"
