"""Rules of the runs on a cloud: real Terraform, real machines, and a judge who sees what a run left in the account."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlinfra_prefect.chaos import matrix_aws
from mlinfra_prefect.chaos.cloud import Clouds
from mlinfra_prefect.chaos.place import Place, Setting
from mlinfra_prefect.chaos.plan import Plan, Row, Strike
from mlinfra_prefect.chaos.running import run
from mlinfra_prefect.terraform import find_engine

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "aws"))
from aws_place import require_provider
from cloud_planted import PlantedCloud

CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or Path(__file__).parents[2] / ".cache")
BY_NAME = {row.name: row for row in matrix_aws.ROWS}


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    CACHE.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="mlp-"))
    look = scratch / "look"
    look.mkdir()
    require_provider(look)
    engine = str(find_engine(None, cache_dir=CACHE).path)
    clouds = Clouds(lambda: PlantedCloud(CACHE, engine, scratch))
    yield Setting(CACHE, engine, scratch, (), clouds)
    clouds.close()
    shutil.rmtree(scratch)


@pytest.mark.slow
def test_everybody_is_killed_right_after_the_machine_was_made_and_a_reaper_ends_it(setting: Setting) -> None:
    """The record says 'applying', and nobody is left who knows more: the machine is found, and all else lives on."""
    row = BY_NAME["aws-everything"]
    options = row.plan(1, 1).options
    plan = Plan(row.name, 1, 1, "after-apply", (Strike(-1.0, matrix_aws.EVERYBODY, "KILL"),), options)
    found = run(setting, row, plan, beyond=1.0)
    assert not found.error, found.error
    assert found.injected
    assert found.leaks == []
    assert {each["role"] for each in found.struck} >= {"point", "client", "keeper"}


def leaks(place: Place, plan: Plan) -> None:
    """Plants what no sweep by tags can find, beside a decoy that it ends: nobody but a judge of all of it sees that."""
    subnets = place.cloud.ec2("us-east-1", "DescribeSubnets")
    zone = subnets.findtext("./subnetSet/item/availabilityZone") or ""
    place.cloud.ec2("us-east-1", "CreateVolume", AvailabilityZone=zone, Size="1")
    decoy = next(each.id for each in place.cloud.remembered().values() if each.kind == "instance")
    place.cloud.ec2("us-east-1", "TerminateInstances", **{"InstanceId.1": decoy})
    place.struck.append({"role": "test", "how": "planted", "at": time.time()})
    place.ledger_lost = True


class Impatient(Row):
    """A row that promises a second."""

    @property
    def promise(self) -> float:
        return 1.0


def test_what_a_run_leaves_without_any_tag_is_a_leak_and_its_account_is_not_lent_again(setting: Setting) -> None:
    row = Impatient("leaks", "plants a leak", leaks, platform="aws")
    assert setting.clouds is not None
    with setting.clouds.lent() as lent:
        before = lent.cloud
    found = run(setting, row, Plan("leaks", 1, 1), beyond=1.0)
    assert any(each.startswith("left in the account: volume") for each in found.leaks), found
    assert any("it was not ours, and it is gone: instance" in each for each in found.leaks), found
    with setting.clouds.lent() as lent:
        assert lent.cloud is not before
        assert lent.cloud.findings() == []
