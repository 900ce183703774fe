"""Accelerators are written as people write them, and a typing error never becomes a search for capacity."""

from __future__ import annotations

import pytest

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.accelerator import KNOWN, MAX_COUNT, Accelerator
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingRequest


@pytest.mark.parametrize(
    ("written", "name", "count", "memory_gib"),
    [
        ("A100", "A100", 1, 40),
        ("A100:8", "A100", 8, 320),
        ("a100-80gb:8", "A100-80GB", 8, 640),
        ("A100-40GB", "A100", 1, 40),
        ("H100-80GB:2", "H100", 2, 160),
        ("v100-16gb", "V100", 1, 16),
        ("L4:1", "L4", 1, 24),
        (" L4 ", "L4", 1, 24),
        (f"T4:{MAX_COUNT}", "T4", MAX_COUNT, 16 * MAX_COUNT),
        ("cpu", "cpu", 0, 0),
        ("CPU", "cpu", 0, 0),
        ("cpu:1", "cpu", 0, 0),
        ("none", "cpu", 0, 0),
    ],
)
def test_what_people_write_is_understood(written: str, name: str, count: int, memory_gib: int) -> None:
    """NAME[:COUNT], in any case, with the names that vendors use."""
    found = Accelerator.model_validate(written)
    assert (found.name, found.count, found.memory_gib) == (name, count, memory_gib)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("A10", r"'A10' is not a known accelerator .*did you mean 'A100|did you mean 'A10G'"),
        ("A100-80", "did you mean 'A100-80GB'"),
        ("h10", "did you mean 'H100'"),
        ("RTX-5090", "is not a known accelerator"),
        ("A100:0", "count must be from 1 to 16"),
        ("A100:-1", "count must be from 1 to 16"),
        ("A100:17", "count must be from 1 to 16"),
        ("A100:999999999", "count must be from 1 to 16"),
        ("cpu:4", "cpu takes no count"),
        ("A100:9999999999", "must look like"),
        ("A100:1.5", "must look like"),
        ("A100:", "must look like"),
        (":8", "must look like"),
        ("", "must look like"),
        ("8xA100:", "must look like"),
        ("A100\n", "must look like"),
        ("A100\0", "must look like"),
        ("А100", "must look like"),  # noqa: RUF001 (the first letter is Cyrillic)
        ("A100:٨", "must look like"),
        ("A100 -lock=false", "must look like"),
        ("A" * 200_000, "must look like"),
        (8, "valid"),
        (None, "valid"),
        (["A100"], "valid"),
        ({"name": "A100", "count": 0}, "must be a known accelerator"),
        ({"name": "A1000"}, "must be a known accelerator"),
        ({"name": "cpu"}, "must be a known accelerator"),
        ({"name": "A100", "count": 99}, "less than or equal to 16"),
    ],
)
def test_everything_else_is_refused_with_the_field_s_name(written: object, says: str) -> None:
    """The sentence names the field, says what is wrong, and is short whatever was written."""
    with pytest.raises(InvalidInput, match=says) as raised:
        parsed(TrainingRequest, {"accelerator": written})
    assert raised.value.field.split(".")[0] == "accelerator"
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_shown_can_be_written_again(name: str) -> None:
    """Text, JSON and value are one: what a listing shows can be pasted into a request."""
    found = Accelerator.model_validate(name)
    assert Accelerator.model_validate(str(found)) == found
    assert found.model_dump() == str(found)
    assert Accelerator.model_validate_json(found.model_dump_json()) == found
