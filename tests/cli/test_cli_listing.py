"""Listings: what stands in them, how they look, and what they cost."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.cli.entries import Entry
from mlinfra_prefect.model.lease import State

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
LONG = "3 release passes failed: attempt 1: the destroy failed because the resource is protected " * 3


def as_on_a_terminal(cli: Any, *words: str, **env: str) -> str:
    """Run a verb with its output on a terminal, and return what it wrote there."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        cli.argv(*words), stdout=theirs, stderr=subprocess.PIPE, env=cli.environment(TERM="xterm", **env)
    ):
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 65536):
                said += chunk
        except OSError:
            pass  # Linux says EIO where the other end is closed
        os.close(ours)
    return said.decode()


def test_ps_lists_what_is_not_released_under_the_documented_keys(cli, write):
    """`ps --json` is a list of leases not yet released and of endpoints, with stable keys; `--all` lists every one."""
    lease = write("lease", "training")
    stuck = write("lease", "broken", State.STUCK)
    endpoint = write("endpoint", "churn")
    gone = write("lease", "gone", State.RELEASED)
    listed = json.loads(cli("ps", "--json").stdout)
    assert [each["id"] for each in listed] == [lease, stuck, endpoint]
    assert all(set(each) == set(Entry.__annotations__) for each in listed)
    by_id = {each["id"]: each for each in listed}
    assert by_id[lease] | {"owner": None} == by_id[lease] | {"owner": None, "kind": "lease", "state": "ready",
        "platform": "local", "environment": "dev", "name": "training", "accelerator": "cpu", "expires_at": None,
        "deadline": "2026-01-31T13:00:00.123456Z", "generation": 1, "url": None}  # fmt: skip
    assert by_id[lease]["owner"]["user"] == "ada"
    assert by_id[stuck]["state"] == "stuck"
    assert by_id[stuck]["reason"] == "it is stuck"
    assert (by_id[endpoint]["kind"], by_id[endpoint]["url"]) == ("endpoint", "http://127.0.0.1:8123")
    assert gone in [each["id"] for each in json.loads(cli("ps", "--json", "--all").stdout)]


def test_the_keys_of_ps_are_documented():
    """Who reads docs/cli.md knows every key of a listing."""
    text = DOCS.read_text()
    section = text[text.index("### `ps --json`") : text.index("### `show ID --json`")]
    assert [key for key in Entry.__annotations__ if f"`{key}`" not in section] == []


def test_endpoints_lists_versions_with_their_shares(cli, write):
    """`endpoints --json` is a list of {name, url, versions: [{version, share, state, sha256}]} and who owns each."""
    write("lease", "training")
    write("endpoint", "churn")
    (found,) = json.loads(cli("endpoints", "--json").stdout)
    assert (found["name"], found["url"], found["owner"]["user"]) == ("churn", "http://127.0.0.1:8123", "ada")
    (version,) = found["versions"]
    assert set(version) == {"version", "share", "state", "sha256"}
    assert (version["version"], version["share"]) == (1, 100)


def test_looking_creates_nothing(cli):
    """A listing of a home that is not there is empty and leaves no home behind."""
    assert json.loads(cli("ps", "--json").stdout) == []
    assert "Nothing" in cli("ps").stdout
    assert json.loads(cli("endpoints", "--json").stdout) == []
    assert not cli.home.root.exists()


def test_one_unreadable_record_never_hides_the_others(cli, write):
    """A damaged record stands in the listing with its state and why it cannot be read."""
    good, bad, newer = write("lease", "good"), write("lease", "bad"), write("lease", "newer")
    with sqlite3.connect(cli.home.ledger) as db:
        db.execute("UPDATE records SET json = substr(json, 1, 40) WHERE id = ?", (bad,))
        db.execute("UPDATE records SET schema = 99 WHERE id = ?", (newer,))
    found = {each["id"]: each for each in json.loads(cli("ps", "--json").stdout)}
    assert [found[each]["unreadable"] for each in (good, bad, newer)] == [False, True, True]
    assert (found[bad]["kind"], found[bad]["state"]) == ("lease", "ready")
    assert "damaged" in found[bad]["reason"]
    assert "newer version" in found[newer]["reason"]
    assert bad in cli("ps").stdout


@pytest.mark.parametrize("columns", [80, 200])
def test_tables_keep_to_the_width_of_the_screen(cli, write, columns):
    """At 80 and at 200 columns no line is longer than the screen, no id is cut, and owners are told."""
    ids = [write("lease", "a-rather-long-name-of-a-lease-that-trains"), write("endpoint", "churn")]
    stuck = write("lease", "broken", State.STUCK)
    for verb in (("ps",), ("ps", "--all"), ("endpoints",), ("show", stuck), ("doctor",), ("--help",), ("up", "--help")):
        lines = cli(*verb, COLUMNS=str(columns)).stdout.splitlines()
        assert max(map(len, lines)) <= columns, verb
    listed = cli("ps", COLUMNS=str(columns)).stdout
    assert all(each in listed for each in (*ids, stuck))
    assert "ada@laptop" in listed
    assert f"{stuck} it is stuck" in listed
    assert "http://127.0.0.1:8123" in listed
    assert ("nimble-fox" in listed) == (columns == 200)


def test_long_reasons_are_told_whole(cli, write):
    """Why something is stuck is never cut: it goes on in the next line."""
    write("lease", "broken", State.STUCK)
    with sqlite3.connect(cli.home.ledger) as db:
        db.execute("UPDATE records SET json = json_set(json, '$.reason', ?)", (LONG.strip(),))
    said = " ".join(cli("ps", COLUMNS="80").stdout.split())
    assert LONG.strip() in said


def test_what_is_stuck_is_red_on_a_terminal_only(cli, write):
    """Colour is for terminals: none in a pipe, none with NO_COLOR."""
    write("lease", "broken", State.STUCK)
    assert "\x1b[1;31mstuck" in as_on_a_terminal(cli, "ps")
    assert "\x1b" not in cli("ps").stdout
    assert "\x1b[1;31m" not in as_on_a_terminal(cli, "ps", NO_COLOR="1")


def test_names_cannot_paint_the_terminal(cli, write):
    """What others wrote is shown as text: no escape sequence and no markup of it reaches the terminal."""
    write("lease", "training")
    with sqlite3.connect(cli.home.ledger) as db:
        db.execute("UPDATE records SET json = json_set(json, '$.name', ?)", ("\x1b[2J[red]x[/red]",))
    said = as_on_a_terminal(cli, "ps", COLUMNS="200")
    assert "\x1b[2J" not in said
    assert "[red]x[/red]" in said


@pytest.mark.parametrize(
    "words", [["ps"], ["ps", "--json"], ["ps", "--all"], ["endpoints"], ["--help"], ["up", "--help"]]
)
def test_looking_loads_neither_prefect_nor_a_cloud_sdk(cli, write, words):
    """Listings and help load no Prefect, no cloud SDK and no models."""
    write("lease", "training")
    write("endpoint", "churn")
    code = (
        "import sys\nfrom mlinfra_prefect.__main__ import main\n"
        f"code = main({words!r})\nheavy = {{'prefect', 'boto3', 'botocore', 'kubernetes', 'pydantic', 'psutil'}}\n"
        "print(sorted(heavy & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=cli.environment()
    )
    assert done.stderr.strip() == "[] 0"


def test_ps_costs_at_most_ten_bare_interpreters(cli, write):
    """`ps` takes at most ten times as long as `python -c pass`, measured side by side."""
    for number in range(20):
        write("lease", f"lease-{number}")

    def quickest(argv: list[str]) -> float:
        found = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(argv, env=cli.environment(), stdout=subprocess.DEVNULL, check=True)
            found.append(time.perf_counter() - began)
        return min(found)

    bare = quickest([sys.executable, "-c", "pass"])
    assert quickest(cli.argv("ps", "--json")) <= 10 * bare
    assert quickest(cli.argv("ps")) <= 10 * bare
