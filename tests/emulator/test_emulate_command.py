"""`emulate aws` is the emulator as a process: it says how to reach it, and leaves nothing when it is ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from mlinfra_prefect.cli.emulating import emulate_aws
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.testing.aws import Emulator
from mlinfra_prefect.testing.aws.machine import marked

HERE = os.path.dirname(__file__)
SERVER = "from mlinfra_prefect.cli.emulating import emulate_aws; raise SystemExit(emulate_aws(run_any_user_data=True))"
CLIENT = f"""
import base64, os, sys
sys.path.insert(0, {HERE!r})
from types import SimpleNamespace
from emulated_cloud import Cloud
cloud = Cloud(SimpleNamespace(environment=os.environ, url=os.environ["AWS_ENDPOINT_URL"]))
data = base64.b64encode(b"#!/bin/bash\\nsleep 300").decode()
print(*cloud.fleet(cloud.template(data)).instances)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_export_line_leads_another_process_to_it_and_a_signal_ends_it_whole(number):
    """The line is a shell's; a machine that started is told of, and is gone with the emulator."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert "http://127.0.0.1:" in server.stdout.readline()
        said = shlex.split(server.stdout.readline())
        assert said[0] == "export"
        variables = dict(each.split("=", 1) for each in said[1:])
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            [sys.executable, "-c", CLIENT], env=clean | variables, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        instance = done.stdout.strip()
        line = server.stdout.readline()
        assert f"{instance} started (g5.xlarge in us-east-1a, on-demand)" in line
        until = time.monotonic() + 20
        while len(marked(instance)) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        server.send_signal(number)
        assert server.wait(20) == 0
        assert marked(instance) == []
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_a_port_that_is_taken_is_said_in_a_sentence():
    """With the option's name."""
    with Emulator() as other:
        port = int(other.url.rpartition(":")[2])
        with pytest.raises(InvalidInput, match=f"--port: {port} cannot be had"):
            emulate_aws(port=port)
