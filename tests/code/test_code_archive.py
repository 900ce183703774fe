"""The archive of a code package."""

from __future__ import annotations

import stat
import zipfile

import pytest
from hypothesis import given, settings, strategies as st

from mlinfra_prefect.code import CodeFile, CodePackage, collect, write_archive
from mlinfra_prefect.errors import InvalidInput

SEGMENT = st.text(st.characters(categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=8)
TREES = st.dictionaries(SEGMENT.map(lambda name: f"{name}.py"), st.binary(max_size=200), max_size=6)


@settings(max_examples=25, deadline=None)
@given(tree=TREES)
def test_the_same_files_give_the_same_bytes_wherever_they_lie(tmp_path_factory, tree):
    """Two checkouts of one tree, written in different order at different times, give one archive, byte for byte."""
    written = []
    for names in (sorted(tree), sorted(tree, reverse=True)):
        root = tmp_path_factory.mktemp("project")
        (root / "pyproject.toml").write_text("")
        for name in names:
            (root / name).write_bytes(tree[name])
        written.append(write_archive(collect(root), root / "out"))
    assert written[0].name == written[1].name
    assert written[0].read_bytes() == written[1].read_bytes()
    with zipfile.ZipFile(written[0]) as archive:
        assert {name: archive.read(name) for name in archive.namelist() if name != "pyproject.toml"} == tree


@settings(max_examples=50, deadline=None)
@given(
    one=st.dictionaries(SEGMENT, st.binary(max_size=5), max_size=4),
    two=st.dictionaries(SEGMENT, st.binary(max_size=5), max_size=4),
)
def test_two_packages_have_one_hash_exactly_when_they_are_one_tree(tmp_path_factory, one, two):
    """The hash is an identity: no two trees share it."""
    root = tmp_path_factory.getbasetemp()
    assert (CodePackage.of(root, [], one).sha256 == CodePackage.of(root, [], two).sha256) == (one == two)


def test_the_archive_is_private_and_named_by_its_content(project, tmp_path):
    """0600 in a directory of 0700, `code-<first 20 of the hash>.zip`, and no half-written file beside it."""
    package = collect(project({"pyproject.toml": ""}))
    path = write_archive(package, tmp_path / "out")
    assert path.name == f"code-{package.sha256[:20]}.zip"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_may_be_run_may_be_run_on_the_node(project, tmp_path):
    """The archive says so; whatever else a mode says stays here."""
    root = project({"pyproject.toml": "", "train.sh": "true"})
    (root / "train.sh").chmod(0o700)
    (root / "pyproject.toml").chmod(0o666)
    with zipfile.ZipFile(write_archive(collect(root), tmp_path / "out")) as archive:
        modes = {entry.filename: stat.S_IMODE(entry.external_attr >> 16) for entry in archive.infolist()}
    assert modes == {"pyproject.toml": 0o644, "train.sh": 0o755}


def test_an_archive_that_exists_is_used_again(project, tmp_path):
    """Content-addressed: the second call writes nothing, even if the source is gone."""
    root = project({"pyproject.toml": "", "a.py": "1"})
    package = collect(root)
    first = write_archive(package, tmp_path / "out")
    before = first.stat().st_mtime_ns
    (root / "a.py").unlink()
    assert write_archive(package, tmp_path / "out") == first
    assert first.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["write", "remove"])
def test_a_file_that_changed_since_it_was_collected_is_detected(project, tmp_path, change):
    """The archive holds what its hash says or is not written at all."""
    root = project({"pyproject.toml": "", "a.py": "1"})
    package = collect(root)
    (root / "a.py").write_text("2") if change == "write" else (root / "a.py").unlink()
    with pytest.raises(InvalidInput, match=r"'a\.py' (changed|went away)"):
        write_archive(package, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_generated_files_are_part_of_the_package(tmp_path):
    """An extra is listed, hashed and packed like any file, and replaces one of the same path."""
    base = CodePackage.of(tmp_path, [CodeFile("x.py", 1, "0" * 64)])
    package = CodePackage.of(tmp_path, base.files, {"x.py": b"new"})
    assert [(file.path, file.size) for file in package.files] == [("x.py", 3)]
    with zipfile.ZipFile(write_archive(package, tmp_path / "out")) as archive:
        assert archive.read("x.py") == b"new"
