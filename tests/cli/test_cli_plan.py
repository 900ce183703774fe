"""`plan`: offers with their reasons, the plan, and what it costs at most."""

from __future__ import annotations

import json


def test_a_plan_is_offers_a_plan_and_an_estimate(cli, tmp_path):
    """`plan --json` is {offers, plan, estimate_usd}; options replace fields of the file, the others stay."""
    path = tmp_path / "request.yaml"
    path.write_text("accelerator: cpu\nname: churn\nmax_minutes: 30\n")
    done = cli("plan", str(path), "--json", "--max-minutes", "5")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told) == {"offers", "plan", "estimate_usd"}
    (offer,) = told["offers"]
    assert set(offer) == {
        "type", "region", "zones", "market", "usd_per_hour", "gpus", "gpu_memory_gib", "vcpus", "memory_gib",
        "quota_headroom", "priced_at", "price_source", "skipped",
    }  # fmt: skip
    assert (offer["type"], offer["skipped"]) == ("local", None)
    assert (told["plan"]["request"]["name"], told["plan"]["max_minutes"]) == ("churn", 5)
    assert [each["address"] for each in told["plan"]["resources"]] == ["terraform_data.node"]
    assert told["estimate_usd"] == 0.0
    assert cli("ps", "--all", "--json").stdout.strip() == "[]"


def test_without_capacity_the_offers_still_say_why(cli):
    """No capacity is exit code 4; the offers are printed with the reason why each is skipped."""
    done = cli("plan", "B200:16", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["plan"], told["estimate_usd"]) == (4, None, None)
    assert "B200:16" in told["offers"][0]["skipped"]
    assert done.stderr.startswith("error: No offer meets accelerator B200:16")
    human = cli("plan", "B200:16")
    assert human.returncode == 4
    assert "SKIPPED BECAUSE" in human.stdout
