"""What AWS says no with, as decisions: stop and mend it, try again, look elsewhere. Calls nothing.

AWS has hundreds of error codes and a dozen ways to say that a permission is missing. Here they become the few errors
that callers act on, each with the next step, so that nobody else reads a code. `sdk` is where callers find these.
"""

from __future__ import annotations

import re
from typing import Any

from mlinfra_prefect.errors import (
    CapacityUnavailable,
    MlinfraError,
    PermanentError,
    QuotaExceeded,
    TemporaryError,
)

LONGEST_SAID = 300
"""Of what AWS said; some answers carry kilobytes of encoded policy."""

_PERMISSION = frozenset({
    "AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnauthorizedAccess", "AuthorizationError",
    "NotAuthorized", "Client.UnauthorizedOperation",
})  # fmt: skip
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_UNKNOWN_KEYS = frozenset({
    "AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId",
    "SignatureDoesNotMatch", "IncompleteSignature", "MissingAuthenticationToken", "InvalidSignatureException",
})  # fmt: skip
_REGION = frozenset({
    "OptInRequired", "InvalidRegion", "PermanentRedirect", "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
})  # fmt: skip
_THROTTLED = frozenset({
    "Throttling", "ThrottlingException", "Throttled", "ThrottledException", "RequestLimitExceeded", "RequestThrottled",
    "RequestThrottledException", "TooManyRequestsException", "SlowDown", "EC2ThrottledException",
    "PriorRequestNotComplete", "BandwidthLimitExceeded",
})  # fmt: skip
_CAPACITY = frozenset({
    "InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientReservedInstanceCapacity",
    "InsufficientCapacity", "InsufficientCapacityOnHost", "UnfulfillableCapacity", "SpotMaxPriceTooLow",
})  # fmt: skip
_QUOTA = frozenset({"MaxSpotInstanceCountExceeded", "MaxSpotFleetRequestCountExceeded"})
_ACTION = re.compile(r"not authorized to perform:?\s+([a-z0-9-]+:[A-Za-z0-9]+)")
_ENCODED = re.compile(r"\s*Encoded authorization failure message:.*", re.DOTALL)

LOG_IN = (
    "Log in (`aws sso login` or `aws configure`), or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
)


def code_of(error: Any) -> tuple[str, int]:
    """Return the code and the HTTP status of an answer that was an error."""
    answer = getattr(error, "response", None) or {}
    status = (answer.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0
    return str((answer.get("Error") or {}).get("Code") or status), int(status)


def refused(error: Exception, doing: str) -> MlinfraError:
    """Say an error of the SDK as a decision. Pure.

    Args:
        error: what the SDK raised.
        doing: what was being done, to which "failed" fits: ``listing the instance types of eu-central-1``.

    Returns:
        `PermanentError` for credentials, permissions, the region and everything that stays wrong; `QuotaExceeded` and
        `CapacityUnavailable` for what another place or time may have; `TemporaryError` for throttling, a server's
        fault and the network. Its message is one sentence, its remedy the next step. An error of ours is given back
        as it is.
    """
    if isinstance(error, MlinfraError):
        return error
    doing = doing[:1].upper() + doing[1:]
    if not code_of(error)[1] and not getattr(error, "response", None):
        return _before_an_answer(error, doing)
    code, status = code_of(error)
    said = _said(error)
    failed = f"{doing} failed: AWS answered {code}" + (f", {said}." if said and said != code else ".")
    mine = _account(code, doing, failed)
    if mine is not None:
        return mine
    if code in _THROTTLED or status == 429:
        return TemporaryError(f"{doing} failed: AWS throttles these calls ({code}).", "Try again in a minute.")
    if code in _CAPACITY:
        return CapacityUnavailable(failed, "Take another zone, type or region, or try again later.")
    if code in _QUOTA or code.endswith("LimitExceeded"):
        return QuotaExceeded(failed, "Ask AWS for more of this quota (Service Quotas), or wait until it is free.")
    if code in _PERMISSION or status == 403:
        return _permission(error, doing, said)
    if status >= 500:
        return TemporaryError(failed, "Try again.")
    return PermanentError(failed, "Mend what AWS names.")


def _account(code: str, doing: str, failed: str) -> MlinfraError | None:
    """Say what is wrong with who asks and where; None: nothing of that kind."""
    if code in _EXPIRED:
        return PermanentError(f"{doing} failed: the AWS credentials have expired.", LOG_IN)
    if code in _UNKNOWN_KEYS:
        return PermanentError(
            f"{doing} failed: AWS does not accept the credentials ({code}).",
            f"{LOG_IN} In a region that must be enabled for an account, it may be that it is not.",
        )
    if code in _REGION:
        return PermanentError(
            failed, "Take a region that is enabled for this account: AWS_REGION, or the environment's regions."
        )
    if code == "RequestTimeTooSkewed":
        return PermanentError(f"{doing} failed: the clock of this host is wrong.", "Set the clock of this host.")
    return None


def _permission(error: Any, doing: str, said: str) -> MlinfraError:
    operation = getattr(error, "operation_name", "") or ""
    found = _ACTION.search(said)
    # Older answers of EC2 name no action; only EC2 answers with this code.
    action = found[1] if found else f"ec2:{operation}" if "Unauthorized" in code_of(error)[0] else operation
    if "service control policy" in said:
        return PermanentError(
            f"{doing} failed: a service control policy of the organisation denies {action}.",
            f"Have the organisation allow {action}, or use a region and an account where it does.",
        )
    if "explicit deny" in said:
        return PermanentError(
            f"{doing} failed: a policy denies {action} to these credentials.", f"Take {action} out of that denial."
        )
    return PermanentError(
        f"{doing} failed: these credentials lack the permission {action}.", f"Allow {action} in their policy."
    )


def _before_an_answer(error: Exception, doing: str) -> MlinfraError:
    """Say what went wrong before AWS answered anything."""
    import botocore.exceptions as sdk

    said = " ".join(str(error).split()).rstrip(".")[:LONGEST_SAID]
    if isinstance(error, (sdk.NoCredentialsError, sdk.PartialCredentialsError)):
        return PermanentError(f"{doing} failed: there are no AWS credentials.", LOG_IN)
    if isinstance(error, (sdk.NoRegionError, sdk.InvalidRegionError)):
        return PermanentError(
            f"{doing} failed: {said}.", "Set AWS_REGION, or the regions of the environment, to a region of AWS."
        )
    if isinstance(error, (sdk.NoAuthTokenError, sdk.UnauthorizedSSOTokenError, sdk.SSOTokenLoadError)):
        return PermanentError(f"{doing} failed: the login has expired ({said}).", LOG_IN)
    if isinstance(error, (sdk.CredentialRetrievalError, sdk.TokenRetrievalError, sdk.SSOError)):
        return PermanentError(f"{doing} failed: the AWS credentials cannot be fetched ({said}).", LOG_IN)
    if isinstance(error, (sdk.ConnectionError, sdk.HTTPClientError, sdk.IncompleteReadError)):
        return _unreached(error, doing, said)
    return PermanentError(f"{doing} failed: {said or type(error).__name__}.", "Mend the AWS configuration.")


def _unreached(error: Exception, doing: str, said: str) -> MlinfraError:
    import botocore.exceptions as sdk

    if isinstance(error, sdk.EndpointConnectionError):
        import boto3

        endpoint = str(getattr(error, "kwargs", {}).get("endpoint_url", ""))
        found = re.search(r"\.([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com", endpoint)
        if found and found[1] not in boto3.session.Session().get_available_regions("ec2"):
            return PermanentError(
                f"{doing} failed: there is no region {found[1]}.",
                "Set AWS_REGION, or the regions of the environment, to a region of AWS.",
            )
    return TemporaryError(
        f"{doing} failed: AWS was not reached ({said}).",
        "Try again; if it stays, look at the network, a proxy and AWS_ENDPOINT_URL.",
    )


def _said(error: Any) -> str:
    text = str(((getattr(error, "response", None) or {}).get("Error") or {}).get("Message") or "")
    text = " ".join(_ENCODED.sub("", text).split())
    return "" if text.startswith("<") else text.rstrip(".")[:LONGEST_SAID]  # a proxy's page says nothing
