"""What a flow asks for: infrastructure to train on, a job to run there, and a serving of the result.

Overrides *merge*: a partial override never drops the other fields. Caps belong to the environment and a request may
only lower them (`environment.Environment.admit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from mlinfra_prefect.model.accelerator import Accelerator
from mlinfra_prefect.model.json_values import JsonObject
from mlinfra_prefect.model.names import EnvironmentVariable, Id, Line, digest
from mlinfra_prefect.model.record import Record, parsed
from mlinfra_prefect.model.resume import resume_key as resume_key  # noqa: PLC0414 (one of the request's own words)
from mlinfra_prefect.model.spelling import EndpointName, Requirement, SecretReference, Target

DEFAULT_MAX_MINUTES = 60
MAX_MINUTES = 60 * 24 * 30
"""No lease lives longer than 30 days; longer work resumes from a checkpoint."""
MAX_WAIT_MINUTES = 60 * 24
LONGEST_WAIT_SHARE = 0.75
"""Of a life: a machine that came at its end would be given back before it was of use."""
MAX_USD = 1e6
MAX_HOURLY_USD = 1e5
"""Above these a number is a typing error."""


class TrainingRequest(Record):
    """The infrastructure that a training needs, and the limits that no part of it may cross."""

    accelerator: Accelerator = Field(
        default=Accelerator(name="cpu", count=0),
        title="Accelerator",
        description="What one node has: NAME[:COUNT] or cpu.",
        examples=["A100-80GB:8", "L4:1", "cpu"],
    )
    nodes: int = Field(
        default=1, title="Nodes", description="How many nodes; one until gangs exist.", ge=1, le=1, examples=[1]
    )
    market: Literal["on-demand", "spot", "reserved"] = Field(
        default="on-demand", title="Market", description="How capacity is bought; local has on-demand only."
    )
    name: Id = Field(
        default="training", title="Name", description="The lease's name, part of its identity.", examples=["churn"]
    )
    environment: Id = Field(
        default="dev", title="Environment", description="Whose caps and defaults hold.", examples=["dev", "prod"]
    )
    platform: Literal["local", "aws"] | None = Field(
        default=None, title="Platform", description="Where; the environment's default when not given."
    )
    ami: str | None = Field(
        default=None,
        title="Machine image",
        description="On aws: what a node boots; one with driver and toolkit is found when not given.",
        pattern=r"^ami-[0-9a-f]{8,17}$",
        examples=["ami-0abcdef1234567890"],
    )
    max_minutes: int | None = Field(
        default=None,
        title="Longest life (minutes)",
        description=f"The hard limit; {DEFAULT_MAX_MINUTES} or the environment's cap when not given.",
        ge=1,
        le=MAX_MINUTES,
        examples=[480],
    )
    max_usd: float | None = Field(
        default=None,
        title="Budget (USD)",
        description="Over its whole life; the environment's cap when not given.",
        gt=0,
        le=MAX_USD,
        examples=[25.0],
    )
    max_hourly_usd: float | None = Field(
        default=None,
        title="Price cap (USD per hour)",
        description="Dearer offers are not taken; the environment's cap when not given.",
        gt=0,
        le=MAX_HOURLY_USD,
        examples=[4.0],
    )
    wait_minutes: int = Field(
        default=0,
        title="Wait (minutes)",
        description="How long to try again while no machine can be had, out of its life; 0: not at all.",
        ge=0,
        le=MAX_WAIT_MINUTES,
        examples=[30],
    )
    on_client_lost: Literal["checkpoint_then_release", "release_now", "keep"] = Field(
        default="checkpoint_then_release",
        title="When the client is lost",
        description="What the keeper does when the process that runs the flow is gone.",
    )
    keep_minutes: int | None = Field(
        default=None,
        title="Keep (minutes)",
        description="With on_client_lost='keep', and only then: how long.",
        ge=1,
        le=MAX_MINUTES,
        examples=[120],
    )
    grace_seconds: float = Field(
        default=30.0,
        title="Grace (seconds)",
        description="Between *checkpoint now* (SIGTERM) and SIGKILL of the training.",
        ge=0.1,
        le=3600,
        examples=[30.0],
    )
    exclusive: Id | None = Field(
        default=None,
        title="Exclusive name",
        description="Of the leases of an environment with this name one lives at a time; the next is refused.",
        examples=["nightly-churn"],
    )

    @field_validator("wait_minutes")
    @classmethod
    def _wait_leaves_time(cls, value: int, info: ValidationInfo) -> int:
        life = info.data.get("max_minutes") or DEFAULT_MAX_MINUTES
        if value > life * LONGEST_WAIT_SHARE:
            most = int(life * LONGEST_WAIT_SHARE)
            raise ValueError(
                f"may be {most} with max_minutes={life}: the wait is part of its life, and has to leave some"
            )
        return value

    @field_validator("keep_minutes")
    @classmethod
    def _keep_says_how_long(cls, value: int | None, info: ValidationInfo) -> int | None:
        if (info.data.get("on_client_lost") == "keep") != (value is not None):
            raise ValueError("goes with on_client_lost='keep', and only with it: give both or neither")
        return value

    def merged(self, overrides: Mapping[str, Any]) -> TrainingRequest:
        """Return this request with some fields replaced; the others stay.

        Raises:
            InvalidInput: naming the field.
        """
        changes = dict(overrides)
        if changes.get("on_client_lost", "keep") != "keep":
            changes.setdefault("keep_minutes", None)
        present = {name: getattr(self, name) for name in TrainingRequest.model_fields}
        return parsed(TrainingRequest, {**present, **changes})

    @property
    def life_minutes(self) -> int:
        """How long it may live, were money no matter."""
        return self.max_minutes or DEFAULT_MAX_MINUTES

    @property
    def hash(self) -> str:
        """A hash of every field, for lineage."""
        return digest("request", self.model_dump_json())


class TrainingJob(Record):
    """One piece of work on a leased node: the training contract, the same on every platform."""

    model_config = Record.model_config | {"hide_input_in_errors": True}  # it may be a secret pasted for its reference

    target: Target = Field(
        title="What runs",
        description="'module:function', 'path/to/file.py:function', or a command as a list of arguments.",
        examples=["acme.churn:train", ["python", "train.py", "--epochs", "3"]],
    )
    params: JsonObject = Field(
        default_factory=dict,
        title="Parameters",
        description="JSON values: keyword arguments, and MLINFRA_PARAMS.",
        examples=[{"epochs": 3}],
    )
    inputs: dict[EnvironmentVariable, Line] = Field(
        default_factory=dict,
        title="Inputs",
        description="Name to path or file:// URI; MLINFRA_INPUT_<NAME>.",
        examples=[{"corpus": "/data/corpus"}],
    )
    secrets: dict[EnvironmentVariable, SecretReference] = Field(
        default_factory=dict,
        title="Secrets",
        description="Name to reference: 'env:X' on local, 'aws-sm:NAME' or 'ssm:/NAME' on aws; set in the training "
        "process only.",
        examples=[{"HF_TOKEN": "env:HF_TOKEN"}, {"HF_TOKEN": "aws-sm:hf-token"}],
    )
    requirements: tuple[Requirement, ...] = Field(
        default=(),
        title="Requirements",
        description="Installed by the agent, on top of the flow's environment.",
        examples=[["torch==2.9.*"]],
    )
    resume: Line | None = Field(
        default=None,
        title="Resume key",
        description="Checkpoints under this key outlive leases; {name} stands for a parameter.",
        examples=["lora-{base}-r{rank}"],
    )
    grace_seconds: float | None = Field(
        default=None, title="Grace (seconds)", description="Overrides the request's.", ge=0.1, le=3600, examples=[30.0]
    )
    progress_timeout_minutes: float | None = Field(
        default=None,
        title="Progress time-out (minutes)",
        description="A training that says nothing for so long is stopped; None: a silent training lives on.",
        gt=0,
        le=MAX_MINUTES,
        examples=[20.0],
    )

    @field_validator("requirements", mode="before")
    @classmethod
    def _many(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("must be a list of requirements")  # noqa: TRY004 (pydantic reports ValueError)
        return value


class ServingRequest(Record):
    """A served model behind a stable URL."""

    name: EndpointName = Field(title="Name", description="The endpoint's, part of its identity.", examples=["churn"])
    environment: Id = Field(
        default="dev", title="Environment", description="Whose caps and defaults hold.", examples=["dev", "prod"]
    )
    platform: Literal["local"] | None = Field(
        default=None, title="Platform", description="Where; the environment's default when not given."
    )
    expires_minutes: int | None = Field(
        default=None,
        title="Expires after (minutes)",
        description="The server ends itself then; None: it serves until it is released.",
        ge=1,
        le=MAX_MINUTES,
        examples=[480],
    )
    port: int | None = Field(
        default=None,
        title="Port",
        description="On loopback; a free one when not given.",
        ge=1024,
        le=65535,
        examples=[8123],
    )
    auth: Literal["token", "none"] | None = Field(
        default=None,
        title="Authentication",
        description="Whether who asks must show the endpoint's token; a new endpoint's is 'token' when not given.",
    )
    replicas: int = Field(
        default=1,
        title="Replicas",
        description="How many servers answer for each version.",
        ge=1,
        le=16,
        examples=[2],
    )
    max_replicas: int | None = Field(
        default=None,
        title="Replicas at most",
        description="Under load so many servers are started, and ended when it is over; None: always as many.",
        ge=1,
        le=16,
        examples=[4],
    )
    target_in_flight: float = Field(
        default=4.0,
        title="Requests in flight",
        description="How many a replica shall have at a time, on average, where their number follows the load.",
        gt=0,
        le=10000,
        examples=[4.0],
    )
    retire_seconds: float = Field(
        default=30.0,
        title="Retire after (seconds)",
        description="How long a version that was replaced is kept, so that a rollback is instant.",
        ge=0,
        le=604800,
        examples=[30.0, 3600.0],
    )
    rollout_minutes: float = Field(
        default=60.0,
        title="Rollout at most (minutes)",
        description="A rollout that is not promoted by then is rolled back.",
        gt=0,
        le=MAX_MINUTES,
        examples=[60.0],
    )
    ready_seconds: float = Field(
        default=120.0,
        title="Ready within (seconds)",
        description="Else it is given back.",
        ge=1,
        le=3600,
        examples=[120.0],
    )
    predictor: Line | None = Field(
        default=None,
        title="Predictor",
        description="'file.py:function' inside the artifact's code, for models of format 'python'.",
        examples=["serve.py:predict"],
    )

    trusted_types: tuple[Line, ...] = Field(
        default=(),
        title="Trusted types",
        description="Types beyond those that skops trusts, for format 'sklearn-skops'; loading runs their code.",
        max_length=64,
        examples=[["sklearn.tree._tree.Tree"]],
    )

    @field_validator("platform", mode="before")
    @classmethod
    def _served_here(cls, value: Any) -> Any:
        if value == "aws":
            raise ValueError("nothing is served on aws in this version: train there, and deploy on 'local'")
        return value

    @field_validator("max_replicas")
    @classmethod
    def _not_below_replicas(cls, value: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("replicas")
        if value is not None and least is not None and value < least:
            raise ValueError(f"must be at least replicas, which is {least}")
        return value

    @field_validator("predictor")
    @classmethod
    def _inside_the_code(cls, value: str | None) -> str | None:
        if value is None:
            return None
        file, _, function = value.partition(":")
        path = PurePosixPath(file)
        if path.suffix != ".py" or path.is_absolute() or ".." in path.parts or not function.isidentifier():
            raise ValueError("must be 'file.py:function' inside the artifact's code")
        return value

    @property
    def most_replicas(self) -> int:
        """How many servers a version can come to have."""
        return self.max_replicas or self.replicas

    def merged(self, overrides: Mapping[str, Any]) -> ServingRequest:
        """Return this request with some fields replaced.

        Raises:
            InvalidInput: naming the field.
        """
        present = {name: getattr(self, name) for name in ServingRequest.model_fields}
        return parsed(ServingRequest, {**present, **overrides})
