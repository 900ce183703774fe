"""Names: what may be one, that ids never collide, and that any text can be made a line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.artifact import ArtifactFile
from mlinfra_prefect.model.names import (
    LONGEST_LINE,
    as_line,
    digest,
    endpoint_base,
    is_id,
    lease_base,
    lease_id,
    minted,
    token,
)
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.testing.records import SHA256

BAD_IDS = [
    "", "-a", "A", "a_b", "a b", "a.b", "a/b", "../../x", "/etc", "a\n", "\na", "a\0", "a\0b", "é", "ａ", "a\u200b",
    "-lock=false", "${file()}", "a;b", "x" * 64, "x" * 200_000, "\ud800", "٣",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_IDS, ids=range(len(BAD_IDS)))
def test_nothing_but_the_pattern_is_an_id(text: str) -> None:
    """Ids end in file names, variables and tags: `^[a-z0-9][a-z0-9-]{0,62}$`, without a trailing newline."""
    assert not is_id(text)
    with pytest.raises(InvalidInput) as raised:
        parsed(TrainingRequest, {"name": text})
    assert raised.value.field == "name"
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("text", ["a", "0", "a-", "a-b-c", "x" * 63])
def test_the_pattern_is_an_id(text: str) -> None:
    """What matches is taken as it is."""
    assert is_id(text)
    assert TrainingRequest(name=text).name == text


@pytest.mark.parametrize("text", ["a\nb", "a\r", "a\0", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u2029", "x" * 513])
def test_a_line_holds_no_control_characters_and_is_short(text: str) -> None:
    """Listings and logs show lines: what could move the cursor or add a line is refused."""
    with pytest.raises(InvalidInput) as raised:
        parsed(Owner, {"user": text, "host": "laptop"})
    assert raised.value.field == "user"


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(), max_size=600))
def test_any_text_can_be_made_a_line(text: str) -> None:
    """A message from elsewhere, whatever it holds, never makes a record invalid."""
    line = as_line(text)
    assert Owner(user=line, host="").user == line
    assert len(line) <= LONGEST_LINE


def test_a_line_stays_what_it_is() -> None:
    """Only what is wrong is changed."""
    assert as_line("é ✓ ok") == "é ✓ ok"
    assert as_line("a\nb") == "a b"
    assert as_line("x" * 513) == "x" * 511 + "…"


def test_lease_ids_are_hashed_and_never_truncated() -> None:
    """Long names that share a prefix, and parts that run into each other, have different ids."""
    long = "x" * 200
    bases = {
        lease_base("run", long + "a", "task"),
        lease_base("run", long + "b", "task"),
        lease_base("run", "ab", "c"),
        lease_base("run", "a", "bc"),
        lease_base("runa", "b", "c"),
        lease_base("run", "train", "map-0"),
        lease_base("run", "train", "map-1"),
    }
    assert len(bases) == 7
    assert all(is_id(lease_id(base, 10_000)) for base in bases)
    assert lease_base("run", "train", "map-0") in bases
    assert endpoint_base("dev", "churn") != endpoint_base("prod", "churn")
    assert is_id(endpoint_base("dev", "churn"))


def test_a_digest_is_stable_over_versions() -> None:
    """Ids are found again by later versions: these values never change."""
    assert digest("a", "b") == DIGEST
    assert digest("\ud800") != digest("?")
    assert lease_base("run", "name", "key") == BASE


DIGEST = "2474678832efcd5d0c6c"
BASE = "l5a9de2ee4620a09c18ff"


def test_minted_ids_are_unique() -> None:
    """A uuid and a token are new each time."""
    assert len({minted() for _ in range(100)} | {token() for _ in range(100)}) == 200


@pytest.mark.parametrize("path", ["", ".", "./", "..", "../x", "a/../../x", "/etc/passwd", "a\\b", "a\0b", "C:\\x"])
def test_a_file_of_an_artifact_lies_inside_it(path: str) -> None:
    """A hostile node cannot name a file outside."""
    with pytest.raises(InvalidInput, match="path: must be a path inside the artifact"):
        parsed(ArtifactFile, {"path": path, "sha256": SHA256, "size": 1})


@pytest.mark.parametrize("sha256", ["", SHA256[:-1], SHA256.upper(), SHA256 + "\n", SHA256 + "0", "g" * 64])
def test_a_sha256_is_64_hexadecimal_digits(sha256: str) -> None:
    """Lower case, nothing more."""
    with pytest.raises(InvalidInput, match="sha256: "):
        parsed(ArtifactFile, {"path": "a", "sha256": sha256, "size": 1})
