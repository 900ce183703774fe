"""How AWS is asked here, and what its refusals mean: every caller below decides on `Refused`, none reads a message.

An answer says one of a few things: it is not there (which is success for whatever ends things), we may not, these are
no valid credentials, not now, or it was refused for a reason of its own. Trying again is the SDK's, whose clients are
made with a bounded number of tries; a loop of ours around it would multiply them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from mlinfra_prefect.aws.refusals import code_of, refused
from mlinfra_prefect.errors import MlinfraError, TemporaryError

Clients = Callable[[str, str], Any]
"""Returns a client of boto3 for a service and a region."""
Meaning = Literal["absent", "denied", "credentials", "throttled", "unreachable", "failed", "refused"]

THROTTLED = frozenset({
    "EC2ThrottledException", "RequestLimitExceeded", "RequestThrottled", "RequestThrottledException", "SlowDown",
    "Throttling", "ThrottlingException", "TooManyRequests", "TooManyRequestsException",
})  # fmt: skip
CREDENTIALS = frozenset({
    "AuthFailure", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "InvalidClientTokenId",
    "InvalidSignatureException", "MissingAuthenticationToken", "RequestExpired", "SignatureDoesNotMatch",
    "UnrecognizedClientException",
})  # fmt: skip
DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
ABSENT = (".NotFound", ".NotFoundException", "fleetIdDoesNotExist")
PREFIXES = {"resourcegroupstaggingapi": "tag"}
"""The services whose permissions begin with another name than that of their client."""
LONGEST_MESSAGE = 300
MOST_LISTED = 8
"""Things that one sentence names; the rest is counted."""

_ACTION = re.compile(r"not authorized to perform:? ?([a-z0-9-]+:[A-Za-z]+)")


class Refused(Exception):
    """AWS did not do what it was asked, as far as anybody knows.

    Attributes:
        code: AWS's own, such as ``UnauthorizedOperation``, or the name of the SDK's error.
        said: AWS's own message, one line, whole: it may name which of many ids it is about.
        action: the permission that the operation needs, such as ``ec2:TerminateInstances``.
        meaning: what follows from it.
    """

    def __init__(
        self, code: str, said: str, action: str, status: int = 0, *, sdk: bool = False, cause: Exception | None = None
    ) -> None:
        super().__init__(code, said)
        self.cause = cause
        self.code, self.said = code, " ".join(said.split())
        self.meaning = _meaning(code, status, sdk=sdk)
        named = _ACTION.search(said) if self.meaning == "denied" else None
        self.action = named[1] if named else action

    @property
    def reason(self) -> str:
        """Why, and what to do about it, for people; one line."""
        match self.meaning:
            case "denied":
                return f"{self.code}: these credentials may not {self.action}"
            case _ if not self.said or self.said == self.code:
                return self.code
            case _:
                return f"{self.code}: {self.said[:LONGEST_MESSAGE].rstrip('.')}"

    @property
    def remedy(self) -> str:
        """What to do next, as a sentence."""
        return self.error("it").remedy

    @property
    def concerns_all(self) -> bool:
        """Whether asking for less, or for something else of the same kind, would be refused as well."""
        return self.meaning in {"credentials", "throttled", "unreachable"}

    def error(self, doing: str) -> MlinfraError:
        """Say it as one of our errors: permanent where a person has to do something first."""
        if self.cause is not None:
            return refused(self.cause, doing)
        return TemporaryError(f"{doing} failed ({self.reason}).", "It is tried again.")


def ask(client: Any, operation: str, **arguments: Any) -> dict[str, Any]:
    """Call an operation of a client once, with the SDK's own retries.

    Raises:
        Refused: it was not carried out, or nobody knows whether it was.
    """
    failures, client_error = _errors()
    try:
        return dict(getattr(client, operation)(**arguments))
    except client_error as error:
        raise _said(client, operation, error) from error
    except failures as error:
        action = _action(client, operation)
        raise Refused(type(error).__name__, str(error), action, sdk=True, cause=error) from error


def pages(client: Any, operation: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Call an operation until it has told everything; raises `Refused`."""
    more: dict[str, Any] = {}
    while True:
        answer = ask(client, operation, **arguments, **more)
        yield answer
        token = next((name for name in ("NextToken", "PaginationToken") if answer.get(name)), None)
        if token is None:
            return
        more = {token: answer[token]}


def listed(things: Sequence[object], between: str = ", ") -> str:
    """Name some things in a sentence that stays short however many there are. Pure."""
    more = f" and {len(things) - MOST_LISTED} more" if len(things) > MOST_LISTED else ""
    return between.join(map(str, things[:MOST_LISTED])) + more


@functools.cache
def _errors() -> tuple[tuple[type[Exception], ...], type[Exception]]:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    # An answer that cannot be parsed is a proxy's or a broken server's: the request may have been carried out.
    return (BotoCoreError, ResponseParserError), ClientError


def _said(client: Any, operation: str, error: Any) -> Refused:
    code, status = code_of(error)
    message = str(((error.response or {}).get("Error") or {}).get("Message") or "")
    return Refused(code, message, _action(client, operation), status, cause=error)


def _action(client: Any, operation: str) -> str:
    service = str(client.meta.service_model.service_name)
    return f"{PREFIXES.get(service, service)}:{client.meta.method_to_api_mapping.get(operation, operation)}"


def _meaning(code: str, status: int, *, sdk: bool) -> Meaning:
    if code.endswith(ABSENT):
        return "absent"
    if code in DENIED:
        return "denied"
    if code in CREDENTIALS or code in {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"}:
        return "credentials"
    if code in THROTTLED or status == 429:
        return "throttled"
    if code == "ResponseParserError" or status >= 500:
        return "failed"
    return "unreachable" if sdk else "refused"
