"""The gate never raises: a plan that it cannot understand is refused, and losing a part of a good plan never helps."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mlinfra_prefect.errors import PlanRejected
from mlinfra_prefect.terraform import gate, idle_price

GOOD = json.loads((Path(__file__).parent / "plans" / "aws-gpu.json").read_text())
TAGS = next(
    item["change"]["after"]["tags"] for item in GOOD["resource_changes"] if item["type"] == "aws_launch_template"
)
POLICY = gate.Policy(required_tags=TAGS, max_instances=1)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False) | st.sampled_from(["", "true", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["after", "tags", "ebs", "x"]), inner),
    max_leaves=6,
)  # fmt: skip


def places(node, path=()):
    """Every path to a value of a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


PLACES = sorted(places(GOOD), key=repr)


def at(document, path):
    for key in path:
        document = document[key]
    return document


@given(path=st.sampled_from(PLACES), value=JSON)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_anywhere_is_judged(path, value):
    """Whatever stands wherever in a plan: findings come back, each with a rule and a sentence, and no exception."""
    document = copy.deepcopy(GOOD)
    at(document, path[:-1])[path[-1]] = value
    for finding in gate.check(document, POLICY):
        assert finding.rule
        assert finding.message.endswith(".")
    assert idle_price.idle(document).usd_per_month >= 0


@given(document=JSON)
def test_what_is_no_plan_is_refused(document):
    """Any other JSON is no plan, and not an empty one."""
    assert {finding.rule for finding in gate.check(document, POLICY)} == {"plan-unreadable"}
    with pytest.raises(PlanRejected):
        gate.enforce(document, POLICY)


REQUIRED = [
    path
    for path in PLACES
    if path[-1] in TAGS and "tag_specifications" in path and "after" in path and "after_unknown" not in path
]


@pytest.mark.parametrize("path", REQUIRED)
def test_no_tag_of_any_place_may_be_lost(path):
    """28 tags of a spot fleet's template: the plan without any one of them is refused."""
    document = copy.deepcopy(GOOD)
    del at(document, path[:-1])[path[-1]]
    assert [finding.rule for finding in gate.check(document, POLICY)] == ["tags-missing"]


def test_every_place_is_tried():
    """Four kinds of things, seven tags each."""
    assert len(REQUIRED) == 28


NEEDED = {"change", "actions", "after", "address", "mode", "type", "name", "provider_name"}


@pytest.mark.parametrize(
    "path", [path for path in PLACES if path[0] == "resource_changes" and len(path) <= 4 and path[-1] in NEEDED]
)
def test_a_change_that_lost_a_part_is_refused(path):
    """What a change is, and what happens to it, is never guessed."""
    document = copy.deepcopy(GOOD)
    del at(document, path[:-1])[path[-1]]
    assert gate.check(document, POLICY)


def test_a_plan_nested_beyond_measure_is_refused():
    """Python's own limit is no reason to fail in another way."""
    document = copy.deepcopy(GOOD)
    document["resource_changes"][0]["change"].update(after=nested(None), after_unknown=nested(True))
    assert [finding.rule for finding in gate.check(document, POLICY)] == ["plan-unreadable"]
    assert idle_price.idle(document).unknown


def nested(value, depth=5000):
    for _ in range(depth):
        value = {"x": value}
    return value
