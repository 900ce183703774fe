"""A project's ``uv.lock`` as requirements that pip installs: each package pinned, with its hashes and its markers.

A marker stands on the edge from one package to another, so a package is wanted where some way to it holds. What is
written here is just that, *or* over ways of *and* over edges; pip decides on the node, where it is known what holds.
What pip could not install by hash (Git, a directory, a member of a workspace) is refused, and so are extras that
exclude each other, which uv writes as markers that pip cannot know.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

NAME: Final = "uv.lock"
MOST_WAYS: Final = 64
"""Of different markers to one package. None was seen to have more than a few; a graph of markers could explode."""
EXPORT: Final = "Export it: uv export --no-emit-project --no-dev -o requirements.txt"

Way = frozenset[str]
"""Markers that must all hold."""
Ways = frozenset[Way]
_Node = tuple[str, str, str]
"""Name, version and extra; without an extra: the package itself."""


class Unreadable(ValueError):
    """The lock cannot be made into requirements; the message says why."""


@dataclass
class _Graph:
    """The packages by name and version, and how each one is wanted."""

    packages: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    ways: dict[_Node, Ways] = field(default_factory=lambda: defaultdict(frozenset))

    def walk(self, start: dict[str, Any]) -> None:
        """Follow every edge until nothing new is found: ways only grow, and there are finitely many."""
        waiting = [(each, frozenset({Way()})) for each in start.get("dependencies", ())]
        while waiting:
            edge, ways = waiting.pop()
            package = self._meant(edge)
            markers = Way({str(edge["marker"])}) if edge.get("marker") else Way()
            wanted = frozenset(way | markers for way in ways)
            for extra in ("", *edge.get("extra", ())):
                node = (str(package["name"]), str(package["version"]), extra)
                known = self.ways[node]
                self.ways[node] = _shortest(known | wanted)
                if len(self.ways[node]) > MOST_WAYS:
                    raise Unreadable(f"{node[0]} is wanted by more than {MOST_WAYS} different markers")
                if self.ways[node] != known:
                    optional = package.get("optional-dependencies", {}).get(extra, ())
                    edges = optional if extra else package.get("dependencies", ())
                    waiting += [(each, self.ways[node]) for each in edges]

    def _meant(self, edge: dict[str, Any]) -> dict[str, Any]:
        """The package of an edge, which names a version only where there are several."""
        name = str(edge["name"])
        found = [
            each for each in self.packages[name]
            if edge.get("version", each.get("version")) == each.get("version")
            and edge.get("source", each["source"]) == each["source"]
        ]  # fmt: skip
        if len(found) != 1:
            raise Unreadable(f"it has {len(found)} packages for the dependency {name}")
        if "registry" not in found[0]["source"]:
            raise Unreadable(f"{name} comes from {next(iter(found[0]['source']), 'nowhere')}, and not from an index")
        if "extra ==" in str(edge.get("marker", "")):
            raise Unreadable(f"{name} depends on extras that exclude each other")
        return found[0]


def requirements(text: str) -> tuple[str, ...]:
    """Return what a lock asks for, one requirement each; development dependencies and extras of the project not. Pure.

    Raises:
        Unreadable: it is no lock of this format, or has what pip cannot install by hash.
    """
    try:
        lock = tomllib.loads(text)
        if lock.get("version") != 1:
            raise Unreadable(f"it is of version {lock.get('version')!r}, and only version 1 is known")
        graph = _Graph()
        for package in lock.get("package", ()):
            graph.packages[str(package["name"])].append(package)
        own = [each for some in graph.packages.values() for each in some if _is_project(each["source"])]
        if len(own) != 1:
            raise Unreadable(f"it has {len(own)} projects of its own, and one is expected at its root")
        graph.walk(own[0])
        return tuple(
            _line(package, graph.ways[name, package["version"], ""])
            for name, packages in sorted(graph.packages.items())
            for package in packages
            if graph.ways.get((name, package.get("version", ""), ""))
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"it cannot be read ({type(error).__name__}: {error})") from error


def _is_project(source: dict[str, Any]) -> bool:
    return source.get("virtual", source.get("editable")) == "."


def _shortest(ways: Ways) -> Ways:
    """Without ways that ask for more than another one does."""
    return frozenset(way for way in ways if not any(other < way for other in ways))


def _line(package: dict[str, Any], ways: Ways) -> str:
    files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ())]
    hashes = sorted({str(each["hash"]) for each in files if "hash" in each})
    if not hashes or len(hashes) < len({each.get("hash") for each in files}):
        raise Unreadable(f"{package['name']} has a file without a hash")
    texts = sorted(" and ".join(f"({marker})" for marker in sorted(way)) for way in ways)
    marker = "" if "" in texts else " ; " + " or ".join(f"({each})" for each in texts)
    return f"{package['name']}=={package['version']}{marker} " + " ".join(f"--hash={each}" for each in hashes)
