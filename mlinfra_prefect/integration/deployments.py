"""The deployments that this package ships, and registering them with a Prefect server.

One table says what they are; `register` makes the server agree with it, and the tests compare ``prefect.yaml`` of the
checkout with it. A deployment names its flow by module path (``package.module.function``, with no colon) and has no
pull steps: a process worker then imports what is installed beside it, wheel or checkout. With a colon Prefect 3.8 takes
the module for a file, and copies the worker's directory first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger, DeploymentTriggerTypes
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Cron
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker
from pydantic import Field

from mlinfra_prefect.errors import InvalidInput, TemporaryError
from mlinfra_prefect.integration.automations import PREFIX, release_triggers
from mlinfra_prefect.model.names import Line
from mlinfra_prefect.model.record import Record
from mlinfra_prefect.version import __version__

POOL_TYPE = "process"
OPEN_VARIABLES = ("command", "env", "working_dir")
"""Variables of a process pool's jobs with which a run's parameters become a program: also by what is imported first."""
TAG = "mlinfra-prefect"
DATASET_UPDATED = "mlinfra-prefect.dataset.updated"
DRIFT_DETECTED = "mlinfra-prefect.drift.detected"
NIGHTLY = "0 2 * * *"
EVERY_MINUTE = "* * * * *"
LIFECYCLE = "mlinfra_prefect.flows.model_lifecycle.model_lifecycle"


@dataclass(frozen=True, slots=True)
class Shipped:
    """One deployment as we ship it.

    Args:
        flow: the flow's name.
        name: the deployment's.
        entrypoint: module path of the flow.
        description: for people.
        parameters: what differs from the flow's own defaults.
        cron: when it runs by itself; empty: never.
        limit: how many of its runs at once; None: any number.
        collision: what becomes of one run too many.
        triggers: events that start it.
    """

    flow: str
    name: str
    entrypoint: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cron: str = ""
    limit: int | None = None
    collision: ConcurrencyLimitStrategy = ConcurrencyLimitStrategy.ENQUEUE
    triggers: tuple[DeploymentTriggerTypes, ...] = ()

    @property
    def full_name(self) -> str:
        """``flow/name``, as Prefect writes it."""
        return f"{self.flow}/{self.name}"


class Registered(Record):
    """One deployment as it stands on the server."""

    name: Line = Field(title="Name", description="Flow and deployment.", examples=["model-lifecycle/on-demand"])
    id: Line = Field(title="Id", description="On the server.")
    created: bool = Field(title="Created", description="False: it was there, and has been brought up to date.")
    paused: bool = Field(title="Paused", description="Its schedule starts nothing until somebody resumes it.")
    starts: Line = Field(title="Starts", description="What starts it.", examples=["0 2 * * * (UTC)"])
    url: Line = Field(title="URL", description="In the UI; empty where the server has none.")


class Registration(Record):
    """What `register` left on the server."""

    api: Line = Field(title="API", description="Of the server.", examples=["http://127.0.0.1:4200/api"])
    pool: Line = Field(title="Work pool", description="Whose workers run them.", examples=["local"])
    pool_created: bool = Field(title="Pool created", description="By this registration.")
    deployments: tuple[Registered, ...] = Field(title="Deployments", description="Ours, in the order of the table.")


def shipped(*, heartbeat_seconds: int | None = None, automation: bool = True) -> tuple[Shipped, ...]:
    """Return the table of what is shipped.

    Args:
        heartbeat_seconds: between two heartbeats of flow runs; None: they are off.
        automation: whether ``release/for-run`` is started by the server when a run dies.
    """
    retrained = {"keep": True, "canary": "10,50,100"}
    return (
        Shipped(
            "model-lifecycle", "on-demand", LIFECYCLE,
            "Plan, train, compare and serve a model now, with what the form says. Any number at once.",
        ),
        Shipped(
            "model-lifecycle", "nightly", LIFECYCLE,
            "Retrain every night and roll the better model out. A night is left out while the one before still runs.",
            parameters={**retrained, "reason": "the nightly schedule"}, cron=NIGHTLY,
            limit=1, collision=ConcurrencyLimitStrategy.CANCEL_NEW,
        ),
        Shipped(
            "model-lifecycle", "on-dataset", LIFECYCLE,
            "Retrain when the data changed or drifts, and roll the better model out. One after the other.",
            parameters=retrained, limit=1, triggers=(
                _on(DATASET_UPDATED, dataset="{{ (event.payload.uri or '') | string }}",
                    reason="{{ event.resource.id }} was updated"),
                _on(DRIFT_DETECTED, endpoint="{{ (event.payload.endpoint or 'digits') | string }}",
                    environment="{{ (event.payload.environment or 'dev') | string }}",
                    reason="{{ event.resource.id }} drifts"),
            ),
        ),
        Shipped(
            "reap", "every-minute", "mlinfra_prefect.flows.reap.reap",
            "Take over what nobody keeps any more. Red when something is stuck.",
            cron=EVERY_MINUTE, limit=1, collision=ConcurrencyLimitStrategy.CANCEL_NEW,
        ),
        Shipped(
            "release", "for-run", "mlinfra_prefect.flows.release.release_of_run",
            "Release what a dead run leased. The server starts it when a run is cancelled, crashes or goes silent.",
            triggers=release_triggers(heartbeat_seconds) if automation else (),
        ),
    )  # fmt: skip


def _on(event: str, **parameters: str) -> DeploymentTriggerTypes:
    # What a payload does not say becomes each parameter's own default. The parentheses matter: Prefect appends
    # `| tojson` to a template of one expression, and a filter binds tighter than `or`.
    return DeploymentEventTrigger(
        name=f"{PREFIX}retrain on {event}",
        description=f"Starts model-lifecycle on {event}, whose payload is in the docs of events.",
        expect={event},
        parameters=parameters,
    )


def register(pool: str, *, create_pool: bool = False, automation: bool = True, timezone: str = "UTC") -> Registration:
    """Create or update the shipped deployments on the configured Prefect server. Idempotent.

    What the table says wins over what was edited on the server; what it does not speak of stays: a deployment that
    somebody paused stays paused, and an automation that somebody switched off stays off.

    Args:
        pool: the work pool.
        create_pool: make it, of type process, when it is absent.
        automation: whether the server starts a release when a run dies; False also removes it.
        timezone: of the nightly schedule, such as Europe/Berlin.

    Raises:
        InvalidInput: no server is configured, there is no such pool or timezone; nothing was changed.
        TemporaryError: the server does not answer, or refuses; run it again.
    """
    api = get_current_settings().api.url
    if not api:
        raise InvalidInput(
            "PREFECT_API_URL", "is not set, so there is no Prefect server to register with",
            "Start one with `prefect server start`, then `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`.",
        )  # fmt: skip
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):  # unknown, an absolute path, a directory of zones
        raise InvalidInput(
            "timezone", f"{timezone!r} is not a time zone", "Write one such as Europe/Berlin or UTC."
        ) from None
    table = shipped(heartbeat_seconds=get_current_settings().flows.heartbeat_frequency, automation=automation)
    try:
        with get_client(sync_client=True) as server:
            made = _have_pool(server, pool, create=create_pool)
            done = tuple(_registered(server, each, pool, timezone) for each in table)
    except PrefectHTTPStatusError as error:
        raise TemporaryError(f"The Prefect server at {api} refused: {' '.join(str(error).split())}") from error
    except httpx.HTTPError as error:
        raise TemporaryError(
            f"The Prefect server at {api} does not answer ({type(error).__name__}).", "Is it running? Then try again."
        ) from error
    return Registration(api=str(api), pool=pool, pool_created=made, deployments=done)


def _have_pool(server: SyncPrefectClient, pool: str, *, create: bool) -> bool:
    """See that there is a pool; returns whether it was made."""
    try:
        server.read_work_pool(pool)
    except ObjectNotFound:
        if not create:
            raise InvalidInput(
                "pool", f"there is no work pool {pool!r}",
                f"Make it with `prefect work-pool create --type {POOL_TYPE} {pool}`, or add --create-pool.",
            ) from None  # fmt: skip
        server.create_work_pool(WorkPoolCreate(name=pool, type=POOL_TYPE, base_job_template=locked_template()))
        return True
    return False


def locked_template() -> dict[str, Any]:
    """Return the base job template of the pools that we make: Prefect's own, without what runs other programs.

    Whoever may start a run may set the variables of its job: with Prefect's template that is any command, in any
    environment and directory, as the worker's user. Here the server refuses every variable that is not listed.
    """
    template = copy.deepcopy(ProcessWorker.get_default_base_job_template())
    for name in OPEN_VARIABLES:
        template["job_configuration"].pop(name, None)
        template["variables"]["properties"].pop(name, None)
    template["variables"]["additionalProperties"] = False
    return template


def deployment_of(each: Shipped, pool: str, timezone: str, *, paused: bool = False) -> RunnerDeployment:
    """Return a row of the table as Prefect's own object; nothing is sent."""
    limit = None if each.limit is None else ConcurrencyLimitConfig(limit=each.limit, collision_strategy=each.collision)
    return RunnerDeployment.from_flow(
        load_flow_from_entrypoint(each.entrypoint, use_placeholder_flow=False),
        each.name,
        schedule=Cron(each.cron, timezone=timezone, slug=each.name) if each.cron else None,
        paused=paused,
        concurrency_limit=limit,
        parameters=dict(each.parameters),
        triggers=list(each.triggers),
        description=each.description,
        tags=[TAG],
        version=__version__,
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _registered(server: SyncPrefectClient, each: Shipped, pool: str, timezone: str) -> Registered:
    # An update that does not say `paused` resumes, and automations are replaced: what somebody stopped is looked up.
    try:
        before = server.read_deployment_by_name(each.full_name)
    except ObjectNotFound:
        before = None
    if before is not None:
        off = _switched_off(server, str(before.id))
        for trigger in each.triggers:
            trigger.enabled = trigger.name not in off
    deployment_of(each, pool, timezone, paused=before is not None and before.paused).apply()
    found = server.read_deployment_by_name(each.full_name)
    starts = [f"{each.cron} ({timezone})"] if each.cron else []
    starts += [str(trigger.name).removeprefix(PREFIX) for trigger in each.triggers]
    ui = get_current_settings().ui_url
    return Registered(
        name=each.full_name,
        id=str(found.id),
        created=before is None,
        paused=bool(found.paused),
        starts=", ".join(starts) or "you",
        url=f"{ui}/deployments/deployment/{found.id}" if ui else "",
    )


def _switched_off(server: SyncPrefectClient, deployment_id: str) -> set[str]:
    """The names of the deployment's automations that somebody switched off: they are replaced, not updated."""
    resource = f"prefect.deployment.{deployment_id}"
    return {each.name for each in server.read_resource_related_automations(resource) if not each.enabled}
