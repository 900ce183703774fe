"""Blocks: environments and requests that a team keeps in Prefect, filled in as forms and used by name.

Their forms are flat and know no unions, which Prefect's forms do not render well: an empty field is *not given*. A
block says nothing that a file could not say, and its values are checked by the same models, when it is used.

Credentials of other collections appear in the form where those are installed, and only there: their types are theirs.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl
from pydantic.json_schema import SkipJsonSchema

from mlinfra_prefect.errors import InvalidInput, UnsupportedHere
from mlinfra_prefect.model.environment import Environment
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingRequest

if TYPE_CHECKING:
    from prefect.blocks.core import Block as AwsCredentials, Block as KubernetesClusterConfig
else:

    def _installed(module: str, name: str) -> type[Block] | None:
        try:
            return getattr(importlib.import_module(module), name, None)
        except ImportError:
            return None

    AwsCredentials = _installed("prefect_aws.credentials", "AwsCredentials")
    KubernetesClusterConfig = _installed("prefect_kubernetes.credentials", "KubernetesClusterConfig")

BUILT = ("local", "aws")
"""Platforms of this version; the form knows the names of those to come."""
CAPS = ("max_minutes", "max_usd", "max_hourly_usd", "max_reserved_usd", "max_gpus", "max_leases")
# Prefect's own until this project has a public address: a picture and a page that are there for everybody.
LOGO = HttpUrl(
    "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9"
    "/assets/block-logos/filesystem.png"
)
PAGE = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")

# A form shows an optional field as a choice between its type and null, unless null is left out of the schema.
Null = SkipJsonSchema[None]
Whole: TypeAlias = Annotated[int, Field(ge=1)] | Null
Money: TypeAlias = Annotated[float, Field(gt=0)] | Null
Text: TypeAlias = str | Null


def _empty(schema: dict[str, Any]) -> None:
    schema.pop("default", None)  # null, which is not of the field's type: the form begins empty


def _login(credentials: Any) -> dict[str, str]:
    """The variables by which an AwsCredentials block of prefect-aws logs in, for the SDK and for Terraform."""
    secret = getattr(credentials, "aws_secret_access_key", None)
    found = {
        "AWS_ACCESS_KEY_ID": getattr(credentials, "aws_access_key_id", None),
        "AWS_SECRET_ACCESS_KEY": secret.get_secret_value() if secret is not None else None,
        "AWS_SESSION_TOKEN": getattr(credentials, "aws_session_token", None),
        "AWS_PROFILE": getattr(credentials, "profile_name", None),
        "AWS_REGION": getattr(credentials, "region_name", None),
    }
    return {name: str(value) for name, value in found.items() if value}


class MlinfraEnvironment(Block):
    """A named environment: the platform, the caps and the places of what runs there. Its name is the block's.

    Example:
        Every request of a flow that names the environment is admitted by it:
        ```python
        from mlinfra_prefect.collection import MlinfraEnvironment

        environment = MlinfraEnvironment.load("BLOCK_NAME")
        environment.apply_here()
        ```
    """

    _block_type_name: ClassVar[str | None] = "Mlinfra Environment"
    _block_type_slug: ClassVar[str | None] = "mlinfra-environment"
    _logo_url: ClassVar[HttpUrl | None] = LOGO
    _documentation_url: ClassVar[HttpUrl | None] = PAGE

    platform: Literal["local", "aws", "kubernetes"] = Field(
        default="local",
        title="Platform",
        description="Where a request runs that names none. This version has local and aws.",
    )
    max_minutes: Whole = Field(
        default=None,
        title="Longest life (minutes)",
        description="Of one lease; empty: no cap.",
        examples=[480],
        json_schema_extra=_empty,
    )
    max_usd: Money = Field(
        default=None,
        title="Budget (USD)",
        description="Over the whole life of one lease; empty: no cap.",
        examples=[25.0],
        json_schema_extra=_empty,
    )
    max_hourly_usd: Money = Field(
        default=None,
        title="Price cap (USD per hour)",
        description="Of one lease; empty: no cap.",
        examples=[4.0],
        json_schema_extra=_empty,
    )
    max_reserved_usd: Money = Field(
        default=None,
        title="Budget of all (USD)",
        description="What all leases that are not released can come to cost, together; empty: no cap.",
        examples=[100.0],
        json_schema_extra=_empty,
    )
    max_gpus: Annotated[int, Field(ge=0)] | Null = Field(
        default=None,
        title="GPUs in one lease",
        description="Over all its nodes; 0: cpu only; empty: no cap.",
        examples=[8],
        json_schema_extra=_empty,
    )
    max_leases: Whole = Field(
        default=None,
        title="Live leases at once",
        description="Everything counts that is not released yet; empty: no cap.",
        examples=[20],
        json_schema_extra=_empty,
    )
    input_roots: list[str] = Field(
        default_factory=list,
        title="Input roots",
        description="Inputs must lie under one of these directories; empty: anywhere readable.",
        examples=[["/data"]],
    )
    keeper_place: Literal["detected", "process", "foreground", "service"] = Field(
        default="detected",
        title="Keeper's place",
        description="Where what owns the leases lives: a process of its own, the flow's (in containers), or a service.",
    )
    aws_regions: list[str] = Field(
        default_factory=list,
        title="Regions on AWS",
        description="In the order in which they are tried; empty: those that `init aws` was done for.",
        examples=[["eu-central-1", "eu-west-1"]],
    )
    aws_disk_gib: int = Field(
        default=100, title="Disk on AWS (GiB)", description="Of one node, encrypted.", ge=20, le=16384
    )
    if AwsCredentials is not None:
        aws_credentials: AwsCredentials | Null = Field(
            default=None, title="AWS credentials", description="For platform aws.", json_schema_extra=_empty
        )
    if KubernetesClusterConfig is not None:
        kubernetes_cluster: KubernetesClusterConfig | Null = Field(
            default=None, title="Kubernetes cluster", description="For platform kubernetes.", json_schema_extra=_empty
        )

    def environment(self, name: str | None = None) -> Environment:
        """Return the environment that this block describes.

        Args:
            name: as requests name it; the block's own when not given.

        Raises:
            UnsupportedHere: its platform is not in this version.
            InvalidInput: a field is wrong, or a block that was never saved got no name.
        """
        named = name or self._block_document_name
        if not named:
            raise InvalidInput(
                "name", "is missing: this block was not saved", "Give a name, or save the block under one."
            )
        if self.platform not in BUILT:
            raise UnsupportedHere(
                f"MlinfraEnvironment {named!r} is on platform {self.platform}, which is not in this version.",
                f"There is: {', '.join(BUILT)}.",
            )
        values = {
            "name": named,
            "platform": self.platform,
            "caps": {field: getattr(self, field) for field in CAPS},
            "aws": {"regions": self.aws_regions, "disk_gib": self.aws_disk_gib},
            "input_roots": self.input_roots,
            "keeper_place": None if self.keeper_place == "detected" else self.keeper_place,
        }
        return parsed(Environment, values, prefix=f"MlinfraEnvironment {named}")

    def apply_here(self, name: str | None = None) -> Environment:
        """Let the environment hold in this process, and in the keeper's work for what this process asks for.

        Idempotent. It stays until the process ends, as do its AWS credentials. An environment of the same name in
        the project's file goes first: that its caps are replaced from elsewhere is refused.

        Args:
            name: as requests name it; the block's own when not given.

        Raises:
            InvalidInput, UnsupportedHere: as `environment`; or a file defines that name differently.
        """
        from mlinfra_prefect.integration.phase import context
        from mlinfra_prefect.lifecycle.applying import apply_environment

        made = self.environment(name)
        apply_environment(context(), made)
        os.environ.update(_login(getattr(self, "aws_credentials", None)))
        return made


class MlinfraRequest(Block):
    """What a training asks for, to be used wherever a request goes. Fields that stay empty are the environment's.

    Example:
        ```python
        from mlinfra_prefect import lease
        from mlinfra_prefect.collection import MlinfraRequest

        request = MlinfraRequest.load("BLOCK_NAME")
        with lease(request, max_minutes=30) as infra:
            ...
        ```
    """

    _block_type_name: ClassVar[str | None] = "Mlinfra Request"
    _block_type_slug: ClassVar[str | None] = "mlinfra-request"
    _logo_url: ClassVar[HttpUrl | None] = LOGO
    _documentation_url: ClassVar[HttpUrl | None] = PAGE

    accelerator: str = Field(
        default="cpu",
        title="Accelerator",
        description="What one node has: NAME[:COUNT] or cpu.",
        examples=["A100-80GB:8", "L4:1", "cpu"],
    )
    nodes: int = Field(default=1, title="Nodes", description="How many nodes; one until gangs exist.", ge=1, le=1)
    market: Literal["on-demand", "spot", "reserved"] = Field(
        default="on-demand", title="Market", description="How capacity is bought; local has on-demand only."
    )
    name: Text = Field(
        default=None,
        title="Lease's name",
        description="Part of its identity; empty: training.",
        examples=["churn"],
        json_schema_extra=_empty,
    )
    environment: Text = Field(
        default=None,
        title="Environment",
        description="Of the project's file, or the name of an environment block; empty: the default one.",
        examples=["dev", "prod"],
        json_schema_extra=_empty,
    )
    platform: Literal["environment's", "local", "aws", "kubernetes"] = Field(
        default="environment's", title="Platform", description="Where. This version has local only."
    )
    ami: Text = Field(
        default=None,
        title="Machine image",
        description="On aws: what a node boots; empty: one with driver and toolkit is found.",
        examples=["ami-0abcdef1234567890"],
        json_schema_extra=_empty,
    )
    max_minutes: Whole = Field(
        default=None,
        title="Longest life (minutes)",
        description="The hard limit; empty: 60, or the environment's cap where that is less.",
        examples=[480],
        json_schema_extra=_empty,
    )
    max_usd: Money = Field(
        default=None,
        title="Budget (USD)",
        description="Over its whole life; empty: the environment's cap.",
        examples=[25.0],
        json_schema_extra=_empty,
    )
    max_hourly_usd: Money = Field(
        default=None,
        title="Price cap (USD per hour)",
        description="Dearer offers are not taken; empty: the environment's cap.",
        examples=[4.0],
        json_schema_extra=_empty,
    )
    wait_minutes: int = Field(
        default=0,
        title="Wait (minutes)",
        description="How long to try again while no machine can be had, out of its life; 0: not at all.",
        ge=0,
        le=1440,
    )
    on_client_lost: Literal["checkpoint_then_release", "release_now", "keep"] = Field(
        default="checkpoint_then_release",
        title="When the client is lost",
        description="What the keeper does when the process that runs the flow is gone.",
    )
    keep_minutes: Whole = Field(
        default=None,
        title="Keep (minutes)",
        description="With 'keep' above, and only then: how long.",
        examples=[120],
        json_schema_extra=_empty,
    )
    grace_seconds: float = Field(
        default=30.0,
        title="Grace (seconds)",
        description="Between the request to write a checkpoint and the end of the training.",
        ge=0.1,
        le=3600,
    )
    exclusive: Text = Field(
        default=None,
        title="Exclusive name",
        description="Of the leases of an environment with this name one lives at a time; empty: no such limit.",
        examples=["nightly-churn"],
        json_schema_extra=_empty,
    )

    def request(self) -> TrainingRequest:
        """Return the request; what stays empty is not given.

        Raises:
            InvalidInput: a field is wrong; it is named.
            UnsupportedHere: its platform is not in this version.
        """
        if self.platform not in {"environment's", *BUILT}:
            raise UnsupportedHere(
                f"MlinfraRequest {self._block_document_name or ''} asks for platform {self.platform}, "
                "which is not in this version.",
                f"There is: {', '.join(BUILT)}.",
            )
        given = {field: getattr(self, field) for field in TrainingRequest.model_fields}
        values = {field: value for field, value in given.items() if value not in {None, "", "environment's"}}
        return parsed(TrainingRequest, values, prefix=f"MlinfraRequest {self._block_document_name or ''}".strip())
