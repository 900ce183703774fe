"""Rule: a version's servers follow its load, from the router's count of requests to real servers of the agent."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from keeper_harness import House
from rollout_asker import Asker, give_back, page, standing


@pytest.mark.slow
def test_under_load_a_second_server_comes_and_no_request_notices(house: House, digits: Path) -> None:
    """One server runs until the load needs two; the second is ready before it gets its first request."""
    first = standing(house, digits, replicas=1, max_replicas=2, target_in_flight=0.2)
    url, rollout = house.record(first["id"])["url"], house.record(first["rollout"])

    def told() -> dict[str, Any]:
        with urllib.request.urlopen(page(house, url), timeout=5) as answer:
            return json.load(answer)["versions"][0]

    def servers() -> int:
        agent = Path(rollout["attempts"][-1]["node_dir"]) / "agent.json"
        return sum(each is not None for each in json.loads(agent.read_text())["servers"])

    assert len(rollout["ports"]) == 2
    assert (told()["replicas"], servers()) == (1, 1)
    asker = Asker(house, url, threads=4)
    try:
        house.until(lambda: told()["replicas"] == 2, "two servers get requests", 60)
        house.until(lambda: servers() == 2, "the agent tells of both")
        asked = asker.asked
        house.until(lambda: asker.asked >= asked + 20, "both are asked")
    finally:
        asker.close()
    asker.all_answered()
    assert (told()["errors"], told()["retried"]) == (0, 0)
    receipt = give_back(house, first["id"])
    assert receipt["created"] == receipt["destroyed"]
