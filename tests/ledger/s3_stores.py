"""Ledgers on S3 for the tests: opened by name below a prefix of their own, spoiled and lost in the bucket itself."""

from __future__ import annotations

import os
from typing import Any

from memory_stores import spoiled

from mlinfra_prefect.aws import S3Ledger
from mlinfra_prefect.aws.sdk import client
from mlinfra_prefect.testing.ledger import Damage


def open_store(environment: dict[str, str], bucket: str, store: str = "first") -> S3Ledger:
    """Open the ledger of that name, also in another process."""
    os.environ.update(environment)
    return S3Ledger(f"s3://{bucket}/{store}")


def body(bucket: str, key: str) -> bytes:
    return client().get_object(Bucket=bucket, Key=f"first/{key}")["Body"].read()


def put(bucket: str, key: str, content: bytes) -> None:
    client().put_object(Bucket=bucket, Key=f"first/{key}", Body=content)


def keys(bucket: str) -> list[str]:
    found: dict[str, Any] = client().list_objects_v2(Bucket=bucket)
    return [each["Key"] for each in found.get("Contents", ())]


def spoil(bucket: str, record_id: str, kind: Damage) -> None:
    """Spoil a record in its object."""
    key = f"records/{record_id}.json"
    put(bucket, key, spoiled(body(bucket, key), kind))


def lose(bucket: str) -> None:
    """Delete the bucket."""
    for key in keys(bucket):
        client().delete_object(Bucket=bucket, Key=key)
    client().delete_bucket(Bucket=bucket)
