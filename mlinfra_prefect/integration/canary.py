"""The probe as its user writes it: criteria for the keeper, and a function of theirs that runs where the flow runs.

The keeper cannot call user code, so it asks: each step of a rollout carries a question, and the process that waits for
the rollout answers it. A function that raises has not passed: nobody knows then what the canary would do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlinfra_prefect.errors import EndpointNotReady, InvalidInput, NotFound
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.probing import current_rollout, judge_samples, judge_traffic
from mlinfra_prefect.lifecycle.versions import rollout_of
from mlinfra_prefect.local import client
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.probe import ProbeRequest, Question
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.served import ServedVersion, quantile, since
from mlinfra_prefect.model.verdict import Check, Verdict

Judge = Callable[["Canary"], Any]
ProbeLike = ProbeRequest | Mapping[str, Any] | Judge | None


@dataclass(frozen=True, slots=True)
class Canary:
    """A candidate as a probe function sees it: live, and beside the current version."""

    name: str
    version: int
    share: int
    url: str
    """Of the candidate's own server, past the router."""
    model: ModelArtifact
    current_url: str | None
    """Of the current version's own server; None: nothing serves yet."""
    current_model: ModelArtifact | None
    token: str | None = field(default=None, repr=False)
    """What the servers ask for; None: nothing."""

    def predict(self, data: Any, *, timeout: float = 30.0) -> list[Any]:
        """Ask the candidate for predictions of one batch; returns the first output's values."""
        return client.infer(self.url, self.name, _rows(data), timeout=timeout, token=self.token)

    def predict_current(self, data: Any, *, timeout: float = 30.0) -> list[Any]:
        """The same of the current version.

        Raises:
            EndpointNotReady: nothing serves yet.
        """
        if self.current_url is None:
            raise EndpointNotReady(f"Endpoint {self.name!r} serves no version to compare with.")
        return client.infer(self.current_url, self.name, _rows(data), timeout=timeout, token=self.token)


def as_probe(probe: ProbeLike) -> tuple[ProbeRequest, Judge | None]:
    """Return the criteria for the keeper, and the function for the client.

    Args:
        probe: criteria, a mapping of them (with the function under ``check``), or a function.

    Raises:
        InvalidInput: naming the field.
    """
    if probe is None:
        return ProbeRequest(), None
    if isinstance(probe, ProbeRequest):
        return probe, None
    if callable(probe):
        return ProbeRequest(asks=True), probe
    if not isinstance(probe, Mapping):
        raise InvalidInput(
            "probe", f"is a {type(probe).__name__}", "Pass criteria such as {'max_error_rate': 0.01}, or a function."
        )
    values = dict(probe)
    check = values.pop("check", None)
    if check is not None and not callable(check):
        raise InvalidInput("probe.check", f"is a {type(check).__name__}, not a function of the canary")
    return parsed(ProbeRequest, {**values, "asks": check is not None}, prefix="probe"), check


def answering(here: Context, check: Judge | None) -> Callable[[RolloutRecord, Question], tuple[bool, str]] | None:
    """Return what answers the questions of a rollout by calling the user's function; None where there is none."""
    if check is None:
        return None

    def answer(rollout: RolloutRecord, question: Question) -> tuple[bool, str]:
        endpoint = here.endpoint(rollout.endpoint)
        return judged(check, canary_of(here, endpoint, rollout, question.share))

    return answer


def canary_of(here: Context, endpoint: EndpointRecord, rollout: RolloutRecord, share: int) -> Canary:
    """Return a candidate as a probe function sees it."""
    current = current_rollout(here, endpoint)
    current = None if current is not None and current.id == rollout.id else current
    return Canary(
        name=endpoint.name,
        version=rollout.version,
        share=share,
        url=rollout.urls[0],
        model=rollout.artifact,
        current_url=None if current is None else current.urls[0],
        current_model=None if current is None else current.artifact,
        token=here.platform(endpoint.platform).token(rollout),
    )


def judged(check: Judge, canary: Canary) -> tuple[bool, str]:
    """Call a probe function: True or None passes; False, a sentence or an exception does not."""
    try:
        said = check(canary)
        passed = said is None or (not isinstance(said, str) and bool(said))
    except Exception as error:  # noqa: BLE001 (it is the user's function: whatever it raises is against the candidate)
        return False, as_line(f"the probe raised {type(error).__name__}: {error}")
    if isinstance(said, Verdict):
        return passed, as_line(str(said) if passed else said.reason)
    if passed:
        return True, ""
    return False, as_line(said if isinstance(said, str) else f"{_name(check)} returned {said!r}")


def probe_now(
    here: Context, endpoint: EndpointRecord, version: int | None, wanted: ProbeRequest, check: Judge | None
) -> Verdict:
    """Judge a live version once: watch it for the probe's seconds, ask it the samples, call the function. Blocking.

    Raises:
        NotFound: there is no candidate, or that version's servers are gone.
        EndpointNotReady: the router does not answer.
    """
    candidate = endpoint.candidate if version is None else endpoint.version(version)
    rollout = None if candidate is None else rollout_of(here, candidate)
    if candidate is None or rollout is None or not rollout.live:
        raise NotFound(
            f"Endpoint {endpoint.name!r} has no {'rollout in flight' if version is None else f'live version {version}'}"
            " to probe.",
            "`mlinfra-prefect endpoints` lists its versions.",
        )
    current = endpoint.current
    before = None if current is None or current.version == candidate.version else current.version
    canary, other = _watched(here, endpoint, candidate.version, before, wanted)
    ok, reason, _ = judge_traffic(wanted, canary, other)
    p95, p95_before = quantile(canary.buckets, 0.95), None if other is None else quantile(other.buckets, 0.95)
    rate = canary.error_rate
    checks = [
        Check(name="error rate", ok=rate is None or rate <= wanted.max_error_rate, candidate=rate,
              current=None if other is None else other.error_rate, threshold=wanted.max_error_rate,
              detail=as_line(reason)),
        Check(name="p95 (ms)", ok=ok, candidate=_ms(p95), current=_ms(p95_before), threshold=wanted.max_p95_ms,
              detail=f"{canary.requests} requests in {wanted.seconds:g} s"),
    ]  # fmt: skip
    reasons = [] if ok else [reason]
    if canary.requests < wanted.min_requests:
        told = f"{canary.requests} requests came in {wanted.seconds:g} s, and {wanted.min_requests} are needed"
        checks.append(Check(name="requests", ok=False, candidate=canary.requests, threshold=wanted.min_requests,
                            detail=told))  # fmt: skip
        reasons.append(told)
    if wanted.samples:
        same, told, figures = judge_samples(here, wanted, rollout, current_rollout(here, endpoint) if before else None)
        checks.append(Check(name="agreement", ok=same, candidate=figures.get("agreement"),
                            threshold=wanted.min_agreement, detail=as_line(told)))  # fmt: skip
        reasons += [] if same else [told]
    if check is not None:
        passed, told = judged(check, canary_of(here, endpoint, rollout, candidate.share))
        checks.append(Check(name=_name(check), ok=passed, detail=told or "passed"))
        reasons += [] if passed else [told]
    good = not reasons
    return Verdict(
        kind="probe", ok=good, reason=as_line("; ".join(reasons) if reasons else reason), checks=tuple(checks)
    )


def _watched(
    here: Context, endpoint: EndpointRecord, number: int, before: int | None, wanted: ProbeRequest
) -> tuple[ServedVersion, ServedVersion | None]:
    platform = here.platform(endpoint.platform)
    first = platform.served(endpoint)
    time.sleep(wanted.seconds)
    last = platform.served(endpoint)
    if first is None or last is None:
        raise EndpointNotReady(
            f"The router of endpoint {endpoint.name!r} does not answer.",
            "`mlinfra-prefect endpoints --repair` brings it back.",
        )

    def done(version: int) -> ServedVersion:
        return since(last.version(version), first.version(version) if first.began == last.began else None)

    return done(number), None if before is None else done(before)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


def _name(check: Judge) -> str:
    return as_line(getattr(check, "__name__", type(check).__name__))


def _rows(data: Any) -> Any:
    return data.tolist() if hasattr(data, "tolist") else data
