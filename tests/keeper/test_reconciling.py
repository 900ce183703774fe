"""Rule: what is declared is what is served, nothing else is touched, and whatever can be refused is refused first.

What differs is decided by a pure function and tested as a table; that it comes true is tested on one real endpoint.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from keeper_harness import House
from rollout_asker import Asker, give_back, served, standing, versions

from mlinfra_prefect.errors import EndpointExists, EndpointNotReady, InvalidInput, MlinfraError, RolloutHeld
from mlinfra_prefect.lifecycle.differences import Action, Difference, Standing, compare, undeclared
from mlinfra_prefect.model.declaration import NEW_SERVERS, RECORDED, EndpointDeclaration, ServingDeclaration
from mlinfra_prefect.model.endpoint import RolloutRecord, Version
from mlinfra_prefect.model.request import ServingRequest
from mlinfra_prefect.testing.records import MOMENT, SHA256, sample_artifact, sample_endpoint

MODEL, OTHER = "a0f3c5d7e9b1a2c4d6e8f", "a1f3c5d7e9b1a2c4d6e8f"


def stands(
    *each: tuple[str, int], state: str = "ready", models: tuple[str, ...] = (), up: bool = True,
    servings: dict[int, dict[str, Any]] | None = None, **changes: Any,
) -> Standing:  # fmt: skip
    """An endpoint with versions of (state, share), their rollouts, and how each is served."""
    listed, rollouts = [], {}
    serving = ServingRequest(name="churn", retire_seconds=30, expires_minutes=changes.pop("expires_minutes", None))
    expires_at = MOMENT + timedelta(hours=8) if serving.expires_minutes else None
    endpoint = sample_endpoint(state=state, serving=serving, expires_at=expires_at, **changes)
    for number, (version_state, share) in enumerate(each, 1):
        artifact = sample_artifact(id=models[number - 1] if models else MODEL)
        listed.append(Version(
            version=number, share=share, state=version_state, sha256=SHA256, artifact=artifact, promoted_at=MOMENT,
            rollout=f"r0-{number}",
        ))  # fmt: skip
        rollouts[number] = RolloutRecord(
            id=f"r0-{number}", ledger_id=endpoint.ledger_id, name="churn", environment="dev", platform="local",
            owner=endpoint.owner, client=endpoint.client, created_at=MOMENT, renewed_until=MOMENT, endpoint=endpoint.id,
            version=number, artifact=artifact, ports=(9000 + number,), until=MOMENT, expires_at=expires_at,
            state="ready" if up and version_state not in {"retired", "rolled-back"} else "released",
            serving=serving.merged((servings or {}).get(number, {})),
        )  # fmt: skip
    return Standing(endpoint.revised(versions=tuple(listed)), rollouts)


def differ(there: Standing | None, *, prune: bool = False, **declared: Any) -> list[Difference]:
    declaration = ServingDeclaration(endpoints=(EndpointDeclaration(name="churn", **declared),))
    models = {name: sample_artifact(id=name) for name in (MODEL, OTHER)}
    found = {} if there is None else {(there.endpoint.environment, there.endpoint.name): there}
    return list(compare(declaration, found, models, where="endpoints.yaml", prune=prune))


ALONE = (("serving", 100),)
BACK = (("retiring", 0), ("serving", 100))
SPLIT = (("serving", 40), ("serving", 60))


@pytest.mark.parametrize(
    ("there", "declared", "changes"),
    [
        (stands(*ALONE), {}, []),
        (stands(*ALONE), {"replicas": 1, "retire_seconds": 30, "expires": "never", "shares": {1: 100}}, []),
        (stands(*ALONE), {"model": MODEL, "trusted_types": [], "ready_seconds": 120}, []),
        (stands(*ALONE), {"replicas": 3}, [("replicas", 1, 3, "rollout")]),
        (stands(*ALONE), {"predictor": "a.py:f"}, [("predictor", None, "a.py:f", "rollout")]),
        (stands(*ALONE), {"trusted_types": ["b", "a"]}, [("trusted_types", [], ["a", "b"], "rollout")]),
        (stands(*ALONE, servings={1: {"trusted_types": ("a", "b")}}), {"trusted_types": ["b", "a"]}, []),
        (stands(*ALONE), {"retire_seconds": 600}, [("retire_seconds", 30.0, 600.0, "set")]),
        (stands(*ALONE), {"ready_seconds": 60}, [("ready_seconds", 120.0, 60.0, "set")]),
        (stands(*ALONE), {"expires_minutes": 60}, [("expires_minutes", None, 60, "set")]),
        (stands(*ALONE, expires_minutes=480), {"expires_minutes": 480}, []),
        (stands(*ALONE, expires_minutes=480), {"expires": "never"},
         [("expires", "2026-01-31T20:00:00Z", "never", "set")]),
        (stands(*BACK), {"shares": {1: 10, 2: 90}}, [("shares", {"2": 100}, {"1": 10, "2": 90}, "share")]),
        (stands(*SPLIT), {"shares": {1: 40, 2: 60}, "replicas": 1}, []),
        (stands(*ALONE), {"model": OTHER}, [("model", MODEL, OTHER, "rollout")]),
        (stands(*ALONE), {"model": OTHER, "replicas": 2},
         [("model", MODEL, OTHER, "rollout"), ("replicas", 1, 2, "rollout")]),
        # What is up already needs no new servers: a commit that is taken back is a promotion.
        (stands(*BACK, models=(OTHER, MODEL)), {"model": OTHER}, [("model", MODEL, OTHER, "promote")]),
        (stands(*BACK, models=(OTHER, MODEL), up=False), {"model": OTHER}, [("model", MODEL, OTHER, "rollout")]),
        (stands(("retired", 0), ("serving", 100), models=(OTHER, MODEL)), {"model": OTHER},
         [("model", MODEL, OTHER, "rollout")]),
        (stands(*BACK, servings={2: {"replicas": 3}}), {"replicas": 1}, [("replicas", 3, 1, "promote")]),
        (stands(*BACK, servings={2: {"replicas": 3}, 1: {"predictor": "a.py:f"}}), {"replicas": 1},
         [("replicas", 3, 1, "rollout")]),
        (stands(*BACK, models=(OTHER, MODEL), servings={2: {"replicas": 3}}), {"model": OTHER},
         [("model", MODEL, OTHER, "rollout")]),
        (stands(*SPLIT), {"model": MODEL}, [("shares", {"1": 40, "2": 60}, {"2": 100}, "promote")]),
        (None, {"model": OTHER, "replicas": 2}, [("model", None, OTHER, "deploy")]),
        (stands(("serving", 90), ("canary", 10)), {"replicas": 1, "retire_seconds": 30}, []),
    ],
)  # fmt: skip
def test_the_difference_is_what_is_declared_and_is_not_so(
    there: Standing | None, declared: dict[str, Any], changes: list[tuple[Any, ...]]
) -> None:
    """A field that is absent is no difference; one that is there is one change with the least that brings it about."""
    found = [change for each in differ(there, **declared) for change in each.changes]
    assert [(each.field, each.before, each.after, each.action) for each in found] == changes


def test_a_new_size_leaves_everything_else_as_it_is_served() -> None:
    """New servers are asked for as the current ones were: of the same model, and no other field changes."""
    there = stands(*ALONE, servings={1: {"predictor": "a.py:f", "ready_seconds": 77, "port": 8123}})
    (found,) = differ(there, replicas=4)
    assert found.serving == ServingRequest(
        name="churn", replicas=4, predictor="a.py:f", ready_seconds=77, retire_seconds=30
    )
    assert found.artifact is not None
    assert (found.artifact.id, found.promote) == (MODEL, None)


def test_going_back_names_the_version_that_is_up() -> None:
    """Nothing is rolled out where a promotion does."""
    (found,) = differ(stands(*BACK, models=(OTHER, MODEL)), model=OTHER)
    assert (found.promote, found.artifact) == (1, None)
    assert [each.action for each in found.changes] == [Action.PROMOTE]


@pytest.mark.parametrize(
    ("there", "declared", "error", "said"),
    [
        (None, {"replicas": 2}, InvalidInput, "churn: there is no such endpoint in environment 'dev'"),
        (stands(*ALONE), {"shares": {9: 100}}, InvalidInput, "churn.shares: there is no version 9. There is: 1."),
        (stands(("retired", 0), ("serving", 100)), {"shares": {1: 100}}, InvalidInput, "version 1 is retired"),
        (stands(("rolled-back", 0), ("serving", 100)), {"shares": {1: 100}}, InvalidInput, "version 1 is rolled-back"),
        (stands(*BACK, up=False), {"shares": {1: 100}}, EndpointNotReady, "version 1 is not up"),
        (stands(*BACK), {"shares": {1: 100}, "replicas": 2}, InvalidInput, "version 1 has another replicas"),
        (stands(*SPLIT), {"replicas": 2}, InvalidInput, "churn.replicas: versions 1 and 2 share the requests"),
        (stands(("serving", 90), ("canary", 10)), {"replicas": 2}, RolloutHeld, "version 2 is being rolled out (r0-2)"),
        (stands(("serving", 100), ("deploying", 0)), {"retire_seconds": 5}, RolloutHeld, "version 2 is being rolled"),
        (stands(("deploying", 0)), {}, RolloutHeld, "its first version is being deployed"),
        (stands(*ALONE, state="provisioning"), {"replicas": 2}, EndpointNotReady, "being repaired"),
        (stands(*ALONE, state="releasing"), {}, EndpointExists, "being given back"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_field_that_asks_for_it(
    there: Standing | None, declared: dict[str, Any], error: type[MlinfraError], said: str
) -> None:
    """One sentence with file, endpoint and field."""
    with pytest.raises(error) as raised:
        differ(there, **declared)
    assert str(raised.value).startswith("endpoints.yaml: endpoints.churn")
    assert said in str(raised.value)


def test_only_undeclared_endpoints_of_declared_environments_are_pruned() -> None:
    """A file for prod says nothing about dev; without `prune` nothing goes at all."""
    served_now = stands(*ALONE).endpoint.versions
    stray, other, going = (
        Standing(sample_endpoint(name, environment=environment, state=state, versions=served_now), {})
        for name, environment, state in (("stray", "dev", "ready"), ("x", "prod", "ready"), ("y", "dev", "releasing"))
    )  # fmt: skip
    there = {(each.endpoint.environment, each.endpoint.name): each for each in (stands(*ALONE), stray, other, going)}
    declaration = ServingDeclaration(endpoints=(EndpointDeclaration(name="churn"),))
    assert undeclared(declaration, there) == (stray,)
    assert compare(declaration, there, {}, where="f") == ()
    (found,) = compare(declaration, there, {}, where="f", prune=True)
    assert [(each.endpoint, each.field, each.action) for each in found.changes] == [("stray", "endpoint", "release")]


def test_a_declaration_accepts_what_a_request_accepts() -> None:
    """Bounds and defaults are those of a serving request: whatever can be declared can be asked for, and reversed."""
    declared, asked = EndpointDeclaration.model_json_schema(), ServingRequest.model_json_schema()
    for name in (*NEW_SERVERS, *RECORDED, "expires_minutes"):
        (ours,) = [each for each in declared["properties"][name]["anyOf"] if each != {"type": "null"}]
        theirs = asked["properties"][name]
        (theirs,) = [each for each in theirs.get("anyOf", [theirs]) if each != {"type": "null"}]
        assert ours.items() <= theirs.items(), name


def test_what_is_declared_is_served_without_a_failed_request(house: House, digits: Path) -> None:
    """Size, shares, expiry, and back: each is applied once, the next look finds nothing, and no request fails."""
    first = standing(house, digits, retire_seconds=0)
    before = house.record(first["id"])["expires_at"]
    asker = Asker(house, house.record(first["id"])["url"])
    client = house.client(f"""
        from datetime import timedelta
        from mlinfra_prefect.keeper.reconciling import look, reconcile
        from mlinfra_prefect.ledger import revise
        from mlinfra_prefect.model.declaration import EndpointDeclaration, ServingDeclaration

        def apply(**fields):
            declared = ServingDeclaration(endpoints=(EndpointDeclaration(name="digits", **fields),))
            made = []
            found = look(context, declared, where="f")
            reconcile(context, found.differences, owner=Owner(user="t", host="h"), client=me(), done=made.extend)
            endpoint = context.endpoint("digits")
            say("applied", made=[[each.field, each.action] for each in made],
                again=len(look(context, declared, where="f").changes), artifact=endpoint.current.artifact.id,
                expires=endpoint.model_dump(mode="json")["expires_at"],
                states={{each.version: each.state for each in endpoint.versions}},
                served={{each.version: each.share for each in endpoint.versions if each.share}})

        apply(retire_seconds=600, replicas=2)
        apply(expires="never")
        soon = context.ledger.now() + timedelta(minutes=5)
        change = lambda rollout: rollout.revised(expires_at=soon)
        revise(context.ledger, {first["rollout"]!r}, change, actor="test", reason="it was deployed with another expiry")
        apply(shares={{1: 30, 2: 70}}, retire_seconds=600)
        say("divided")
        wait_for({str(house.handles / "go")!r})
        apply(shares={{2: 100}})
        apply(replicas=1, expires_minutes=30)
        say("over")
    """)
    client.hears("divided")
    house.until(lambda: house.record(first["rollout"])["due"] is None, "the keeper has followed up")
    # The version that serves again brings no expiry of its own with it.
    assert house.record(first["id"])["expires_at"] is None
    assert served(house, first["id"]) == {1: 30, 2: 70}
    (house.handles / "go").touch()
    client.hears("over")
    assert client.ends() == 0
    resized, recorded, divided, alone, back = [event for event in client.events if event["what"] == "applied"]
    assert all(each["again"] == 0 for each in (resized, recorded, divided, alone, back))
    # New servers of the same model; when the endpoint ends was not declared, so it is what it was.
    assert resized["made"] == [["retire_seconds", "set"], ["replicas", "rollout"]]
    assert (resized["expires"], resized["served"], resized["artifact"]) == (before, {"2": 100}, recorded["artifact"])
    assert len(house.record(first["id"])["versions"][1]["urls"]) == 2
    assert (recorded["made"], recorded["expires"]) == ([["expires", "set"]], None)
    assert (divided["made"], divided["served"]) == ([["shares", "share"]], {"1": 30, "2": 70})
    # The version without a share got its retirement lease; it is still up, so going back to its size is instant.
    assert (alone["made"], alone["served"]) == ([["shares", "share"]], {"2": 100})
    assert alone["states"] == {"1": "retiring", "2": "serving"}
    assert back["made"] == [["expires_minutes", "set"], ["replicas", "promote"]]
    assert back["served"] == {"1": 100}
    assert versions(house, first["id"]) == {1: ("serving", 100), 2: ("retiring", 0)}
    house.until(lambda: house.record(first["rollout"])["due"] is None, "the keeper has followed up")
    assert house.record(first["id"])["expires_at"] == house.record(first["rollout"])["expires_at"] == back["expires"]
    assert house.record(first["id"])["serving"]["expires_minutes"] == 30
    asker.all_answered()
    assert set(asker.versions) == {"1", "2"}
    give_back(house, first["id"])
