"""``ps`` and ``endpoints``: what there is, whose it is, and how long it may live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlinfra_prefect.cli.attention import replace_lost_keeper
from mlinfra_prefect.cli.entries import Entry, entry, served, who
from mlinfra_prefect.cli.outcome import DONE
from mlinfra_prefect.ledger.listing import rows
from mlinfra_prefect.model.home import Home

if TYPE_CHECKING:
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
    from mlinfra_prefect.cli.screen import left, plain, screen, state_text, table

    shown = table("NAME", "STATE", "URL", "VERSION", "SHARE", "EXPIRES IN", "OWNER")
    for row in found:
        kept = entry(row)
        for version in served(row)["versions"] or [{}]:
            shown.add_row(
                plain(kept["name"]), state_text(kept["state"]), plain(kept["url"]),
                plain(f"{version.get('version')} {version.get('state')}" if version else None),
                plain(f"{version.get('share')} %" if version else None),
                left(kept["expires_at"], never="never"), plain(who(kept["owner"])),
            )  # fmt: skip
    screen().print(shown)
    return DONE


def _show(entries: list[Entry]) -> None:
    from mlinfra_prefect.cli.screen import WIDE, age, left, plain, screen, state_text, table

    out = screen()
    wide = out.width >= WIDE
    heads = ("ID", "KIND", "STATE", "NAME", "ENDS IN", "OWNER")
    shown = table(*heads, *(("ENV", "WHAT", "AGE", "KEEPER") if wide else ()), fixed=("ID", "STATE", "ENDS IN"))
    for each in entries:
        ends = left(each["deadline"] or each["expires_at"], never="never" if each["kind"] == "endpoint" else "?")
        cells = [
            plain(each["id"]), plain(each["kind"]), state_text(each["state"]), plain(each["name"]),
            plain("") if each["state"] == "released" else ends, plain(who(each["owner"])),
        ]  # fmt: skip
        if wide:
            what = each["accelerator"] or each["url"]
            cells += [plain(each["environment"]), plain(what), age(each["created_at"]), _keeper(each)]
        shown.add_row(*cells)
    out.print(shown)
    for each in entries:
        if each["state"] == "stuck" or each["reason"].startswith("this record cannot be read"):
            out.print(f"{each['id']} {each['reason']}", style="red", markup=False, overflow="fold")
        elif not wide and each["url"] and each["state"] != "released":
            out.print(f"{each['name']} answers at {each['url']}", markup=False, overflow="fold")
    if any(each["state"] == "stuck" for each in entries):
        out.print("The keeper retries what is stuck for ever; `mlinfra-prefect show ID` tells what stands in its way.")


def _keeper(each: Entry) -> Text:
    from rich.text import Text

    keeper = each["keeper"]
    if each["state"] == "released" or (each["kind"] == "endpoint" and each["state"] == "ready"):
        return Text("")  # a ready endpoint is kept by its own grant, and what is released by nobody
    if keeper is None:
        return Text("none yet", style="dim")
    if keeper["alive"] is None:
        return Text(f"on {keeper['host']}", style="dim")
    return Text(f"pid {keeper['pid']}") if keeper["alive"] else Text("lost", style="bold red")


def _dump(value: object) -> None:
    import json

    print(json.dumps(value, indent=1))
