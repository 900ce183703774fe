"""Rule: the keeper outlives what dies or fails around it: sessions, runners, disks, Prefect."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keeper_judge as judge
import pytest
from keeper_harness import CACHE, House

RUNNER = """
import signal, subprocess, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored by what nohup started
sys.exit(subprocess.run([sys.executable, {script!r}]).returncode)
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_runner_s_whole_session_ends(house: House, number: signal.Signals) -> None:
    """Flow and runner at once, as a terminal's hang-up or a unit's end take them: checkpoint, then release."""
    script = house.handles / "flow.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom keeper_client import *\n"
        "train(ready(), 'until_told')\n"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER.format(script=str(script))], env=house.env, cwd=house.handles, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert runner.stdout is not None
        assert any("training, resumed=False" in line for line in runner.stdout)
        watcher = house.watcher()
        assert os.getsid(watcher) == watcher != runner.pid
        os.killpg(runner.pid, number)
        runner.wait(30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
        runner.stdout.close()
    ((lease, _),) = judge.records(house.home).items()
    record = house.becomes(lease, "released")
    assert "its client was lost (checkpoint_then_release)" in record["receipt"]["reason"]
    assert record["generation"] == 1  # the very watcher, which nobody had to replace
    assert list(house.home.glob("checkpoints/dev/*/1/manifest.json"))


def test_the_keeper_needs_no_prefect(house: House) -> None:
    """An API that nobody answers changes nothing: no code of the keeper loads Prefect, or is told where it is."""
    code = (
        "import sys, pkgutil, importlib, mlinfra_prefect.keeper as k, mlinfra_prefect.lifecycle as l\n"
        "for p in (k, l):\n"
        "    for m in pkgutil.iter_modules(p.__path__, p.__name__ + '.'):\n"
        "        m.name.endswith('__main__') or importlib.import_module(m.name)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('prefect', 'httpx', 'websockets')])\n"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=house.env)
    assert loaded.stdout.strip() == "[]"
    client = house.client(
        "record = ready(); wait_for('go'); give_back(record)", PREFECT_API_URL="http://127.0.0.1:9/api"
    )
    client.hears("ready")
    assert not [name for seen in house.processes() for name in seen.environ if name.startswith("PREFECT_")
                if seen.pid != client.process.pid]  # fmt: skip
    (house.handles / "go").touch()
    assert client.hears("released")["clean"]
    assert client.ends() == 0


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A small file system of its own at a place."""
    argv = ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)]
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root on Linux can mount a small file system")
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs may not be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_delays_a_release_and_loses_nothing(engine: str) -> None:
    """The client dies while not a byte can be written: the keeper tries again and again, and has room later."""
    place = Path(tempfile.mkdtemp(prefix="mlk-"))
    with mounted(place, "-o", "size=48m,mode=700"):
        house = House(place, CACHE, engine)
        try:
            client = house.client("train(ready(), 'for_seconds', '600')")
            lease = client.hears("ready")["id"]
            client.hears("news", log="training")
            ballast = place / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb") as stream:
                while True:
                    stream.write(b"x" * 4096)
                    stream.flush()
            client.kill()
            tried: set[int] = set()

            def tried_again() -> bool:
                tried.update(seen.pid for seen in house.processes("mlinfra_prefect.keeper") if "step" in seen.argv)
                return len(tried) >= 3

            house.until(tried_again, "an operation is tried again and again")
            assert house.record(lease)["state"] == "ready"
            ballast.unlink()
            assert "client was lost" in house.becomes(lease, "released")["receipt"]["reason"]
            problems = house.close(strict=True)
        finally:
            house.close(strict=False)
    place.rmdir()
    assert not problems, "\n".join(problems)


def test_a_home_that_cannot_be_written_is_one_sentence(engine: str) -> None:
    """Asked for a lease, or to be kept by a service: one line that names the home, and nothing is begun."""
    place = Path(tempfile.mkdtemp(prefix="mlk-"))
    env = {**os.environ, "MLINFRA_HOME": str(place), "MLINFRA_TERRAFORM": engine, "MLINFRA_KEEPER_PLACE": "process"}
    cli = [sys.executable, "-m", "mlinfra_prefect"]
    try:
        with mounted(place, "-o", "size=8m,mode=700"):
            subprocess.run([*cli, "ps"], env=env, check=True, capture_output=True)
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            for verb in (["up", "cpu", "--max-minutes", "5"], ["keeper"]):
                done = subprocess.run([*cli, *verb], env=env, capture_output=True, text=True, check=False, timeout=60)
                assert done.returncode == 1
                assert done.stderr.count("\n") == 1, done.stderr
                assert str(place) in done.stderr
                assert "Read-only" in done.stderr
    finally:
        place.rmdir()
