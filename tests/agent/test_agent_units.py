"""The pure parts: specs, events, exits, node(), the archive."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.agent import allowlist, archive, drafts, events, node as node_module, specs, wire
from mlinfra_prefect.agent.exits import exit_reason

# --- specs -----------------------------------------------------------------------------------------------------------


def job(**changes: Any) -> dict[str, Any]:
    made = specs.JobSpec("job-1", "lease-1", 1, "command", Path("/up"), command=("x",)).to_payload()
    return {**made, **changes}


def test_specs_are_read_back_as_they_were_written() -> None:
    """What the client writes is what the agent gets, through JSON."""
    made = specs.JobSpec(
        "j",
        "l",
        2,
        "callable",
        Path("/up"),
        callable=specs.CallableRef(None, "a.py", "f", "src"),
        code=specs.CodeRef("code.zip", "ab"),
        args=specs.Arguments(({"codec": "json", "value": 1},), {}),
        checkpoint=specs.CheckpointRef("k", Path("/store")),
        requirements=("a",),
        secrets=("S",),
        inputs={"X": "/x"},
    )
    assert specs.JobSpec.from_payload(json.loads(json.dumps(made.to_payload()))) == made
    agent = specs.AgentSpec(
        "led",
        "l",
        1,
        "endpoint",
        5.0,
        Path("/n"),
        Path("/g"),
        "t",
        2.0,
        0.1,
        Path("/p"),
        Path("/c"),
        specs.ServeSpec((("a",), ("b",)), {"B": "c"}, Path("/d"), scale=Path("/s"), least=2),
    )
    payload = json.loads(json.dumps(agent.to_payload()))
    assert specs.AgentSpec.from_payload(payload) == agent
    with pytest.raises(wire.SpecError, match="'least' must be from 1 to the number of 'argvs'"):
        specs.AgentSpec.from_payload({**payload, "serve": {**payload["serve"], "least": 3}})
    assert "grant_token" not in repr(agent)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema": "mlinfra-prefect/job/9"}, "schema"),
        ({"job_id": "../x"}, "job_id"),
        ({"job_id": "A b"}, "job_id"),
        ({"attempt": True}, "attempt"),
        ({"attempt": "1"}, "attempt"),
        ({"kind": "pickle"}, "kind"),
        ({"upload_dir": "relative"}, "upload_dir"),
        ({"grace_seconds": -1}, "grace_seconds"),
        ({"grace_seconds": float("nan")}, "grace_seconds"),
        ({"progress_timeout_seconds": 0}, "progress_timeout"),
        ({"command": None}, "command"),
        ({"command": []}, "command"),
        ({"command": [1]}, "command"),
        ({"command": ["a\0b"]}, "command"),
        ({"env": {"MLINFRA_LEASE_ID": "x"}}, "MLINFRA_LEASE_ID"),
        ({"secrets": ["NOT A NAME"]}, "NOT A NAME"),
        ({"secrets": ["a", "A"]}, "case"),
        ({"inputs": {"a b": "/x"}}, "a b"),
        ({"env": {"A": 1}}, "env"),
        ({"surprise": 1}, "surprise"),
        ({"callable": {"module": None, "file": None, "qualname": "f"}}, "callable"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], field: str) -> None:
    """Unknown fields, wrong types, NaN, NUL, paths and reserved names: refused by the field's name."""
    with pytest.raises(wire.SpecError, match=field):
        specs.JobSpec.from_payload(job(**changes))


def test_json_files_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """A failed write leaves the old file and no scratch file."""
    wire.write_json(tmp_path / "a.json", {"n": 1})
    with pytest.raises(ValueError):
        wire.write_json(tmp_path / "a.json", {"n": math.nan})
    assert wire.read_json(tmp_path / "a.json") == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


# --- events ----------------------------------------------------------------------------------------------------------


def test_events_are_read_leniently_and_while_they_grow(tmp_path: Path) -> None:
    """Half a line waits for its other half; garbage is counted; the last value of a metric counts."""
    path = tmp_path / "events.jsonl"
    tail = events.EventTail(path)
    assert tail.read() == 0
    path.write_bytes(
        b'{"progress": 0.25}\nnot json\n[1]\n{"metrics": {"a": "x"}}\n{"unknown": 1}\n\n{"metrics": {"a": 1}'
    )
    assert (tail.read(), tail.malformed, tail.progress, tail.metrics) == (1, 4, 0.25, {})
    with path.open("ab") as file:
        file.write(
            b'}\n{"metrics": {"a": 2, "b": "NaN"}}\n{"progress": 7}\n{"progress": NaN}\n{"metrics": {"c": 1'
            + b"0" * 400
            + b'}}\n{"progress": 0.5}'
        )
    assert tail.read() == 3
    assert tail.metrics["a"] == 2
    assert math.isnan(tail.metrics["b"])
    assert tail.progress == 1.0
    tail.finish()
    assert tail.progress == 0.5
    assert tail.malformed == 6


# --- exits -----------------------------------------------------------------------------------------------------------


def test_ends_are_told_in_words() -> None:
    """A table of what people see."""
    assert exit_reason(3) == "exited with 3"
    assert exit_reason(127).endswith("(the command was not found)")
    assert (
        exit_reason(-9, out_of_memory=True)
        == "was killed by SIGKILL: it ran out of memory (the kernel's out-of-memory killer)"
    )
    assert exit_reason(-15) == "was killed by SIGTERM"
    assert exit_reason(-200) == "was killed by signal 200"


# --- node() ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a training, without an agent."""
    for name, value in {
        "ON_NODE": "1",
        "OUTPUT_DIR": str(tmp_path),
        "EVENTS": str(tmp_path / "e"),
        "DEADLINE": "5.5",
        "DRAFT": str(tmp_path / "draft.json"),
        "CHECKPOINT_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(f"MLINFRA_{name}", value)
    monkeypatch.delitem(sys.modules, "_mlinfra_node", raising=False)
    return tmp_path


def test_node_elsewhere_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the flow it raises a RuntimeError that says where it works."""
    monkeypatch.delenv("MLINFRA_ON_NODE", raising=False)
    monkeypatch.delitem(sys.modules, "_mlinfra_node", raising=False)
    with pytest.raises(RuntimeError, match="only inside a training"):
        node_module.node()


def test_progress_is_cut_to_its_range(on_node: Path) -> None:
    """A fraction of 1.0000001 must not end a training; NaN says nothing and is refused."""
    node = node_module.node()
    node.progress(1.5)
    node.progress(-1)
    with pytest.raises(ValueError, match="NaN"):
        node.progress(math.nan)
    assert [json.loads(line)["progress"] for line in (on_node / "e").read_text().splitlines()] == [1.0, 0.0]
    assert node.deadline == 5.5


@pytest.mark.parametrize("value", ["0.5", True, None, [1], object()])
def test_a_metric_that_is_no_number_is_refused_by_name(on_node: Path, value: Any) -> None:
    """At the call, where the traceback shows it."""
    with pytest.raises(drafts.BadMetrics, match="'loss'"):
        node_module.node().metrics(loss=value)


def test_scalars_of_numpy_are_metrics(on_node: Path) -> None:
    """float32 is no float, and is what training loops have."""
    np = pytest.importorskip("numpy")
    node_module.node().metrics(loss=np.float32(0.5), n=np.int64(3))
    assert json.loads((on_node / "e").read_text())["metrics"] == {"loss": 0.5, "n": 3.0}


def test_a_draft_is_checked_where_it_is_made(on_node: Path) -> None:
    """Finite metrics, JSON metadata, a format; it is recorded even when it is not returned."""
    node = node_module.node()
    draft = node.artifact(format="skops", metrics={"auc": 0.5}, classes=["a"])
    assert drafts.ArtifactDraft.from_payload(wire.read_json(on_node / "draft.json")) == draft
    with pytest.raises(drafts.BadMetrics, match="'auc'"):
        node.artifact(format="x", metrics={"auc": math.nan})
    with pytest.raises(ValueError, match="metadata"):
        node.artifact(format="x", thing=object())
    with pytest.raises(ValueError, match="format"):
        node.artifact(format=" ")


# --- archive ---------------------------------------------------------------------------------------------------------


def test_the_archive_is_the_same_bytes_on_every_build(tmp_path: Path) -> None:
    """Another process, another hash seed, another directory: the same name and bytes; reused when it is there."""
    first = archive.build_archive(tmp_path / "one")
    code = (
        "import sys; from pathlib import Path; from mlinfra_prefect.agent.archive import build_archive as build;"
        "print(build(Path(sys.argv[1])))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(archive.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "two")], capture_output=True, text=True, env=env, check=True
    )
    second = Path(done.stdout.strip())
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    stamp = first.stat().st_mtime_ns
    assert archive.build_archive(tmp_path / "one").stat().st_mtime_ns == stamp
    assert first.stat().st_mode & 0o777 == 0o600


def test_the_archive_is_standard_library_only(tmp_path: Path) -> None:
    """It runs without site-packages, and every module of it can be imported there, from sources as well as bytecode."""
    built = archive.build_archive(tmp_path)
    sources_only = tmp_path / "sources.pyz"
    with zipfile.ZipFile(built) as full, zipfile.ZipFile(sources_only, "w") as bare:
        names = [name for name in full.namelist() if name.endswith(".py")]
        for name in names:
            bare.writestr(name, full.read(name))
    modules = [
        name[:-3].replace("/", ".") for name in names if name not in {"__main__.py", "mlinfra_agent/__init__.py"}
    ]
    code = (
        f"import sys, importlib; sys.path[:0] = [sys.argv[1]]; [importlib.import_module(m) for m in {modules!r}];"
        "print(sorted(m for m in sys.modules if m.startswith(('mlinfra_prefect', 'pydantic', 'numpy'))))"
    )
    for path in (built, sources_only):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"


def test_an_unknown_verb_prints_the_usage(tmp_path: Path) -> None:
    """Exit code 2."""
    built = archive.build_archive(tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(built), "dance"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "spawn SPEC" in done.stderr


# --- allow-list ------------------------------------------------------------------------------------------------------


def test_the_allow_list_is_an_allow_list() -> None:
    """What is not named does not pass; PIP_* passes only where pip runs."""
    source = {
        "PATH": "p",
        "HOME": "h",
        "LC_ALL": "C",
        "SSL_CERT_FILE": "c",
        "CUDA_VISIBLE_DEVICES": "1",
        "PIP_INDEX_URL": "i",
        "AWS_SESSION_TOKEN": "t",
        "PYTHONPATH": "x",
        "LD_PRELOAD": "y",
        "MLINFRA_LEASE_ID": "z",
    }
    kept = {"PATH", "HOME", "LC_ALL", "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES"}
    assert set(allowlist.inherited(source)) == kept
    assert set(allowlist.inherited(source, pip=True)) == kept | {"PIP_INDEX_URL"}


def test_revoking_a_grant_is_removing_it(tmp_path: Path) -> None:
    """What Terraform's destroy provisioner calls; twice is as good as once."""
    built = archive.build_archive(tmp_path)
    (tmp_path / "grant").touch()
    for _ in range(2):
        subprocess.run([sys.executable, "-I", "-S", str(built), "revoke", str(tmp_path / "grant")], check=True)
        assert not (tmp_path / "grant").exists()
