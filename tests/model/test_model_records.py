"""Records: frozen, closed, exact, documented; and the state machine that leases, endpoints and rollouts share."""

from __future__ import annotations

import itertools
import json
import re
import types
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mlinfra_prefect.errors import IllegalTransition, InvalidInput
from mlinfra_prefect.ledger.protocol import Transition, worth_a_line
from mlinfra_prefect.model.accelerator import Accelerator
from mlinfra_prefect.model.card import Card
from mlinfra_prefect.model.lease import (
    ATTEMPT_TRANSITIONS,
    LIVE,
    TRANSITIONS,
    AttemptState,
    State,
    check_transition,
)
from mlinfra_prefect.model.offer import Plan
from mlinfra_prefect.model.receipt import Receipt, Search
from mlinfra_prefect.model.record import Record, parsed
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.model.schemas import SCHEMAS
from mlinfra_prefect.testing.records import (
    MOMENT,
    path_to,
    sample_artifact,
    sample_attempt,
    sample_endpoint,
    sample_lease,
    sample_offer,
    sample_rollout,
)

LEGAL = {
    ("requested", "provisioning"), ("requested", "releasing"),
    ("provisioning", "ready"), ("provisioning", "releasing"), ("provisioning", "provisioning"),
    ("ready", "provisioning"), ("ready", "releasing"),
    ("releasing", "released"), ("releasing", "stuck"),
    ("stuck", "releasing"), ("stuck", "released"),
}  # fmt: skip
"""As DESIGN §4 has it."""


def test_the_table_is_the_design_s() -> None:
    """The state machine is exactly the documented one."""
    assert {(before, after) for before in State for after in TRANSITIONS[before]} == LEGAL
    order = list(AttemptState)
    attempts = {(before, after) for before in AttemptState for after in ATTEMPT_TRANSITIONS[before]}
    assert attempts == {*itertools.pairwise(order), ("planned", "releasing"), ("applying", "releasing")}


@pytest.mark.parametrize("sample", [sample_lease, sample_endpoint, sample_rollout])
@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_check_transition_allows_the_table_and_nothing_else(before: State, after: State, sample: Any) -> None:
    """Whole table, every kind; staying in a state is allowed, but for `released`, which never changes."""
    old, new = sample(state=before), sample(state=after, failures=1)
    if (before, after) in LEGAL or (before is after and before is not State.RELEASED):
        check_transition(old, new)
        return
    with pytest.raises(IllegalTransition, match=old.id):
        check_transition(old, new)


@pytest.mark.parametrize("state", State)
def test_a_record_begins_as_requested(state: State) -> None:
    """Write-ahead."""
    record = sample_lease(state=state)
    if state is State.REQUESTED:
        check_transition(None, record)
        return
    with pytest.raises(IllegalTransition, match=f"not as {state}"):
        check_transition(None, record)


def test_every_state_is_reached_and_live_is_what_has_not_begun_to_go() -> None:
    """No state is dead, and only `released` is final."""
    assert [path_to(state)[-1:] for state in State] == [(state,) if state != "requested" else () for state in State]
    assert [state for state in State if not TRANSITIONS[state]] == [State.RELEASED]
    assert {state for state in State if sample_lease(state=state).live} == LIVE


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ((sample_attempt(),), (), "never forgotten"),
        ((sample_attempt(), sample_attempt(2)), (sample_attempt(2), sample_attempt()), "never forgotten"),
        ((), (sample_attempt(state=AttemptState.APPLYING),), "begins as planned"),
        ((sample_attempt(state=AttemptState.RELEASED),), (sample_attempt(),), "released does not lead to planned"),
        ((sample_attempt(state=AttemptState.UP),), (sample_attempt(),), "up does not lead to planned"),
    ],
)
def test_attempts_only_go_forward(old: tuple[Any, ...], new: tuple[Any, ...], says: str) -> None:
    """What an attempt created is never lost from sight."""
    with pytest.raises(IllegalTransition, match=says):
        check_transition(sample_lease(attempts=old), sample_lease(attempts=new))


@pytest.mark.parametrize(
    "changed",
    [
        sample_lease("another", generation=2),
        sample_endpoint(id=sample_lease().id, generation=2),
        sample_rollout(id=sample_lease().id, generation=2),
        sample_lease(ledger_id="another", generation=2),
        sample_lease(generation=1),
    ],
    ids=["id", "kind", "other kind", "ledger", "generation"],
)
def test_a_record_never_becomes_another(changed: Any) -> None:
    """Its id, kind and ledger stay, and its generation never falls."""
    with pytest.raises(IllegalTransition):
        check_transition(sample_lease(generation=2), changed)


@pytest.mark.parametrize("state", AttemptState)
def test_released_means_every_attempt_is(state: AttemptState) -> None:
    """A record is released when all its attempts are."""
    attempts = (sample_attempt(state=AttemptState.RELEASED), sample_attempt(2, state=state))
    old = sample_lease(state=State.RELEASING, attempts=attempts)
    if state is AttemptState.RELEASED:
        check_transition(old, old.revised(state=State.RELEASED))
        return
    with pytest.raises(IllegalTransition, match="not released yet"):
        check_transition(old, old.revised(state=State.RELEASED))


def test_the_latest_attempt_is_the_one_that_counts() -> None:
    """None before the first."""
    assert sample_lease().attempt is None
    assert sample_lease(attempts=(sample_attempt(), sample_attempt(2))).attempt == sample_attempt(2)


def test_only_a_renewal_is_not_worth_a_line() -> None:
    """Renewals are kept out of the history; a renewal that also says something else is not one."""
    old = sample_lease()
    later = old.renewed_until + timedelta(seconds=30)
    assert not worth_a_line(old, old.revised(renewed_until=later))
    assert worth_a_line(old, old.revised(renewed_until=later, generation=2))
    watched = sample_rollout()
    assert not worth_a_line(watched, watched.revised(renewed_until=later, due=later))
    assert worth_a_line(watched, watched.revised(due=later, promoted_at=later))


DIRTY = Search(what="processes", where="laptop", at=MOMENT, found=("process 4711",), ended=("process 4711",))
CLEAN = Search(what="processes", where="laptop", at=MOMENT)


@pytest.mark.parametrize(
    ("searches", "clean"),
    [
        ((), False),
        ((CLEAN,), False),
        ((CLEAN, CLEAN), True),
        ((DIRTY, CLEAN, CLEAN), True),
        ((CLEAN, CLEAN, DIRTY), False),
        ((CLEAN, DIRTY, CLEAN), False),
        ((DIRTY, DIRTY), False),
    ],
)
def test_a_receipt_is_clean_after_two_clean_looks(searches: tuple[Search, ...], clean: bool) -> None:
    """Rule R7: an empty list once is not proof."""
    receipt = Receipt(
        kind="lease", id="l-1", ledger_id="x", reason="done", attempts=1, created=(), destroyed=(), searches=searches,
        requested_at=MOMENT, released_at=MOMENT, up_seconds=1, trained_seconds=1, idle_seconds=0, cost_usd=0,
    )  # fmt: skip
    assert receipt.clean is clean


def test_a_card_says_its_schema_under_its_short_name() -> None:
    """The watcher reads `schema`; our code says `schema_name`; both are understood."""
    card = Card(kind="lease", id="l-1", generation=1, state="ready")
    written = json.loads(card.model_dump_json())
    assert written["schema"] == "mlinfra-prefect/card/1"
    assert "schema_name" not in written
    assert Card.model_validate(written) == card == card.revised()
    with pytest.raises(InvalidInput, match="schema: "):
        parsed(Card, {**written, "schema": "mlinfra-prefect/card/2"})


def test_a_record_is_frozen_and_closed() -> None:
    """Records cross layers: nobody changes one in place, and a typing error never becomes a default."""
    record = sample_lease()
    with pytest.raises(ValidationError, match="frozen"):
        record.state = State.READY
    with pytest.raises(ValidationError, match="Extra inputs"):
        record.revised(stat=State.READY)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        record.revised(generation=0)


def test_moments_are_in_utc() -> None:
    """Another zone is turned into UTC; no zone, or a moment outside the calendar, is refused."""
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert sample_lease(created_at=elsewhere) == sample_lease()
    assert sample_lease(created_at=elsewhere).created_at.tzinfo is UTC
    east = timezone(timedelta(hours=14))
    for wrong in (datetime(2026, 1, 31, 12), datetime.min.replace(tzinfo=east), "0001-01-01T00:00:00+14:00"):  # noqa: DTZ001, DTZ901
        with pytest.raises(ValidationError, match="time zone|calendar"):
            sample_lease(created_at=wrong)


def test_the_artifact_s_path_is_the_node_s_copy_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node the agent says where its verified copy lies; elsewhere it is the artifact store."""
    artifact = sample_artifact()
    assert str(artifact.path) == artifact.uri.removeprefix("file://")
    monkeypatch.setenv(f"MLINFRA_ARTIFACT_{artifact.id.upper()}", "/node/copy")
    assert str(artifact.path) == "/node/copy"


def test_a_plan_fits_in_one_line() -> None:
    """Its summary names number, stack, platform, price and limit."""
    plan = Plan(
        request=TrainingRequest(), platform="local", offers=(sample_offer(),), offer=sample_offer(), stack="local-node",
        engine="terraform 1.11.4", resources=(), max_minutes=30, estimate_usd=0.25, made_at=MOMENT,
    )  # fmt: skip
    expected = "0 resource(s) from local-node, local in local, at most 30 min, 0.50 USD/h, at most 0.25 USD"
    assert plan.summary == expected


def every_model() -> list[type[Record]]:
    """Every model that is exported, with all that it holds."""
    found: list[type[Record]] = []
    waiting: list[Any] = [Transition, *(schema.model for schema in SCHEMAS)]
    while waiting:
        model = waiting.pop()
        if model not in found:
            found.append(model)
            waiting.extend(kind for field in model.model_fields.values() for kind in kinds(field.annotation))
    return sorted(found, key=lambda model: model.__name__)


def kinds(annotation: Any) -> Iterator[type[Record]]:
    """Every record inside a type."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    if get_origin(annotation) is not None:
        for argument in get_args(annotation):
            yield from kinds(argument)


FIELDS = [
    pytest.param(model, name, field, id=f"{model.__name__}.{name}")
    for model in every_model()
    if model is not Accelerator  # it is read and written as text, and documented as such
    for name, field in model.model_fields.items()
]


def plain(field: FieldInfo) -> set[Any]:
    """Return the plain types of a field, without None."""
    is_union = get_origin(field.annotation) in {Union, types.UnionType}
    return (set(get_args(field.annotation)) if is_union else {field.annotation}) - {type(None)}


@pytest.mark.parametrize(("model", "name", "field"), FIELDS)
def test_every_field_says_what_it_is(model: type[Record], name: str, field: FieldInfo) -> None:
    """Title and description everywhere, bounds on numbers, units in titles, examples on numbers and texts."""
    assert field.title, f"{model.__name__}.{name} has no title"
    assert field.description, f"{model.__name__}.{name} has no description"
    shown = model.model_json_schema(mode="serialization")["properties"][field.alias or name]
    if plain(field) & {int, float}:
        bounds = re.findall("inimum|aximum", json.dumps(shown))
        assert bounds, f"{model.__name__}.{name} has no bound"
        assert field.examples, f"{model.__name__}.{name} has no example"
    if plain(field) == {str}:
        assert shown.get("examples") or "const" in shown or model is Transition, f"{model.__name__}.{name}: no example"
    for unit in ("minutes", "seconds", "usd", "bytes"):
        if unit in name.split("_") and plain(field) & {int, float}:
            assert unit in field.title.lower(), f"{model.__name__}.{name}: its title has no unit"


@pytest.mark.parametrize(("model", "name", "field"), FIELDS)
def test_every_example_is_valid(model: type[Record], name: str, field: FieldInfo) -> None:
    """What is shown as an example is accepted."""
    for example in field.examples or ():
        # The one field that is only valid beside another.
        beside = {"on_client_lost": "keep"} if name == "keep_minutes" else {}
        assert (field.alias or name) not in wrong_fields(model, {**beside, (field.alias or name): example})


def wrong_fields(model: type[Record], values: dict[str, Any]) -> set[Any]:
    """Return the fields that are refused; fields that belong together are not one of them."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return {problem["loc"][0] for problem in error.errors() if problem["loc"]}
    return set()
