"""Which secrets the nodes of an environment may read. The role decides; here it is known before anything is rented.

The client never reads a secret and needs no right to: it compares references with those that `init aws --secret` was
told, and hands them on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlinfra_prefect.agent.references import ON_AWS, Reference
from mlinfra_prefect.aws.environment import AwsEnvironment
from mlinfra_prefect.errors import InvalidInput


def take(
    references: Mapping[str, str], known: Callable[[], AwsEnvironment], newest: Callable[[], AwsEnvironment]
) -> dict[str, str]:
    """Return the references that a node is handed.

    Args:
        references: name of a variable to reference.
        known: the environment as this home remembers it.
        newest: as it lies beside its ledger: another host may have granted more.

    Raises:
        InvalidInput: one is a variable of the flow's process, is malformed, or is not granted.
        NotInitialised, MlinfraError: the environment is not there, or AWS cannot be asked.
    """
    wanted = {name: _reference(name, text) for name, text in references.items()}
    made = known() if wanted else None
    if made is not None and any(not _granted(made, each) for each in wanted.values()):
        made = newest()
        for name, each in wanted.items():
            if not _granted(made, each):
                options = " ".join(f"--secret {text}" for text in (*made.secrets, each.granted_as))
                raise InvalidInput(
                    f"secrets.{name}",
                    f"environment {made.name!r} grants its nodes no {each.granted_as}",
                    f"Run: mlinfra-prefect init aws --environment {made.name}{_as_made(made)} {options}",
                )
    return {name: each.text for name, each in wanted.items()}


def arns(references: tuple[str, ...], home_region: str, account: str) -> list[str]:
    """The resources of granted references, for the role's policy. Pure.

    Raises:
        InvalidInput: one is of another account, where it lies under a key that the role cannot use.
    """
    found = {Reference.parse(each).arn(home_region, account) for each in references}
    for each in sorted(found):
        owner = each.split(":")[4]
        if owner != account:
            raise InvalidInput(
                "secret", f"{each} is of account {owner}, and its key would be out of reach. Nothing was created",
                f"Keep a copy in account {account}.",
            )  # fmt: skip
    return sorted(found)


def is_reference(text: str) -> bool:
    """Whether a text is a reference that can be granted: one to a whole secret or parameter. Pure."""
    try:
        return text.startswith(ON_AWS) and Reference.parse(text).granted_as == text
    except ValueError:
        return False


def _reference(name: str, text: str) -> Reference:
    if not text.startswith(ON_AWS):
        raise InvalidInput(
            f"secrets.{name}", "env: is a variable of the flow's process, and its value would have to travel to a node "
            "on platform aws",
            "Keep it in Secrets Manager or Parameter Store, and refer to it as aws-sm:NAME or ssm:/NAME.",
        )  # fmt: skip
    try:
        return Reference.parse(text)
    except ValueError as error:
        raise InvalidInput(f"secrets.{name}", str(error)) from None


def _granted(made: AwsEnvironment, wanted: Reference) -> bool:
    return any(Reference.parse(each).covers(wanted, made.home_region, made.account) for each in made.secrets)


def _as_made(made: AwsEnvironment) -> str:
    """The options without which `init aws` would make another environment than this one."""
    regions = "".join(f" --region {each.name}" for each in made.regions)
    profile = "" if made.profile == "default" else f" --profile {made.profile}"
    egress = "" if made.egress == ("internet" if made.profile == "default" else "none") else f" --egress {made.egress}"
    return f"{regions}{profile}{egress}"
