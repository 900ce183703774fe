"""Imports only where a variable says so: never in a fresh interpreter with a clean environment."""

import os

if os.environ.get("MLINFRA_TEST_ONLY_HERE") != "1":
    raise ImportError("this module rests on what only the flow's process has")


def work() -> int:
    return 1
