"""A uv.lock asks for the same packages as its graph, whatever holds where it is installed, or is refused."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from packaging.requirements import Requirement

from mlinfra_prefect.code.project import read_requirements
from mlinfra_prefect.code.uv_lock import MOST_WAYS, Unreadable, requirements
from mlinfra_prefect.errors import InvalidInput

INDEX = {"registry": "https://index.example/simple"}
MARKERS = ["sys_platform == 'linux'", "sys_platform != 'linux'", "python_version < '3.12' or os_name == 'nt'"]
PLACES = [
    {"sys_platform": platform, "python_version": python, "os_name": name}
    for platform, python, name in itertools.product(["linux", "darwin"], ["3.11", "3.13"], ["posix", "nt"])
]
FILE = {"url": "https://example.org/x.whl", "hash": "sha256:aa", "size": 1}


def toml(value: Any) -> str:
    """A value as it stands in TOML; tables inline, as uv writes them."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + " }"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def lock(*packages: dict[str, Any], version: int = 1) -> str:
    """The text of a lock, with a project that needs the first package where it says nothing else."""
    named = {"name": "project", "source": {"virtual": "."}, "dependencies": [{"name": packages[0]["name"]}]}
    own = [] if packages[0]["name"] == "project" else [named]
    tables = ["".join(f"{key} = {toml(value)}\n" for key, value in each.items()) for each in (*own, *packages)]
    return f"version = {version}\n" + "".join(f"\n[[package]]\n{each}" for each in tables)


def package(name: str, *needs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A package of an index."""
    told = {"name": name, "version": "1.0", "source": INDEX, "wheels": [FILE]}
    return {**told, **({"dependencies": list(needs)} if needs else {}), **more}


def chosen(lines: tuple[str, ...], place: dict[str, str]) -> set[str]:
    """What pip installs of these lines in a place."""
    parsed = [Requirement(line.partition(" --hash=")[0]) for line in lines]
    return {each.name for each in parsed if each.marker is None or each.marker.evaluate({**place})}


def test_packages_are_pinned_with_all_their_hashes() -> None:
    """Of wheels and of the source, as `uv export` writes them; what nobody needs is left out."""
    text = lock(
        package("b", {"name": "a"}, sdist={**FILE, "hash": "sha256:00"}, wheels=[{**FILE, "hash": "sha256:11"}, FILE]),
        package("a"), package("unused"),
    )  # fmt: skip
    assert requirements(text) == (
        "a==1.0 --hash=sha256:aa", "b==1.0 --hash=sha256:00 --hash=sha256:11 --hash=sha256:aa"
    )  # fmt: skip


def test_extras_bring_what_they_name_and_development_does_not() -> None:
    """An extra that nobody asks for brings nothing."""
    text = lock(
        {
            "name": "project", "source": {"editable": "."}, "version": "0",
            "dependencies": [{"name": "web", "extra": ["fast"], "marker": MARKERS[0]}],
            "dev-dependencies": {"dev": [{"name": "tests"}]}, "optional-dependencies": {"own": [{"name": "own"}]},
        },
        package("web", **{"optional-dependencies": {"fast": [{"name": "loop"}], "slow": [{"name": "snail"}]}}),
        package("loop"), package("snail"), package("tests"), package("own"),
    )  # fmt: skip
    assert requirements(text) == (
        "loop==1.0 ; ((sys_platform == 'linux')) --hash=sha256:aa",
        "web==1.0 ; ((sys_platform == 'linux')) --hash=sha256:aa",
    )


def test_two_versions_of_a_package_are_told_apart() -> None:
    """Where a lock forks, an edge names the version."""
    text = lock(
        {"name": "project", "source": {"virtual": "."}, "dependencies": [
            {"name": "n", "version": "1.0", "source": INDEX, "marker": MARKERS[0]},
            {"name": "n", "version": "2.0", "source": INDEX, "marker": MARKERS[1]},
        ]},
        package("n"), package("n", version="2.0"),
    )  # fmt: skip
    lines = requirements(text)
    for place in PLACES:
        (found,) = [line for line in lines if chosen((line,), place)]
        assert found.startswith("n==1.0" if place["sys_platform"] == "linux" else "n==2.0")


graphs = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 6), st.sampled_from([None, *MARKERS])), min_size=1, max_size=20
)


@given(edges=graphs)
@settings(max_examples=150, deadline=None)
def test_a_package_is_wanted_exactly_where_some_way_to_it_holds(edges: list[tuple[int, int, str | None]]) -> None:
    """Cycles and diamonds too: the lines say in every place what a walk through the graph finds there."""
    needs: dict[int, list[dict[str, Any]]] = {number: [] for number in range(7)}
    for source, target, marker in edges:
        needs[source].append({"name": f"p{target}", **({"marker": marker} if marker else {})})
    project = {"name": "project", "source": {"virtual": "."}, "dependencies": needs[0]}
    lines = requirements(lock(project, *(package(f"p{number}", *needs[number]) for number in range(1, 7))))
    for place in PLACES:
        reached, waiting = set[int](), [0]
        while waiting:
            at = waiting.pop()
            for source, target, marker in edges:
                holds = marker is None or Requirement(f"x ; {marker}").marker.evaluate({**place})  # type: ignore[union-attr]
                if source == at and target not in reached and holds:
                    reached.add(target)
                    waiting.append(target)
        assert chosen(lines, place) == {f"p{number}" for number in reached}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = [", "cannot be read"),
        (lock(package("a"), version=2), "of version 2"),
        (lock(package("a", source={"git": "https://example.org/a.git#00"})), "a comes from git, and not from an index"),
        (lock(package("a", source={"editable": "packages/a"})), "a comes from editable"),
        (lock(package("a", wheels=[])), "a has a file without a hash"),
        (lock(package("a", wheels=[{"url": "https://example.org/x.whl"}, FILE])), "a has a file without a hash"),
        (lock(package("a", {"name": "gone"})), "0 packages for the dependency gone"),
        (lock(package("a", {"name": "b", "marker": "extra == 'extra-1-a-cpu'"}), package("b")), "exclude each other"),
        (lock(package("a", *({"name": "b", "marker": f"python_version == '3.{n}'"} for n in range(MOST_WAYS + 1))),
              package("b")), f"more than {MOST_WAYS} different markers"),
        ("version = 1\n", "0 projects of its own"),
    ],
)  # fmt: skip
def test_what_pip_could_not_install_exactly_is_refused(text: str, says: str) -> None:
    """Nothing of it is guessed."""
    with pytest.raises(Unreadable, match=says):
        requirements(text)


def test_a_project_names_its_lock_as_its_file_of_requirements(project) -> None:
    """By its name; what cannot be read says how to export it."""
    root = project({"uv.lock": lock(package("a"))})
    assert read_requirements(root, "uv.lock") == ("a==1.0 --hash=sha256:aa",)
    (root / "uv.lock").write_text("version = 9\n")
    with pytest.raises(InvalidInput, match=r"requirements: uv.lock: it is of version 9.*uv export --no-emit-project"):
        read_requirements(root, "uv.lock")
