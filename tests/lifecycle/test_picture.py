"""The picture of a timeline, and the pages with plan, receipt, endpoint and verdict: for people, and safe to show."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest

from mlinfra_prefect.lifecycle import markdown
from mlinfra_prefect.lifecycle.picture import (
    _BARS_FROM,
    _BARS_TO,
    _CELL,
    MOST_ROWS,
    WIDTH,
    data_uri,
    duration,
    shortened,
    timeline_svg,
)
from mlinfra_prefect.lifecycle.timeline import Span
from mlinfra_prefect.model.endpoint import RolloutRecord
from mlinfra_prefect.model.lease import Client
from mlinfra_prefect.model.offer import Plan, PlannedResource
from mlinfra_prefect.model.probe import Step
from mlinfra_prefect.model.receipt import Receipt, Search
from mlinfra_prefect.model.request import ServingRequest, TrainingRequest
from mlinfra_prefect.model.verdict import Check, Verdict
from mlinfra_prefect.testing.records import MOMENT, SHA256, sample_artifact, sample_endpoint, sample_offer

SVG = "{http://www.w3.org/2000/svg}"
BEGAN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
EVIL = 'a|b`c`<script>alert(1)</script>"\n## x [l](javascript:x) ![i](http://h/x) *b* &amp; \\|'


def span(what: str, begins: float, ends: float, detail: str = "", of: str = "l1-1") -> Span:
    return Span(
        what=what, of=of, detail=detail, began=BEGAN + timedelta(seconds=begins), ended=BEGAN + timedelta(seconds=ends)
    )


def texts(svg: str) -> list[ET.Element]:
    return ET.fromstring(svg).findall(f"{SVG}text")


def bars(svg: str) -> list[ET.Element]:
    return [each for each in ET.fromstring(svg).findall(f"{SVG}rect") if each.get("class") != "card"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0.00 s"), (0.4231, "0.42 s"), (9.999, "10.0 s"), (12.34, "12.3 s"), (59.96, "1 min 00 s"),
        (125, "2 min 05 s"), (3599.9, "1 h 00 min"), (3900, "1 h 05 min"), (86400, "24 h 00 min"), (273600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_durations_are_said_for_people(seconds: float, said: str) -> None:
    """Never '60 s' or '60 min': a rounded number goes up into the next unit."""
    assert duration(seconds) == said


def test_bars_are_as_long_as_what_they_show() -> None:
    """On one axis, in proportion, from where it began to where it ended."""
    first, second = bars(timeline_svg([span("provision", 0, 30), span("train", 30, 120)], title="t"))
    scale = (_BARS_TO - _BARS_FROM) / 120
    assert float(first.get("x")) == _BARS_FROM
    assert float(first.get("width")) == pytest.approx(30 * scale, abs=0.01)
    assert float(second.get("x")) == pytest.approx(_BARS_FROM + 30 * scale, abs=0.01)
    assert float(second.get("x")) + float(second.get("width")) == pytest.approx(_BARS_TO, abs=0.02)
    assert [each.get("class") for each in (first, second)] == ["provision", "train"]


@pytest.mark.parametrize("length", [0.0, 0.004, 0.7, 3, 61, 3599, 40_000, 9_000_000])
def test_nothing_overlaps_or_is_cut_off(length: float) -> None:
    """Whatever the names and times: labels end before the bars, bars before the durations, ticks before each other."""
    names = ["x" * 300, "数据" * 60, "short", EVIL.replace("\n", " ")]
    spans = [span("train", 0, length, name) for name in names] + [span("release", length, length)]
    svg = timeline_svg(spans, title="endpoint " + "long " * 80)
    height = float(ET.fromstring(svg).get("height"))

    def width(text: str) -> float:
        return _CELL * sum(2 if ord(letter) > 0x2E80 else 1 for letter in text)

    ticks = []
    for each in texts(svg):
        x, kind, text = float(each.get("x")), each.get("class") or "", each.text or ""
        assert 0 < float(each.get("y")) < height
        if "end" in kind:
            assert x == WIDTH - 20
            assert x - width(text) > _BARS_TO
        elif "middle" in kind:
            ticks.append((x - width(text) / 2, x + width(text) / 2))
        elif kind == "title":
            assert x + width(text) * 16 / 13 <= WIDTH
        elif kind == "":
            assert x + width(text) < _BARS_FROM
    assert all(left[1] < right[0] for left, right in zip(ticks, ticks[1:], strict=False))
    assert min(left for left, _ in ticks) > 0
    assert max(right for _, right in ticks) < WIDTH
    for bar in bars(svg):
        assert float(bar.get("x")) >= _BARS_FROM
        assert float(bar.get("x")) + float(bar.get("width")) <= _BARS_TO + 0.02
        assert float(bar.get("width")) >= 1


def test_what_others_wrote_stays_text() -> None:
    """Names are escaped, and what XML cannot hold is replaced: the picture parses, and has no element of theirs."""
    svg = timeline_svg([span("train", 0, 1, "</text><b>x</b>\uffff&\"'")], title="<b>&\u200b\ufffe")
    kinds = {each.tag.removeprefix(SVG) for each in ET.fromstring(svg).iter()}
    assert kinds == {"svg", "style", "rect", "line", "text"}
    assert "train </text><b>x</b>\ufffd&\"'" in [each.text for each in texts(svg)]


def test_a_long_name_keeps_its_ends() -> None:
    """A module's head and a function's tail tell most; a text that fits is left as it is."""
    assert shortened("acme.pipelines.churn:fit", 11) == "acme.…n:fit"
    assert shortened("short", 5) == "short"
    assert shortened("数据科学", 5) == "数…学"


def test_many_spans_are_told_as_a_number() -> None:
    """A node that ran hundreds of jobs does not make a page without end; all rows have one axis."""
    svg = timeline_svg([span("train", n, n + 1, f"job {n}") for n in range(500)], title="t")
    assert len(bars(svg)) == MOST_ROWS - 1
    assert "and 461 more" in [each.text for each in texts(svg)]
    exact = timeline_svg([span("train", n, n + 1) for n in range(MOST_ROWS)], title="t")
    assert len(bars(exact)) == MOST_ROWS
    assert "more" not in exact


def test_a_picture_of_nothing_says_so() -> None:
    """No span, no axis."""
    assert "nothing has happened yet" in timeline_svg([], title="t")


def test_the_picture_is_readable_on_light_and_dark_pages() -> None:
    """It brings its own background, and both change together."""
    svg = timeline_svg([span("train", 0, 1)], title="t")
    light, dark = svg.split("prefers-color-scheme: dark")
    for half in (light, dark):
        assert re.search(r"\.card \{ fill: #", half)
        assert re.search(r"text \{[^}]*fill: #", half)


def test_the_address_holds_the_picture() -> None:
    """Nothing is fetched to see it."""
    svg = timeline_svg([span("train", 0, 1, "ünï")], title="t")
    kind, data = data_uri(svg).split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == svg


# --- pages -----------------------------------------------------------------------------------------------------------


def plan(**changes: object) -> Plan:
    made = Plan(
        request=TrainingRequest(name="churn", platform="local"), platform="local",
        offers=(sample_offer(type="big", skipped="no quota"), sample_offer()), offer=sample_offer(), stack="local-node",
        engine="terraform 1.11.4",
        resources=(PlannedResource(address="terraform_data.node", type="terraform_data", action="create"),),
        max_minutes=90, estimate_usd=0.75, code_files=("train.py",), code_bytes=20_480, made_at=MOMENT,
    )  # fmt: skip
    return made.revised(**changes)


def receipt(**changes: object) -> Receipt:
    look = Search(what="processes of it", where="laptop", at=MOMENT)
    made = Receipt(
        kind="lease", id="l0f3c5d7e9b1a2c4d6e8f-1", ledger_id="7f0c", reason="its block ended", attempts=1,
        created=("1/terraform_data.node",), destroyed=("1/terraform_data.node",), searches=(look, look),
        requested_at=MOMENT, released_at=MOMENT + timedelta(minutes=6), up_seconds=312.5, trained_seconds=288.0,
        idle_seconds=24.5, cost_usd=0.0004,
    )  # fmt: skip
    return made.revised(**changes)


def rows_of(page: str) -> list[list[str]]:
    """The cells of all tables, unescaped, as a reader of GitHub's markdown splits them."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    cells = [re.findall(r"((?:\\.|[^|\\])*)\|", line[1:]) for line in lines]
    return [[plain(cell.strip()) for cell in row] for row in cells]


def plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text).replace("\u00a0", " ")


def test_a_plan_says_what_exists_what_it_costs_and_when_it_dies() -> None:
    """All that a person needs to approve it."""
    page = markdown.plan_markdown(plan())
    text = plain(page)
    assert "costs at most 0.75 USD" in text
    assert "dies after 90 min" in text
    assert "2026-01-31 13:30 UTC" in text
    assert "code that travels: 1 file(s), 20 KiB" in text
    assert text.rstrip().endswith("train.py")
    assert "train.py" not in plain(markdown.plan_markdown(plan(), with_files=False))
    rows = rows_of(page)
    assert ["terraform_data.node", "create"] in rows
    assert ["", "big", "local", "any", "on-demand", "0.50", "0", "no quota"] in rows
    assert ["taken first", "local", "local", "any", "on-demand", "0.50", "0", ""] in rows
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    order = [
        diagram.index(word) for word in ("request:", "offer:", "stack:", "terraform_data.node", "training", "release,")
    ]
    assert order == sorted(order)


def test_a_receipt_says_what_was_searched_and_that_it_is_clean() -> None:
    """Times, money and every look; a small cost never reads as none."""
    page = markdown.receipt_markdown(receipt(), name="training")
    assert "**Clean**" in page
    assert "NOT CLEAN" not in page
    rows = rows_of(page)
    assert ["up", "5 min 12 s"] in rows
    assert ["up and idle", "24.5 s"] in rows
    assert ["cost", "0.000400 USD"] in rows
    assert rows.count(["12:00:00", "processes of it", "laptop", "nothing"]) == 2
    found = Search(what="processes of it", where="laptop", at=MOMENT, found=("process 4711",))
    for bad in (receipt(searches=(found, found)), receipt(destroyed=())):
        assert "**NOT CLEAN**" in markdown.receipt_markdown(bad)
    ended = markdown.receipt_markdown(receipt(searches=(found.revised(ended=("process 4711",)), found)))
    assert ["12:00:00", "processes of it", "laptop", "process 4711", "process 4711"] in rows_of(ended)
    assert ["1/terraform_data.node", "LEFT"] in rows_of(markdown.receipt_markdown(receipt(destroyed=())))


def test_an_endpoint_is_a_link_with_its_versions() -> None:
    """The newest first, each with its share."""
    first = sample_endpoint().versions[0]
    record = sample_endpoint(versions=(
        first.revised(state="serving", share=90),
        first.revised(version=2, state="canary", share=10, artifact=sample_artifact(name=EVIL.replace("\n", " "))),
    ))  # fmt: skip
    page = markdown.endpoint_markdown(record)
    assert page.startswith("## [churn](http://127.0.0.1:8123)")
    _, _, second, one, _, _, *made_of = rows_of(page)
    assert [row[:2] for row in made_of] == [["2", sample_artifact().id], ["1", sample_artifact().id]]
    assert second[:3] == ["2", "canary", "10 %"]
    assert one[:3] == ["1", "serving", "90 %"]
    assert "auc=0.91" in one
    assert "](" not in markdown.endpoint_markdown(sample_endpoint(url="javascript:alert(1)"))


def test_a_verdict_shows_every_check_with_its_numbers() -> None:
    """Those that passed too: by how much is what people want to see."""
    checks = (
        Check(name="auc", ok=False, candidate=0.89, current=0.9, threshold=0.905, detail="0.89 is below 0.905"),
        Check(name="loss", ok=True, detail="fine"),
    )
    page = markdown.verdict_markdown(
        Verdict(kind="gate", ok=False, reason="auc is low", checks=checks), subject="churn"
    )
    assert page.startswith("## Gate of churn: refused")
    assert rows_of(page)[2:] == [
        ["FAILED", "auc", "0.89", "0.9", "0.905", "0.89 is below 0.905"],
        ["passed", "loss", "", "", "", "fine"],
    ]


def rollout(**changes: object) -> RolloutRecord:
    owner = sample_endpoint().owner
    made = RolloutRecord(
        id="r0f3c5d7e9b1a2c4d6e8f-2", ledger_id="7f0c", name="churn", environment="dev", platform="local", owner=owner,
        client=Client(kind="none"), created_at=MOMENT, renewed_until=MOMENT, endpoint=sample_endpoint().id, version=2,
        serving=ServingRequest(name="churn"), artifact=sample_artifact(), ports=(9001,), shares=(10, 50),
        until=MOMENT + timedelta(hours=1),
        steps=(Step(share=10, began_at=MOMENT, ok=True, requests=40, errors=0, p95_ms=12.5, reason="40 requests"),
               Step(share=50, began_at=MOMENT, ok=False, requests=9, errors=3, reason=EVIL.replace("\n", " "))),
    )  # fmt: skip
    return made.revised(**changes)


def test_a_rollout_shows_each_share_and_what_it_found() -> None:
    """Requests, errors and the decision for each step."""
    rows = rows_of(markdown.rollout_markdown(rollout(), endpoint="churn"))
    assert rows[2] == ["10 %", "12:00:00", "passed", "40", "0", "12.5", "", "40 requests"]
    assert rows[3][:5] == ["50 %", "12:00:00", "FAILED", "9", "3"]


def pages_with_evil() -> dict[str, str]:
    line = EVIL.replace("\n", " ")
    search = Search(what=line, where=line, at=MOMENT, found=(line,), ended=(line,))
    resource = PlannedResource(address=line, type=line, action=line)
    offer = sample_offer(type=line, region=line, zones=(line,), skipped=line)
    return {
        "plan": markdown.plan_markdown(
            plan(offers=(offer,), offer=offer, stack=line, engine=line, resources=(resource,) * 30, code_files=(line,))
        ),
        "receipt": markdown.receipt_markdown(
            receipt(reason=line, created=(line,), destroyed=(), searches=(search,)), name=EVIL
        ),
        "endpoint": markdown.endpoint_markdown(
            sample_endpoint(url=line, versions=(sample_endpoint().versions[0].revised(reason=line),))
        ),
        "verdict": markdown.verdict_markdown(
            Verdict(kind="probe", ok=False, reason=line, checks=(Check(name=line, ok=True, detail=line),)), subject=EVIL
        ),
        "rollout": markdown.rollout_markdown(rollout(reason=line), endpoint=EVIL),
        "timeline": markdown.timeline_markdown([span("train", 0, 1, line)], title=EVIL),
    }


@pytest.mark.parametrize("name", ["plan", "receipt", "endpoint", "verdict", "rollout", "timeline"])
def test_nothing_that_others_wrote_becomes_markup(name: str) -> None:
    """No HTML, link, picture, code, emphasis, cell or heading of theirs; in a diagram nothing ends its quotes."""
    page = pages_with_evil()[name]
    diagrams = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    rest = re.sub(r"```mermaid\n.*?```", "", page, flags=re.DOTALL)
    theirs = re.sub(r"\\.", "", re.sub(r"data:image/svg\S*", "", rest))  # without what is escaped
    for markup in ("<", "&", "`", "*b", "](j", "](h", "![i", "script>", "http:"):
        assert markup not in theirs, markup
    assert [line for line in rest.splitlines() if line.startswith("## x")] == []
    tables = re.findall(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert tables
    for table in tables:
        assert len({len(row) for row in rows_of(table)}) == 1
    for diagram in diagrams:
        for line in diagram.splitlines():
            assert line.count('"') % 2 == 0
            assert not set("<>`&;#|\\") & set(re.sub("-->", "", line)), line


def test_a_plan_of_many_resources_stays_a_page() -> None:
    """What is too much is told as a number: in the table, in the diagram and in the list of files."""
    many = tuple(PlannedResource(address=f"r.n{n}", type="r", action="create") for n in range(150))
    page = markdown.plan_markdown(plan(resources=many, code_files=tuple(f"f{n}.py" for n in range(50))))
    assert "and 50 more" in page
    assert '"and 138 more"' in page
    assert "f19.py, and 30 more" in page
    assert SHA256 not in page
