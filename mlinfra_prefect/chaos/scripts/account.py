"""An emulated AWS account in a process of its own, for one campaign: it ends with whoever holds its standard input."""

from __future__ import annotations

import json
import sys

from mlinfra_prefect.testing.aws import Emulator


def main(minute_seconds: float) -> None:
    """Say in one line of JSON how it is reached, and answer until the standard input ends."""
    with Emulator(minute_seconds=minute_seconds) as aws:
        sys.stdout.write(json.dumps(aws.environment) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(float(sys.argv[1]))
