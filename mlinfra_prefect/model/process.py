"""Who is alive: the identity of a process that survives the reuse of its pid."""

from __future__ import annotations

from pydantic import Field

from mlinfra_prefect.model.names import Line
from mlinfra_prefect.model.record import Record


class ProcessIdentity(Record):
    """A process on one boot of one host. A pid alone is reused; with its start time it is not."""

    host: Line = Field(title="Host", description="The host's name.", examples=["laptop"])
    boot: Line = Field(
        default="",
        title="Boot",
        description="The kernel's; empty where there is none.",
        examples=["5b6c1f0e-0b0a-4c4e"],
    )
    pid: int = Field(
        title="Process id", description="Reused by the kernel, so never enough alone.", ge=1, examples=[4711]
    )
    start_time: str = Field(
        title="Start time",
        description="As the host tells it; opaque, compared for equality only.",
        examples=["1873002"],
    )

    def is_same(self, other: ProcessIdentity) -> bool:
        """Whether both are one process. A host may be renamed under it; its boot, where there is one, stays. Pure."""
        here = self.boot == other.boot and (bool(self.boot) or self.host == other.host)
        return here and (self.pid, self.start_time) == (other.pid, other.start_time)


class Owner(Record):
    """Who asked for a lease or an endpoint: shown in every listing."""

    user: Line = Field(title="User", description="The account that asked.", examples=["ada"])
    host: Line = Field(title="Host", description="From where.", examples=["laptop"])
    flow: Line | None = Field(
        default=None, title="Flow", description="Its name; None: outside a flow.", examples=["model-lifecycle"]
    )
    flow_run_id: Line | None = Field(
        default=None,
        title="Flow run id",
        description="None: outside a flow run.",
        examples=["0b6f8f1e-7f0a-4d0e-9a53-0f6f6c1d2b11"],
    )
    flow_run: Line | None = Field(
        default=None, title="Flow run", description="Its name; None: outside a flow run.", examples=["nimble-fox"]
    )
    deployment: Line | None = Field(
        default=None, title="Deployment", description="None: the flow was started by hand.", examples=["nightly"]
    )
    task_run: Line | None = Field(
        default=None, title="Task run", description="Its name; None: outside a task.", examples=["finetune-0"]
    )

    def __str__(self) -> str:
        """One phrase for listings."""
        run = self.flow_run or self.flow
        return f"{self.user}@{self.host}" + (f" ({run})" if run else "")
