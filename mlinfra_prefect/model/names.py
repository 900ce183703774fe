"""Names and identities: what may be a name, and how ids are made.

Ids end in file names, Terraform variables, process environments and cloud tags, so one pattern rules them all and
nothing outside it is ever accepted (rule R14). Ids of leases are *hashed, never truncated*: two long names that
share a prefix must not collide.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
LONGEST_LINE = 512
RESERVED_PREFIX = "MLINFRA_"


def _fully_an_id(text: str) -> str:
    # `$` in a pattern also matches before a trailing newline; fullmatch does not.
    if not _ID.fullmatch(text):
        raise ValueError("must be 1 to 63 of a-z, 0-9 and '-', and start with a letter or digit")
    return text


def _fully_a_variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError("must be the name of an environment variable: letters, digits and '_'")
    if text.startswith(RESERVED_PREFIX):
        raise ValueError(f"must not start with {RESERVED_PREFIX}, which the training contract uses")
    return text


def _no_control_characters(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("must not hold control characters such as NUL or newlines")
    return text


# The validators give a sentence where a pattern would show a regular expression; the pattern is for the JSON Schema.
Id = Annotated[str, AfterValidator(_fully_an_id), Field(json_schema_extra={"pattern": ID_PATTERN})]
"""A lease, endpoint, artifact or environment identifier."""

EnvironmentVariable = Annotated[
    str, AfterValidator(_fully_a_variable), Field(json_schema_extra={"pattern": _VARIABLE_PATTERN})
]
"""The name under which a secret or an input reaches the training."""

Line = Annotated[str, StringConstraints(max_length=LONGEST_LINE), AfterValidator(_no_control_characters)]
"""A line of text from a person: at most 512 characters, no control characters."""

Sha256 = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{64}$"),
    Field(examples=["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]),
]
"""A sha256 in hexadecimal, lower case."""


def as_line(text: str) -> str:
    """Make a `Line` of any text, for reasons and errors that others wrote: a bad message must never stop a release."""
    line = _CONTROL.sub(" ", text.encode(errors="replace").decode())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def is_id(text: str) -> bool:
    """Say whether `text` may be an id."""
    return bool(_ID.fullmatch(text))


def digest(*parts: str) -> str:
    """Hash the parts to 20 hexadecimal digits (BLAKE2b, 80 bits), unambiguous about where each part ends."""
    hasher = hashlib.blake2b(digest_size=10)
    for part in parts:
        raw = part.encode(errors="surrogatepass")
        hasher.update(len(raw).to_bytes(8, "big"))
        hasher.update(raw)
    return hasher.hexdigest()


def lease_base(run: str, name: str, task_key: str) -> str:
    """Return the part of a lease id that stays the same over its rounds (DESIGN §4).

    Args:
        run: the flow-run id, or a minted uuid outside one.
        name: the lease's name.
        task_key: the task's key with its dynamic key, an explicit ``key=``, or the call's number in its run.
    """
    return f"l{digest('lease', run, name, task_key)}"


def lease_id(base: str, round_number: int) -> str:
    """Return the id of one round of a lease."""
    return f"{base}-{round_number}"


def endpoint_base(environment: str, name: str) -> str:
    """Return the part of an endpoint id that stays the same over its rounds."""
    return f"e{digest('endpoint', environment, name)}"


def rollout_base(endpoint_id: str) -> str:
    """Return the part of a rollout id that all rollouts of an endpoint share; the version follows."""
    return f"r{digest('rollout', endpoint_id)}"


def minted() -> str:
    """Return a new universally unique id."""
    return str(uuid.uuid4())


def token() -> str:
    """Return a new secret token for a grant: 32 hexadecimal digits."""
    return secrets.token_hex(16)
