"""Bucket policies that refuse what is not sent by TLS: moto ignores conditions, and would refuse everything.

The emulator answers on the loopback interface without TLS. What comes from there never crossed a network, so it counts
as secure; every other statement of a policy is moto's to judge.
"""

from __future__ import annotations

import json
from typing import Any

_INSECURE = {"Bool": {"aws:SecureTransport": "false"}}


def without_tls_only(policy: bytes) -> bytes:
    """Return a policy without the statements that hold for insecure transport only. Pure."""
    document = json.loads(policy)
    statements = document.get("Statement") or []
    listed = statements if isinstance(statements, list) else [statements]
    kept = [each for each in listed if each.get("Condition") != _INSECURE]
    return json.dumps({**document, "Statement": kept}).encode()


def mend() -> None:
    """Have moto judge bucket policies so, in this process. Idempotent."""
    from moto.s3.models import FakeBucket

    if getattr(FakeBucket.get_permission, "mended", False):
        return
    original = FakeBucket.get_permission

    def get_permission(bucket: Any, action: str, resource: str) -> Any:
        policy = bucket.policy
        if policy is None:
            return original(bucket, action, resource)
        from moto.iam.access_control import IAMPolicy

        return IAMPolicy(without_tls_only(policy).decode()).is_action_permitted(action, resource)

    get_permission.mended = True  # type: ignore[attr-defined]
    FakeBucket.get_permission = get_permission
