"""Blocks: forms that Prefect renders, values that our models check, environments that hold where they are applied."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration_harness import PROJECT
from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from mlinfra_prefect.collection import MlinfraEnvironment, MlinfraRequest
from mlinfra_prefect.errors import InvalidInput, UnsupportedHere
from mlinfra_prefect.integration.lease import lease
from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.integration.requesting import as_request, find_environment
from mlinfra_prefect.integration.settings import MlinfraSettings
from mlinfra_prefect.keeper.desk import laid
from mlinfra_prefect.lifecycle.config import load_config
from mlinfra_prefect.model.environment import AwsSettings, Caps, Environment
from mlinfra_prefect.model.request import TrainingRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCKS = [MlinfraEnvironment, MlinfraRequest]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty project; what a test applies here is gone when it ends."""
    monkeypatch.setenv("MLINFRA_CONFIG", "x")  # so that it is put back, whatever is applied
    monkeypatch.delenv("MLINFRA_CONFIG")
    monkeypatch.chdir(tmp_path)
    vars(context()).pop("config", None)
    yield tmp_path
    vars(context()).pop("config", None)


class TestOfPrefect(BlockStandardTestSuite):
    """Prefect's own suite for the blocks of a collection."""

    @pytest.fixture(params=BLOCKS)
    def block(self, request: pytest.FixtureRequest):
        return request.param

    def test_has_a_valid_image(self, block) -> None:
        """The suite fetches the picture; a test reaches nothing beyond this machine."""
        assert str(block._logo_url).startswith("https://")
        assert str(block._logo_url).endswith(".png")


@pytest.mark.parametrize("block", BLOCKS)
def test_a_form_is_flat_and_has_no_unions(block) -> None:
    """Each field is a select, or of one plain type, with a title and a description; none begins with null in it."""
    schema = block.model_json_schema()
    assert "$defs" not in schema or all("block_type_slug" in each for each in schema["$defs"].values())
    assert schema.get("required", []) == []
    for name, field in schema["properties"].items():
        assert field["title"], name
        assert field["description"], name
        assert not {"anyOf", "oneOf"} & set(field), name
        assert "$ref" in field or field["type"] in {"string", "integer", "number", "array"}, name
        assert field.get("default", "") is not None, name
        if field.get("type") == "string" and "enum" not in field:
            assert field["examples"], name


def test_the_forms_know_every_field_of_the_models() -> None:
    """What a request or an environment can say, a block can say too: a new field is not forgotten here."""
    assert set(MlinfraRequest.model_fields) == set(TrainingRequest.model_fields)
    flat = (set(Environment.model_fields) - {"name", "caps", "aws"}) | set(Caps.model_fields)
    flat |= {f"aws_{field}" for field in AwsSettings.model_fields}
    assert set(MlinfraEnvironment.model_fields) - {"aws_credentials", "kubernetes_cluster"} == flat


def test_the_collection_is_registered_with_the_server() -> None:
    """`prefect block register -m mlinfra_prefect.collection`, and then the forms are there."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "block", "register", "-m", "mlinfra_prefect.collection"],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {name for name in ("Mlinfra Environment", "Mlinfra Request") if name in done.stdout} == {
        "Mlinfra Environment", "Mlinfra Request",
    }  # fmt: skip
    with get_client(sync_client=True) as client:
        assert client.read_block_type_by_slug("mlinfra-environment").name == "Mlinfra Environment"


def test_prefect_finds_the_collection_and_loads_nothing_heavy_with_it() -> None:
    """The entry point; a server that loads it opens no home, no Terraform, and no library of a cloud."""
    script = textwrap.dedent("""
        import sys
        from prefect.plugins import load_prefect_collections
        found = load_prefect_collections()["mlinfra_prefect"]
        print(found.__name__, *(name for name in (
            "mlinfra_prefect.lifecycle", "mlinfra_prefect.keeper", "mlinfra_prefect.local", "boto3", "kubernetes",
        ) if name in sys.modules))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "mlinfra_prefect.collection\n", done.stderr


def test_credentials_of_other_collections_are_fields_where_they_are_installed(tmp_path: Path) -> None:
    """A picker for each; an environment on aws logs in by what was picked, and kubernetes is refused."""
    for module, name in (("prefect_aws", "AwsCredentials"), ("prefect_kubernetes", "KubernetesClusterConfig")):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").touch()
        (tmp_path / module / "credentials.py").write_text(
            "from prefect.blocks.core import Block\nfrom pydantic import SecretStr\n"
            f"class {name}(Block):\n    aws_access_key_id: str = 'k'\n"
            "    aws_secret_access_key: SecretStr = SecretStr('s')\n"
            "    region_name: str | None = None\n"
        )
    script = textwrap.dedent("""
        import os
        from mlinfra_prefect.collection import MlinfraEnvironment as E
        from prefect_aws.credentials import AwsCredentials
        schema = E.model_json_schema()
        print(sorted(schema["block_schema_references"]), "anyOf" in schema["properties"]["aws_credentials"])
        block = E(platform="aws", aws_regions=["eu-west-1"], aws_credentials=AwsCredentials(region_name="eu-west-1"))
        print(block.apply_here("prod").aws.regions)
        print(*(os.environ[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION")))
        try:
            E(platform="kubernetes").environment("prod")
        except Exception as error:
            print(type(error).__name__, error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "MLINFRA_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "['aws_credentials', 'kubernetes_cluster'] False",
        "('eu-west-1',)",
        "k s eu-west-1",
        (
            "UnsupportedHere MlinfraEnvironment 'prod' is on platform kubernetes, which is not in this version. "
            "There is: local, aws."
        ),
    ], done.stderr


def test_a_saved_request_comes_back_as_the_request_it_describes() -> None:
    """What is empty is not given; what is given is merged with overrides, as with every other request."""
    MlinfraRequest(accelerator="cpu", name="churn", max_minutes=20, market="on-demand").save("small", overwrite=True)
    loaded = MlinfraRequest.load("small")
    assert loaded.request() == TrainingRequest(accelerator="cpu", name="churn", max_minutes=20)
    assert "environment" not in loaded.request().model_fields_set
    assert as_request(loaded, {"max_minutes": 5}) == TrainingRequest(accelerator="cpu", name="churn", max_minutes=5)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (MlinfraRequest(accelerator="A1OO:1"), "accelerator"),
        (MlinfraRequest(environment="PROD"), "environment"),
        (MlinfraRequest(max_minutes=10**6), "max_minutes"),
        (MlinfraRequest(on_client_lost="keep"), "keep_minutes"),
        (MlinfraRequest(platform="kubernetes"), "kubernetes"),
        (MlinfraRequest(ami="latest"), "ami"),
    ],
)
def test_a_request_that_is_wrong_names_the_field(block: MlinfraRequest, words: str) -> None:
    """The same checks as of every request, before anything is created."""
    with pytest.raises((InvalidInput, UnsupportedHere), match=words):
        block.request()


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (MlinfraEnvironment(platform="kubernetes"), "platform kubernetes, which is not in this version"),
        (MlinfraEnvironment(max_minutes=10**6), "max_minutes"),
    ],
)
def test_an_environment_that_is_wrong_says_so(block: MlinfraEnvironment, words: str, project: Path) -> None:
    """Before it holds anywhere."""
    with pytest.raises((InvalidInput, UnsupportedHere), match=words):
        block.apply_here("prod")
    assert "prod" not in context().config.environments


def test_a_block_that_was_never_saved_needs_a_name(project: Path) -> None:
    """The environment's name is the block's; without one there is nothing that a request could name."""
    with pytest.raises(InvalidInput, match="name"):
        MlinfraEnvironment().apply_here()
    assert MlinfraEnvironment().apply_here("named") == Environment(name="named")


def test_other_blocks_are_neither_requests_nor_environments() -> None:
    """A mistaken block is refused by its type, and its content is not shown."""
    for given, overrides in ((Secret(value="s3cret"), {}), ("cpu", {"environment": Secret(value="s3cret")})):
        with pytest.raises(InvalidInput, match="is a block of type Secret") as error:
            as_request(given, overrides)
        assert "s3cret" not in str(error.value)


def test_an_applied_environment_holds_in_this_process_and_for_the_keeper(project: Path, asked) -> None:
    """Its caps admit what is asked for, and the record's card carries the whole configuration to the operations."""
    environment = MlinfraEnvironment(max_minutes=7, max_leases=1, input_roots=["/data"])
    environment.save("team-a", overwrite=True)
    block = MlinfraEnvironment.load("team-a")
    with (
        pytest.raises(InvalidInput, match=r"above the cap of 7 of environment 'team-a'"),
        lease(as_request("cpu", {"environment": block, "max_minutes": 8})),
    ):
        raise AssertionError
    with lease(as_request("cpu", {"environment": block})) as infra:
        card = laid(context().home, infra.id)
        assert asked.one.request.max_minutes == 7
    path = Path(card["env"]["MLINFRA_CONFIG"])
    assert path.parent == context().home.root / "environments"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_config().source == path
    assert load_config().environment("team-a") == Environment(
        name="team-a", caps=Caps(max_minutes=7, max_leases=1), input_roots=("/data",)
    )


def test_what_the_project_s_file_says_stays_in_force(project: Path) -> None:
    """Its environments are kept beside the applied ones; its caps cannot be replaced from a block."""
    (project / "mlinfra-prefect.toml").write_text(
        'terraform = "bin/tofu"\n[environments.prod.caps]\nmax_usd = 5.0\n[environments.dev]\n'
    )
    block = MlinfraEnvironment(max_usd=500.0)
    with pytest.raises(InvalidInput, match=r"'prod' is defined by .*mlinfra-prefect\.toml already"):
        block.apply_here("prod")
    assert "MLINFRA_CONFIG" not in os.environ
    block.apply_here("lab")
    MlinfraEnvironment(max_gpus=0).apply_here("lab-cpu")
    config = context().config
    assert config.environment("prod").caps.max_usd == 5.0
    assert config.environment("lab").caps.max_usd == 500.0
    assert config.environment("lab-cpu").caps.max_gpus == 0
    assert config.terraform == project / "bin/tofu"
    MlinfraEnvironment(max_usd=5.0).apply_here("prod")  # the same as the file says: nothing to refuse


def test_a_block_that_changed_replaces_what_it_applied_before(project: Path) -> None:
    """A notebook that loads it again gets what it says now; a lease keeps the file under which it was asked for."""
    MlinfraEnvironment(max_minutes=5).apply_here("moving")
    before = Path(os.environ["MLINFRA_CONFIG"])
    MlinfraEnvironment(max_minutes=9).apply_here("moving")
    assert context().config.environment("moving").caps.max_minutes == 9
    assert json.loads(before.read_text())["environments"]["moving"]["caps"]["max_minutes"] == 5


def test_a_run_finds_an_environment_block_by_its_name(project: Path) -> None:
    """A form has a text field for it. The project's own goes first, then the block; without either an error says so."""
    MlinfraEnvironment(max_minutes=3).save("by-name", overwrite=True)
    MlinfraEnvironment(platform="kubernetes").save("cloudy", overwrite=True)
    MlinfraEnvironment(max_minutes=3).save("dev", overwrite=True)

    @flow
    def asks(name: str) -> int | None:
        find_environment(context(), name)
        return context().config.environment(name).caps.max_minutes

    @flow
    async def asks_async(name: str) -> int | None:
        find_environment(context(), name)
        return context().config.environment(name).caps.max_minutes

    assert asks("dev") is None
    with pytest.raises(InvalidInput, match="'nowhere' is not an environment"):
        asks("nowhere")
    with pytest.raises(UnsupportedHere, match="platform kubernetes"):
        asks("cloudy")
    find_environment(context(), "by-name")  # not in a run: nothing of Prefect is asked
    assert "by-name" not in context().config.environments
    assert asyncio.run(asks_async("by-name")) == 3


def test_the_project_of_these_tests_defines_no_environment() -> None:
    """What is tested above would say nothing otherwise."""
    assert load_config(PROJECT).source is None


def test_a_request_block_is_leased_as_it_is(project: Path, asked) -> None:
    """Wherever a request goes; its fields are those of the record, and overrides merge."""
    MlinfraRequest(name="churn", max_minutes=20, grace_seconds=1.5).save("leased", overwrite=True)

    @flow
    def trains() -> None:
        with lease(MlinfraRequest.load("leased"), max_minutes=4):
            pass

    trains()
    request = asked.one.request
    assert (request.name, request.max_minutes, request.grace_seconds) == ("churn", 4, 1.5)
    assert (asked.one.environment, asked.one.platform) == ("dev", "local")


def test_the_settings_of_the_page_are_those_that_there_are() -> None:
    """Each with its default; the page lists no other."""
    page = (Path(__file__).parents[2] / "docs" / "prefect-blocks.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]+)`)? ?\|", page, re.MULTILINE)
    defaults = {name.upper(): told.default for name, told in MlinfraSettings.model_fields.items()}
    assert [name for name, _ in rows] == list(defaults)
    for name, default in rows:
        assert json.loads(default or "null") == defaults[name] if name != "DEFAULT_ENVIRONMENT" else default == "dev"
