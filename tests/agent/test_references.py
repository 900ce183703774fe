"""A reference means one resource of AWS, and a grant covers what it names and nothing else."""

from __future__ import annotations

import pytest

from mlinfra_prefect.agent.references import Reference

HOME, ACCOUNT = "eu-central-1", "123456789012"
SECRET = f"arn:aws:secretsmanager:eu-west-1:{ACCOUNT}:secret:team/hf-token-AbCdEf"
PARAMETER = f"arn:aws:ssm:us-east-1:{ACCOUNT}:parameter/team/wandb"
AT_HOME = f"arn:aws:secretsmanager:{HOME}:{ACCOUNT}:secret:hf-token-AbCdEf"


@pytest.mark.parametrize(
    ("text", "service", "name", "key", "region", "arn"),
    [
        ("aws-sm:hf-token", "secretsmanager", "hf-token", "", HOME,
         f"arn:aws:secretsmanager:{HOME}:{ACCOUNT}:secret:hf-token-??????"),
        ("aws-sm:team/db#password", "secretsmanager", "team/db", "password", HOME,
         f"arn:aws:secretsmanager:{HOME}:{ACCOUNT}:secret:team/db-??????"),
        (f"aws-sm:{SECRET}#user", "secretsmanager", SECRET, "user", "eu-west-1", SECRET),
        ("ssm:/team/wandb", "ssm", "/team/wandb", "", HOME, f"arn:aws:ssm:{HOME}:{ACCOUNT}:parameter/team/wandb"),
        (f"ssm:{PARAMETER}", "ssm", PARAMETER, "", "us-east-1", PARAMETER),
    ],
)  # fmt: skip
def test_a_reference_says_what_is_read_and_where(  # noqa: PLR0917 (one row)
    text: str, service: str, name: str, key: str, region: str, arn: str
) -> None:
    """A name is looked up in the home region; an ARN says its own."""
    found = Reference.parse(text)
    assert (found.service, found.name, found.key) == (service, name, key)
    assert (found.region(HOME), found.arn(HOME, ACCOUNT)) == (region, arn)
    assert found.granted_as == text.partition("#")[0]


@pytest.mark.parametrize(
    "text",
    [
        "env:HF_TOKEN", "aws-sm:", "aws-sm:a b", "aws-sm:a*", "aws-sm:a?", "aws-sm:${aws:userid}", "aws-sm:#key",
        "aws-sm:a#", "aws-sm:a#b#c", "aws-sm:a\n", "ssm:wandb", "ssm:/a#b", "ssm:/a:3", "ssm:/", "k8s:token",
        # Part of an ARN: its last six characters could as well be a word of the name.
        f"aws-sm:arn:aws:secretsmanager:{HOME}:{ACCOUNT}:secret:token", f"aws-sm:{PARAMETER}", f"ssm:{SECRET}",
        "aws-sm:" + "x" * 513,
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_and_not_repeated(text: str) -> None:
    """No wildcard and no variable of a policy can come in by a name; and the text may be a secret itself."""
    with pytest.raises(ValueError, match=r"^must be aws-sm:NAME, .* or ssm:/NAME$"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("granted", "wanted", "covered"),
    [
        ("aws-sm:hf-token", "aws-sm:hf-token", True),
        ("aws-sm:hf-token", "aws-sm:hf-token#key", True),
        ("aws-sm:hf-token", f"aws-sm:{AT_HOME}", True),
        (f"aws-sm:{AT_HOME}", "aws-sm:hf-token", True),
        (f"aws-sm:{AT_HOME}", f"aws-sm:{AT_HOME[:-1]}g", False),
        ("aws-sm:hf", "aws-sm:hf-token", False),
        ("aws-sm:hf", f"aws-sm:{AT_HOME}", False),
        ("aws-sm:team/hf-token", f"aws-sm:{SECRET}", False),  # of another region
        ("ssm:/team/wandb", "ssm:/team/wandb", True),
        ("ssm:/team", "ssm:/team/wandb", False),
        ("ssm:/hf-token", "aws-sm:hf-token", False),
    ],
)
def test_a_grant_covers_the_same_resource_only(granted: str, wanted: str, covered: bool) -> None:
    """By name or by ARN: six characters, no more and no fewer, stand behind a name."""
    assert Reference.parse(granted).covers(Reference.parse(wanted), HOME, ACCOUNT) is covered


def test_partitions_have_arns_of_their_own() -> None:
    """China and GovCloud are other AWS."""
    assert Reference.parse("ssm:/a").arn("cn-north-1", ACCOUNT).startswith("arn:aws-cn:ssm:cn-north-1:")
    assert Reference.parse("ssm:/a").arn("us-gov-west-1", ACCOUNT).startswith("arn:aws-us-gov:")
