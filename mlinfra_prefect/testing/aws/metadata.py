"""The instance metadata service, version 2, of every emulated machine: a token first, then what the instance is."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from mlinfra_prefect.testing.aws.account import LIVE, Account, InstanceFacts
from mlinfra_prefect.testing.faults import StartResponse

PREFIX = "/_instance/"
CREDENTIAL_SECONDS = 6 * 3600
FRESH_SECONDS = 600.0
"""Credentials that end within this many seconds are made anew."""
_TEXT = [("Content-Type", "text/plain")]


class Metadata:
    """Answers under ``/_instance/<instance id>``, at whose end stands the path that a machine asks for.

    Args:
        account: whose instances.
        exclusively: gives the account to one thread for a while.
    """

    def __init__(self, account: Account, exclusively: Callable[[], AbstractContextManager[None]]) -> None:
        self._account, self._exclusively = account, exclusively
        self._tokens: dict[str, set[str]] = {}
        self._roles: dict[str, tuple[float, str, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request of one machine."""
        instance_id, _, path = str(environ["PATH_INFO"]).removeprefix(PREFIX).partition("/")
        status, body = self._answer(instance_id, path.strip("/"), environ)
        start_response(status, [*_TEXT, ("Content-Length", str(len(body)))])
        return [body]

    def _answer(self, instance_id: str, path: str, environ: dict[str, Any]) -> tuple[str, bytes]:
        with self._exclusively():
            facts = self._account.instance(instance_id)
        if facts is None or facts.state not in LIVE:
            return "404 Not Found", b""
        with self._lock:
            if path == "latest/api/token":
                if environ.get("REQUEST_METHOD") != "PUT":
                    return "405 Method Not Allowed", b""
                token = secrets.token_urlsafe(24)
                self._tokens.setdefault(instance_id, set()).add(token)
                return "200 OK", token.encode()
            if environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN", "") not in self._tokens.get(instance_id, set()):
                return "401 Unauthorized", b""
            said = self._said(facts, path.removeprefix("latest/").removeprefix("meta-data/"))
        return ("404 Not Found", b"") if said is None else ("200 OK", said)

    def _said(self, facts: InstanceFacts, path: str) -> bytes | None:
        if path == "user-data":
            with self._exclusively():
                return self._account.user_data(facts.id, facts.region) or None
        plain = {
            "instance-id": facts.id, "instance-type": facts.type, "ami-id": facts.image,
            "placement/region": facts.region, "placement/availability-zone": facts.zone,
            "instance-life-cycle": facts.market,
        }  # fmt: skip
        if path in plain:
            return plain[path].encode()
        if path == "dynamic/instance-identity/document":
            return json.dumps({
                "instanceId": facts.id, "instanceType": facts.type, "region": facts.region, "imageId": facts.image,
                "availabilityZone": facts.zone, "accountId": self._account.id,
            }).encode()  # fmt: skip
        if path == "iam/info" and facts.profile_arn:
            return json.dumps({"Code": "Success", "InstanceProfileArn": facts.profile_arn}).encode()
        if path.startswith("iam/security-credentials"):
            return self._credentials(facts, path.removeprefix("iam/security-credentials").strip("/"))
        return None  # spot interruptions and rebalance recommendations too, until there is one

    def _credentials(self, facts: InstanceFacts, role: str) -> bytes | None:
        until, name, keys = self._roles.get(facts.id, (0.0, "", {}))
        if until - time.time() < FRESH_SECONDS:
            with self._exclusively():
                made = self._account.role_credentials(facts, CREDENTIAL_SECONDS) if facts.profile_arn else None
            if made is None:
                return None
            (name, keys), until = made, time.time() + CREDENTIAL_SECONDS
            self._roles[facts.id] = (until, name, keys)
        if not role:
            return name.encode()
        if role != name:
            return None
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until))
        said = {"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": ends, **keys, "Expiration": ends}
        return json.dumps(said).encode()
