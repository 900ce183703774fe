"""The routes of an endpoint: made of its record alone, and never replaced by older ones."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mlinfra_prefect.errors import EndpointNotReady
from mlinfra_prefect.local import routing
from mlinfra_prefect.local.router import parse_routes
from mlinfra_prefect.local.routing import ROUTES, route, router_spec, routes_of, served
from mlinfra_prefect.model.endpoint import GONE, Scale, Version, VersionState
from mlinfra_prefect.model.names import minted
from mlinfra_prefect.testing.records import sample_attempt, sample_endpoint

FIRST = sample_endpoint().versions[0]
CLOSED = "http://127.0.0.1:9"
"""The discard port: nothing of ours ever listens there, and no port below 1024 is anybody's by chance."""


def version(number: int, state: str, share: int = 0) -> Version:
    return FIRST.revised(version=number, state=state, share=share, urls=(f"http://127.0.0.1:{9000 + number}",))


@given(
    states=st.lists(st.sampled_from(VersionState), max_size=6),
    shares=st.lists(st.integers(0, 100), min_size=6, max_size=6),
)
def test_every_share_has_a_route_and_nothing_that_is_gone_has_one(
    states: list[VersionState], shares: list[int]
) -> None:
    """A request never goes to servers that are being stopped."""
    wanted = enumerate(zip(states, shares, strict=False), start=1)
    versions = tuple(version(n, state, 0 if state in GONE else share) for n, (state, share) in wanted)
    told = {each["version"]: each for each in routes_of(sample_endpoint(versions=versions, revision=7))["versions"]}
    assert {v.version for v in versions if v.share} <= set(told)
    assert all(v.version not in told for v in versions if v.state in GONE)
    assert all((told[v.version]["share"], told[v.version]["urls"]) == (v.share, list(v.urls))
               for v in versions if v.version in told)  # fmt: skip


def test_a_version_that_is_up_can_be_named_without_a_share_and_one_that_is_not_cannot() -> None:
    """A header reaches a canary before it gets requests, and one that retires; not servers that are being started."""
    states = ("serving", "retiring", "canary", "deploying", "rolled-back", "retired")
    versions = tuple(version(n, state, 100 if state == "serving" else 0) for n, state in enumerate(states, start=1))
    routes = routes_of(sample_endpoint(versions=versions, revision=7))
    assert [(each["version"], each["share"]) for each in routes["versions"]] == [(1, 100), (2, 0), (3, 0)]
    assert (routes["schema"], routes["revision"], routes["name"]) == ("mlinfra-prefect/routes/1", 7, "churn")


def test_the_router_reads_the_scale_of_a_version_as_its_record_has_it() -> None:
    """The rest of the routes is the same with and without one."""
    told = {"least": 1, "most": 2, "target": 2.5, "file": "/home/ada/replicas.json"}
    urls = (CLOSED, "http://127.0.0.1:10")
    plain, scaled = (FIRST.revised(urls=urls, scale=scale) for scale in (None, Scale(**told)))
    without, routes = (routes_of(sample_endpoint(versions=(each,))) for each in (plain, scaled))
    assert routes["versions"] == [{**without["versions"][0], "scale": told}]
    scale = parse_routes(json.dumps(routes).encode(), "churn").versions[0].scale
    assert scale is not None
    assert (scale.least, scale.most, scale.target, scale.file) == tuple(told.values())


def test_the_first_routes_are_there_before_the_router_is(tmp_path: Path) -> None:
    """The agent holds the socket of the stable URL and starts the router on it."""
    spec = router_spec(sample_endpoint(), tmp_path)
    assert spec["listen"] == 8123
    assert str(tmp_path / ROUTES) in spec["argvs"][0]
    assert json.loads((tmp_path / ROUTES).read_text()) == routes_of(sample_endpoint())


def test_of_many_who_write_routes_the_latest_revision_stays(tmp_path: Path) -> None:
    """Whoever writes may be late: an operation, the reaper, a person."""
    attempt = sample_attempt(node_dir=str(tmp_path))
    endpoints = [sample_endpoint(url=CLOSED, attempts=(attempt,), revision=number) for number in range(1, 25)]

    def write(part: list[int]) -> None:
        for index in part:
            with pytest.raises(EndpointNotReady):
                route(endpoints[index], seconds=0.0)

    order = list(range(len(endpoints)))
    threads = [threading.Thread(target=write, args=(order[start:] + order[:start],)) for start in (0, 6, 12, 18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert json.loads((tmp_path / ROUTES).read_text())["revision"] == 24


def test_a_router_that_does_not_follow_is_named_with_what_brings_it_back(tmp_path: Path) -> None:
    """Whether it is silent, gone with its directory, or was never there."""
    endpoint = sample_endpoint(url=CLOSED, attempts=(sample_attempt(node_dir=str(tmp_path)),))
    with pytest.raises(EndpointNotReady, match=r"'churn' does not answer; wanted is revision 1.*endpoints --repair"):
        route(endpoint, seconds=0.0)
    for lost in (sample_endpoint(), sample_endpoint(attempts=(sample_attempt(node_dir=str(tmp_path / minted())),))):
        with pytest.raises(EndpointNotReady, match="has no router"):
            route(lost, seconds=0.0)


@pytest.mark.parametrize(("told", "says"), [(6, "still follows revision 6"), (7, None), (8, None)])
def test_following_a_later_revision_is_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int, says: str | None
) -> None:
    """Somebody else decided meanwhile, and the router is there already."""
    state = {"name": "churn", "revision": told, "started": 1.0, "versions": [], "gone": []}
    monkeypatch.setattr(routing, "_get", lambda *_: state)
    endpoint = sample_endpoint(revision=7, attempts=(sample_attempt(node_dir=str(tmp_path)),))
    if says is None:
        assert route(endpoint, seconds=0.0).revision == told
        return
    with pytest.raises(EndpointNotReady, match=says):
        route(endpoint, seconds=0.0)


def test_a_stranger_on_the_port_is_not_our_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is of another endpoint."""
    state = {"name": "other", "revision": 9, "started": 1.0, "versions": [], "gone": []}
    monkeypatch.setattr(routing, "_get", lambda *_: state)
    endpoint = sample_endpoint(attempts=(sample_attempt(node_dir=str(tmp_path)),))
    assert served(endpoint) is None
    state["name"] = "churn"
    assert served(endpoint) is not None
