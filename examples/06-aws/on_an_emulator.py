"""The same flow without an account: an emulated AWS in this process, whose machines are processes of this host.

The first two machine types are sold out in one zone, so that something goes wrong, as it does on AWS. The environment
is made as on AWS, by `init aws`; it ends with the emulator.
"""

from __future__ import annotations

import os
import subprocess
import sys

from mlinfra_prefect.testing.aws import Emulator


def main() -> None:
    with Emulator() as aws:
        os.environ.update(aws.environment)  # leads us, Terraform and the keeper to the emulator and nowhere else
        init = ["init", "aws", "--environment", "dev", "--yes"]
        subprocess.run([sys.executable, "-m", "mlinfra_prefect", *init], check=True)
        aws.no_capacity(types=["g6.xlarge", "g6.2xlarge"])
        from train_on_aws import train_on_aws

        train_on_aws(requirements=())  # the machines of an emulator have what this interpreter has
        machines = aws.instances
        print(f"{len(machines)} machine: {', '.join(f'{each.type}, {each.state}' for each in machines)}")


if __name__ == "__main__":
    main()
