"""An emulated AWS whose EC2 instances are processes of this machine, with faults: for tests of flows that train on AWS.

    with Emulator() as aws:
        os.environ.update(aws.environment)
        aws.no_capacity(zones=["us-east-1a"])
        ...

Loopback only, and no sandbox: user data of this package runs as whoever tests; that of others is recorded and not run.
"""

from __future__ import annotations

from mlinfra_prefect.testing.aws.emulator import Emulator
from mlinfra_prefect.testing.aws.machines import EmulatedInstance, MachineEvent

__all__ = ["EmulatedInstance", "Emulator", "MachineEvent"]
