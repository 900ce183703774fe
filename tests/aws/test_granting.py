"""What `init aws --secret` is told becomes the resources of the node role's policy, and nothing wider."""

from __future__ import annotations

import pytest

from mlinfra_prefect.aws.granting import arns, is_reference
from mlinfra_prefect.errors import InvalidInput

HOME, ACCOUNT = "eu-central-1", "123456789012"
SECRET = f"arn:aws:secretsmanager:eu-west-1:{ACCOUNT}:secret:hf-token-AbCdEf"


def test_each_reference_is_one_resource() -> None:
    """Twice the same is one; no star is ever among them."""
    granted = ("aws-sm:hf-token", f"aws-sm:{SECRET}", "ssm:/ours/wandb", "ssm:/ours/wandb")
    assert arns(granted, HOME, ACCOUNT) == [
        f"arn:aws:secretsmanager:{HOME}:{ACCOUNT}:secret:hf-token-??????", SECRET,
        f"arn:aws:ssm:{HOME}:{ACCOUNT}:parameter/ours/wandb",
    ]  # fmt: skip


def test_a_secret_of_another_account_is_refused_by_its_account() -> None:
    """It lies under a key of that account, so a grant alone would promise too much."""
    foreign = SECRET.replace(ACCOUNT, "210987654321")
    with pytest.raises(InvalidInput, match=f"of account 210987654321.*Keep a copy in account {ACCOUNT}"):
        arns((f"aws-sm:{foreign}",), HOME, ACCOUNT)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("aws-sm:hf-token", True), (f"aws-sm:{SECRET}", True), ("ssm:/ours/wandb", True), ("aws-sm:hf-token#key", False),
     ("env:TOKEN", False), ("hf_pasted", False), ("aws-sm:*", False), ("", False)],
)  # fmt: skip
def test_whole_secrets_are_granted(text: str, fits: bool) -> None:
    """A role reads a secret as a whole, so a key of it is no grant; and neither is a variable, or a wildcard."""
    assert is_reference(text) is fits
