"""How a verb ends: its exit code, and one line on standard error where something went wrong. Never a traceback.

A traceback says where our code was; the user needs what happened and what to do. ``MLINFRA_DEBUG=1`` brings it back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from mlinfra_prefect.cli.paint import painted, wants_colour
from mlinfra_prefect.errors import CapacityUnavailable, InvalidInput, MlinfraError, NodeError, UnsupportedHere

DONE = 0
FAILED = 1
WRONG_INPUT = 2
STUCK = 3
NO_CAPACITY = 4
HOME_TAKEN = 5
"""Another keeper service keeps this home (`keeper.watch.TAKEN`)."""
INTERRUPTED = 130
BROKEN_PIPE = 141
"""128 + SIGPIPE: what every program gives whose reader left."""

DEBUG_VARIABLE = "MLINFRA_DEBUG"


def guarded(verb: Callable[[], int]) -> int:
    """Run a verb and return its exit code, turning every exception into one line on standard error."""
    try:
        _refuse_windows()
        code = verb()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whatever is still buffered must not be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except MlinfraError as error:
        return _told(error, one_line(error), code_of(error))
    except Exception as error:  # noqa: BLE001 (the outermost boundary: a bug of ours is told in a line, too)
        what = f"{type(error).__name__}: {error}".strip().rstrip(".")
        return _told(error, f"{' '.join(what.split())}. Set {DEBUG_VARIABLE}=1 to see where it comes from.", FAILED)
    return code


def _refuse_windows() -> None:
    if sys.platform == "win32":
        raise UnsupportedHere("Windows is not supported: use WSL 2, which is Linux.")


def code_of(error: MlinfraError) -> int:
    """Return the exit code of an error."""
    if isinstance(error, InvalidInput):
        return WRONG_INPUT
    return NO_CAPACITY if isinstance(error, CapacityUnavailable) else FAILED


def one_line(error: MlinfraError) -> str:
    """Return what happened and what to do next, in one line."""
    # The traceback of a training has many lines, and the log shows it; here its last word is enough.
    text = error.message if isinstance(error, NodeError) else str(error)
    return " ".join(text.split())


def complain(message: str, *, word: str = "error") -> None:
    """Print one line on standard error, its first word in colour where that is a terminal."""
    style = {"error": "bold red", "warning": "bold yellow"}.get(word, "bold")
    shown = painted(f"{word}:", style) if wants_colour(sys.stderr) else f"{word}:"
    sys.stdout.flush()
    sys.stderr.write(f"{shown} {message}\n")
    sys.stderr.flush()


def _told(error: Exception, message: str, code: int) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        import traceback

        traceback.print_exception(error)
    try:
        complain(message)
    except BrokenPipeError:
        return BROKEN_PIPE
    return code
