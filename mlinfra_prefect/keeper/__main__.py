"""How the watcher starts an operation: ``python -m mlinfra_prefect.keeper``.

Loading the models makes hundreds of thousands of objects that stay; collecting garbage meanwhile costs a tenth of the
start of a process that people wait for.
"""

from __future__ import annotations

import gc


def run() -> None:
    """Load the operation without collecting garbage, and run it."""
    gc.disable()
    from mlinfra_prefect.keeper.operate import main

    gc.freeze()
    gc.enable()
    main()


if __name__ == "__main__":
    run()
