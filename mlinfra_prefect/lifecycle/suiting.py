"""Whether work can run where a request leads: asked before anything is rented for it, and again when it is handed over.

A lease may be older than what runs on it, so both moments are needed; each rule stands here once, and what a platform
knows of itself stands with the platform.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlinfra_prefect.code.project import read_requirements
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle.planning import admitted

if TYPE_CHECKING:
    from mlinfra_prefect.lifecycle.context import Context
    from mlinfra_prefect.lifecycle.platform import Platform
    from mlinfra_prefect.lifecycle.training import Work
    from mlinfra_prefect.model.request import TrainingRequest


def refuse_unsuited(context: Context, request: TrainingRequest, work: Work) -> None:
    """Refuse work that could not run on what the request asks for. Creates nothing.

    Raises:
        InvalidInput: a secret cannot be had there or is not granted, the function needs another Python, or the
            project's requirements cannot be read; also what `planning.admitted` refuses.
        NotInitialised: the environment is not there, and secrets are asked for.
    """
    platform = context.platform(admitted(context, request).platform or "local")
    refuse_other_python(platform, request, work)
    platform.take_secrets(request.environment, work.secrets)
    project_requirements(platform, work)


def refuse_other_python(platform: Platform, request: TrainingRequest, work: Work) -> None:
    """Refuse a function sent by value to a Python of another minor version. Where that is not known the node refuses.

    Raises:
        InvalidInput: names both versions.
    """
    there = platform.python_of(request)
    if work.python is not None and there is not None and work.python != there:
        raise InvalidInput(
            "by_value",
            f"{work.label} travels by value from Python {work.python}, and nodes on platform {platform.name} have "
            f"Python {there}: only the same minor version can read it",
            f"Run the flow on Python {there}, put the function into a module and leave by_value out, or name an image "
            f"with Python {work.python} with ami=.",
        )


def project_requirements(platform: Platform, work: Work) -> tuple[str, ...]:
    """Return what the project says that a node needs; nothing where the node has the flow's own packages.

    Raises:
        InvalidInput: its file cannot be read, or has a line that is no requirement.
    """
    if platform.has_packages_of_flow or work.project is None:
        return ()
    return read_requirements(work.project, work.requirements_file)
