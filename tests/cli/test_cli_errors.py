"""How verbs fail: one line, the right exit code, never a traceback."""

from __future__ import annotations

import subprocess

import pytest

from mlinfra_prefect.cli.outcome import guarded
from mlinfra_prefect.errors import BudgetExceeded, CapacityUnavailable, InvalidInput, NodeError


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.mark.parametrize(
    "words",
    [
        ["shwo"],
        ["ps", "--bogus"],
        ["show"],
        ["plan", "cpu", "--max-minutes", "soon"],
        ["up", "cpu", "--nodes", "1", "2"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(cli, words):
    """Usage that makes no sense names what is wrong and where the help is."""
    done = cli(*words)
    assert (done.returncode, done.stdout) == (2, "")
    line = only_line(done.stderr)
    assert line.startswith("error: ")
    assert "--help" in line


@pytest.mark.parametrize(
    "words", [["show"], ["release"], ["logs"], ["pull", "{}", "place"], ["exec", "{}", "--", "ls"]]
)
def test_an_unknown_id_is_told_with_a_remedy(cli, words):
    """An id that is not in this home is exit code 1 and one line that says how to find the right one."""
    words = [word.format("nope-1") for word in words]
    done = cli(*words, *([] if "nope-1" in words else ["nope-1"]))
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert line.startswith("error: 'nope-1' is no lease or endpoint")
    assert "ps --all" in line


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["A100x"], "accelerator"),
        (["cpu", "--max-minutes", "0"], "max_minutes"),
        (["cpu", "--environment", "nowhere"], "environment"),
        (["cpu", "--platform", "moon"], "platform"),
        (["cpu", "--name", "two\nlines"], "name"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_wrong_input_names_the_field_before_anything_is_created(cli, words, field):
    """Wrong input is exit code 2, names the field, and no record of it is ever written."""
    done = cli("up", *words)
    assert done.returncode == 2
    assert only_line(done.stderr).startswith(f"error: {field}: ")
    assert cli("ps", "--all", "--json").stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x, x]\nb: [*a, *a]\n", "aliases"),
        ("- cpu\n", "must hold fields"),
        ("accelerator: cpu\nmax_minutez: 5\n", "max_minutez"),
        ("x: " + "y" * 70_000, "bytes"),
    ],
)
def test_a_bad_file_is_refused(cli, tmp_path, text, said):
    """A YAML bomb, a wrong shape, an unknown field and an absurd size are wrong input."""
    path = tmp_path / "request.yaml"
    path.write_text(text)
    done = cli("plan", str(path))
    assert done.returncode == 2
    assert said in only_line(done.stderr)


def test_a_reader_that_leaves_is_no_error(cli, write):
    """A broken pipe is silent."""
    for number in range(40):
        write("lease", f"lease-{number}")
    with subprocess.Popen(
        cli.argv("ps", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.environment()
    ) as verb:
        verb.stdout.close()
        assert verb.stderr.read() == b""
        assert verb.wait() == 141


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InvalidInput("nodes", "is 3", "Use 1."), 2, "error: nodes: is 3. Use 1."),
        (BudgetExceeded("Too dear."), 1, "error: Too dear."),
        (CapacityUnavailable("No A100."), 4, "error: No A100."),
        (NodeError("ValueError", "two\nlines", "Traceback\n"), 1, "error: ValueError: two lines"),
        (RuntimeError("a bug\nof ours"), 1, "error: RuntimeError: a bug of ours. Set MLINFRA_DEBUG=1"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_exception_ends_as_one_line_and_a_code(capsys, monkeypatch, error, code, said):
    """Whatever a verb raises, there is one line on standard error and a documented exit code."""
    monkeypatch.delenv("MLINFRA_DEBUG", raising=False)

    def verb() -> int:
        raise error

    assert guarded(verb) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(said)
    assert len(told.err.splitlines()) == bool(said)


def test_debugging_brings_the_traceback_back(capsys, monkeypatch):
    """With MLINFRA_DEBUG=1 the traceback comes before the line."""
    monkeypatch.setenv("MLINFRA_DEBUG", "1")

    def verb() -> int:
        raise BudgetExceeded("Too dear.")

    assert guarded(verb) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1] == "error: Too dear."
