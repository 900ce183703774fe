"""Tasks of the process pool tests: their processes import this module, the test modules they cannot."""

from __future__ import annotations

import os
import signal

import node_work
from prefect import task

from mlinfra_prefect import Infra, gpu, lease, provision

add = task(gpu("cpu", max_minutes=5)(node_work.add))


@task
def use(infra: Infra, a: int) -> tuple[int, int]:
    return infra.run(node_work.add, a), os.getpid()


@task
def bare() -> Infra:
    return provision("cpu", max_minutes=5)


@task
def dies() -> None:
    with lease("cpu", max_minutes=5):
        os.kill(os.getpid(), signal.SIGKILL)
