"""How the SDK is used here: one client a process, service and region, bounded waiting, and its errors said as ours.

A client is safe for threads and takes a tenth of a second to make, so all that a process does with one service in one
region shares one. Every client of a process is made from one session, so credentials are fetched once.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

from mlinfra_prefect.aws.refusals import code_of as code_of, refused as refused  # noqa: PLC0414 (found here by all)
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


def client(service: str = "s3", region: str | None = None, *, tries: int = TRIES) -> Any:
    """Return this process's client of a service in a region.

    A child of a fork and another configuration (any variable ``AWS_*``) get clients of their own.

    Args:
        service: as boto3 calls it, such as ``ec2`` or ``service-quotas``.
        region: None: the region of the AWS configuration.
        tries: of one call, the SDK's own; 1 for what nobody waits for because it can be done without.

    Raises:
        UnsupportedHere: boto3 is not installed.
        LedgerUnavailable: for S3: its configuration is broken.
        PermanentError: for the others: the configuration is broken, or names no region.
    """
    with _making:  # a session is not safe for threads
        return _client(here(), service, region, tries)


def link(bucket: str, key: str, *, region: str, seconds: int) -> str:
    """Return an address that reads one object for a while, with the rights of these credentials. Calls nothing.

    It is made for the bucket's own region: the address that serves all of them answers with another one, for which the
    signature does not hold.
    """
    endpoint = client("s3", region).meta.endpoint_url
    with _making:
        signer = _client(here(), "s3", region, TRIES, endpoint)
    wanted = {"Bucket": bucket, "Key": key}
    return str(signer.generate_presigned_url("get_object", Params=wanted, ExpiresIn=seconds))


def bucket_region(bucket: str, asked: Any) -> str:
    """Return the region of a bucket, whoever it belongs to; that of the asking client where S3 does not say."""
    from botocore.exceptions import ClientError

    try:
        answer = asked.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response  # also a refusal says where the bucket is
    headers = (answer.get("ResponseMetadata") or {}).get("HTTPHeaders") or {}
    return str(headers.get("x-amz-bucket-region") or asked.meta.region_name)


Place = tuple[int, tuple[tuple[str, str], ...]]
"""A process and its configuration."""


def here() -> Place:
    """This process and its login, as far as variables say."""
    return os.getpid(), tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@functools.lru_cache(maxsize=64)
def _client(place: Place, service: str, region: str | None, tries: int, endpoint: str | None = None) -> Any:
    try:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        session = _session(place)
    except ImportError:
        what = "A ledger on S3" if service == "s3" else "AWS"
        raise UnsupportedHere(
            f"{what} needs boto3, which is not installed.", "pip install 'mlinfra_prefect[aws]'"
        ) from None
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": tries},
        max_pool_connections=CONNECTIONS,
        user_agent_extra="mlinfra_prefect",
        # For S3 boto3 still signs links in the old way, which newer regions and encrypted objects refuse.
        signature_version="s3v4" if service == "s3" else None,
    )
    try:
        return session().client(service, region_name=region, endpoint_url=endpoint, config=config)
    except (BotoCoreError, ValueError) as error:  # a profile that is not there, an endpoint that is no URL
        if service != "s3":
            raise refused(error, f"calling {service} of AWS") from error
        raise LedgerUnavailable(
            f"The ledger on S3 cannot be opened ({error}).", "Mend the AWS configuration."
        ) from error


@functools.lru_cache(maxsize=4)
def _session(place: Place) -> Any:
    """Return what makes the session of a process and a configuration: once, and only when that succeeds."""
    del place
    from boto3.session import Session

    return functools.cache(Session)


_making = threading.Lock()


def _unlock() -> None:
    global _making  # noqa: PLW0603 (a fork copies a lock that another thread holds, and nobody would free it)
    _making = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


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
