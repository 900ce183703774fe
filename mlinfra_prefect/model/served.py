"""What is served: the shares that requests are really routed by, and what has been counted, as the router tells it."""

from __future__ import annotations

from pydantic import Field

from mlinfra_prefect.model.record import Record


class ServedVersion(Record):
    """One version as the router knows it. Counters only rise while the router lives."""

    version: int = Field(title="Version", ge=0, examples=[2])
    share: int = Field(title="Share (percent)", description="Of new requests, now.", ge=0, le=100, examples=[10])
    in_flight: int = Field(default=0, title="In flight", description="Requests not answered yet.", ge=0)
    requests: int = Field(default=0, title="Requests", description="Answered, or given up.", ge=0)
    errors: int = Field(default=0, title="Errors", description="Of these: answers of 5xx, and none at all.", ge=0)
    client_errors: int = Field(default=0, title="Client errors", description="Of these: answers of 4xx.", ge=0)
    retried: int = Field(default=0, title="Retried", description="Tries that failed and were made again.", ge=0)
    buckets: tuple[tuple[float, int], ...] = Field(
        default=(), title="Latencies", description="(at most so many seconds, how many requests), not cumulative."
    )

    @property
    def tried(self) -> int:
        """Requests that it was asked, also those that another version answered for it."""
        return self.requests + self.retried

    @property
    def failed(self) -> int:
        """Of these, what it did not answer well: no client notices a try that was made again, and it failed."""
        return self.errors + self.retried

    @property
    def error_rate(self) -> float | None:
        """The part that failed; None where it was asked nothing."""
        return self.failed / self.tried if self.tried else None


class Served(Record):
    """What a router does now."""

    revision: int = Field(title="Revision", description="Of the routes that new requests follow.", ge=0, examples=[7])
    began: float = Field(title="Began", description="Epoch seconds: counters are from here on.", ge=0)
    versions: tuple[ServedVersion, ...] = Field(title="Versions", description="Those with routes, then those without.")

    def version(self, number: int) -> ServedVersion:
        """Return one version; one that the router does not know has done nothing."""
        return next((each for each in self.versions if each.version == number), ServedVersion(version=number, share=0))


def since(now: ServedVersion, base: ServedVersion | None) -> ServedVersion:
    """Return what one version has done since an earlier look; None: since its router began. Pure."""
    if base is None:
        return now
    before = dict(base.buckets)
    return now.revised(
        requests=now.requests - base.requests,
        errors=now.errors - base.errors,
        client_errors=now.client_errors - base.client_errors,
        retried=now.retried - base.retried,
        buckets=tuple((limit, count - before.get(limit, 0)) for limit, count in now.buckets),
    )


def quantile(buckets: tuple[tuple[float, int], ...], part: float) -> float | None:
    """Return a quantile in seconds, linear within its bucket; None without any request. Pure."""
    total = sum(count for _, count in buckets)
    if not total:
        return None
    seen, lower = 0, 0.0
    for limit, count in buckets:
        if count and seen + count >= part * total:
            return lower + (limit - lower) * (part * total - seen) / count
        seen, lower = seen + count, limit
    return lower
