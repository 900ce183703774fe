"""What a plan is held against, and what is said about it where it breaks a rule.

These two values are all that crosses from who asks to the gate and back. A policy holds decisions and nothing else: no
path, no plan, no client, so that the same one can be tested with a plan recorded years ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

AWS = "registry.terraform.io/hashicorp/aws"
AWS_OPENTOFU = "registry.opentofu.org/hashicorp/aws"
BUILTIN = "terraform.io/builtin/terraform"
EGRESS = ("internet", "mirror", "none")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One rule that a plan breaks.

    Attributes:
        address: the resource (or provider, or file) that breaks it; empty where it is the plan as a whole.
        rule: a short id that stays the same between versions, such as ``tags-missing``.
        message: one sentence: what is wrong, and what to do.
    """

    address: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.address or 'the plan'} [{self.rule}]: {self.message}"


@dataclass(frozen=True, slots=True)
class Policy:
    """The decisions that a plan must keep.

    Attributes:
        required_tags: what everything billed must carry where it is billed: key to exact value, or to None where any
            value that is not empty will do. Empty: tags are not checked.
        providers: full sources that may appear.
        egress: whether nodes reach the ``internet``, a ``mirror`` or ``none``; only the first allows a public address.
        ephemeral: the plan is one attempt, which is applied once and destroyed. What is only right for that is then
            checked: nothing is changed, and the meter of each thing can be stopped.
        private_ingress: private addresses and security groups may be let in. Never in an ephemeral plan.
        allow_programs: ``local-exec`` and its like may run on this machine.
        max_instances: the most instances that all of the plan may start; None: not checked.
        kinds: resource types that somebody has allowed by name although no meter of theirs can be stopped by us, or
            although they cannot carry a tag.
    """

    required_tags: Mapping[str, str | None] = field(default_factory=dict)
    providers: frozenset[str] = frozenset({AWS, AWS_OPENTOFU, BUILTIN})
    egress: str = "internet"
    ephemeral: bool = True
    private_ingress: bool = False
    allow_programs: bool = False
    max_instances: int | None = None
    kinds: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.egress not in EGRESS:
            raise ValueError(f"egress must be one of {', '.join(EGRESS)}, and is {self.egress!r}.")

    @classmethod
    def shared(cls, tags: Mapping[str, str | None], *, profile: str = "default", egress: str = "internet") -> Self:
        """The policy of a shared stack; what of it cannot carry a tag and may cost is allowed by name."""
        return cls(
            required_tags=tags,
            egress=egress,
            ephemeral=False,
            private_ingress=profile == "hardened",
            kinds=frozenset({"aws_cloudwatch_dashboard", "aws_s3_bucket_metric"}),
        )
