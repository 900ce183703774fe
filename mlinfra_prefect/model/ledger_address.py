"""Where a shared ledger lies: ``s3://bucket/prefix``, checked before anything is opened or made.

Standard library only: a listing must know which ledger it is about without loading the models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlinfra_prefect.errors import InvalidInput

LEDGER_VARIABLE = "MLINFRA_LEDGER"
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SEGMENT = re.compile(r"[A-Za-z0-9._=@-]{1,128}")
LONGEST_PREFIX = 512
"""S3 allows keys of 1,024 bytes; what the ledger puts behind its prefix takes less than 128."""
_REMEDY = "Write s3://BUCKET/PREFIX, such as s3://acme-mlinfra/ledger."


@dataclass(frozen=True, slots=True)
class LedgerAddress:
    """A bucket and the prefix below which the ledger's objects lie; the prefix has no slash at its ends."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_address(text: str, *, field: str) -> LedgerAddress:
    """Return the address that a text writes. Pure.

    Args:
        text: as a person or a file gave it.
        field: the name of the field, for the message.

    Raises:
        InvalidInput: it is no such address.
    """
    scheme, separator, rest = text.partition("://")
    if separator != "://" or scheme != "s3":
        shown = repr(text if len(text) <= 80 else f"{text[:79]}…")
        raise InvalidInput(field, f"{shown} is no address of a shared ledger", _REMEDY)
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.removesuffix("/")
    if not BUCKET.fullmatch(bucket) or ".." in bucket:
        raise InvalidInput(field, "the bucket's name must be 3 to 63 of a-z, 0-9, '.' and '-'", _REMEDY)
    segments = prefix.split("/") if prefix else []
    if len(prefix) > LONGEST_PREFIX or not all(_SEGMENT.fullmatch(each) and each.strip(".") for each in segments):
        message = (
            f"the prefix must be names of letters, digits and . _ = @ - with one '/' between (at most {LONGEST_PREFIX})"
        )
        raise InvalidInput(field, message, _REMEDY)
    return LedgerAddress(bucket, prefix)
