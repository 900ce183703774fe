"""Which operation of AWS a request is: from the request alone, without any SDK. Pure.

AWS speaks three ways: ``Action=`` in a form (EC2, IAM, STS), ``X-Amz-Target`` (DynamoDB, ECR, CloudWatch), and REST, of
which S3 is known by name here. Everything else is called by its method and path, such as ``POST /clusters``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

_SCOPE = re.compile(r"Credential=[^/]+/\d{8}/[^/]+/(?P<service>[^/]+)/aws4_request")
_NAMED = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_OBJECT = {
    ("PUT", "uploadId"): "UploadPart", ("PUT", "tagging"): "PutObjectTagging", ("PUT", ""): "PutObject",
    ("GET", "uploadId"): "ListParts", ("GET", "tagging"): "GetObjectTagging", ("GET", ""): "GetObject",
    ("DELETE", "uploadId"): "AbortMultipartUpload", ("DELETE", ""): "DeleteObject", ("HEAD", ""): "HeadObject",
    ("POST", "uploads"): "CreateMultipartUpload", ("POST", "uploadId"): "CompleteMultipartUpload",
}  # fmt: skip
_BUCKET = {
    ("GET", "list-type"): "ListObjectsV2", ("GET", "versions"): "ListObjectVersions",
    ("GET", "uploads"): "ListMultipartUploads", ("GET", ""): "ListObjects", ("PUT", ""): "CreateBucket",
    ("DELETE", ""): "DeleteBucket", ("HEAD", ""): "HeadBucket", ("POST", "delete"): "DeleteObjects",
}  # fmt: skip
_SUBRESOURCES = {
    "acl": "Acl", "cors": "Cors", "encryption": "Encryption", "lifecycle": "LifecycleConfiguration",
    "location": "Location", "logging": "Logging", "policy": "Policy", "replication": "Replication",
    "tagging": "Tagging", "versioning": "Versioning", "website": "Website",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operation:
    """A request's operation, such as ``PutObject`` or ``RunInstances``, and how its errors are written."""

    name: str
    service: str = ""
    style: str = "rest"
    """json, query or rest."""


def recognised(
    method: str, host: str, path: str, query: str, *, headers: Mapping[str, str], body: bytes
) -> Operation:  # fmt: skip
    """Return the operation of a request. Pure.

    Args:
        method: as sent.
        host: the Host header.
        path: decoded, without the query.
        query: as sent, without the question mark.
        headers: with lower-case names.
        body: the whole body; only forms are read.
    """
    scope = _SCOPE.search(headers.get("authorization", ""))
    asked = parse_qs(query, keep_blank_values=True)
    credential = (asked.get("X-Amz-Credential") or [""])[0].split("/")
    service = scope["service"] if scope else (credential[3] if len(credential) > 4 else "")
    if not service and {"AWSAccessKeyId", "Signature"} <= asked.keys():
        service = "s3"  # a presigned address of the older kind, which names no service: no other has them
    target = headers.get("x-amz-target", "")
    if target:
        return Operation(target.rpartition(".")[2], service, "json")
    form = headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    action = (asked.get("Action") or (parse_qs(body.decode(errors="replace")).get("Action") if form else None) or [""])[
        0
    ]
    if _NAMED.fullmatch(action):
        return Operation(action, service, "query")
    if service == "s3":
        return Operation(_s3(method, host, path, asked, copies="x-amz-copy-source" in headers), service)
    return Operation(f"{method} {path}", service)


def _s3(method: str, host: str, path: str, asked: Mapping[str, object], *, copies: bool) -> str:
    name = host.partition(":")[0]
    # The bucket is in the host's name (bucket.s3.amazonaws.com) or first in the path.
    hosted = ".s3." in name or ".s3-" in name or name.endswith(".localhost")
    bucket, _, key = ("x", "/", path.lstrip("/")) if hosted else path.lstrip("/").partition("/")
    if not bucket:
        return "ListBuckets"
    table = _OBJECT if key else _BUCKET
    flag = next((each for verb, each in table if verb == method and each and each in asked), "")
    more = next((name for flag, name in _SUBRESOURCES.items() if flag in asked), None)
    if not key and not flag and more is not None:
        return f"{method.capitalize()}Bucket{more}"
    if copies and key and not flag:
        return "CopyObject"
    return table.get((method, flag), f"{method} {path}")


def error_body(operation: Operation, code: str, message: str) -> tuple[str, bytes]:
    """Return content type and body of an error as that API writes it. Pure; `code` and `message` are plain text."""
    if operation.style == "json":
        return "application/x-amz-json-1.1", f'{{"__type": "{code}", "message": "{message}"}}'.encode()
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    if operation.service == "ec2":
        error = f"<Response><Errors>{error}</Errors><RequestID>fault</RequestID></Response>"
    elif operation.style == "query":
        error = f"<ErrorResponse>{error}<RequestId>fault</RequestId></ErrorResponse>"
    return "application/xml", f'<?xml version="1.0" encoding="UTF-8"?>{error}'.encode()
