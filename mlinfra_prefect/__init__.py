"""mlinfra_prefect: a flow declares its training infrastructure; nothing ever leaks, and it can prove it.

The names below are loaded when they are first used, so that importing the package costs next to nothing and the
listing commands never load Prefect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlinfra_prefect.version import __version__

if TYPE_CHECKING:
    from mlinfra_prefect.agent.node import node
    from mlinfra_prefect.integration.approval import aapprove_plan, approve_plan, not_approved
    from mlinfra_prefect.integration.canary import Canary
    from mlinfra_prefect.integration.endpoint import Endpoint
    from mlinfra_prefect.integration.events import dataset_updated, drift_detected
    from mlinfra_prefect.integration.gate import gate, gate_refused
    from mlinfra_prefect.integration.gpu import gpu
    from mlinfra_prefect.integration.hooks import release_on_end
    from mlinfra_prefect.integration.infra import Infra
    from mlinfra_prefect.integration.lease import lease
    from mlinfra_prefect.integration.phases import attach, evaluate, plan, provision, release, train
    from mlinfra_prefect.integration.serving import adeploy, current, deploy, probe, promote, retire, rollback
    from mlinfra_prefect.model.artifact import ModelArtifact
    from mlinfra_prefect.model.offer import Plan
    from mlinfra_prefect.model.probe import ProbeRequest
    from mlinfra_prefect.model.receipt import Receipt
    from mlinfra_prefect.model.request import ServingRequest, TrainingJob, TrainingRequest
    from mlinfra_prefect.model.verdict import Verdict

_HOMES = {
    "node": "agent.node",
    "Canary": "integration.canary",
    "Endpoint": "integration.endpoint",
    **dict.fromkeys(("aapprove_plan", "approve_plan", "not_approved"), "integration.approval"),
    "gate": "integration.gate",
    "gate_refused": "integration.gate",
    "gpu": "integration.gpu",
    "release_on_end": "integration.hooks",
    "Infra": "integration.infra",
    "lease": "integration.lease",
    **dict.fromkeys(("dataset_updated", "drift_detected"), "integration.events"),
    **dict.fromkeys(("attach", "evaluate", "plan", "provision", "release", "train"), "integration.phases"),
    **dict.fromkeys(
        ("adeploy", "current", "deploy", "probe", "promote", "retire", "rollback"),
        "integration.serving",
    ),
    "ModelArtifact": "model.artifact",
    "Plan": "model.offer",
    "ProbeRequest": "model.probe",
    "Verdict": "model.verdict",
    "Receipt": "model.receipt",
    **dict.fromkeys(("ServingRequest", "TrainingJob", "TrainingRequest"), "model.request"),
}

__all__ = [
    "Canary", "Endpoint", "Infra", "ModelArtifact", "Plan", "ProbeRequest", "Receipt", "ServingRequest",
    "TrainingJob", "TrainingRequest", "Verdict", "__version__", "aapprove_plan", "adeploy", "approve_plan", "attach",
    "current", "dataset_updated", "deploy", "drift_detected", "evaluate", "gate", "gate_refused", "gpu", "lease",
    "node", "not_approved", "plan", "probe", "promote", "provision", "release", "release_on_end", "retire",
    "rollback", "train",
]  # fmt: skip


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
