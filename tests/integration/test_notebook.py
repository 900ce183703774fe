"""A notebook cell: functions that no file holds, an event loop that runs already, a process that outlives every run."""

from __future__ import annotations

import asyncio
import os
import sys

import nbclient
import nbformat
from integration_harness import PROJECT, Asked, row, run_script
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from prefect.settings import PREFECT_API_URL

CELLS = [
    """
from prefect import flow, task
from mlinfra_prefect import gpu, lease, provision
""",
    # Functions of a cell go by value; by name they are refused with the remedy.
    """
import math

def root(a: float) -> float:
    return math.sqrt(a)

add = task(gpu("cpu", max_minutes=5, by_value=True)(root))

@flow
def sync_flow() -> float:
    try:
        gpu("cpu", max_minutes=5)(root)(4.0)
    except ValueError as error:
        assert "by_value" in str(error), error
    else:
        raise AssertionError("a function of a cell has no file")
    return add(4.0)

sync_flow()
""",
    # The loop of the kernel runs already: await at the top level.
    """
@flow
async def async_flow() -> float:
    async with lease("cpu", max_minutes=5) as infra:
        return await infra.with_options(by_value=True).arun(root, 9.0)

await async_flow()
""",
    # The kernel lives on, but the run has ended, and with it its client.
    """
import time

@flow
def forgets() -> str:
    return provision("cpu", max_minutes=5).id

from mlinfra_prefect.integration.phase import context
record = context().record(forgets())
until = time.monotonic() + 60
while context().record(record.id).state != "released" and time.monotonic() < until:
    time.sleep(0.05)
context().record(record.id).state.value
""",
    # Without a flow: the cell itself holds the lease.
    """
with lease("cpu", max_minutes=5) as infra:
    found = infra.with_options(by_value=True).run(root, 16.0)
found
""",
]


@row("notebook")
def test_cells_of_a_notebook(asked: Asked) -> None:
    """A real kernel: a `@gpu` task, an async flow awaited at top level, a forgotten lease, a block in a cell."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])

    class Here(KernelSpecManager):
        """This interpreter is the kernel, whatever kernels this machine knows."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            env = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="here", language="python", env=env)

    manager = AsyncKernelManager(kernel_name="here", kernel_spec_manager=Here())
    client = nbclient.NotebookClient(
        book, km=manager, timeout=120, resources={"metadata": {"path": str(PROJECT)}}, kernel_name="here"
    )
    asyncio.run(client.async_execute())
    told = [
        output["data"]["text/plain"]
        for cell in book.cells
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    assert told == ["2.0", "3.0", "'released'", "4.0"]
    assert asked.all_released(4)


SCRIPT = """
import asyncio

from prefect import flow

from mlinfra_prefect import lease


def double(a: int) -> int:
    return 2 * a


@flow
async def run() -> int:
    async with lease("cpu", max_minutes=5) as infra:
        return await infra.with_options(by_value=True).arun(double, 21)


if __name__ == "__main__":
    print("told", asyncio.run(run()))
"""


@row("no-file")
def test_code_without_a_file(asked: Asked) -> None:
    """`python - < script`: no file holds the function, so it goes by value."""
    ended = run_script(SCRIPT, stdin=True)
    assert "told 42" in ended.stdout, ended.stderr
    assert asked.all_released(1)
