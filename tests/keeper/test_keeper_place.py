"""Rule: the keeper lives where it survives what it must survive; where nothing survives, leaving waits for the end."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keeper_judge as judge
import pytest
import yaml
from keeper_harness import House

from mlinfra_prefect.agent.identity import INITIAL_PID_NAMESPACE
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.keeper.place import detect_place
from mlinfra_prefect.keeper.starting import scope_argv
from mlinfra_prefect.keeper.watch import TAKEN
from mlinfra_prefect.lifecycle.provisioning import PROVISION_SECONDS
from mlinfra_prefect.lifecycle.releasing import DESTROY_SECONDS

HOST = "0::/user.slice/user-1000.slice/session-2.scope\n"


class Namespace:
    """A path with the inode of a PID namespace."""

    def __init__(self, inode: int | None) -> None:
        self._inode = inode

    def stat(self) -> os.stat_result:
        if self._inode is None:
            raise FileNotFoundError
        return os.stat_result((0, self._inode, *[0] * 8))


@pytest.mark.parametrize(
    ("inode", "own", "first", "mark", "place"),
    [
        (INITIAL_PID_NAMESPACE, HOST, "0::/init.scope\n", False, "process"),
        (INITIAL_PID_NAMESPACE, "0::/\n", "0::/\n", False, "process"),
        (4026532177, HOST, "0::/init.scope\n", False, "foreground"),
        (None, HOST, "0::/init.scope\n", False, "foreground"),
        (INITIAL_PID_NAMESPACE, "0::/system.slice/docker-0123.scope\n", "0::/init.scope\n", False, "foreground"),
        (INITIAL_PID_NAMESPACE, "0::/kubepods/burstable/pod1/crio-1\n", "0::/init.scope\n", False, "foreground"),
        (INITIAL_PID_NAMESPACE, "0::/\n", "0::/../../init.scope\n", False, "foreground"),
        (INITIAL_PID_NAMESPACE, "0::/\n", "0::/\n", True, "foreground"),
    ],
    ids=["host", "bare host", "namespace", "no proc", "docker", "kubernetes", "cgroup namespace", "a container's file"],
)
def test_the_place_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inode: int | None, own: str, first: str, mark: bool, place: str
) -> None:
    """A PID namespace, a container's cgroup or a container's file: each alone means `foreground`."""
    monkeypatch.delenv("MLINFRA_KEEPER_PLACE", raising=False)
    if sys.platform != "linux":
        pytest.skip("only Linux has them")
    (tmp_path / "own").write_text(own)
    (tmp_path / "first").write_text(first)
    if mark:
        (tmp_path / ".dockerenv").touch()
    told = {
        "pid_namespace": Namespace(inode), "own_cgroup": tmp_path / "own", "init_cgroup": tmp_path / "first",
        "marks": [tmp_path / ".dockerenv"],
    }  # fmt: skip
    assert detect_place(**told) == place
    assert detect_place(configured="process", **told) == "process"


def test_the_variable_goes_before_everything_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLINFRA_KEEPER_PLACE wins over the environment's configuration; another word is refused by name."""
    monkeypatch.setenv("MLINFRA_KEEPER_PLACE", "foreground")
    assert detect_place(configured="process") == "foreground"
    monkeypatch.setenv("MLINFRA_KEEPER_PLACE", "service")
    assert detect_place(configured="process") == "service"
    monkeypatch.setenv("MLINFRA_KEEPER_PLACE", "cloud")
    with pytest.raises(InvalidInput, match="MLINFRA_KEEPER_PLACE"):
        detect_place()


def test_systemd_gives_the_keeper_a_scope_where_it_runs_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit is stopped with its whole cgroup, so the keeper gets one of its own; elsewhere nothing is added."""
    program = tmp_path / "systemd-run"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert scope_argv(tmp_path / "absent") == []
    found = scope_argv(tmp_path)
    assert found[0] == str(program)
    assert {"--scope", "--"} <= set(found)
    assert ("--user" in found) == (os.geteuid() != 0)
    program.unlink()
    assert scope_argv(tmp_path) == []


def test_a_systemd_that_refuses_is_no_obstacle(house: House) -> None:
    """No session bus, no permission: the keeper is started without a scope."""
    bin_dir = house.handles / "bin"
    bin_dir.mkdir()
    (bin_dir / "systemd-run").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    (bin_dir / "systemd-run").chmod(0o755)
    client = house.runs(
        """
        import mlinfra_prefect.keeper.starting as starting
        real = starting.scope_argv
        starting.scope_argv = lambda: real(context.home.root)
        give_back(ready())
        """,
        PATH=f"{bin_dir}:{os.environ['PATH']}",
    )
    assert client.hears("released")["clean"]
    assert "no bus" in (house.home / "keeper/watch.log").read_text()


def unshared() -> list[str]:
    """How to run something in a PID namespace of its own."""
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*argv, "true"], capture_output=True, check=False).returncode:
        pytest.skip("PID namespaces may not be made here (unshare --pid --fork --mount-proc)")
    return argv


def test_in_a_pid_namespace_leaving_waits_until_everything_is_gone(house: House) -> None:
    """A detached child would die with PID 1, so there the receipt comes before the end of the block."""
    script = house.handles / "inside.py"
    script.write_text(
        "from mlinfra_prefect import lease\n"
        "from mlinfra_prefect.keeper.place import detect_place\n"
        "from mlinfra_prefect.lifecycle.context import Context\n"
        "class Stop(BaseException): pass\n"
        "if __name__ == '__main__':\n"
        "    assert detect_place() == 'foreground', detect_place()\n"
        "    try:\n"
        "        with lease('cpu', max_minutes=5) as infra:\n"
        "            raise Stop\n"
        "    except Stop:\n"
        "        print(Context().lease(infra.id).state, infra.id)\n"
    )
    env = {name: value for name, value in house.env.items() if name != "MLINFRA_KEEPER_PLACE"}
    inside = [*unshared(), sys.executable, str(script)]
    done = subprocess.run(inside, env=env, capture_output=True, text=True, timeout=120, check=False, cwd=house.handles)
    assert done.returncode == 0, done.stderr
    state, lease = done.stdout.split()
    assert state == "released"
    assert house.record(lease)["receipt"]["destroyed"] == ["1/terraform_data.node"]


def test_a_lease_inside_a_namespace_is_not_taken_for_dead_from_outside(house: House) -> None:
    """Its client's pid means nothing out here: not touched while it lives, and not left when the namespace is gone."""
    script = house.handles / "client-in.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from keeper_client import *\nready(); time.sleep(600)\n"
    )
    outside = subprocess.Popen(
        [*unshared(), sys.executable, str(script)], env=house.env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
        text=True, cwd=house.handles,
    )  # fmt: skip
    try:
        assert outside.stdout is not None
        for line in outside.stdout:
            if '"ready"' in line:
                break
        (lease,) = [lease for lease, record in judge.records(house.home).items() if record["state"] == "ready"]
        assert list(house.reap()["skipped"]) == [lease]
        # The keeper dies, its client lives: a new keeper out here cannot see it by its pid, and lets it live.
        house.kill_keeper(operations=True)
        assert list(house.reap()["skipped"]) == [lease]
        assert house.record(lease)["state"] == "ready"
    finally:
        outside.kill()
        outside.wait()
        assert outside.stdout is not None
        outside.stdout.close()
    house.reap()  # or the pass in the background was faster
    assert house.becomes(lease, "released")["receipt"]


# --- the files of examples/keeper-service -----------------------------------------------------------------------------

SHIPPED = Path(__file__).parents[2] / "examples" / "keeper-service"
COMMAND = ["mlinfra-prefect", "keeper"]
SECRET = re.compile(r"(?i)(password|secret_?key|access_?key|token)\W+[\w/+]{8,}")


def test_the_unit_never_has_terraform_signalled() -> None:
    """A stop reaches the keeper alone; a second keeper of a home is not started again; it starts for ever otherwise."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((SHIPPED / "mlinfra-prefect-keeper.service").read_text())
    service = unit["Service"]
    assert (service["KillMode"], service["KillSignal"], service["SendSIGHUP"]) == ("process", "SIGTERM", "no")
    assert (service["OOMPolicy"], service["Restart"]) == ("continue", "always")
    assert service["RestartPreventExitStatus"] == str(TAKEN)
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    program, *rest = service["ExecStart"].split()
    assert [Path(program).name, *rest] == COMMAND


def test_the_manifest_keeps_one_keeper_and_waits_for_its_operations() -> None:
    """Recreate, one replica, no root, no inline secret, probes that ask the keeper, and time for an operation."""
    text = (SHIPPED / "kubernetes-deployment.yaml").read_text()
    deployment = yaml.safe_load(text)
    spec, pod = deployment["spec"], deployment["spec"]["template"]["spec"]
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert (spec["replicas"], spec["strategy"], pod["restartPolicy"]) == (1, {"type": "Recreate"}, "Always")
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["shareProcessNamespace"] is True
    assert pod["terminationGracePeriodSeconds"] > max(PROVISION_SECONDS, DESTROY_SECONDS)
    (container,) = pod["containers"]
    held = container["securityContext"]
    assert (held["allowPrivilegeEscalation"], held["readOnlyRootFilesystem"]) == (False, True)
    assert held["capabilities"] == {"drop": ["ALL"]}
    assert container["command"] == COMMAND
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"] == [*COMMAND, "--check"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert not SECRET.search(text)


def test_the_task_definition_has_what_ecs_requires_and_waits() -> None:
    """One container that is no root, an init that reaps, a health check, and a stop that lets an operation finish."""
    text = (SHIPPED / "ecs-task-definition.json").read_text()
    task = json.loads(text)
    (container,) = task["containerDefinitions"]
    assert {"family", "networkMode", "cpu", "memory", "taskRoleArn"} <= set(task)
    assert task["requiresCompatibilities"] == ["EC2"]  # Fargate stops after 120 seconds, whatever is asked for
    assert container["stopTimeout"] > max(PROVISION_SECONDS, DESTROY_SECONDS)
    assert container["command"] == COMMAND
    assert container["healthCheck"]["command"] == ["CMD", *COMMAND, "--check"]
    assert container["linuxParameters"]["initProcessEnabled"] is True
    assert not container["user"].startswith(("0", "root"))
    assert {mount["sourceVolume"] for mount in container["mountPoints"]} == {each["name"] for each in task["volumes"]}
    assert not SECRET.search(text)
