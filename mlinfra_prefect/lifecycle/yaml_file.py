"""YAML that people write, read so that it can neither surprise nor hurt: plain values, every key once, a small file.

JSON is YAML, too.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mlinfra_prefect.errors import InvalidInput

MAX_BYTES = 64 * 1024
SUFFIXES = frozenset({".yaml", ".yml", ".json"})


class _PlainLoader(yaml.SafeLoader):
    """A loader without aliases and without keys that are there twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few lines of them can stand for gigabytes (a YAML bomb).
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # Of two lines that say different things YAML takes the last, and nobody would know.
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise yaml.constructor.ConstructorError(None, None, f"line {line}: {key!r} is there twice", None)
                seen.add(key)
        return super().construct_mapping(node, deep)


def is_yaml(path: Path) -> bool:
    """Whether a path is called as a YAML or JSON file is."""
    return path.suffix.lower() in SUFFIXES


def read_yaml(path: Path, what: str) -> Any:
    """Return what a YAML (or JSON) file of at most 64 KiB says, as plain values.

    Args:
        path: the file.
        what: it is, for the error.

    Raises:
        InvalidInput: naming the file.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        values = _parsed(content.decode()) if len(content) <= MAX_BYTES else None
    except (OSError, yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as error:
        # The last three are what the loader raises for a tag whose text is not of its kind, such as `!!int ""`.
        raise InvalidInput(str(path), f"cannot be read: {' '.join(str(error).split())[:200]}") from None
    if len(content) > MAX_BYTES:
        raise InvalidInput(str(path), f"has more than {MAX_BYTES} bytes, the most that {what} may have")
    return values


def _parsed(text: str) -> Any:
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
