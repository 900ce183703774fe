"""What the Prefect server loads of this package (entry point ``prefect.collections``): its blocks, and nothing else."""

from __future__ import annotations

from mlinfra_prefect.integration.blocks import MlinfraEnvironment, MlinfraRequest

__all__ = ["MlinfraEnvironment", "MlinfraRequest"]
