"""Rule: what cannot be made or leased on AWS is one line with the next step, and nothing is created.

No Terraform runs here: everything is refused before it would. What is judged is what the account was asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "aws"))

from aws_place import REGION, SECOND, Account, House, house_in, usable

from mlinfra_prefect.aws import images, tags
from mlinfra_prefect.aws.environment import AwsEnvironment
from mlinfra_prefect.cli.app import run
from mlinfra_prefect.cli.outcome import guarded
from mlinfra_prefect.ledger import mounts
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.testing.aws import Emulator

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def emulated() -> Iterator[Account]:
    with Emulator() as aws:
        yield Account(aws)


@pytest.fixture(scope="module")
def environment(emulated: Account) -> AwsEnvironment:
    """What nobody initialised, usable all the same."""
    return usable(House(emulated, Path()), "dev")


@pytest.fixture
def account(emulated: Account) -> Iterator[Account]:
    yield emulated
    emulated.aws.clear_faults()
    if running := emulated.running(REGION):
        emulated.end(*running)


@pytest.fixture
def house(account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[House]:
    """A home, and no credentials, profile or instance but those of the emulator."""
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "absent"))
    with house_in(account, monkeypatch) as made:
        yield made


@pytest.fixture
def refuses(house: House, account: Account, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a verb that has to fail with one line; nothing was asked for that changes anything, and nothing written."""

    def refuses(*words: str, code: int = 1) -> str:
        capsys.readouterr()
        with account.unchanged():
            assert guarded(lambda: run(list(words))) == code, capsys.readouterr().err
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert line.startswith("error: ")
        context = Context(house.home)
        assert context.ledger.records() == []
        context.ledger.close()
        return line

    return refuses


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--environment", "Dev"], "environment: 'Dev' is not a name. Use lower-case letters, digits, dashes."),
        (["--environment", ""], "environment: '' is not a name"),
        (["--environment", "../x"], "environment: '../x' is not a name"),
        (["--environment", "a" * 40], "environment: "),
        (["--profile", "cheap"], "profile: 'cheap' is not one. There is: default, hardened."),
        (["--egress", "proxy"], "egress: 'proxy' is not one. There is: internet, mirror, none."),
        (["--profile", "hardened", "--egress", "internet"], "egress: profile 'hardened' has no way to the internet"),
        (["--region", "Frankfurt"], "regions.0: "),
        (["--region", REGION, "--region", "us-east-1; rm"], "regions.1: "),
        ([word for number in range(9) for word in ("--region", f"eu-west-{number}")], "regions: "),
        (["--mirror", "10.0.0.1"], "mirror: '10.0.0.1' is not a range of addresses such as 10.20.0.0/16"),
        (["--mirror", "10.0.0.0/8"], "mirror: egress 'internet' reaches none. Say --egress mirror."),
        (["--input-bucket", "s3://ours"], "input-bucket: 's3://ours' is not the name of a bucket"),
        (["--secret", "env:TOKEN"], "secret: must be aws-sm:NAME, aws-sm:ARN (the whole ARN) or ssm:/NAME"),
        (["--secret", "aws-sm:token#key"], "secret: must be aws-sm:NAME, aws-sm:ARN (the whole ARN) or ssm:/NAME"),
        (["--destroy", "--environment", "Dev"], "environment: 'Dev' is not a name"),
    ],
)
def test_a_wrong_option_is_named(refuses: Refuse, words: list[str], said: str) -> None:
    """Exit code 2, and AWS was not even asked to change anything."""
    assert refuses("init", "aws", "--yes", *words, code=2).startswith(f"error: {said}")


@pytest.mark.parametrize("words", [["init"], ["init", "gcp"], ["init", "aws", "--zones", "3"], ["init", "aws", "x"]])
def test_wrong_usage_says_where_the_help_is(refuses: Refuse, words: list[str]) -> None:
    """There is one platform to initialise."""
    assert "mlinfra-prefect init --help" in refuses(*words, code=2)


def test_a_name_that_makes_no_bucket_says_how_long_it_may_be(refuses: Refuse) -> None:
    """Names of buckets end at 63 characters, and hold account and region too."""
    line = refuses("init", "aws", "--yes", "--environment", "production", "--region", "ap-southeast-2", code=2)
    assert "environment: 'production' is too long" in line
    assert line.endswith("In ap-southeast-2 it may have 9 characters.")


# --- who and where ----------------------------------------------------------------------------------------------------

VERBS = [["init", "aws", "--yes", "--environment", "new"], ["up", "cpu", "--platform", "aws"]]


@pytest.mark.parametrize("words", [*VERBS, ["init", "aws", "--destroy", "--yes"], ["plan", "cpu", "--platform", "aws"]])
def test_without_credentials_it_says_how_to_log_in(
    refuses: Refuse, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """On each of the verbs that begin something."""
    for name in KEYS:
        monkeypatch.delenv(name)
    line = refuses(*words)
    assert "there are no AWS credentials. Log in (`aws sso login`" in line


@pytest.mark.parametrize("words", VERBS)
@pytest.mark.parametrize(
    ("code", "said"),
    [("ExpiredToken", "the AWS credentials have expired. Log in"), ("InvalidClientTokenId", "does not accept")],
)
def test_credentials_that_are_refused_say_why(
    refuses: Refuse, account: Account, words: list[str], code: str, said: str
) -> None:
    """Whatever is asked first."""
    account.aws.fail("*", status=403, code=code, times=None)
    assert said in refuses(*words)


def test_credentials_that_expire_after_the_environment_was_found(
    refuses: Refuse, house: House, account: Account, environment: AwsEnvironment
) -> None:
    """The home remembers the environment; the ladder's own questions are refused, and no record is written."""
    Context(house.home).platform("aws").environment("dev")  # type: ignore[attr-defined]
    account.aws.fail("*", status=400, code="RequestExpired", times=None)
    assert "the AWS credentials have expired" in refuses("up", "cpu", "--platform", "aws")


@pytest.mark.parametrize("words", VERBS)
def test_without_a_region_it_says_how_to_name_one(
    refuses: Refuse, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """None is guessed."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    assert "AWS_REGION: no region is configured. Set AWS_REGION" in refuses(*words, code=2)


def test_an_environment_that_is_not_initialised_says_what_makes_it(
    refuses: Refuse, monkeypatch: pytest.MonkeyPatch, environment: AwsEnvironment
) -> None:
    """Nor is it in another region than its own: the line names where it was looked for."""
    for words, remedy in (
        (["up", "cpu", "--platform", "aws"], "Run: mlinfra-prefect init aws --environment dev"),
        (["plan", "cpu", "--platform", "aws"], "Run: mlinfra-prefect init aws --environment dev"),
        (["init", "aws", "--destroy"], "name its first one with --region. Nothing was destroyed."),
    ):
        monkeypatch.setenv("AWS_REGION", SECOND)
        line = refuses(*words)
        assert f"Environment 'dev' is not initialised on AWS in {SECOND}" in line
        assert line.endswith(remedy)


def test_a_permission_that_is_missing_is_named(refuses: Refuse, account: Account, environment: AwsEnvironment) -> None:
    """The action, so that it can be allowed."""
    account.aws.fail("DescribeAvailabilityZones", status=403, code="UnauthorizedOperation", times=None)
    assert "ec2:DescribeAvailabilityZones" in refuses("init", "aws", "--yes", "--environment", "new")


# --- buckets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "versioned", "said"),
    [
        ("loses", False, "is not versioned: an overwritten state would be lost. Nothing was created."),
        ("shows", True, "may be made public. Nothing was created."),
    ],
)
def test_a_state_bucket_that_can_lose_or_show_is_refused(
    refuses: Refuse, account: Account, name: str, versioned: bool, said: str
) -> None:
    """Somebody made it by hand; the line has the command that mends it."""
    bucket = f"mlinfra-prefect-state-{name}-{account.aws.account}-{REGION}"
    account.client("s3").create_bucket(Bucket=bucket)
    if versioned:
        account.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    line = refuses("init", "aws", "--yes", "--environment", name)
    assert said in line
    assert f"aws s3api put-{'public-access-block' if versioned else 'bucket-versioning'} --bucket {bucket}" in line


def test_a_region_is_never_forgotten(refuses: Refuse, house: House) -> None:
    """Its network would be there, and nobody would know of it any more."""
    made = usable(house, "both", (REGION, SECOND))
    _closed(house.account, made.state_bucket)
    line = refuses("init", "aws", "--yes", "--environment", "both", code=2)
    assert f"region: environment 'both' has a network in {SECOND} too" in line
    assert f"--region {REGION} --region {SECOND}" in line


def _closed(account: Account, bucket: str) -> None:
    s3 = account.client("s3")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    block = dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
    )  # fmt: skip
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=block)


# --- destroying -------------------------------------------------------------------------------------------------------


def marks(environment: str) -> dict[str, str]:
    return tags.build(
        ledger_id="theirs", lease_id="l0123456789abcdef0123-1", attempt=1, environment=environment, deadline=9e9
    )


def test_nothing_is_destroyed_while_anybody_leases(
    refuses: Refuse, account: Account, environment: AwsEnvironment
) -> None:
    """Another ledger's lease counts too: its tags say so, and the line names it."""
    marks = tags.build(
        ledger_id="theirs", lease_id="l0123456789abcdef0123-1", attempt=1, environment="dev", deadline=9e9
    )
    account.plant(marks)
    line = refuses("init", "aws", "--destroy", "--yes")
    assert "Environment 'dev' still has 1 lease(s): l0123456789abcdef0123-1 of ledger theirs." in line
    assert "Nothing was destroyed." in line


def test_what_another_environment_leases_is_not_in_the_way(
    refuses: Refuse, account: Account, environment: AwsEnvironment
) -> None:
    """Here nobody agreed, so nothing is destroyed; but no lease is named."""
    marks = tags.build(
        ledger_id="theirs", lease_id="l0123456789abcdef0123-1", attempt=1, environment="prod", deadline=9e9
    )
    account.plant(marks)
    assert "Nobody can be asked here. Say that it may with --yes." in refuses("init", "aws", "--destroy")


def test_what_cannot_be_looked_at_is_not_read_as_no_lease(
    refuses: Refuse, account: Account, environment: AwsEnvironment
) -> None:
    """Destroying the network of a lease that runs would cost its training."""
    account.aws.fail("DescribeInstances", status=403, code="UnauthorizedOperation", times=None)
    assert "DescribeInstances" in refuses("init", "aws", "--destroy", "--yes")


# --- leasing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--max-usd", "0.001"], 1, "max_usd: 0.00 USD buys"),
        (["--max-usd", "0.05"], 1, "raise max_usd to"),
        (["--max-hourly-usd", "0.01"], 4, "is above max_hourly_usd, 0.01. Allow another accelerator, market, price"),
        (["--market", "reserved"], 1, "market: reserved capacity is not rented on aws"),
    ],
)
def test_what_no_lease_can_be_is_refused_before_it_is_written(
    refuses: Refuse, environment: AwsEnvironment, words: list[str], code: int, said: str
) -> None:
    """No record, no keeper, nothing in the account."""
    assert said in refuses("up", "cpu", "--platform", "aws", *words, code=code)


def test_a_quota_of_zero_everywhere_says_which(refuses: Refuse, account: Account, environment: AwsEnvironment) -> None:
    """Exit code 4: there is no capacity for this account."""
    account.aws.quota("L-DB2E81BA", 0)
    line = refuses("up", "L4:1", "--platform", "aws", code=4)
    assert "L-DB2E81BA" in line


def test_an_image_without_a_driver_is_refused(
    refuses: Refuse, house: House, account: Account, environment: AwsEnvironment
) -> None:
    """A stock image under a GPU request: a boot and a failed test that nobody has to pay for."""
    (parameter,) = images.PARAMETERS["cpu"]
    image = account.client("ssm").get_parameter(Name=parameter)["Parameter"]["Value"]
    for verb in ("plan", "up"):
        line = refuses(verb, asking(house, accelerator="L4:1", ami=image), code=2)
        assert f"ami: {image} (ubuntu/images" in line
        assert "has no NVIDIA driver, and the request asks for GPUs. Name another image" in line


@pytest.mark.parametrize(
    ("ami", "said"),
    [("ubuntu", "ami: "), ("ami-00000000000000000", "ami: ami-00000000000000000 is not in us-east-1")],
)
def test_an_image_that_is_none_is_refused(
    refuses: Refuse, house: House, environment: AwsEnvironment, ami: str, said: str
) -> None:
    """Malformed, or of another region: no record is written for it."""
    for verb in ("plan", "up"):
        assert said in refuses(verb, asking(house, accelerator="cpu", ami=ami), code=2)


def asking(house: House, **fields: str) -> str:
    """A request as a file."""
    path = house.root.parent / "request.yaml"
    path.write_text("platform: aws\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()))
    return str(path)


def test_a_ledger_that_ends_with_its_container_rents_nothing(
    refuses: Refuse, monkeypatch: pytest.MonkeyPatch, environment: AwsEnvironment
) -> None:
    """What is rented would outlive its record. Where AWS is emulated it ends with this host anyway."""
    from mlinfra_prefect.aws.platform import AwsPlatform

    monkeypatch.setattr(AwsPlatform, "emulated", False)
    monkeypatch.setattr(mounts, "mounted", lambda: [mounts.Mount(Path("/"), "overlay")])
    line = refuses("up", "cpu", "--platform", "aws")
    assert "lies on overlay, which ends with its container" in line
    assert "Set MLINFRA_LEDGER" in line
    assert "MLINFRA_HOME on a volume" in line


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        ([("/", "overlay")], True),
        ([("/", "overlay"), ("/home", "ext4")], False),
        ([("/", "ext4"), ("/home", "tmpfs")], True),
        ([("/", "ext4"), ("/home/ada", "fuse.fuse-overlayfs")], True),
        ([("/", "overlay"), ("/home", "nfs4")], False),
        ([("/", "xfs")], False),
        ([], False),
    ],
)
def test_which_file_systems_end_with_their_container(found: list[tuple[str, str]], refused: bool) -> None:
    """The innermost one decides; a host that does not say is trusted."""
    from mlinfra_prefect.errors import LedgerUnavailable

    there = [mounts.Mount(Path(place), kind) for place, kind in found]
    path = Path("/home/ada/.mlinfra-prefect/ledger.sqlite")
    if not refused:
        mounts.refuse_passing_file_system(path, there)
        return
    with pytest.raises(LedgerUnavailable, match="which ends with its container"):
        mounts.refuse_passing_file_system(path, there)


def test_plan_as_json_says_the_ladder_with_its_reasons(
    house: House, account: Account, environment: AwsEnvironment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an offer that can be taken the plan is null and the reasons stand all the same; exit code 4."""
    import json

    account.aws.quota("L-DB2E81BA", 0)
    with account.unchanged():
        assert guarded(lambda: run(["plan", "L4:1", "--platform", "aws", "--json"])) == 4
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["plan"] is said["estimate_usd"] is None
    first = said["offers"][0]
    assert set(first) == {
        "type", "region", "zones", "market", "usd_per_hour", "gpus", "gpu_memory_gib", "vcpus", "memory_gib",
        "quota_headroom", "priced_at", "price_source", "skipped",
    }  # fmt: skip
    assert all("L-DB2E81BA" in each["skipped"] for each in said["offers"])
    assert first["gpu_memory_gib"] > 20
