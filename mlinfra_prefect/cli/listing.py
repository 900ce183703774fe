"""``ps`` and ``endpoints``: what there is, whose it is, and how long it may live."""

from __future__ import annotations

from typing import Any

from mlinfra_prefect.cli.attention import replace_lost_keeper
from mlinfra_prefect.cli.columns import Cell, Table, cell
from mlinfra_prefect.cli.entries import Entry, entry, served, who
from mlinfra_prefect.cli.looking import looked, where
from mlinfra_prefect.cli.outcome import DONE
from mlinfra_prefect.cli.screen import WIDE, age, left, screen, state_cell
from mlinfra_prefect.model.home import Home

GONE = frozenset({"retired", "rolled-back"})


def ps(*, everything: bool = False, as_json: bool = False) -> int:
    """List leases that are not released, and endpoints with their owners."""
    home = Home.from_environment()
    replace_lost_keeper(home)
    entries = [entry(row) for row in looked(home, everything=everything)]
    if as_json:
        _dump(entries)
        return DONE
    if not entries:
        print(f"Nothing is leased and nothing is served in {where(home)}.")
        return DONE
    _show(entries)
    return DONE


def endpoints(*, everything: bool = False, as_json: bool = False) -> int:
    """List the endpoints with their versions."""
    home = Home.from_environment()
    replace_lost_keeper(home)
    found = [row for row in looked(home, everything=everything) if row.kind == "endpoint"]
    if as_json:
        _dump([served(row) for row in found])
        return DONE
    if not found:
        print(f"Nothing is served in {where(home)}.")
        return DONE
    out = screen()
    more = ("URL", "EXPIRES IN", "OWNER") if out.width >= WIDE else ()
    shown = Table(("NAME", "STATE", "VERSION", "SHARE", *more), whole=("STATE", "VERSION", "SHARE", "URL"))
    for row in found:
        kept = entry(row)
        known = {
            "URL": cell(kept["url"]), "EXPIRES IN": left(kept["expires_at"], never="never"),
            "OWNER": cell(who(kept["owner"])),
        }  # fmt: skip
        listed = [each for each in served(row)["versions"] if everything or each["state"] not in GONE]
        for version in listed or [{}]:
            shown.add(
                cell(kept["name"]), state_cell(kept["state"]),
                cell(f"{version.get('version')} {version.get('state')}" if version else None), _share(version),
                *(known[name] for name in more),
            )  # fmt: skip
    out.print(shown)
    kept_entries = [entry(row) for row in found]
    addresses = [*([] if more else _addresses(kept_entries)), *_unauthenticated(kept_entries)]
    if addresses:
        out.print()
    for line in addresses:
        out.print(line)
    return DONE


def _share(version: dict[str, Any]) -> Cell:
    now, declared = version.get("share"), version.get("declared_share")
    if not version or declared is None:
        return cell(None)
    if now == declared:
        return cell(f"{now} %")
    return cell("none" if now is None else f"{now} % (not {declared} %)", "red")


def _show(entries: list[Entry]) -> None:
    out = screen()
    wide = out.width >= WIDE
    blocks: list[list[Table | Cell]] = []
    for kind, more in (
        ("lease", ("ENV", "ON", "AGE", "USD", "KEEPER")),
        ("endpoint", ("ENV", "URL", "AGE")),
        ("rollout", ("ENV", "AGE")),
    ):  # fmt: skip
        listed = [each for each in entries if each["kind"] == kind]
        if listed:
            blocks.append([_table(kind, listed, more if wide else ())])
    blocks.append([*_notes(entries, wide=wide)])
    for number, block in enumerate(filter(None, blocks)):
        for what in (*([""] if number else []), *block):
            out.print(what)


def _notes(entries: list[Entry], *, wide: bool) -> list[Cell]:
    """What must be told and has no room in the tables."""
    notes = []
    for each in entries:
        if each["state"] == "stuck" or each["unreadable"]:
            notes.append(cell(f"{each['id']} {each['reason']}", "red"))
        elif each["state"] == "provisioning" and each["reason"]:
            notes.append(cell(f"{each['id']} {each['reason']}", "yellow"))
        elif each["up"] is False:
            if each["kind"] == "lease":
                told = "its node is gone; `mlinfra-prefect reap` gives the rest back"
            else:
                told = "it is down; `mlinfra-prefect endpoints --repair` brings it back"
            notes.append(cell(f"{each['id']} {told}", "red"))
        elif each["keep_until"] and each["state"] == "ready":
            until = each["keep_until"][11:19]
            notes.append(cell(f"{each['id']} its client is gone; kept until {until} UTC, and counted", "yellow"))
        elif not wide:
            notes += _addresses([each])
    notes += _unauthenticated(entries)
    if any(each["state"] == "stuck" for each in entries):
        notes.append(cell("What is stuck is retried for ever; `mlinfra-prefect show ID` tells what stands in its way."))
    return notes


def _addresses(entries: list[Entry]) -> list[Cell]:
    """Where endpoints answer, for screens too narrow to have it in a table."""
    return [
        cell(f"{each['name']} answers at {each['url']}")
        for each in entries
        if each["url"] and each["state"] != "released"
    ]


def _unauthenticated(entries: list[Entry]) -> list[Cell]:
    """Which endpoints ask for no token: that is to be seen by whoever lists them."""
    return [
        cell(f"{each['name']} is unauthenticated: whatever runs on this machine may ask it (auth='none')", "yellow")
        for each in entries
        if each["auth"] == "none" and each["state"] != "released"
    ]


def _table(kind: str, listed: list[Entry], more: tuple[str, ...]) -> Table:
    # A rollout ends when its version is retired or its endpoint ends; which version it is tells more.
    heads = (kind.upper(), "STATE", "VERSION" if kind == "rollout" else "ENDS IN")
    shown = Table((*heads, "NAME", "OWNER", *more), whole=heads)
    for each in listed:
        third = cell(each["version"])
        if kind != "rollout":
            ends = left(
                each["keep_until"] or each["deadline"] or each["expires_at"],
                never="never" if kind == "endpoint" else "",
            )
            third = cell("") if each["state"] == "released" else ends
        known = {
            "ENV": cell(each["environment"]), "ON": cell(each["accelerator"]), "URL": cell(each["url"]),
            "AGE": age(each["created_at"]), "KEEPER": _keeper(each), "USD": cell(f"{each['cost_usd'] or 0.0:.2f}"),
        }  # fmt: skip
        shown.add(
            cell(each["id"]), state_cell(each["state"]), third,
            cell(each["name"]), cell(who(each["owner"], run=bool(more))), *(known[name] for name in more),
        )  # fmt: skip
    return shown


def _keeper(each: Entry) -> Cell:
    keeper = each["keeper"]
    if each["state"] == "released":
        return cell("")
    if keeper is None:
        return cell("none yet", "dim")
    if keeper["alive"] is None:
        return cell(f"on {keeper['host']}", "dim")
    return cell(f"pid {keeper['pid']}") if keeper["alive"] else cell("lost", "bold red")


def _dump(value: object) -> None:
    import json

    print(json.dumps(value, indent=1))
