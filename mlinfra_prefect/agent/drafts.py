"""What a training says about the model it wrote, before anybody has stored or verified it.

A draft becomes an artifact only on the client's side: hashes that are trusted are written by us, not by the node.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class BadMetrics(ValueError):
    """A metric is NaN, infinite or not a number; the message names it."""


@dataclass(frozen=True)
class ArtifactDraft:
    """The format of what is in the output directory, and what is known about it.

    Args:
        format: how the files are to be read, such as ``skops`` or ``safetensors``.
        name: the model's name; None leaves it to the request.
        metrics: finite numbers.
        metadata: JSON values.
    """

    format: str
    name: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    # Read by name: the draft may come from another copy of this module (the archive's, the installed package's).
    __mlinfra_draft__ = True

    def to_payload(self) -> dict[str, Any]:
        """The draft as a JSON object."""
        return {"format": self.format, "name": self.name, "metrics": self.metrics, "metadata": self.metadata}

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> ArtifactDraft:
        """Read what `to_payload` wrote; raises ValueError for anything else."""
        try:
            return cls(payload["format"], payload["name"], dict(payload["metrics"]), dict(payload["metadata"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a draft of an artifact: {error}") from error


def make_draft(
    format: str,  # noqa: A002  (the word users type)
    name: str | None,
    metrics: Mapping[str, Any] | None,
    metadata: Mapping[str, Any],
) -> ArtifactDraft:
    """Build a draft from what a user passed.

    Raises:
        BadMetrics: a metric is not a finite number.
        ValueError: no format, or metadata that is not JSON.
    """
    if not isinstance(format, str) or not format.strip():
        raise ValueError("artifact(format=...) needs the name of a format, such as 'skops'")
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ValueError("artifact(name=...) must be a non-empty text")
    checked = {key: finite(key, value) for key, value in (metrics or {}).items()}
    try:
        copied = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata of an artifact must be JSON values: {error}") from error
    return ArtifactDraft(format, name, checked, copied)


def number(name: str, value: object) -> float:
    """A metric as a float, NaN included; numpy and torch scalars count. Raises BadMetrics for what is no number."""
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or hasattr(value, "item")):
        raise BadMetrics(f"the metric {name!r} is not a number but a {type(value).__name__}")
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise BadMetrics(f"the metric {name!r} is not a number: {error}") from error


def finite(name: str, value: object) -> float:
    """A metric as a finite float; raises BadMetrics naming it."""
    found = number(name, value)
    if not math.isfinite(found):
        raise BadMetrics(f"the metric {name!r} is {found}, which no comparison can use")
    return found
