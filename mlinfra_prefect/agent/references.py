"""How a secret is referred to, and which resource of AWS that means. Pure.

The client and the node read the same words: the client refuses what is malformed or not granted before anything is
rented, the node reads what it was told (`secret_stores`). A reference is all that ever travels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

_ARN = r"arn:aws[a-z-]*:{}:[a-z0-9-]+:[0-9]{{12}}:"
_NAME = r"[A-Za-z0-9/_+=.@-]{1,512}"
_PATH = r"/[A-Za-z0-9_./-]{1,1010}"
VARIABLE_PATTERN: Final = r"env:[A-Za-z_][A-Za-z0-9_]{0,127}"
SECRET_PATTERN: Final = (
    rf"aws-sm:({_ARN.format('secretsmanager')}secret:{_NAME}-[A-Za-z0-9]{{6}}|{_NAME})(#[A-Za-z0-9_.:/@-]{{1,128}})?"
)
PARAMETER_PATTERN: Final = rf"ssm:({_ARN.format('ssm')}parameter{_PATH}|{_PATH})"
PATTERN: Final = f"({VARIABLE_PATTERN}|{SECRET_PATTERN}|{PARAMETER_PATTERN})"
ON_AWS: Final = ("aws-sm:", "ssm:")
_SERVICES: Final[dict[str, Literal["secretsmanager", "ssm"]]] = {"aws-sm": "secretsmanager", "ssm": "ssm"}


@dataclass(frozen=True)
class Reference:
    """A secret of Secrets Manager, or a parameter of Parameter Store.

    Args:
        text: as it was written.
        service: as it stands in ARNs and in the service's address.
        name: the name, or the whole ARN.
        key: of the secret's JSON object; empty: the whole text.
    """

    text: str
    service: Literal["secretsmanager", "ssm"]
    name: str
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read what begins with one of `ON_AWS`. Raises ValueError, without the text: it may be a secret itself."""
        if not re.fullmatch(f"{SECRET_PATTERN}|{PARAMETER_PATTERN}", text):
            raise ValueError("must be aws-sm:NAME, aws-sm:ARN (with #KEY for one value of a JSON object) or ssm:/NAME")
        scheme, _, rest = text.partition(":")
        name, _, key = rest.partition("#")
        return cls(text, _SERVICES[scheme], name, key)

    @property
    def granted_as(self) -> str:
        """The reference that a grant names: a role reads a secret as a whole."""
        return self.text.partition("#")[0]

    def region(self, home: str) -> str:
        """Where it is read: an ARN says so, a name means the environment's home region."""
        return self.name.split(":")[3] if self.name.startswith("arn:") else home

    def arn(self, home: str, account: str) -> str:
        """The resource in a policy. Secrets Manager puts six characters after a name: ``??????`` fits just these."""
        if self.name.startswith("arn:"):
            return self.name
        kind = f"secret:{self.name}-??????" if self.service == "secretsmanager" else f"parameter{self.name}"
        return f"arn:{partition_of(home)}:{self.service}:{home}:{account}:{kind}"

    def covers(self, wanted: Reference, home: str, account: str) -> bool:
        """Whether a grant of this one lets a node read that one. A name and an ARN may mean the same secret."""
        mine, its = self.arn(home, account), wanted.arn(home, account)
        return fnmatchcase(its, mine) or fnmatchcase(mine, its)


def partition_of(region: str) -> str:
    """The part of AWS that a region belongs to, as it stands in ARNs."""
    return "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"
