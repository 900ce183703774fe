"""Requirements: installed once per set, into an environment that the flow's interpreter lacks them in."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from agent_harness import NodeUnderTest, result_of

from mlinfra_prefect.agent import environments, wire


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A directory with one tiny wheel, built by hand."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    files = {
        "mlinfra_tiny_probe.py": b"VALUE = 41\n",
        "mlinfra_tiny_probe-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: mlinfra-tiny-probe\nVersion: 1.0\n",
        "mlinfra_tiny_probe-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    with zipfile.ZipFile(folder / "mlinfra_tiny_probe-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
        wheel.writestr(
            "mlinfra_tiny_probe-1.0.dist-info/RECORD", record + "mlinfra_tiny_probe-1.0.dist-info/RECORD,,\n"
        )
    return folder


def bare() -> dict[str, str]:
    """An environment for pip without this machine's own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}


def test_a_job_gets_a_package_that_the_flow_lacks(node: NodeUnderTest, wheels: Path) -> None:
    """The training imports it beside the flow's own packages; a second job reuses the environment."""
    with pytest.raises(ModuleNotFoundError):
        __import__("mlinfra_tiny_probe")
    # An index is a setting of the machine, and no requirement.
    own = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri()}
    node.start(env={name: "" for name in os.environ if name.startswith("PIP_")} | own)
    requirements = ("mlinfra-tiny-probe>=1", "mlinfra-tiny-probe==1.0")
    code = "import mlinfra_tiny_probe as m, sys, pytest\ndef train(): return [m.VALUE, sys.prefix, pytest.__file__]\n"
    job = node.submit(files={"t.py": code}, function="t.py:train", requirements=requirements)
    status = node.wait(job, 60)
    assert status.state == "succeeded", (job / wire.LOG).read_text()
    value, prefix, inherited = result_of(job)
    assert value == 41
    assert Path(prefix).is_relative_to(node.root / "cache")
    assert inherited == pytest.__file__
    assert "Successfully installed mlinfra-tiny-probe" in (job / wire.LOG).read_text()

    again = node.submit("job-2", files={"t.py": code}, function="t.py:train", requirements=requirements[::-1])
    assert node.wait(again, 30).state == "succeeded"
    assert result_of(again)[1] == prefix
    assert "installed" not in (again / wire.LOG).read_text()

    bad = node.submit("job-3", files={"t.py": code}, function="t.py:train", requirements=("no-such-thing-at-all",))
    failed = node.wait(bad, 60)
    assert failed.error is not None
    assert failed.error.type == "EnvironmentFailed"
    assert "installing the requirements" in failed.error.message
    assert "No matching distribution" in (bad / wire.LOG).read_text()


def test_an_environment_that_was_not_finished_is_built_again(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its marker a place is a build that died; with it, nothing is built."""
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    env = {**bare(), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri()}

    def ensure() -> Path:
        return environments.ensure(
            tmp_path, Path(sys.executable), ["mlinfra-tiny-probe"], inherit=True, log=log, env=env
        )

    python = ensure()
    marker = python.parent.parent / "complete.json"
    stamp = marker.stat().st_mtime_ns
    assert ensure() == python
    assert marker.stat().st_mtime_ns == stamp
    marker.unlink()
    (python.parent / "half-written").touch()
    assert ensure() == python
    assert marker.exists()
    assert not (python.parent / "half-written").exists()
    found = subprocess.run(
        [str(python), "-c", "import mlinfra_tiny_probe as m; print(m.VALUE)"],
        capture_output=True,
        text=True,
        env=bare(),
        check=True,
    )
    assert found.stdout.strip() == "41"
    os.close(log)


def test_nothing_required_is_the_flows_interpreter(tmp_path: Path) -> None:
    """Preinstalled is the local default: no environment is made."""
    python = Path(sys.executable)
    assert environments.ensure(tmp_path, python, (), inherit=True, log=2, env={}) == python
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "--index-url http://x.invalid",
        "-r other.txt",
        "-e .",
        "--find-links file:///x",
        "--no-index",
        "a\n-r b",
        "a\x0c-r b",
        "a\u2028-r b",
        "a\n",
        "",
        " --no-index x",
        "--no-binary :all:",
    ],
)
def test_options_of_pip_are_refused(text: str) -> None:
    """They name files, indexes and code to run."""
    with pytest.raises(environments.EnvironmentFailed, match="refused"):
        environments.check_requirements([text])


def test_what_belongs_to_a_requirement_is_no_option() -> None:
    """Markers, addresses and hashes stand behind its name."""
    environments.check_requirements(
        ["numpy>=2 ; python_version > '3'", "pkg @ https://x.invalid/p.whl", "a==1 --hash=sha256:00"]
    )
