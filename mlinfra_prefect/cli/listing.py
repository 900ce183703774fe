"""``ps`` and ``endpoints``: what there is, whose it is, and how long it may live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlinfra_prefect.cli.attention import replace_lost_keeper
from mlinfra_prefect.cli.entries import Entry, entry, served, who
from mlinfra_prefect.cli.outcome import DONE
from mlinfra_prefect.ledger.listing import rows
from mlinfra_prefect.model.home import Home

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def ps(*, everything: bool = False, as_json: bool = False) -> int:
    """List leases that are not released, and endpoints with their owners."""
    home = Home.from_environment()
    replace_lost_keeper(home)
    entries = [entry(row) for row in rows(home.ledger, everything=everything)]
    if as_json:
        _dump(entries)
        return DONE
    if not entries:
        print(f"Nothing is leased and nothing is served in {home.root}.")
        return DONE
    _show(entries)
    return DONE


def endpoints(*, everything: bool = False, as_json: bool = False) -> int:
    """List the endpoints with their versions."""
    home = Home.from_environment()
    replace_lost_keeper(home)
    found = [row for row in rows(home.ledger, everything=everything) if row.kind == "endpoint"]
    if as_json:
        _dump([served(row) for row in found])
        return DONE
    if not found:
        print(f"Nothing is served in {home.root}.")
        return DONE
    from mlinfra_prefect.cli.screen import cell, left, screen, state_text, table

    shown = table("NAME", "STATE", "URL", "VERSION", "SHARE", "EXPIRES IN", "OWNER", whole=("NAME", "URL", "STATE"))
    for row in found:
        kept = entry(row)
        for version in served(row)["versions"] or [{}]:
            shown.add_row(
                cell(kept["name"]), state_text(kept["state"]), cell(kept["url"]),
                cell(f"{version.get('version')} {version.get('state')}" if version else None),
                cell(f"{version.get('share')} %" if version else None),
                left(kept["expires_at"], never="never"), cell(who(kept["owner"])),
            )  # fmt: skip
    screen().print(shown)
    return DONE


def _show(entries: list[Entry]) -> None:
    from mlinfra_prefect.cli.screen import WIDE, screen

    out = screen()
    wide = out.width >= WIDE
    for kind, more in (("lease", ("ENV", "ON", "AGE", "KEEPER")), ("endpoint", ("ENV", "URL", "AGE"))):
        listed = [each for each in entries if each["kind"] == kind]
        if listed:
            out.print(_table(kind, listed, more if wide else ()))
    for each in entries:
        if each["state"] == "stuck" or each["unreadable"]:
            out.print(f"{each['id']} {each['reason']}", style="red", markup=False)
        elif not wide and each["url"] and each["state"] != "released":
            out.print(f"{each['name']} answers at {each['url']}", markup=False)
    if any(each["state"] == "stuck" for each in entries):
        out.print("What is stuck is retried for ever; `mlinfra-prefect show ID` tells what stands in its way.")


def _table(kind: str, listed: list[Entry], more: tuple[str, ...]) -> Table:
    from mlinfra_prefect.cli.screen import age, cell, left, state_text, table

    shown = table(kind.upper(), "STATE", "ENDS IN", "NAME", "OWNER", *more, whole=(kind.upper(), "STATE", "ENDS IN"))
    for each in listed:
        ends = left(each["deadline"] or each["expires_at"], never="never" if kind == "endpoint" else "")
        known = {
            "ENV": cell(each["environment"]), "ON": cell(each["accelerator"]), "URL": cell(each["url"]),
            "AGE": age(each["created_at"]), "KEEPER": _keeper(each),
        }  # fmt: skip
        shown.add_row(
            cell(each["id"]), state_text(each["state"]), cell("") if each["state"] == "released" else ends,
            cell(each["name"]), cell(who(each["owner"], run=bool(more))), *(known[name] for name in more),
        )  # fmt: skip
    return shown


def _keeper(each: Entry) -> Text:
    from rich.text import Text

    keeper = each["keeper"]
    if each["state"] == "released":
        return Text("")
    if keeper is None:
        return Text("none yet", style="dim")
    if keeper["alive"] is None:
        return Text(f"on {keeper['host']}", style="dim")
    return Text(f"pid {keeper['pid']}") if keeper["alive"] else Text("lost", style="bold red")


def _dump(value: object) -> None:
    import json

    print(json.dumps(value, indent=1))
