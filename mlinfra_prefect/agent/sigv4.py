"""AWS Signature Version 4, the part of it that a node needs: signed headers for one request with its whole body.

The node has no SDK, and the SDK is two megabytes that would have to be trusted on it. The algorithm is forty lines with
published examples. Pure: it knows neither clock nor network. Not here: presigned addresses, chunked bodies, SigV4a.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

ALGORITHM: Final = "AWS4-HMAC-SHA256"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Credentials:
    """What a request is signed with; ``token`` is empty for credentials that do not expire."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)


def encoded_path(path: str) -> str:
    """A path as S3 wants it in the address and in the signature: each byte encoded once, slashes left. Pure."""
    return quote(path, safe="/-_.~")


def encoded_query(query: Mapping[str, str]) -> str:
    """The parameters sorted and encoded, as they stand in the address and in the signature. Pure."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def signed(
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    body_sha256: str,
    *,
    credentials: Credentials,
    region: str,
    at: datetime,
    service: str = "s3",
) -> dict[str, str]:
    """The headers of a request with its signature added. Pure.

    Args:
        method: ``GET``, ``PUT``, …
        path: not encoded, with its leading slash.
        query: not encoded.
        headers: what the request carries, ``host`` among it; all of it is signed.
        body_sha256: of the body, as hex.
        credentials: whose request it is.
        region: where the service is.
        at: the time of the request, in UTC; the service refuses what is more than 15 minutes off.
        service: as it stands in the scope of the signature.
    """
    stamp = at.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    carried = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    carried |= {"x-amz-date": stamp, "x-amz-content-sha256": body_sha256}
    if credentials.token:
        carried["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(carried))
    lines = "".join(f"{name}:{carried[name]}\n" for name in sorted(carried))
    request = "\n".join((method, encoded_path(path), encoded_query(query), lines, names, body_sha256))
    text = "\n".join((ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (stamp[:8], region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    carried["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return carried
