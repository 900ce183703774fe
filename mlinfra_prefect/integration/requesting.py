"""A request as people give it to Prefect: all that `lifecycle.request_file` reads, blocks, and the default environment.

The story below knows neither blocks nor Prefect's settings; this is where they become plain fields of a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect.blocks.core import Block

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.integration import runs
from mlinfra_prefect.integration.settings import settings
from mlinfra_prefect.lifecycle import request_file
from mlinfra_prefect.lifecycle.applying import apply_environment
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.request import TrainingRequest

if TYPE_CHECKING:
    from mlinfra_prefect.integration.blocks import MlinfraEnvironment

RequestLike = str | Path | TrainingRequest | Mapping[str, Any] | Block
"""A block is a `MlinfraRequest`."""


def as_request(given: RequestLike | None, overrides: Mapping[str, Any]) -> TrainingRequest:
    """Return the request that is meant, with overrides merged in.

    An override ``environment`` may be a `MlinfraEnvironment` block: it is applied here and named. A request that names
    no environment gets the one that the settings call the default.

    Raises:
        InvalidInput, UnsupportedHere: naming the field, the file or the block.
    """
    changes = dict(overrides)
    base = _of_block(given) if isinstance(given, Block) else request_file.as_request(given, {})
    environment = changes.get("environment")
    if isinstance(environment, Block):
        changes["environment"] = _applied(environment)
    elif "environment" not in changes and "environment" not in base.model_fields_set:
        changes["environment"] = settings().default_environment
    return base.merged(changes) if changes else base


def find_environment(here: Context, name: str) -> None:
    """Apply the environment block of that name, where the project does not know the name and this is a Prefect run.

    Nothing happens where there is no such block: whoever needs the environment then says what there is.

    Raises:
        InvalidInput, UnsupportedHere: there is one, and it cannot be used.
    """
    if name in here.config.environments or not runs.in_run():
        return
    from mlinfra_prefect.integration.blocks import MlinfraEnvironment

    try:
        # Prefect's dispatch would give a coroutine where a loop runs, and this may be called from there.
        block = cast("MlinfraEnvironment", MlinfraEnvironment.load(name, _sync=True))  # type: ignore[call-arg]
    except ValueError:  # Prefect's word for: there is none
        return
    except RuntimeError as error:
        raise InvalidInput("environment", f"block mlinfra-environment/{name} cannot be read: {error}") from None
    apply_environment(here, block.environment(name))


# Our blocks are imported only where somebody uses one: with them come the libraries of other collections' credentials.


def _of_block(given: Block) -> TrainingRequest:
    from mlinfra_prefect.integration.blocks import MlinfraRequest

    if not isinstance(given, MlinfraRequest):
        raise InvalidInput("request", f"is a block of type {type(given).__name__}", "Give a MlinfraRequest.")
    return given.request()


def _applied(environment: Block) -> str:
    from mlinfra_prefect.integration.blocks import MlinfraEnvironment

    if not isinstance(environment, MlinfraEnvironment):
        raise InvalidInput("environment", f"is a block of type {type(environment).__name__}", "Give its name.")
    return environment.apply_here().name
