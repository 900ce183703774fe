"""Endpoints and rollouts as values: how shares are divided, which way a version may go, and what a record remembers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, strategies as st
from model_strategies import endpoints

from mlinfra_prefect.errors import IllegalTransition
from mlinfra_prefect.model.endpoint import (
    GONE,
    IN_ROLLOUT,
    PROMOTED,
    VERSION_TRANSITIONS,
    VERSIONS_KEPT,
    Version,
    VersionState,
    check_change,
    with_share,
)
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.testing.records import MOMENT, SHA256, sample_artifact, sample_endpoint, sample_rollout

LEGAL = {
    ("deploying", "canary"), ("deploying", "serving"), ("deploying", "rolled-back"),
    ("canary", "serving"), ("canary", "rolled-back"),
    ("serving", "retiring"), ("serving", "retired"),
    ("retiring", "serving"), ("retiring", "retired"),
}  # fmt: skip
ARTIFACT = sample_artifact()


def version(number: int, state: str = "serving", share: int = 0, **changes: object) -> Version:
    return Version(version=number, share=share, state=state, sha256=SHA256, artifact=ARTIFACT).revised(**changes)


@st.composite
def listed(draw: st.DrawFn) -> tuple[Version, ...]:
    """The versions of an endpoint, in any states, with any shares."""
    states = draw(st.lists(st.sampled_from(VersionState), min_size=1, max_size=6))
    shares = draw(st.lists(st.integers(0, 100), min_size=len(states), max_size=len(states)))
    return tuple(version(n, s, share) for n, (s, share) in enumerate(zip(states, shares, strict=True), start=1))


@given(versions=listed(), number=st.integers(1, 6), share=st.integers(0, 100))
def test_shares_sum_to_a_hundred_wherever_something_else_serves(
    versions: tuple[Version, ...], number: int, share: int
) -> None:
    """Every request goes somewhere: a version gets exactly its share, the serving ones the rest, the others nothing."""
    assume(number <= len(versions))
    divided = with_share(versions, number, share)
    serving = {v.version for v in versions if v.state is VersionState.SERVING and v.version != number}
    assert sum(v.share for v in divided) == (100 if serving else share)
    assert divided[number - 1].share == share
    assert {v.version for v in divided if v.share} <= {number} | serving
    assert [v.revised(share=0) for v in divided] == [v.revised(share=0) for v in versions]


@given(versions=listed(), number=st.integers(1, 6), share=st.integers(0, 100))
def test_the_rest_is_divided_as_it_was_before(versions: tuple[Version, ...], number: int, share: int) -> None:
    """No serving version gets more than a percent away from its part: nobody overtakes who had more."""
    assume(number <= len(versions))
    before = {v.version: v.share for v in versions if v.state is VersionState.SERVING and v.version != number}
    divided = {v.version: v.share for v in with_share(versions, number, share)}
    total = sum(before.values())
    for one, had in before.items():
        part = had / total if total else 1 / len(before)
        assert abs(divided[one] - (100 - share) * part) < 1
    for (one, had), (other, had_more) in itertools.permutations(before.items(), 2):
        assert had >= had_more or divided[one] <= divided[other]


def test_dividing_again_changes_nothing() -> None:
    """A keeper that gives a canary the share it has writes no other routes."""
    versions = (version(1, "serving", 33), version(2, "serving", 57), version(3, "canary", 10))
    assert with_share(versions, 3, 10) == versions
    assert [v.share for v in with_share(versions, 3, 50)] == [18, 32, 50]


@pytest.mark.parametrize(("before", "after"), list(itertools.product(VersionState, VersionState)))
def test_a_version_goes_the_documented_way_only(before: VersionState, after: VersionState) -> None:
    """The whole table; and no version is in flight, promoted and gone at once."""
    assert ((before, after) in LEGAL) == (after in VERSION_TRANSITIONS[before])
    assert [before in states for states in (IN_ROLLOUT, PROMOTED, GONE)].count(True) == 1
    old = sample_endpoint(versions=(version(1), version(2, before)))
    new = old.rerouted((version(1), version(2, after)))
    if before is after or (before, after) in LEGAL:
        check_change(old, new)
        return
    with pytest.raises(IllegalTransition, match=f"version 2: {before} does not lead to {after}"):
        check_change(old, new)


@pytest.mark.parametrize("state", VersionState)
def test_a_released_endpoint_s_versions_are_all_gone(state: VersionState) -> None:
    """Whatever they were: with the endpoint its last word on each is written."""
    old = sample_endpoint(state=State.RELEASING, versions=(version(1, state),))
    for gone in sorted(GONE):
        check_change(old, old.revised(state=State.RELEASED, versions=(version(1, gone),)))


def test_the_revision_of_routes_never_falls() -> None:
    """The router follows the highest one, so an older one would never be followed."""
    old = sample_endpoint(revision=7)
    check_change(old, old.revised(revision=7, reason="told"))
    with pytest.raises(IllegalTransition, match="from 7 to 6"):
        check_change(old, old.revised(revision=6))


def test_a_rollout_follows_the_state_machine_of_a_lease() -> None:
    """It is one: what it created is never forgotten."""
    old = sample_rollout()
    check_change(None, old)
    check_change(old, old.revised(state=State.PROVISIONING))
    with pytest.raises(IllegalTransition, match=old.id):
        check_change(old, old.revised(state=State.RELEASED))
    with pytest.raises(IllegalTransition, match="not as ready"):
        check_change(None, sample_rollout(state=State.READY))


@given(endpoint=endpoints, states=st.lists(st.sampled_from(VersionState), max_size=3 * VERSIONS_KEPT))
def test_an_endpoint_lets_go_of_old_versions_that_are_gone_and_of_no_other(
    endpoint: object, states: list[VersionState]
) -> None:
    """Twenty of them are kept, the youngest; one that may still be served is never forgotten."""
    versions = tuple(version(number, state) for number, state in enumerate(states, start=1))
    after = endpoint.rerouted(versions)
    gone = [v for v in versions if v.state in GONE]
    assert [v for v in after.versions if v.state not in GONE] == [v for v in versions if v.state not in GONE]
    assert [v for v in after.versions if v.state in GONE] == gone[-VERSIONS_KEPT:]
    assert after.revision == endpoint.revision + 1
    assert list(after.versions) == sorted(after.versions, key=lambda v: v.version)


def test_current_is_what_serves_most_and_the_candidate_what_is_in_flight() -> None:
    """None of either before the first rollout; of two equal ones the younger."""
    assert sample_endpoint(versions=()).current is sample_endpoint(versions=()).candidate is None
    both = sample_endpoint(versions=(version(1, share=30), version(2, share=60), version(3, "canary", 10)))
    assert (both.current.version, both.candidate.version) == (2, 3)
    equal = sample_endpoint(versions=(version(1, share=50), version(2, share=50), version(3, "rolled-back")))
    assert (equal.current.version, equal.candidate) == (2, None)
    retiring = sample_endpoint(versions=(version(1, "retiring", retire_at=MOMENT), version(2, "deploying")))
    assert (retiring.current, retiring.candidate.version) == (None, 2)
    assert retiring.version(3) is None


def test_a_rollout_answers_on_every_port_it_reserved() -> None:
    """One URL a replica, and its servers end themselves with it."""
    record = sample_rollout(ports=(9001, 9002), expires_at=MOMENT)
    assert record.urls == ("http://127.0.0.1:9001", "http://127.0.0.1:9002")
    assert (record.deadline, sample_rollout().deadline) == (MOMENT, None)
