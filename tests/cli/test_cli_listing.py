"""Listings: what stands in them, how they look, and what they cost."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.cli.entries import Entry
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.testing.records import sample_attempt, sample_endpoint, sample_rollout

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
    """`ps --json` lists leases, endpoints and rollouts not yet released, with stable keys; `--all` lists every one."""
    lease = write("lease", "training")
    stuck = write("lease", "broken", State.STUCK)
    endpoint = write("endpoint", "churn")
    rollout = write("rollout", "churn", version=3)
    gone = write("lease", "gone", State.RELEASED)
    listed = json.loads(cli("ps", "--json").stdout)
    assert [each["id"] for each in listed] == [lease, stuck, endpoint, rollout]
    assert all(set(each) == set(Entry.__annotations__) for each in listed)
    by_id = {each["id"]: each for each in listed}
    assert by_id[lease] | {"owner": None} == by_id[lease] | {"owner": None, "kind": "lease", "state": "ready",
        "platform": "local", "environment": "dev", "name": "training", "accelerator": "cpu", "expires_at": None,
        "deadline": "2026-01-31T13:00:00.123456Z", "generation": 1, "url": None, "version": None}  # fmt: skip
    assert by_id[lease]["owner"]["user"] == "ada"
    assert by_id[stuck]["state"] == "stuck"
    assert by_id[stuck]["reason"] == "it is stuck"
    assert (by_id[endpoint]["kind"], by_id[endpoint]["url"]) == ("endpoint", "http://127.0.0.1:8123")
    told = by_id[rollout]
    assert (told["kind"], told["name"], told["version"], told["url"]) == ("rollout", "churn", 3, None)
    assert gone in [each["id"] for each in json.loads(cli("ps", "--json", "--all").stdout)]


def test_the_keys_of_ps_are_documented():
    """Who reads docs/cli.md knows every key of a listing."""
    text = DOCS.read_text()
    section = text[text.index("### `ps --json`") : text.index("### `show ID --json`")]
    assert [key for key in Entry.__annotations__ if f"`{key}`" not in section] == []


VERSION_KEYS = {"version", "share", "declared_share", "replicas", "state", "reason", "sha256", "rollout", "retire_at"}
FIRST = sample_endpoint().versions[0]
CANARY = FIRST.revised(version=2, state="canary", share=10, rollout=sample_rollout(version=2).id)
GONE = FIRST.revised(version=3, state="rolled-back", share=0, reason="it disagreed", rollout=None)


@pytest.fixture
def router() -> Iterator[Router]:
    """A router that says what a test has it say."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Router.Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Router(server)
        finally:
            server.shutdown()
            thread.join()


class Router:
    """What stands behind an endpoint's URL in these tests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(self.server.says).encode()
            self.send_response(200 if self.path == "/mlinfra/state" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def __init__(self, server: Any) -> None:
        self._server = server
        self.port = server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def says(self, name: str, **shares: int) -> None:
        versions = [{"version": int(number[1:]), "share": share} for number, share in shares.items()]
        self._server.says = {"name": name, "revision": 1, "versions": versions}


def test_endpoints_tells_the_shares_that_are_served_and_not_those_that_are_wished(cli, write, router):
    """`share` is what the router routes by at this moment, `declared_share` the record's; a difference is told."""
    versions = (FIRST.revised(share=90), CANARY, GONE)
    write("lease", "training")
    write("endpoint", "churn", versions=versions, url=router.url, port=router.port)
    router.says("churn", v1=100)
    (found,) = json.loads(cli("endpoints", "--json").stdout)
    assert (found["name"], found["url"], found["owner"]["user"]) == ("churn", router.url, "ada")
    assert all(set(version) == VERSION_KEYS for version in found["versions"])
    assert [(v["version"], v["share"], v["declared_share"], v["state"]) for v in found["versions"]] == [
        (1, 100, 90, "serving"), (2, 0, 10, "canary"), (3, 0, 0, "rolled-back"),
    ]  # fmt: skip
    assert (found["versions"][1]["rollout"], found["versions"][2]["reason"]) == (CANARY.rollout, "it disagreed")
    shown = [line.split() for line in cli("endpoints", COLUMNS="80").stdout.splitlines()]
    assert ["churn", "ready", "1", "serving", "100", "%", "(not", "90", "%)"] in shown
    assert ["churn", "ready", "2", "canary", "0", "%", "(not", "10", "%)"] in shown
    assert not any("rolled-back" in line for line in shown)
    assert any("rolled-back" in line for line in cli("endpoints", "--all").stdout.splitlines())
    router.says("churn", v1=90, v2=10)
    shown = [line.split() for line in cli("endpoints", COLUMNS="80").stdout.splitlines()]
    assert ["churn", "ready", "2", "canary", "10", "%"] in shown


def test_where_no_router_of_ours_answers_nothing_is_served(cli, write, router):
    """Silent, or a stranger on the port: `share` is null, and the table says `none`."""
    write("endpoint", "churn", url="http://127.0.0.1:9", port=9001)
    write("endpoint", "other", url=router.url, port=router.port)
    router.says("somebody", v1=100)
    for found in json.loads(cli("endpoints", "--json").stdout):
        assert [(v["share"], v["declared_share"]) for v in found["versions"]] == [(None, 100)]
    assert cli("endpoints").stdout.count("none") == 2


def test_the_keys_of_endpoints_are_documented():
    """Who reads docs/cli.md knows every key of a version."""
    text = DOCS.read_text()
    section = text[text.index("### `endpoints --json`") : text.index("### `plan --json`")]
    assert [key for key in sorted(VERSION_KEYS) if f"`{key}`" not in section] == []


def test_every_verb_is_documented():
    """The table of verbs names each one."""
    from mlinfra_prefect.cli.app import app

    table = DOCS.read_text().partition("## Exit codes")[0]
    verbs = [name for name in app if not name.startswith("-")]
    assert len(verbs) > 12
    assert [verb for verb in verbs if f"| `{verb}" not in table] == []


@pytest.mark.parametrize("columns", [60, 160])
def test_a_version_and_its_share_are_never_cut(cli, write, columns):
    """However long the names are: what a version is and gets is told whole, and so is where an endpoint answers."""
    name = "an-endpoint-with-a-name-that-is-long"
    write("endpoint", name, versions=(FIRST.revised(share=90), CANARY))
    rollout = write("rollout", name, version=2)
    listed = cli("endpoints", COLUMNS=str(columns)).stdout
    told = cli("ps", COLUMNS=str(columns)).stdout
    assert max(map(len, (listed + told).splitlines())) <= columns
    assert "1 serving" in listed
    assert "2 canary" in listed
    assert "http://127.0.0.1:8123" in listed
    assert [rollout, "ready", "2"] in [line.split()[:3] for line in told.splitlines()]


def test_what_is_down_says_what_brings_it_back(cli, write):
    """An endpoint or version whose agent is gone is no lease: nobody gives it back by himself."""
    here = {"owner": sample_endpoint().owner.revised(host=os.uname().nodename), "attempts": ()}
    ids = [write("endpoint", "churn", **here), write("rollout", "churn", **here), write("lease", "training", **here)]
    lost = sample_attempt(node_dir="/nowhere")
    with sqlite3.connect(cli.home.ledger) as db:
        db.execute("UPDATE records SET json = json_set(json, '$.attempts', json(?))", (f"[{lost.model_dump_json()}]",))
    assert {each["id"]: each["up"] for each in json.loads(cli("ps", "--json").stdout)} == dict.fromkeys(ids, False)
    told = cli("ps").stdout
    assert all(f"{each} it is down; `mlinfra-prefect endpoints --repair`" in told for each in ids[:2])
    assert f"{ids[2]} its node is gone" in told


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
