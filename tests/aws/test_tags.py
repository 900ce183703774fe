"""The seven tags: written so that they are read again as they were, and never guessed at."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from mlinfra_prefect.aws import tags
from mlinfra_prefect.errors import InvalidInput

LEDGER, LEASE = "7f0c1a3e-5f0a-4d0e-9a53-0f6f6c1d2b11", "l0f3c5d7e9b1a2c4d6e8f-1"
AWS_ALLOWS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 +-=._:/@")


def built(**more: object) -> dict[str, str]:
    return tags.build(**{
        "ledger_id": LEDGER, "lease_id": LEASE, "attempt": 1, "environment": "dev", "deadline": 1767225600.0, **more
    })  # fmt: skip


def test_there_are_seven_and_they_are_these():
    """The keys are an interface: policies, the plan gate and other programs name them."""
    assert built(owner="ada@laptop", flow_run="0b6f") == {
        "mlinfra-prefect:ledger": LEDGER,
        "mlinfra-prefect:lease": LEASE,
        "mlinfra-prefect:attempt": "1",
        "mlinfra-prefect:flow-run": "0b6f",
        "mlinfra-prefect:owner": "ada@laptop",
        "mlinfra-prefect:environment": "dev",
        "mlinfra-prefect:deadline": "1767225600",
    }
    assert tuple(built()) == tags.KEYS


def test_what_all_leases_share_carries_no_lease():
    """Shared things are told apart by their tags alone."""
    assert tags.shared("dev") == {"mlinfra-prefect:environment": "dev", "mlinfra-prefect:shared": "true"}
    assert tags.parse(tags.shared("dev")).shared
    assert not tags.parse(built()).shared


@pytest.mark.parametrize(("deadline", "text"), [(10.0, "10"), (10.1, "11"), (10.999, "11"), (0.0, "0")])
def test_a_deadline_is_rounded_up(deadline, text):
    """Nothing is ended early."""
    assert built(deadline=deadline)[tags.DEADLINE] == text


@pytest.mark.parametrize("deadline", [float("nan"), float("inf"), -1.0, 1e12])
def test_a_deadline_that_is_no_time_is_refused(deadline):
    """Milliseconds, for example: the dead-man would wait for 50,000 years."""
    with pytest.raises(InvalidInput, match="deadline"):
        built(deadline=deadline)


@pytest.mark.parametrize("field", ["ledger_id", "lease_id", "environment"])
@pytest.mark.parametrize("value", ["", " ", "a b", "ä", "a\n", "x" * 129])
def test_an_identity_is_never_altered(field, value):
    """One that cannot be a tag is refused: an altered one would be somebody else's."""
    with pytest.raises(InvalidInput):
        built(**{field: value})


@given(st.text(max_size=400), st.text(max_size=400))
def test_free_text_becomes_what_aws_takes(owner, flow_run):
    """Whatever a person is called, the tag is accepted."""
    made = built(owner=owner, flow_run=flow_run)
    for key in (tags.OWNER, tags.FLOW_RUN):
        assert set(made[key]) <= AWS_ALLOWS
        assert 1 <= len(made[key]) <= 256


@given(st.integers(1, 10**6), st.floats(0, 1e11, exclude_max=True))
def test_what_is_written_is_read_again(attempt, deadline):
    """Reading is the inverse of writing."""
    marks = tags.parse(built(attempt=attempt, deadline=deadline, owner="ada"))
    assert (marks.ledger_id, marks.lease_id, marks.attempt, marks.environment) == (LEDGER, LEASE, attempt, "dev")
    assert marks.deadline is not None
    assert deadline <= marks.deadline <= deadline + 1
    assert (marks.flow_run, marks.owner, marks.malformed) == ("", "ada", ())


@pytest.mark.parametrize(
    "value", ["", "soon", "1e9", "-5", "١٢٣", " 7", "1_000", "1767225600.5", "1767225600000", "nan", "0x10", "7\n"]
)
def test_a_malformed_deadline_is_none_and_is_said(value):
    """Nobody ends a thing for a deadline that cannot be read."""
    marks = tags.parse(built() | {tags.DEADLINE: value})
    assert marks.deadline is None
    assert marks.malformed == (tags.DEADLINE,)


def test_a_deadline_that_is_not_there_is_none_and_is_no_mistake():
    """A thing of an older version, or of nobody's."""
    assert tags.parse({tags.LEASE: LEASE}).malformed == ()
    assert tags.parse({}).deadline is None


def test_a_selection_asks_each_service_in_its_words():
    """One question, three languages: EC2's filters, the index's, and ours."""
    selection = tags.of_lease(LEDGER, LEASE, 2)
    assert selection.filters()[0] == {"Name": f"tag:{tags.LEDGER}", "Values": [LEDGER]}
    assert selection.tag_filters()[2] == {"Key": tags.ATTEMPT, "Values": ["2"]}
    assert selection.fits(built(attempt=2))
    assert not selection.fits(built(attempt=3))
    anyone = tags.of_any_lease(environment="dev")
    assert {"Name": "tag-key", "Values": [tags.LEASE]} in anyone.filters()
    assert {"Key": tags.LEASE} in anyone.tag_filters()
    assert anyone.fits(built())
    assert not anyone.fits(tags.shared("dev"))


def test_a_lease_is_tagged_by_its_record():
    """The deadline is the ledger's, in whole seconds; the owner is who asked."""
    from mlinfra_prefect.testing.records import sample_lease

    lease = sample_lease()
    made = tags.of(lease, 3)
    assert made[tags.LEASE] == lease.id
    assert made[tags.ATTEMPT] == "3"
    assert datetime.fromtimestamp(int(made[tags.DEADLINE]), UTC) >= lease.deadline
    assert lease.owner.user in made[tags.OWNER]
    assert set(tags.planned("dev")) == set(tags.KEYS)
