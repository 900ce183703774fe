"""One whole life (train, fail, serve, release) with secrets in it, as a user runs it: where do they stand afterwards?

Three canaries: one that is passed by ``secrets=``, one that only stands in the flow's environment, one in the text of
an exception. The process runs with umask 000, so every mode in the home is one that we chose.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_harness import CACHE
from prefect.settings import PREFECT_API_URL, get_current_settings

PASSED, HELD, THROWN = "canary-passed-41f0c9", "canary-held-77ab12", "canary-thrown-e05d3b"
SCRIPT = '''
import hashlib, json, os, sys, time
from pathlib import Path

os.umask(0)
from prefect import flow
from mlinfra_prefect import ModelArtifact, deploy, lease, node


def fit(go: str) -> ModelArtifact:
    """Knows the secret, and waits while it is looked for."""
    import skops.io
    from sklearn.dummy import DummyClassifier

    assert hashlib.sha256(os.environ["TOKEN"].encode()).hexdigest() == "{digest}"
    assert "HELD" not in os.environ and "AWS_SECRET_ACCESS_KEY" not in os.environ
    (node().output_dir / "pid").write_text(str(os.getpid()))
    Path(go + ".pid").write_text(str(os.getpid()))
    while not Path(go).exists():
        time.sleep(0.02)
    (node().output_dir / "pid").unlink()
    skops.io.dump(DummyClassifier().fit([[0.0], [1.0]], [3, 3]), node().output_dir / "model.skops")
    return node().artifact(format="sklearn-skops", metrics={{"accuracy": 0.9}})


def fails() -> None:
    raise ValueError(f"the token {{os.environ['TOKEN']}} was refused")


def look(*words: str) -> dict:
    """Processes, other than this one, that have a word: in their command line, and in their environment."""
    found = {{"cmdline": [], "environ": []}}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            for kind, pids in found.items():
                try:
                    content = (entry / kind).read_bytes()
                except OSError:
                    continue
                pids += [int(entry.name)] * any(word.encode() in content for word in words)
    return found


@flow(log_prints=True)
def life(go: str) -> None:
    canaries = os.environ["TO_PASS"], os.environ["HELD"]
    thrown = os.environ["THROWN"]
    with lease("cpu", max_minutes=5) as infra:
        secretive = infra.with_options(secrets={{"TOKEN": "env:TO_PASS"}})
        training = secretive.submit(fit, go)
        while not Path(go + ".pid").exists():
            time.sleep(0.02)
        seen = look(*canaries, thrown)
        Path(go).touch()
        model = training.result()
        try:
            secretive.run(fails)
        except ValueError as error:
            said = str(error)
    try:
        with lease("cpu", max_minutes=5, name="throws"):
            raise RuntimeError(thrown)
    except RuntimeError:
        pass
    endpoint = deploy(model, serving="secretive", expires_minutes=5)
    token, home = endpoint.token, Path(os.environ["MLINFRA_HOME"])
    answers = endpoint.predict([[0.0]])
    # Not the ledger's own files: closing one would drop the locks that this process has on it. They are read later.
    holders = [str(path.relative_to(home)) for path in home.rglob("*")
               if path.is_file() and "sqlite" not in path.name and token.encode() in path.read_bytes()]
    served = look(token)
    Path(go + ".seen").write_text(json.dumps({{
        "training": int(Path(go + ".pid").read_text()), "seen": seen, "said": said, "answers": answers,
        "holders": holders, "served": served, "id": endpoint.id, "token": token,
        "repr": repr(endpoint) + str(endpoint.record),
    }}))
    endpoint.release()


if __name__ == "__main__":
    life(sys.argv[1])
'''


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for the script's own words, with a home that our code makes."""
    root = Path(tempfile.mkdtemp(prefix="mls-"))
    yield root
    shutil.rmtree(root, ignore_errors=True)


def holding(roots: list[Path], *words: str) -> list[str]:
    """Regular files with one of the words in them."""
    files = (path for root in roots for path in ([root] if root.is_file() else root.rglob("*")))
    return [
        str(path) for path in files
        if path.is_file() and not path.is_symlink() and any(word.encode() in path.read_bytes() for word in words)
    ]  # fmt: skip


@pytest.mark.slow
def test_secrets_stand_nowhere_and_everything_is_its_owner_s_alone(place: Path, prefect_server: None) -> None:
    """No log, artifact, event, receipt, state, plan, listing, database or process list has a canary or the token."""
    import hashlib

    go, home, script = place / "go", place / "home", place / "life.py"
    script.write_text(SCRIPT.format(digest=hashlib.sha256(PASSED.encode()).hexdigest()))
    (place / "pyproject.toml").write_text('[project]\nname = "life"\nversion = "0"\n')
    env = {
        **os.environ, "MLINFRA_HOME": str(home), "MLINFRA_CACHE": str(CACHE), "MLINFRA_KEEPER_PLACE": "process",
        "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(place / "results"),
    }  # fmt: skip
    secret = {"TO_PASS": PASSED, "HELD": HELD, "AWS_SECRET_ACCESS_KEY": HELD, "TF_LOG": "trace", "THROWN": THROWN}
    done = subprocess.run(
        [sys.executable, str(script), str(go)], cwd=place, env={**env, **secret}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    told = json.loads(go.with_name("go.seen").read_text())
    assert told["answers"] == [3]
    assert told["said"] == "the token *** was refused"
    # While it trains, the secret is in the environment of the training and of nobody else.
    assert told["seen"] == {"cmdline": [], "environ": [told["training"]]}
    # While it serves, the endpoint's token is in its file, and in no environment or command line.
    assert told["holders"] == [f"work/{told['id']}/token"]
    assert told["served"] == {"cmdline": [], "environ": []}
    words = (PASSED, HELD, THROWN, told["token"])
    assert not any(word in told["repr"] for word in words)
    assert not any(word in done.stdout for word in words)
    listed = "".join(
        subprocess.run(
            [sys.executable, "-m", "mlinfra_prefect", *verb], env=env, capture_output=True, text=True, timeout=60,
            check=True,
        ).stdout
        for verb in (["ps", "--all", "--json"], ["endpoints", "--all", "--json"], ["show", told["id"], "--json"])
    )  # fmt: skip
    assert told["id"] in listed
    assert not any(word in listed for word in words)
    url = str(get_current_settings().server.database.connection_url.get_secret_value())
    database = Path("/", url.rpartition("///")[2])
    stored = [path for path in database.parent.glob(f"{database.name}*") if path.is_file()]
    assert stored, "the server's database was not found"
    assert holding(stored, "secretive"), "the database knows nothing of the run: it is another one"
    results = [place / "results"] if (place / "results").exists() else []
    assert holding([home, *stored, *results], *words) == []
    # Modes: of everything that this life has made.
    opened = [
        (str(path.relative_to(home)), oct(stat.S_IMODE(path.lstat().st_mode)))
        for path in (home, *home.rglob("*"))
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    ]
    assert opened == []
    assert len(list(home.rglob("*"))) > 30
