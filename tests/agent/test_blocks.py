"""Blocks: what is taken apart comes together as it was, and nothing that is wrong lies under a right name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from mlinfra_prefect.agent import blocks
from mlinfra_prefect.agent.transfer import TransferError


def packed(root: Path) -> tuple[blocks.Pack, list[bytes]]:
    files = blocks.listed(root)
    data = list(blocks.stream(root, files))
    return blocks.Pack(files, tuple(map(blocks.sha256, data))), data


def content(root: Path) -> dict[str, tuple[int, bytes | None]]:
    found = {}
    for path in sorted(root.rglob("*")):
        executable = stat.S_IXUSR & path.stat().st_mode
        found[path.relative_to(root).as_posix()] = (executable, None if path.is_dir() else path.read_bytes())
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "nothing").touch()
    (root / "deep" / "big").write_bytes(os.urandom(1000))
    (root / "deep" / "er" / "ü b").write_bytes(b"x" * 64)
    (root / "run").write_bytes(b"#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "zero").touch()
    (root / "link").symlink_to("run")
    return root


@given(size=st.integers(0, 80 << 20), growing=st.booleans())
def test_spans_cover_a_stream_without_gap_or_overlap(size: int, growing: bool) -> None:
    """Every byte is in one block, and only the last may be shorter."""
    found = blocks.spans(size, growing=growing)
    assert [start for start, _ in found] == [0, *(end for _, end in found)][: len(found)]
    assert (found[-1][1] if found else 0) == size
    allowed = {blocks.TAIL, blocks.SEALED} if growing else {blocks.BLOCK}
    assert {end - start for start, end in found[:-1]} <= allowed
    assert not found or found[-1][1] - found[-1][0] <= max(allowed)


@given(size=st.integers(0, 60 << 20), more=st.integers(0, 1 << 20))
def test_a_log_that_grows_keeps_the_blocks_behind_its_end(size: int, more: int) -> None:
    """What was sent stays sent: of the blocks before the last one none changes but by being sealed."""
    before, after = set(blocks.spans(size, growing=True)[:-1]), set(blocks.spans(size + more, growing=True))
    sealed = {span for span in after if span[1] - span[0] == blocks.SEALED}
    assert all(span in after or any(s <= span[0] and span[1] <= e for s, e in sealed) for span in before)
    assert len(after) <= 200


def test_a_directory_comes_together_as_it_was(source: Path, tmp_path: Path, small: None) -> None:
    """Files, modes, empty files and directories; a link inside it comes as the file that it leads to."""
    pack, data = packed(source)
    assert len(data) == len(pack.blocks) == len(blocks.spans(pack.size)) > 10
    again = blocks.Pack.from_listing(pack.listing())
    assert again == pack
    assembly = blocks.Assembly(tmp_path / "target", again)
    for number in reversed(assembly.missing()):
        assembly.write(number, data[number])
    assert assembly.missing() == []
    assembly.finish()
    assert content(tmp_path / "target") == content(source)
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "target").rglob("*")}
    assert modes == {0}


def test_an_assembly_that_was_killed_is_gone_on_with(source: Path, tmp_path: Path, small: None) -> None:
    """Right blocks are used again; a wrong byte, a longer file and a shorter one are found."""
    pack, data = packed(source)
    first = blocks.Assembly(tmp_path / "target", pack)
    for number in first.missing()[::2]:
        first.write(number, data[number])
    big = tmp_path / "target" / "deep" / "big"
    with big.open("r+b") as file:
        file.write(b"?")
    (tmp_path / "target" / "zero").write_bytes(b"too long")
    second = blocks.Assembly(tmp_path / "target", pack)
    missing = second.missing()
    assert 0 in missing
    assert 0 < len(missing) < len(data)
    for number in missing:
        second.write(number, data[number])
    second.finish()
    assert content(tmp_path / "target") == content(source)


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"?" + b[1:], lambda _: b""])
def test_a_block_that_is_not_what_its_name_says_is_not_written(
    source: Path, tmp_path: Path, small: None, spoil
) -> None:
    """The error comes before the first byte."""
    pack, data = packed(source)
    assembly = blocks.Assembly(tmp_path / "target", pack)
    with pytest.raises(TransferError):
        assembly.write(0, spoil(data[0]))
    assert 0 in assembly.missing()


@pytest.mark.parametrize(
    "files",
    [
        [["../out", 1, "f"]], [["/abs", 1, "f"]], [["a", -1, "f"]], [["a", 1, "l"]], [["a", 1, "f"], ["a", 1, "f"]],
        [["a", "1", "f"]], [["a", 1]], "none", [["a\\b", 1, "f"]],
    ],
)  # fmt: skip
def test_a_listing_of_a_stranger_is_refused(files: object) -> None:
    """Paths that lead out, sizes that are none, links, files named twice."""
    import json

    told = {"schema": blocks.PACK_SCHEMA, "files": files, "blocks": ["0" * 64]}
    with pytest.raises(TransferError):
        blocks.Pack.from_listing(json.dumps(told).encode())


def test_a_listing_names_as_many_blocks_as_its_stream_has() -> None:
    """One too few would leave a file of zeros."""
    for names in ((), ("0" * 64,) * 2, ("x" * 64,)):
        with pytest.raises(TransferError):
            blocks.Pack.from_listing(blocks.Pack((blocks.Packed("a", 1, "f"),), names).listing())


def test_a_file_that_shrinks_while_it_is_read_is_an_error(source: Path, small: None) -> None:
    """What is sent has the size that its listing says."""
    files = blocks.listed(source)
    (source / "deep" / "big").write_bytes(b"short")
    with pytest.raises(TransferError, match="deep/big changed"):
        list(blocks.stream(source, files))


def test_nothing_leads_out_of_a_directory(source: Path, tmp_path: Path) -> None:
    """A link to a file elsewhere is refused on the way out; on the way in nothing follows one."""
    (source / "out").symlink_to("/etc/hostname")
    with pytest.raises(TransferError, match="link"):
        blocks.listed(source)
    target, victim = tmp_path / "target", tmp_path / "victim"
    victim.write_bytes(b"mine")
    target.mkdir()
    (target / "a").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        blocks.Assembly(target, blocks.Pack((blocks.Packed("a", 1, "f"),), (blocks.sha256(b"x"),)))
    assert victim.read_bytes() == b"mine"


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(0, 300), max_size=12))
def test_any_sizes_come_together(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    """Files that end with a block, begin with one, span several, or have no byte at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 64)
        root = tmp_path_factory.mktemp("any")
        (root / "source").mkdir()
        for number, size in enumerate(sizes):
            (root / "source" / f"{number:02}").write_bytes(os.urandom(size))
        pack, data = packed(root / "source")
        assembly = blocks.Assembly(root / "target", pack)
        for number in assembly.missing():
            assembly.write(number, data[number])
        assembly.finish()
        assert content(root / "target") == content(root / "source")
