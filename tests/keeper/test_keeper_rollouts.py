"""Rule: a rollout is written ahead and keeper-owned: killed before its promotion it is rolled back, after it finished.

And whatever happens to it, the endpoint never stops answering: a client asks it all the time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keeper_harness import House
from rollout_asker import ROW, Asker, give_back, served, standing, versions


@pytest.fixture
def ask(house: House) -> Iterator[Any]:
    made: list[Asker] = []

    def start(url: str, **options: Any) -> Asker:
        made.append(Asker(house, url, **options))
        return made[-1]

    yield start
    for asker in made:
        asker.close()


def test_a_second_model_takes_over_without_a_failed_request_and_the_first_is_retired(
    house: House, digits: Path, contrary: Path, ask: Any
) -> None:
    """The URL stays, the shares rise, the old version's servers are gone with a receipt of their own."""
    first = standing(house, digits)
    endpoint = house.record(first["id"])
    asker = ask(endpoint["url"])
    client = house.client(f"""
        deploy(model({str(contrary)!r}), canary=[20, 60, 100], probe={{"min_requests": 10}})
    """)
    second = client.hears("deployed", version=2)
    assert client.ends() == 0
    assert served(house, first["id"]) == {2: 100}
    old = house.becomes(first["rollout"], "released")
    asker.all_answered()
    assert set(asker.versions) == {"1", "2"}
    assert versions(house, first["id"]) == {1: ("retired", 0), 2: ("serving", 100)}
    assert house.record(first["id"])["url"] == endpoint["url"]
    assert old["receipt"]["destroyed"] == ["1/terraform_data.server"]
    assert "version 2 came" in old["receipt"]["reason"]
    steps = house.record(second["rollout"])["steps"]
    assert [(step["share"], step["ok"]) for step in steps] == [(0, True), (20, True), (60, True)]
    assert all(step["requests"] >= 10 for step in steps[1:])
    receipt = give_back(house, first["id"])
    both = ["version 2: 1/terraform_data.server", "router: 1/terraform_data.server"]
    assert receipt["created"] == receipt["destroyed"] == both
    assert house.record(second["rollout"])["state"] == "released"


def test_a_canary_that_disagrees_is_rolled_back_and_the_current_version_is_untouched(
    house: House, digits: Path, contrary: Path, ask: Any
) -> None:
    """Its client gets ProbeFailed with what was found; no request ever went to it."""
    first = standing(house, digits)
    asker = ask(house.record(first["id"])["url"])
    client = house.runs(f"""
        from mlinfra_prefect.errors import ProbeFailed
        try:
            deploy(model({str(contrary)!r}), canary=[50], probe={{"samples": [{ROW}], "min_agreement": 1.0}})
        except ProbeFailed as error:
            say("failed", text=str(error))
    """)
    text = client.hears("failed")["text"]
    assert "0 of 1 samples" in text
    rollout = client.hears("deploying")["rollout"]
    assert house.becomes(rollout, "released")["error"] == "ProbeFailed"
    asker.all_answered()
    assert set(asker.versions) == {"1"}
    state = house.record(first["id"])["versions"][1]
    assert (state["state"], state["share"]) == ("rolled-back", 0)
    assert "0 of 1 samples" in state["reason"]
    give_back(house, first["id"])


def test_a_client_killed_while_its_canary_serves_is_rolled_back_without_a_failed_request(
    house: House, digits: Path, contrary: Path, ask: Any
) -> None:
    """Before the promotion a rollout goes with its client; requests go back to the current version."""
    first = standing(house, digits)
    asker = ask(house.record(first["id"])["url"])
    client = house.client(f"deploy(model({str(contrary)!r}), canary=[50], promote=False); wait_for('never')")
    held = client.hears("deployed")
    assert served(house, first["id"]) == {1: 50, 2: 50}
    again = house.runs(f"""
        from mlinfra_prefect.errors import RolloutHeld
        try:
            deploy(model({str(contrary)!r}))
        except RolloutHeld as error:
            say("refused", text=str(error))
    """)
    assert "version 2" in again.hears("refused")["text"]
    client.kill()
    record = house.becomes(held["rollout"], "released")
    assert "client was lost" in record["receipt"]["reason"]
    asker.all_answered()
    assert set(asker.versions) == {"1", "2"}
    assert served(house, first["id"]) == {1: 100}
    assert versions(house, first["id"]) == {1: ("serving", 100), 2: ("rolled-back", 0)}
    give_back(house, first["id"])


def test_a_keeper_killed_during_a_canary_is_replaced_and_the_rollout_goes_on(
    house: House, digits: Path, contrary: Path, ask: Any
) -> None:
    """Watcher and operation are SIGKILLed: the client starts another, which reads how far it was."""
    first = standing(house, digits)
    asker = ask(house.record(first["id"])["url"])
    client = house.client(f"deploy(model({str(contrary)!r}), canary=[50], probe={{'seconds': 3.0}})")
    rollout = client.hears("deploying")["rollout"]
    house.until(lambda: len(house.record(rollout)["steps"]) == 2, "the canary has its share")
    house.kill_keeper(operations=True)
    assert client.hears("deployed")["version"] == 2
    assert client.ends() == 0
    house.becomes(first["rollout"], "released")
    asker.all_answered()
    assert versions(house, first["id"]) == {1: ("retired", 0), 2: ("serving", 100)}
    assert house.record(rollout)["generation"] == 2
    give_back(house, first["id"])


def test_killed_right_after_the_promotion_the_rest_is_finished_by_the_reaper(
    house: House, digits: Path, contrary: Path, ask: Any
) -> None:
    """The compare-and-swap is the promotion: routes and retirement follow, though nobody who did it lives."""
    first = standing(house, digits)
    asker = ask(house.record(first["id"])["url"])
    client = house.client(f"""
        from mlinfra_prefect.lifecycle import versions
        deploy(model({str(contrary)!r}), canary=[50], promote=False)
        say("held")
        wait_for({str(house.handles / "go")!r})
        versions.promote(context, {first["id"]!r}, 2)
        die()
    """)
    client.hears("held")
    house.kill_keeper(operations=True)
    (house.handles / "go").touch()
    client.ends()
    house.kill_keeper(operations=True) if house.processes("watch.py") else None
    assert versions(house, first["id"])[2] == ("serving", 100)
    house.reap()
    house.becomes(first["rollout"], "released")
    house.until(lambda: served(house, first["id"]) == {2: 100}, "the routes have followed")
    asker.all_answered()
    give_back(house, first["id"])


def test_a_rollback_is_instant_while_the_retirement_lease_lasts_and_a_redeployment_later(
    house: House, digits: Path, contrary: Path, ask: Any
) -> None:
    """The version before serves again; what was promoted retires in its turn."""
    first = standing(house, digits, retire_seconds=600)
    house.runs(f"deploy(model({str(contrary)!r}), retire_seconds=600)")
    asker = ask(house.record(first["id"])["url"])
    assert versions(house, first["id"]) == {1: ("retiring", 0), 2: ("serving", 100)}
    verbs = """
        from mlinfra_prefect.keeper.rollouts import retire, roll_back
        def back(name="digits"):
            owner = Owner(user="t", host="h")
            found = roll_back(context, context.endpoint(name), reason="tested", owner=owner, client=me())
            if found.asked is not None:
                rollouts.wait_rolled(context, found.asked.rollout)
            say("back", to=found.to_version, deployed=found.asked is not None)
    """
    told = house.runs(f"{verbs}\n        back()").hears("back")
    assert told["to"] == 1
    assert told["deployed"] is False
    assert served(house, first["id"]) == {1: 100}
    assert versions(house, first["id"]) == {1: ("serving", 100), 2: ("retiring", 0)}
    house.runs(f"{verbs}\n        retire(context, context.endpoint('digits'), 2, reason='tested')")
    house.until(lambda: versions(house, first["id"])[2] == ("retired", 0), "version 2 is gone")
    told = house.runs(f"{verbs}\n        back()").hears("back")
    assert told["deployed"] is True
    assert versions(house, first["id"])[3] == ("serving", 100)
    asker.all_answered()
    assert house.record(first["id"])["versions"][2]["sha256"] == house.record(first["id"])["versions"][1]["sha256"]
    give_back(house, first["id"])


def test_a_router_that_is_killed_loses_no_request(house: House, digits: Path, ask: Any) -> None:
    """The agent holds the socket and starts the router again: whoever asks meanwhile waits."""
    first = standing(house, digits, expires_minutes=None)
    asker = ask(house.record(first["id"])["url"], threads=1)
    for _ in range(2):
        (router,) = house.processes("router.py")
        asker.close()  # a request that the router itself holds goes with it; none that comes after may
        os.kill(router.pid, signal.SIGKILL)
        asker = ask(house.record(first["id"])["url"], threads=2)
        house.until(lambda dead=router.pid: [p for p in house.processes("router.py") if p.pid != dead], "it is back")
        house.until(lambda now=asker: now.asked >= 10, "it answers")
    asker.all_answered(10)
    give_back(house, first["id"])


def test_a_replica_that_is_killed_fails_no_request_and_comes_back(house: House, digits: Path, ask: Any) -> None:
    """The router goes to the other replica, the agent starts the dead one again."""
    first = standing(house, digits, replicas=2)
    asker = ask(house.record(first["id"])["url"])
    servers = house.processes("server.py")
    assert len(servers) == 2
    os.kill(servers[0].pid, signal.SIGKILL)
    house.until(lambda: {p.pid for p in house.processes("server.py")} != {servers[1].pid}, "it is started again")
    house.until(lambda: asker.asked > 50, "requests go on")
    asker.all_answered()
    give_back(house, first["id"])


def test_what_is_down_is_repaired_on_the_same_url(house: House, digits: Path) -> None:
    """Agents, router and server killed: the reaper leaves it, `endpoints --repair` brings it back."""
    first = standing(house, digits, expires_minutes=None)
    house.until(lambda: not house.processes("watch.py"), "the keeper has gone home")
    for seen in house.processes():
        os.kill(seen.pid, signal.SIGKILL)
    house.until(lambda: not house.processes(), "all is dead")
    skipped = house.reap()["skipped"]
    assert {"endpoints --repair" in why for why in skipped.values()} == {True}
    assert set(skipped) == {first["id"], first["rollout"]}
    repaired = house.runs("say('repaired', found=rollouts.repair(context))").hears("repaired")["found"]
    assert repaired == {first["id"]: "brought back", first["rollout"]: "brought back"}, house.words()
    asker = Asker(house, house.record(first["id"])["url"])
    time.sleep(0.5)
    asker.all_answered(5)
    assert [each["number"] for each in house.record(first["rollout"])["attempts"]] == [1, 2]
    give_back(house, first["id"])
