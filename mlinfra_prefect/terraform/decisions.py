"""One table that turns Terraform's diagnostics into decisions, so that no caller ever reads a message.

A capacity error means *try the next offer*, a quota error *queue or try the next offer*, a locked state *wait*, a
credential or configuration error *stop at once*. Anything else is `TerraformFailed`. The first row that matches any
error wins, so the rows stand in the order of how certain they are to stop the operation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlinfra_prefect.errors import (
    CapacityUnavailable,
    MlinfraError,
    PermanentError,
    PlanStale,
    QuotaExceeded,
    StateLocked,
    TerraformFailed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlinfra_prefect.terraform.events import Diagnostic

MESSAGE_CHARACTERS = 4000
"""How much of the diagnostics an error message carries; the output file has all of it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Errors that match ``pattern`` become ``error`` with ``remedy``."""

    pattern: re.Pattern[str]
    error: type[MlinfraError]
    remedy: str


def _row(error: type[MlinfraError], remedy: str, *alternatives: str) -> Decision:
    return Decision(re.compile("|".join(alternatives), re.IGNORECASE), error, remedy)


TABLE: tuple[Decision, ...] = (
    _row(
        StateLocked,
        "Wait until its holder has finished.",
        r"error acquiring the state lock",
        r"state blob is already locked",
        r"\bConditionalCheckFailedException\b",
    ),
    _row(PlanStale, "Plan it again.", r"saved plan is stale"),
    _row(
        PermanentError,
        "Allow the action that it names to these credentials.",
        r"\b(UnauthorizedOperation|AccessDenied\w*)\b",
        r"is not authorized to perform",
    ),
    _row(
        PermanentError,
        "Check the credentials of the environment.",
        r"no valid credential sources",
        r"failed to refresh cached credentials",
        r"\b(InvalidClientTokenId|SignatureDoesNotMatch|UnrecognizedClientException|AuthFailure|ExpiredToken\w*)\b",
        r"could not load credentials",
        r"invalid provider configuration",
        r"Kubernetes cluster unreachable|\bUnauthorized\b",
    ),
    _row(
        QuotaExceeded,
        "Ask for a higher quota, or allow other offers.",
        r"\b(VcpuLimitExceeded|MaxSpotInstanceCountExceeded|InstanceLimitExceeded|ResourceLimitExceeded)\b",
        r"\b(LimitExceeded|LimitExceededException|ServiceQuotaExceededException|QuotaExceeded)\b",
        r"\b(VpcLimitExceeded|AddressLimitExceeded|FleetLimitExceeded|SpotFleetRequestLimitExceeded)\b",
        r"exceeded quota",
    ),
    _row(
        CapacityUnavailable,
        "Try the next offer.",
        r"\b(InsufficientInstanceCapacity|InsufficientHostCapacity|InsufficientReservedInstanceCapacity)\b",
        r"\b(InsufficientCapacity\w*|UnfulfillableCapacity|SpotMaxPriceTooLow|ReservationCapacityExceeded)\b",
        r"capacity-not-available|no spot capacity available",
        r"\bUnsupported\b.{0,80}instance type",
        r"\bZONE_RESOURCE_POOL_EXHAUSTED\w*",
    ),
    _row(
        PermanentError,
        "Correct the module or its variables; nothing was applied by this command.",
        r"no value for required variable",
        r"invalid value for (input )?variable",
        r"unsupported (argument|block type|attribute)",
        r"(missing required|invalid) (argument|expression|reference|block definition)",
        r"reference to undeclared",
        r"module not (found|installed)|unreadable module directory",
        r"unsupported terraform core version",
        r"inconsistent dependency lock file|provider dependency changes detected",
        r"failed to read plan|can't read the plan",
        r"required plugins are not installed|backend initialization required|backend configuration changed",
        r"provider configuration not present",
        r"failed to parse command-line (flags|options)|flag provided but not defined",
    ),
)


def failure(command: str, diagnostics: Sequence[Diagnostic], *, stderr: str, returncode: int) -> MlinfraError:
    """Returns (does not raise) the error for a Terraform command that failed.

    Args:
        command: ``plan``, ``apply`` ..., for the sentence.
        diagnostics: all of the command's; warnings are ignored.
        stderr: what it printed beside events, used only where there are no error diagnostics.
        returncode: its exit status.
    """
    errors = [item for item in diagnostics if item.severity == "error"]
    texts = [_sentence(item) for item in errors] or [stderr.strip() or "it printed no diagnostic"]
    told = "; ".join(dict.fromkeys(texts))
    if len(told) > MESSAGE_CHARACTERS:
        told = told[:MESSAGE_CHARACTERS] + " ..."
    message = f"terraform {command} failed with status {returncode}: {told}"
    for row in TABLE:
        if any(row.pattern.search(text) for text in texts):
            return row.error(message, row.remedy)
    return TerraformFailed(message)


def _sentence(diagnostic: Diagnostic) -> str:
    where = f"{diagnostic.address}: " if diagnostic.address else ""
    detail = f" ({' '.join(diagnostic.detail.split())})" if diagnostic.detail else ""
    return f"{where}{diagnostic.summary}{detail}"
