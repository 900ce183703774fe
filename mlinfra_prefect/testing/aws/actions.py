"""Which action of IAM a request is, on what, and what conditions can say about it. From the request alone. Pure.

Services that speak REST are known by S3 only; what their actions are called cannot be read off a path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from mlinfra_prefect.testing.aws.launching import tag_specifications
from mlinfra_prefect.testing.aws.wire import Request

_OBJECT_ACTIONS = {
    "HeadObject": "GetObject", "CopyObject": "PutObject", "UploadPart": "PutObject",
    "CreateMultipartUpload": "PutObject", "CompleteMultipartUpload": "PutObject",
    "ListParts": "ListMultipartUploadParts", "DeleteObjects": "DeleteObject", "ListObjectsV2": "ListBucket",
    "ListObjects": "ListBucket", "HeadBucket": "ListBucket", "ListObjectVersions": "ListBucketVersions",
    "ListMultipartUploads": "ListBucketMultipartUploads", "ListBuckets": "ListAllMyBuckets",
}  # fmt: skip
PREFIXES = {"tagging": "tag"}
"""Services whose actions begin with another word than the one that signs for them."""
_EC2_IDS = re.compile(r"(i|vol|eni|sg|lt|fleet|sir|eipalloc)-[0-9a-f-]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing that must be allowed. `named`: an id whose tags conditions may ask for."""

    action: str
    resource: str | None
    context: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    named: str = ""


def asked_of(request: Request, path: str, query: str, body: bytes) -> list[Asked]:
    """Return everything a request needs to be allowed; empty: its action is not known here.

    Args:
        request: as it was read.
        path: decoded.
        query: as sent.
        body: of a DeleteObjects; empty otherwise.
    """
    operation, region = request.operation, (request.region,)
    if operation.service == "s3":
        return _s3(operation.name, path, query, body)
    if operation.style not in {"query", "json"}:
        return []
    context: dict[str, tuple[str, ...]] = {"aws:requestedregion": region}
    tags: dict[str, str] = {}
    for each in tag_specifications(request.asked.get("TagSpecifications") or []).values():
        tags |= each
    if operation.name == "CreateTags":
        tags |= {each["Key"]: each.get("Value", "") for each in request.asked.get("Tags", [])}
    context |= {f"aws:requesttag/{key}".lower(): (value,) for key, value in tags.items()}
    if tags:
        context["aws:tagkeys"] = tuple(tags)
    action = f"{PREFIXES.get(operation.service, operation.service)}:{operation.name}"
    if operation.service == "ec2":
        ids = [value for value in request.form.values() if _EC2_IDS.fullmatch(value)]
        # What is made from others is judged by what is asked for it; what is changed, by what it is.
        if ids and not operation.name.startswith(("Describe", "Get", "Run", "CreateFleet")):
            return [Asked(action, None, context, each) for each in ids]
        return [Asked(action, None, context)]
    arn = request.form.get("RoleArn") or _first_arn(request.asked)
    return [Asked(action, arn, context)]


def _s3(name: str, path: str, query: str, body: bytes) -> list[Asked]:
    bucket, _, key = path.lstrip("/").partition("/")
    action = f"s3:{_OBJECT_ACTIONS.get(name, name)}"
    if name == "DeleteObjects":
        keys = re.findall(r"<Key>(.*?)</Key>", body.decode(errors="replace"))
        return [Asked(action, f"arn:aws:s3:::{bucket}/{each}") for each in keys]
    prefix = parse_qs(query).get("prefix")
    context = {"s3:prefix": (prefix[0],)} if prefix else {}
    resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
    return [Asked(action, resource if bucket else "*", context)]


def _first_arn(asked: dict[str, Any]) -> str | None:
    return next((each for each in asked.values() if isinstance(each, str) and each.startswith("arn:")), None)
