"""A request as people give it: an accelerator, a `TrainingRequest`, or a YAML file with the same field names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle.yaml_file import is_yaml, read_yaml
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingRequest


def as_request(
    given: str | Path | TrainingRequest | Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> TrainingRequest:
    """Return the request that is meant, with overrides merged in.

    Raises:
        InvalidInput: naming the field, or the file.
    """
    if isinstance(given, TrainingRequest):
        base = given
    elif given is None:
        base = TrainingRequest()
    elif isinstance(given, Mapping):
        base = parsed(TrainingRequest, dict(given))
    elif isinstance(given, Path) or is_yaml(Path(given)):
        base = read_request(Path(given))
    else:
        base = parsed(TrainingRequest, {"accelerator": given})
    return base.merged(overrides) if overrides else base


def read_request(path: Path) -> TrainingRequest:
    """Read a request from a YAML (or JSON) file of at most 64 KiB, without aliases (`yaml_file`).

    Raises:
        InvalidInput: naming the file, or the field in it.
    """
    values = read_yaml(path, "a request")
    if not isinstance(values, dict):
        raise InvalidInput(str(path), "must hold fields of a request, such as 'accelerator: cpu'")
    return parsed(TrainingRequest, values, prefix=path.name)
