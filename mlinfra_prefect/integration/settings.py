"""Settings of this package where a Prefect user looks for settings: ``PREFECT_INTEGRATIONS_MLINFRA_*``.

They come from where Prefect's own come from: variables, ``.env``, ``prefect.toml`` and ``[tool.prefect]`` of
``pyproject.toml``. (A profile is read too, but is no place for them: ``prefect config set`` refuses settings of
integrations, and drops those that it finds.) The rest of this package does not know Prefect and reads ``MLINFRA_*``; so
what is set here is put there, where nobody said it, before anything of the home is opened. Every process that we start
(keeper, operations, nodes) is given those variables, so it is the same home and cache for all of them.

A value is read when it is used: a setting changed in a notebook holds for the next lease.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Annotated, ClassVar

from prefect.settings.base import PrefectBaseSettings, PrefectSettingsConfigDict, build_settings_config
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings.exceptions import SettingsError

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle.config import CONFIG_VARIABLE
from mlinfra_prefect.model.home import CACHE_VARIABLE, HOME_VARIABLE
from mlinfra_prefect.model.names import Id
from mlinfra_prefect.model.record import invalid
from mlinfra_prefect.model.request import MAX_MINUTES

PREFIX = "PREFECT_INTEGRATIONS_MLINFRA_"
_ours: dict[str, str] = {}
"""What `apply_settings` put into the environment of this process: only that may be replaced by it."""
_lock = threading.Lock()
Place = Annotated[Path | None, BeforeValidator(lambda value: value or None)]
"""A path; an empty one is none, and not the working directory."""


class MlinfraSettings(PrefectBaseSettings):
    """What can be set for this package; None: what the package does by itself."""

    model_config: ClassVar[PrefectSettingsConfigDict] = build_settings_config(("integrations", "mlinfra"))

    home: Place = Field(
        default=None,
        title="Home",
        description="Directory of the ledger, the keeper and the models; MLINFRA_HOME goes before it.",
        examples=["~/.mlinfra-prefect"],
    )
    cache: Place = Field(
        default=None,
        title="Cache",
        description="Directory of engines and server environments, for all homes; MLINFRA_CACHE goes before it.",
        examples=["~/.cache/mlinfra-prefect"],
    )
    config: Place = Field(
        default=None,
        title="Configuration",
        description="File of the environments; MLINFRA_CONFIG goes before it, it goes before the project's own.",
        examples=["mlinfra-prefect.toml"],
    )
    default_environment: Id = Field(
        default="dev",
        title="Default environment",
        description="Of a request that names none.",
        examples=["dev", "staging"],
    )
    artifacts_enabled: bool = Field(
        default=True, title="Artifacts", description="Whether plans, receipts and endpoints become Prefect artifacts."
    )
    events_enabled: bool = Field(
        default=True, title="Events", description="Whether leases and rollouts tell Prefect what happens to them."
    )
    approval_timeout_minutes: float = Field(
        default=60.0,
        title="Approval time-out (minutes)",
        description="How long a plan waits for somebody to approve it before it is rejected (`NotApproved`).",
        gt=0,
        le=MAX_MINUTES,
        examples=[60.0],
    )
    log_lines_per_minute: int = Field(
        default=60,
        title="Log lines per minute",
        description="Of one training, into Prefect; the whole log is kept on the node and in the home.",
        ge=1,
        le=6000,
        examples=[60],
    )


def settings() -> MlinfraSettings:
    """Read the settings as they are now (a few milliseconds).

    Raises:
        InvalidInput: naming the variable whose value is wrong.
    """
    try:
        return MlinfraSettings()
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        problem = invalid(error)
        raise InvalidInput(
            f"{PREFIX}{field.upper()}", problem.message.partition(": ")[2], "Correct the setting, or unset it."
        ) from None
    except SettingsError as error:
        raise InvalidInput("settings", str(error)) from None


def apply_settings() -> None:
    """Let ``home``, ``cache`` and ``config`` hold for this process and what it starts, where no variable says else.

    Idempotent. Paths become absolute: a process that changes its directory later keeps its home.

    Raises:
        InvalidInput: a setting is wrong.
    """
    said = settings()
    with _lock:
        for variable, path in (
            (HOME_VARIABLE, said.home),
            (CACHE_VARIABLE, said.cache),
            (CONFIG_VARIABLE, said.config),
        ):
            now = os.environ.get(variable)
            if now and now != _ours.get(variable):
                continue  # somebody's own word goes first
            if path is not None:
                os.environ[variable] = _ours[variable] = str(path.expanduser().absolute())
            elif now:
                del os.environ[variable], _ours[variable]
