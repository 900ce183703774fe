"""The whole vocabulary of failure: every error names a decision, says what happened to what, and what to do next.

Two bases decide what is retried, so that no caller ever parses a message: a `TemporaryError` may succeed when
tried again, a `PermanentError` will not. Every message is a sentence; `remedy` is the second one.
"""

from __future__ import annotations


class MlinfraError(Exception):
    """Base of everything this package raises on purpose.

    Args:
        message: what happened, and to what.
        remedy: what to do next, as a sentence; empty when there is nothing to add.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        if not self.remedy:
            return self.message
        stop = "" if self.message.endswith((".", "!", "?")) else "."
        return f"{self.message}{stop} {self.remedy}"


class TemporaryError(MlinfraError):
    """May succeed when tried again: the caller may retry with back-off."""


class PermanentError(MlinfraError):
    """Will fail again in the same way: the caller must stop and show it."""


# --- input -----------------------------------------------------------------------------------------------------------


class InvalidInput(PermanentError, ValueError):
    """A field of a request, a job or a file is wrong; nothing was created.

    Args:
        field: the field's name as the user typed it.
        message: what is wrong with it.
        remedy: what to write instead.
    """

    def __init__(self, field: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{field}: {message}", remedy)
        self.args = (field, message, remedy)
        self.field = field


class NoCodec(InvalidInput):
    """An argument, result or annotation cannot travel between the flow and the node."""


class NotImportable(InvalidInput):
    """The function cannot be found by a fresh interpreter, so the node could not run it."""


class UnsupportedHere(PermanentError):
    """This combination of features or this place is not supported; the message says which and what to use."""


# --- capacity and plans ----------------------------------------------------------------------------------------------


class CapacityUnavailable(TemporaryError):
    """No offer can meet the request now."""


class QuotaExceeded(TemporaryError):
    """The account's or environment's quota does not allow the request now."""


class BudgetExceeded(PermanentError):
    """The request would cost more than its budget or the environment's cap allows."""


class NotInitialised(PermanentError):
    """An environment has no shared infrastructure on its cloud yet; nothing was created."""


class PlanRejected(PermanentError):
    """The plan breaks a policy; nothing was created."""


class PlanStale(PermanentError):
    """What exists changed since the plan was made; nothing of it was applied."""


# --- Terraform -------------------------------------------------------------------------------------------------------


class EngineMissing(PermanentError):
    """No Terraform engine was found, or the configured one cannot run."""


class EngineTooOld(PermanentError):
    """The Terraform engine found is older than this package supports."""


class StateLocked(TemporaryError):
    """Another Terraform process holds the state."""


class TerraformFailed(TemporaryError):
    """A Terraform command ended with errors; the message carries its diagnostics."""


class OperationTimedOut(TemporaryError):
    """An operation went past its own deadline."""


class NotYetDestroyed(TemporaryError):
    """Something of a lease still exists; release goes on."""


# --- leases and ledger -----------------------------------------------------------------------------------------------


class NotFound(PermanentError, LookupError):
    """No lease, endpoint or artifact of that name or id is in this ledger."""


class LeaseHeld(TemporaryError):
    """Another live client holds the lease."""


class LeaseLost(PermanentError):
    """The lease is no longer ours: it was released, it expired, or a newer keeper took it over."""


class LeaseAmbiguous(PermanentError):
    """Two concurrent calls would get the same lease id; pass ``key=``."""


class ResumeHeld(TemporaryError):
    """Another live lease holds this resume key."""


class IllegalTransition(PermanentError):
    """A record was asked to go from one state to another that the model does not allow."""


class StaleWrite(TemporaryError):
    """A compare-and-swap lost: the record changed since it was read."""


class AlreadyExists(PermanentError):
    """A create-if-absent found the record there."""


class LedgerUnavailable(TemporaryError):
    """The ledger cannot be read or written; nothing is provisioned without it."""


class LedgerUnreadable(PermanentError):
    """A record is corrupted or was written by a newer version; nothing is touched."""


class KeeperUnavailable(TemporaryError):
    """The keeper could not be started or did not answer."""


# --- training and serving --------------------------------------------------------------------------------------------


class NodeError(PermanentError):
    """The training code raised something that cannot come back as itself.

    Args:
        type_name: the exception's qualified type name on the node.
        message: its text.
        traceback: the formatted traceback from the node.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}")
        self.args = (type_name, message, traceback)
        self.type_name = type_name
        self.node_message = message
        self.traceback = traceback

    def __str__(self) -> str:
        text = f"The training raised {self.type_name}: {self.node_message}"
        return f"{text}\n--- traceback on the node ---\n{self.traceback}" if self.traceback else text


class NodeLost(TemporaryError):
    """The node or its agent went away while work was running on it."""


class TrainingStopped(TemporaryError):
    """The training was told to stop (drain, release, progress time-out) before it finished."""


class NoModel(PermanentError):
    """The training finished but wrote nothing to its output directory."""


class BadMetrics(PermanentError):
    """A metric is NaN, infinite or not a number."""


class ArtifactCorrupted(PermanentError):
    """A stored file does not have the sha256 that its artifact records."""


class EndpointExists(PermanentError):
    """An endpoint of that name exists and cannot take a new version, because it is being given back."""


class RolloutHeld(TemporaryError):
    """Another rollout of this endpoint is in flight."""


class ProbeFailed(PermanentError):
    """A canary did not pass its probe: it was rolled back, and the version before it serves on."""


class RolledBack(PermanentError):
    """A rollout was rolled back before it was promoted; the version before it serves on."""


class VersionServes(PermanentError):
    """A version cannot go while the endpoint's requests go to it."""


class EndpointNotReady(TemporaryError):
    """The server did not become ready in time; what was started for it has been given back."""
