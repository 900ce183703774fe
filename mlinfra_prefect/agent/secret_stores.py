"""The node reads its job's secrets itself: from Secrets Manager and Parameter Store, with the credentials of its role.

It does so at the moment at which a launcher asks, so nothing is held in between, and what was replaced meanwhile is
read as it is now. No value is in an error, and of AWS's own words only the code: nobody promises what its sentences
quote.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from . import sigv4
from .references import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .imds import RoleCredentials

READ_SECONDS: Final = 20.0
"""For all secrets of a job: shorter than a launcher waits, so that it hears why there are none."""
TIMEOUT_SECONDS: Final = 5.0
PAUSE_SECONDS: Final = 0.5
_LONGEST: Final = 1 << 20
_PASSING: Final = frozenset({
    "ThrottlingException", "Throttling", "TooManyRequestsException", "InternalServiceError", "InternalServerError",
    "ServiceUnavailable", "RequestTimeout",
})  # fmt: skip
_ABSENT: Final = frozenset({"ResourceNotFoundException", "ParameterNotFound"})
_WRONG_CLOCK: Final = frozenset({"InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed"})


class Unread(RuntimeError):
    """A secret could not be read; the message says which and why, and holds no value."""


class SecretStores:
    """Reads secrets for one node. Safe for threads.

    Args:
        home: the environment's home region, where a name is looked up.
        endpoint: ``http(s)://host[:port]`` for all services; empty: AWS's own addresses.
        credentials: asks for the role's; may raise OSError.
    """

    def __init__(self, home: str, endpoint: str, credentials: Callable[[], RoleCredentials]) -> None:
        self._home, self._endpoint, self._credentials = home, endpoint, credentials

    def answer(self, references: Mapping[str, str]) -> dict[str, str] | str:
        """What a launcher is answered: the values by name, or one sentence that says why there are none.

        Blocks for `READ_SECONDS`, and one request more, at most.
        """
        until = time.monotonic() + READ_SECONDS
        found: dict[str, str] = {}
        for name, text in references.items():
            try:
                found[name] = self.read(Reference.parse(text), until)
            except (Unread, ValueError) as error:
                return f"secrets.{name}: {error}"
        return found

    def read(self, reference: Reference, until: float) -> str:
        """The value. Raises Unread, after ``until`` (monotonic seconds) at the latest."""
        offset, problem = timedelta(0), "nobody was asked"
        while True:
            try:
                status, date, body = self._ask(reference, datetime.now(UTC) + offset)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if status == HTTPStatus.OK:
                    return _value(reference, body)
                code = _code(body) or str(status)
                if code in _WRONG_CLOCK and date and not offset:
                    offset = date - datetime.now(UTC)
                    continue
                if code not in _PASSING and status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise Unread(self._why(reference, code, body))
                problem = f"{reference.service} answers {code}"
            if time.monotonic() + PAUSE_SECONDS >= until:
                raise Unread(f"{reference.granted_as} could not be read by the node ({problem})")
            time.sleep(PAUSE_SECONDS)

    def _ask(self, reference: Reference, at: datetime) -> tuple[int, datetime | None, bytes]:
        region = reference.region(self._home)
        secret = reference.service == "secretsmanager"
        asked = {"SecretId": reference.name} if secret else {"Name": reference.name, "WithDecryption": True}
        target = "secretsmanager.GetSecretValue" if secret else "AmazonSSM.GetParameter"
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        host = urlsplit(self._endpoint).netloc or f"{reference.service}.{region}.{domain}"
        body = json.dumps(asked).encode("ascii")
        headers = sigv4.signed(
            "POST", "/", {}, {"host": host, "content-type": "application/x-amz-json-1.1", "x-amz-target": target},
            hashlib.sha256(body).hexdigest(), credentials=self._credentials().credentials, region=region, at=at,
            service=reference.service,
        )  # fmt: skip
        del headers["host"]  # http.client writes it itself, the same
        connection = (
            http.client.HTTPConnection(host, timeout=TIMEOUT_SECONDS) if self._endpoint.startswith("http://")
            else http.client.HTTPSConnection(host, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context())
        )  # fmt: skip
        try:
            connection.request("POST", "/", body, headers)
            answer = connection.getresponse()
            told = answer.read(_LONGEST)
            if answer.length:  # read(n) says nothing of a connection that ended early
                raise http.client.IncompleteRead(b"", answer.length)
            return answer.status, _date(answer.getheader("date")), told
        finally:
            connection.close()

    def _why(self, reference: Reference, code: str, body: bytes) -> str:
        text, region = reference.granted_as, reference.region(self._home)
        if code in _ABSENT:
            return f"{text}: there is none in {region} ({code})"
        if code.startswith("AccessDenied") and b"kms" in body.lower():
            return f"{text}: the node's role may not use the key that it is encrypted with ({code})"
        if code.startswith("AccessDenied"):
            return f"{text}: the node's role may not read it ({code}); grant it with `init aws --secret {text}`"
        return f"{text} cannot be read by the node: {reference.service} answers {code}"


def _value(reference: Reference, body: bytes) -> str:
    """The value in an answer. No error here may quote it."""
    try:
        told = json.loads(body)
        text = told["Parameter"]["Value"] if reference.service == "ssm" else told.get("SecretString")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unread(f"{reference.granted_as}: the answer of {reference.service} cannot be read") from None
    if not isinstance(text, str):
        raise Unread(f"{reference.granted_as} holds bytes, and a variable holds text")
    if not reference.key:
        return text
    try:
        found: Any = json.loads(text)[reference.key]
    except (ValueError, KeyError, TypeError, IndexError):
        raise Unread(f"{reference.granted_as} is no JSON object with a {reference.key!r}") from None
    if isinstance(found, dict | list) or found is None:
        raise Unread(f"{reference.text}: the value is no text and no number")
    return found if isinstance(found, str) else json.dumps(found)


def _code(body: bytes) -> str:
    """The code in a refusal, such as ``AccessDeniedException``; empty: it says none."""
    try:
        told = json.loads(body)
        return str(told.get("__type") or told.get("code") or "").rpartition("#")[2][:100]
    except (ValueError, AttributeError):
        return ""


def _date(text: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(text or "").astimezone(UTC)
    except ValueError:
        return None
