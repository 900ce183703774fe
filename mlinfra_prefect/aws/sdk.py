"""How the SDK is used here: one client a process, bounded waiting, and its errors said as ours.

A client is safe for threads and takes a tenth of a second to make, so all handles of a process share one.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from mlinfra_prefect.errors import LedgerUnavailable, UnsupportedHere

CONNECT_SECONDS = 3.0
READ_SECONDS = 5.0
TRIES = 3
"""Of one call, the SDK's own; it waits between them, up to a second in all."""
CONNECTIONS = 32
"""Kept open; a listing reads 16 objects at once."""

REMEDIES = {
    "NoSuchBucket": "Make the bucket, or mend the address of the ledger. Nothing was provisioned.",
    "AccessDenied": "These credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket there "
    "(docs/operations.md). Nothing was provisioned.",
    "ExpiredToken": "The credentials have expired: log in again. Nothing was provisioned.",
    "InvalidAccessKeyId": "AWS does not know these credentials. Nothing was provisioned.",
    "SignatureDoesNotMatch": "AWS refuses these credentials: look at AWS_SECRET_ACCESS_KEY. Nothing was provisioned.",
    "RequestTimeTooSkewed": "The clock of this host is wrong by more than 15 minutes: set it. Nothing was provisioned.",
    "PermanentRedirect": "The bucket is in another region: set AWS_REGION to its own. Nothing was provisioned.",
}
TEMPORARY = "Nothing was provisioned. Try again; if it stays, look at the network and at the store."


def client() -> Any:
    """Return this process's S3 client.

    Raises:
        UnsupportedHere: boto3 is not installed.
        LedgerUnavailable: its configuration is broken.
    """
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _client(os.getpid(), settings)


@functools.lru_cache(maxsize=4)
def _client(pid: int, settings: tuple[tuple[str, str], ...]) -> Any:
    del pid, settings  # a child of a fork, and another configuration, get a client of their own
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UnsupportedHere(
            "A ledger on S3 needs boto3, which is not installed.", "pip install 'mlinfra_prefect[aws]'"
        ) from None
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        max_pool_connections=CONNECTIONS,
        user_agent_extra="mlinfra_prefect",
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:  # a profile that is not there, an endpoint that is no URL
        raise LedgerUnavailable(
            f"The ledger on S3 cannot be opened ({error}).", "Mend the AWS configuration."
        ) from error


def code_of(error: Any) -> tuple[str, int]:
    """Return the code and the HTTP status of an answer that was an error."""
    answer = getattr(error, "response", None) or {}
    status = (answer.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0
    return str((answer.get("Error") or {}).get("Code") or status), int(status)


def unavailable(name: str, error: Exception) -> LedgerUnavailable:
    """Say an error of the SDK in our words."""
    code, status = code_of(error)
    if status:
        said = (getattr(error, "response", None) or {}).get("Error", {}).get("Message") or ""
        what = f"S3 answered {code}" + (f": {said}" if said and said != code else "")
    else:
        what = str(error) or type(error).__name__
    code = "AccessDenied" if status == 403 and code not in REMEDIES else code
    return LedgerUnavailable(
        f"The ledger {name} cannot be used ({what.strip().rstrip('.')}).", REMEDIES.get(code, TEMPORARY)
    )
