"""What an EC2 instance is told about itself: its id, and credentials of its role, by IMDSv2 (a token for each session).

The address is ``AWS_EC2_METADATA_SERVICE_ENDPOINT``, as for Amazon's own SDKs; without it the link-local one. Proxies
of the environment are never used for it: they would see the credentials.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from .sigv4 import Credentials

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDPOINT: Final = "http://169.254.169.254"
TOKEN_SECONDS: Final = 21600
TIMEOUT_SECONDS: Final = 2.0
TRIES: Final = 5
PAUSE_SECONDS: Final = 0.2
_ROLES = "/latest/meta-data/iam/security-credentials/"


class ImdsError(OSError):
    """The instance metadata service did not answer, or not with what was asked for; the message says what."""


@dataclass(frozen=True)
class RoleCredentials:
    """Credentials of the instance's role and when they end (epoch seconds)."""

    credentials: Credentials
    expires: float


class Imds:
    """A client of the instance metadata service. Not safe for threads.

    Args:
        endpoint: its address; empty: the environment's, or the link-local one.
    """

    def __init__(self, endpoint: str = "") -> None:
        given = endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT
        parts = urlsplit(given)
        if parts.scheme != "http" or not parts.hostname:
            raise ImdsError(f"the address of the instance metadata service is not http://…: {given!r}")
        self._host, self._port = parts.hostname, parts.port or 80
        self._root = parts.path.rstrip("/")
        self._token, self._token_until = "", 0.0

    def instance_id(self) -> str:
        """The instance's id. Raises ImdsError."""
        return self._get("/latest/meta-data/instance-id")

    def credentials(self) -> RoleCredentials:
        """Credentials of the instance's role, fresh. Raises ImdsError: it has no role, or they cannot be read."""
        role = self._get(_ROLES).split("\n", 1)[0].strip()
        if not role:
            raise ImdsError("the instance has no role")
        try:
            told = json.loads(self._get(_ROLES + role))
            expires = datetime.fromisoformat(str(told["Expiration"])).timestamp()
            found = Credentials(str(told["AccessKeyId"]), str(told["SecretAccessKey"]), str(told["Token"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ImdsError(f"the credentials of role {role} cannot be read ({type(error).__name__})") from None
        return RoleCredentials(found, expires)

    def _get(self, path: str) -> str:
        problem = ""
        for number in range(TRIES):
            if number:
                time.sleep(PAUSE_SECONDS * 2 ** (number - 1))
            if time.monotonic() >= self._token_until:
                status, body = self._ask(
                    "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
                )
                if status != http.HTTPStatus.OK:
                    problem = f"no token ({body if status == 0 else status})"
                    continue
                self._token, self._token_until = body.strip(), time.monotonic() + TOKEN_SECONDS / 2
            status, body = self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
            if status == http.HTTPStatus.OK:
                return body
            problem = body if status == 0 else f"it answered {status}"
            if status == http.HTTPStatus.UNAUTHORIZED:
                self._token_until = 0.0
            elif status == http.HTTPStatus.NOT_FOUND:
                break  # it will not be there the next time either
        raise ImdsError(f"the instance metadata service does not tell {path}: {problem}")

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """Status and body of an answer; 0 and the reason where there was none."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, self._root + path, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read(1 << 20).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error) or type(error).__name__
        finally:
            connection.close()
