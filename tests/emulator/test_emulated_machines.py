"""An instance is processes: they begin with it, have what a machine has and nothing of the tester's, and end too."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable

import psutil
import pytest
from botocore.exceptions import ClientError
from emulated_cloud import Cloud

from mlinfra_prefect.testing.aws import Emulator
from mlinfra_prefect.testing.aws.machine import marked
from mlinfra_prefect.testing.aws.user_data import is_ours

PATIENCE_SECONDS = 20.0


def until(true: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, "it never was"
        time.sleep(0.02)


def one(aws: Emulator):
    """Return the only instance."""
    (found,) = aws.instances
    return found


def console(aws: Emulator, text: str) -> str:
    """Return the only instance's console once it holds a text."""
    until(lambda: text in one(aws).console)
    return one(aws).console


def test_user_data_of_this_package_runs_and_ends_with_a_terminated_instance(aws, cloud, script):
    """Its whole tree ends, a daemon in a session of its own included; its disk is gone, its console is not."""
    fleet = cloud.fleet(cloud.template(script("setsid sleep 300 & echo ready; sleep 300")))
    console(aws, "ready")
    until(lambda: len(one(aws).pids) >= 3)
    pids = one(aws).pids
    cloud.ec2.terminate_instances(InstanceIds=fleet.instances)
    aws.settle()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    found = one(aws)
    assert (found.state, found.user_data, found.pids) == ("terminated", "run", ())
    assert "ready" in found.console
    assert cloud.ec2.describe_volumes()["Volumes"] == []
    assert cloud.ec2.describe_network_interfaces()["NetworkInterfaces"] == []


def test_an_interface_in_use_is_not_deleted_and_goes_with_its_instance(aws, cloud, script):
    """As EC2 has it; taken from under its instance, that one could not be ended any more."""
    fleet = cloud.fleet(cloud.template(script("sleep 300")))
    (interface,) = cloud.ec2.describe_network_interfaces()["NetworkInterfaces"]
    with pytest.raises(ClientError, match="currently in use"):
        cloud.ec2.delete_network_interface(NetworkInterfaceId=interface["NetworkInterfaceId"])
    cloud.ec2.terminate_instances(InstanceIds=fleet.instances)
    aws.settle()
    assert cloud.ec2.describe_network_interfaces()["NetworkInterfaces"] == []


def test_a_daemon_that_left_its_tree_and_its_environment_ends_with_the_machine(aws, cloud, script):
    """Neither a second fork nor an empty environment takes a process out of its machine."""
    fleet = cloud.fleet(cloud.template(script("env -i setsid -f sleep 307; echo gone; exit 0")))
    console(aws, "gone")
    until(lambda: len(one(aws).pids) == 1)
    (pid,) = one(aws).pids
    assert psutil.Process(pid).cmdline()[-1] == "307"
    cloud.ec2.delete_fleets(FleetIds=[fleet.id], TerminateInstances=True)
    aws.settle()
    assert not psutil.pid_exists(pid)


def test_leaving_the_emulator_ends_every_process_and_removes_every_file(script):
    """Whatever the state of the instances."""
    with Emulator() as aws:
        cloud = Cloud(aws)
        data = script("sleep 300 & sleep 300")
        cloud.fleet(cloud.template(data), nodes=2)
        until(lambda: sum(len(each.pids) for each in aws.instances) >= 6)
        before = [pid for each in aws.instances for pid in each.pids]
        root = aws.instances[0].root.parent
    assert not any(psutil.pid_exists(pid) for pid in before)
    assert not root.exists()


def test_machines_end_when_their_emulator_is_killed(tmp_path, script):
    """A test run that dies leaves no machine behind: the pipe that each holds to it closes."""
    import signal
    import subprocess
    import sys

    program = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
from emulated_cloud import Cloud
from mlinfra_prefect.testing.aws import Emulator, user_data
user_data.boot_script = lambda: b"sleep 300"
with Emulator() as aws:
    cloud = Cloud(aws)
    data = {script("sleep 300")!r}
    cloud.fleet(cloud.template(data))
    while len(pids := aws.instances[0].pids) < 2: pass
    print(aws.instances[0].id, *pids, flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    instance, *pids = process.stdout.readline().split()
    assert len(pids) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not marked(instance))
    process.stdout.close()
    process.stdin.close()


def test_a_stranger_s_user_data_is_kept_and_not_run(aws, cloud, script, tmp_path):
    """One byte more or less makes it a stranger's."""
    proof = tmp_path / "ran"
    ours = base64.b64decode(script(f"touch {proof}; sleep 300"))
    for changed in (
        ours + b"\n",
        ours.replace(b"-P +120", b"-P +120;"),
        ours.replace(b"300", b"301"),
        b"#!/bin/sh\ntrue",
    ):
        assert not is_ours(changed)
        cloud.fleet(cloud.template(base64.b64encode(changed).decode()))
    aws.settle()
    assert [each.user_data for each in aws.instances] == ["recorded"] * 4
    assert aws.instances[0].root.joinpath("user-data").read_bytes() == ours + b"\n"
    assert not proof.exists()
    assert is_ours(ours)


def test_a_stranger_s_user_data_runs_where_the_tester_says_so(tmp_path):
    """`run_any_user_data`, by its own first line."""
    with Emulator(run_any_user_data=True) as aws:
        cloud = Cloud(aws)
        cloud.fleet(cloud.template(base64.b64encode(b"#!/usr/bin/env python3\nprint('hello', 6 * 7)").decode()))
        console(aws, "hello 42")


def test_a_machine_inherits_no_credentials_and_no_home(aws, cloud, script, monkeypatch):
    """It has an environment of its own, in which the service of its metadata is all it knows of AWS."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-1")
    monkeypatch.setenv("GITHUB_TOKEN", "canary-2")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:canary-3@index.invalid/simple")
    cloud.fleet(cloud.template(script("env; echo home $HOME; echo done")))
    said = console(aws, "done")
    assert "canary" not in said
    assert [line for line in said.splitlines() if line.startswith("AWS_")] == [
        f"AWS_EC2_METADATA_SERVICE_ENDPOINT={aws.url}/_instance/{one(aws).id}"
    ]
    assert f"home {one(aws).root}/home" in said


def test_the_machine_s_python_is_this_one(aws, cloud, script):
    """So that what is installed for the test is what is preinstalled on the machine; other versions are not there."""
    import sys

    cloud.fleet(cloud.template(script("python3 -c 'import sys; print(sys.prefix)'; python3.19 -V; echo status $?")))
    said = console(aws, "status")
    assert sys.prefix in said
    assert "status 127" in said


@pytest.mark.parametrize(
    ("kind", "gpus"), [("g5.xlarge", ["NVIDIA A10G, 22888"]), ("g5.12xlarge", ["NVIDIA A10G, 22888"] * 4)]
)
def test_nvidia_smi_shows_the_type_s_gpus(aws, cloud, script, kind, gpus):
    """As scripts ask for them."""
    text = "nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits; echo done"
    cloud.fleet(cloud.template(script(text)), [(kind, "us-east-1a")])
    assert console(aws, "done").splitlines()[:-1] == gpus


def test_nvidia_smi_is_not_there_without_gpu_or_driver(aws, cloud, script):
    """A type without GPU, and an image without driver: a test of what is done about a bad image."""
    data = script("nvidia-smi; echo status $?")
    plain = cloud.client("ssm").get_parameter(
        Name="/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    )["Parameter"]["Value"]
    cloud.fleet(cloud.template(data), [("m7i.large", "us-east-1a")])
    cloud.fleet(cloud.template(data, ImageId=plain))
    until(lambda: len(aws.instances) == 2 and all("status 127" in each.console for each in aws.instances))


def test_a_machine_s_gpus_can_be_broken(aws, cloud, script):
    """The driver is there and does not answer; the next machine is well."""
    aws.broken_gpus(times=1)
    data = script("nvidia-smi --query-gpu=name --format=csv,noheader; echo status $?; sleep 300")
    cloud.fleet(cloud.template(data))
    assert "status 9" in console(aws, "status")
    cloud.fleet(cloud.template(data))
    until(lambda: "NVIDIA A10G\nstatus 0" in aws.instances[1].console)


# --- power -----------------------------------------------------------------------------------------------------------


def test_the_dead_man_ends_the_instance_at_its_time(aws, cloud, script):
    """The first line of user data is enough: whatever the rest does, the instance terminates."""
    cloud.fleet(cloud.template(script("sleep 300", minutes=2)))
    until(lambda: one(aws).power_off_at is not None)
    assert one(aws).state == "running"
    until(lambda: one(aws).state == "terminated")
    aws.settle()
    assert one(aws).pids == ()
    reason = cloud.ec2.describe_instances()["Reservations"][0]["Instances"][0]["StateReason"]["Code"]
    assert reason == "Client.InstanceInitiatedShutdown"


def test_powering_off_can_be_taken_back(aws, cloud, script):
    """``shutdown -c`` disarms."""
    cloud.fleet(cloud.template(script("shutdown -c; echo ok; sleep 300")))
    console(aws, "ok")
    until(lambda: "power-off taken back" in [each.kind for each in aws.events])
    assert one(aws).power_off_at is None
    assert one(aws).state == "running"


@pytest.mark.parametrize(
    ("command", "behaviour"),
    [
        ("shutdown -P now", "terminate"), ("poweroff", "stop"), ("systemctl poweroff", "terminate"),
        ("sudo shutdown -h 0", "stop"),
    ],
)  # fmt: skip
def test_a_machine_that_powers_off_ends_as_its_behaviour_says(aws, cloud, script, command, behaviour):
    """Terminated or stopped, at once, with its processes."""
    template = cloud.template(script(f"{command}; sleep 300"), InstanceInitiatedShutdownBehavior=behaviour)
    cloud.fleet(template)
    until(lambda: one(aws).state == {"terminate": "terminated", "stop": "stopped"}[behaviour])
    aws.settle()
    assert one(aws).pids == ()


def test_a_machine_whose_processes_have_ended_goes_on_running(aws, cloud, script):
    """And costs money: only powering off or the API ends an instance."""
    cloud.fleet(cloud.template(script("echo bye")))
    console(aws, "bye")
    until(lambda: one(aws).pids == ())
    aws.settle()
    assert one(aws).state == "running"


def test_a_process_that_heeds_no_signal_ends_all_the_same(aws, cloud, script):
    """It is asked, and then killed."""
    fleet = cloud.fleet(cloud.template(script("trap '' TERM INT HUP; echo deaf; while true; do sleep 1; done")))
    console(aws, "deaf")
    pids = one(aws).pids
    cloud.ec2.terminate_instances(InstanceIds=fleet.instances)
    aws.settle()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_stop_and_reboot_end_the_processes_and_do_not_run_user_data_again(aws, cloud, script):
    """As on EC2, where user data runs at the first boot only."""
    fleet = cloud.fleet(cloud.template(script("echo booted; sleep 300")))
    console(aws, "booted")
    cloud.ec2.stop_instances(InstanceIds=fleet.instances)
    aws.settle()
    assert (one(aws).state, one(aws).pids) == ("stopped", ())
    cloud.ec2.start_instances(InstanceIds=fleet.instances)
    aws.settle()
    assert one(aws).state == "running"
    assert one(aws).console.count("booted") == 1
    cloud.fleet(cloud.template(script("echo booted; sleep 300")))
    until(lambda: aws.instances[1].pids)
    cloud.ec2.reboot_instances(InstanceIds=[aws.instances[1].id])
    until(lambda: not aws.instances[1].pids)
    assert aws.instances[1].state == "running"


def test_console_output_is_what_the_machine_wrote(aws, cloud, script):
    """Over the API, as the SDK decodes it."""
    fleet = cloud.fleet(cloud.template(script("echo grüße; sleep 300")))
    console(aws, "grüße")
    assert "grüße" in cloud.ec2.get_console_output(InstanceId=fleet.instances[0])["Output"]


# --- metadata --------------------------------------------------------------------------------------------------------

ASK = """
import json, os, urllib.request
root = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] + "/latest/"
def ask(path, **headers):
    method = "PUT" if path == "api/token" else "GET"
    try:
        asked = urllib.request.Request(root + path, headers=headers, method=method)
        return urllib.request.urlopen(asked).read().decode()
    except urllib.error.HTTPError as error:
        return error.code
token = ask("api/token", **{"X-aws-ec2-metadata-token-ttl-seconds": "60"})
head = {"X-aws-ec2-metadata-token": token}
role = ask("meta-data/iam/security-credentials/", **head)
print("SAID" + json.dumps({
    "bare": ask("meta-data/instance-id"), "id": ask("meta-data/instance-id", **head),
    "type": ask("meta-data/instance-type", **head), "region": ask("meta-data/placement/region", **head),
    "zone": ask("meta-data/placement/availability-zone", **head), "role": role,
    "spot": ask("meta-data/spot/instance-action", **head),
    "keys": json.loads(ask(f"meta-data/iam/security-credentials/{role}", **head)),
}))
"""


def test_a_machine_reads_its_metadata_with_a_token_and_is_its_role(aws, cloud, script):
    """Version 2 only; the credentials are a session of the profile's role that has the instance's name."""
    role_id = cloud.profile("node")
    fleet = cloud.fleet(cloud.template(script(f"python3 - <<'PROGRAM'\n{ASK}\nPROGRAM\necho done"), profile="node"))
    said = json.loads(console(aws, "done").partition("SAID")[2].partition("\n")[0])
    keys = said.pop("keys")
    assert said == {
        "bare": 401, "id": fleet.instances[0], "type": "g5.xlarge", "region": "us-east-1", "zone": "us-east-1a",
        "role": "node", "spot": 404,
    }  # fmt: skip
    sts = cloud.client("sts", key=keys["AccessKeyId"], secret=keys["SecretAccessKey"], token=keys["Token"])
    who = sts.get_caller_identity()
    assert who["UserId"] == f"{role_id}:{fleet.instances[0]}"
    assert who["Arn"].endswith(f":assumed-role/node/{fleet.instances[0]}")
    assert keys["Expiration"] > "2026"


def test_the_sdk_on_a_machine_finds_its_credentials_by_itself(aws, cloud, script):
    """With nothing but the machine's environment and an endpoint."""
    cloud.profile("node")
    program = "import boto3; print(boto3.client('sts', region_name='us-east-1').get_caller_identity()['Arn'])"
    text = f'AWS_ENDPOINT_URL={aws.url} python3 -c "{program}"; echo done'
    cloud.fleet(cloud.template(script(text), profile="node"))
    assert f"assumed-role/node/{one(aws).id}" in console(aws, "done")
