"""Rule: the reaper takes over what nobody keeps, leaves alone what somebody does, and says which is which."""

from __future__ import annotations

import os
import signal
import time

from keeper_harness import House


def test_a_healthy_live_lease_is_skipped_and_untouched(house: House) -> None:
    """Nothing reapable: everything is in `skipped`, and not a line is added to the lease's history."""
    client = house.client("record = ready(); wait_for('go'); give_back(record)")
    lease = client.hears("ready")["id"]
    before = house.history(lease)
    assert house.reap() == {"released": {}, "stuck": {}, "skipped": {lease: "a live keeper has it on its desk"}}
    assert house.history(lease) == before
    (house.handles / "go").touch()
    assert client.ends() == 0
    assert house.reap() == {"released": {}, "stuck": {}, "skipped": {}}


def test_two_reapers_at_once_do_it_once(house: House) -> None:
    """The ledger decides: one takeover, one release, and both tell the same."""
    client = house.client("first = ready('a'); second = ready('b'); time.sleep(600)")
    client.hears("ready")
    house.until(lambda: len([e for e in client.events if e["what"] == "ready"]) == 2, "both are ready")
    leases = [event["id"] for event in client.events if event["what"] == "ready"]
    os.kill(client.process.pid, signal.SIGSTOP)
    house.kill_keeper(operations=True)
    client.kill()
    body = """
        from mlinfra_prefect.keeper.reap import as_json, reap
        say("here")
        wait_for("go")
        say("reaped", **as_json(reap(context)))
    """
    reapers = [house.client(body), house.client(body)]
    for reaper in reapers:
        reaper.hears("here")
    (house.handles / "go").touch()
    told = [reaper.hears("reaped") for reaper in reapers]
    for lease in leases:
        assert any(lease in [each["id"] for each in one["released"]] for one in told)
        assert house.record(lease)["generation"] == 2
        assert [line["state"] for line in house.history(lease)].count("released") == 1
    assert all(one["stuck"] == [] for one in told)


def test_a_record_whose_card_was_lost_and_one_that_was_never_laid(house: House) -> None:
    """The ledger is the truth: what stands in it is found without any card."""
    client = house.client("""
        leasing.ask(context, TrainingRequest(max_minutes=5), key=leasing.Key("r", "n", "never"),
                    owner=Owner(user="u", host="h"), client=me())
        record = ready(client=nobody())
        say("both", ids=[seen.record.id for seen in context.ledger.records()])
    """)
    never, ready = client.hears("both")["ids"]
    assert client.ends() == 0
    house.kill_keeper(operations=True)
    for card in house.home.glob("keeper/cards/*.json"):
        card.unlink()
    found = house.reap()
    assert list(found["released"]) == [never]
    assert list(found["skipped"]) == [ready]  # under its new keeper, whether this pass or that keeper was faster
    assert house.record(never)["receipt"]["created"] == []
    house.runs(f"give_back(context.lease({ready!r}))")


def test_every_start_of_a_lease_looks_after_the_others(house: House) -> None:
    """A pass of the reaper in the background: an orphan of yesterday goes when somebody takes a lease today."""
    orphan = house.runs("""
        record = leasing.ask(context, TrainingRequest(max_minutes=5), key=leasing.Key("r", "n", "orphan"),
                             owner=Owner(user="u", host="h"), client=me()).record
        say("orphan", id=record.id)
    """).hears("orphan")["id"]  # fmt: skip
    assert house.record(orphan)["state"] == "requested"
    house.runs("give_back(ready())")
    house.becomes(orphan, "released")


def test_an_unreadable_record_is_stuck_and_stops_nobody(house: House) -> None:
    """It is told, never touched, and the others go (R9)."""
    import sqlite3
    from contextlib import closing

    client = house.client("a = ready('a', client=nobody()); b = ready('b', client=nobody())")
    assert client.ends() == 0
    bad, good = [event["id"] for event in client.events if event["what"] == "ready"]
    with closing(sqlite3.connect(house.home / "ledger.sqlite")) as db, db:
        text = db.execute("SELECT json FROM records WHERE id = ?", (bad,)).fetchone()[0]
        db.execute("UPDATE records SET json = '{' WHERE id = ?", (bad,))
    house.kill_keeper(operations=True)
    found = house.reap()
    assert list(found["stuck"]) == [bad]
    assert list(found["skipped"]) == [good]
    with closing(sqlite3.connect(house.home / "ledger.sqlite")) as db, db:
        db.execute("UPDATE records SET json = ? WHERE id = ?", (text, bad))
    for record_id in (bad, good):
        house.runs(f"give_back(context.lease({record_id!r}))")


def test_a_release_that_lost_everybody_is_finished(house: House) -> None:
    """A record that is releasing and has neither client nor keeper is taken over and done."""
    house.hold("destroy")
    client = house.client("give_back(ready())")
    lease = client.hears("ready")["id"]
    house.held("destroy")
    os.kill(client.process.pid, signal.SIGSTOP)
    house.kill_keeper(operations=True)
    client.kill()
    house.let("destroy")
    house.until(lambda: not house.processes("terraform", lease=lease), "Terraform has ended")
    began = time.monotonic()
    assert house.reap()["released"] == {lease: "done"}
    assert time.monotonic() - began < 20
