"""A request as people give it: an accelerator, a `TrainingRequest`, or a YAML file with the same field names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingRequest

MAX_BYTES = 64 * 1024
_SUFFIXES = {".yaml", ".yml", ".json"}


class _PlainLoader(yaml.SafeLoader):
    """A loader without aliases: a few lines of them can stand for gigabytes (a YAML bomb)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", None)
        return super().compose_node(parent, index)


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
    elif isinstance(given, Path) or Path(given).suffix.lower() in _SUFFIXES:
        base = read_request(Path(given))
    else:
        base = parsed(TrainingRequest, {"accelerator": given})
    return base.merged(overrides) if overrides else base


def read_request(path: Path) -> TrainingRequest:
    """Read a request from a YAML (or JSON) file of at most 64 KiB, without aliases.

    Raises:
        InvalidInput: naming the file, or the field in it.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InvalidInput(str(path), f"has {size} bytes; a request has at most {MAX_BYTES}")
        loader = _PlainLoader(path.read_text(encoding="utf-8"))
        try:
            values = loader.get_single_data()
        finally:
            loader.dispose()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(str(path), f"cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise InvalidInput(str(path), "must hold fields of a request, such as 'accelerator: cpu'")
    return parsed(TrainingRequest, values, prefix=path.name)
