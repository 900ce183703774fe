"""Whether a call can travel: binding, arguments, result."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from mlinfra_prefect.code import check_signature
from mlinfra_prefect.errors import InvalidInput, NoCodec


def fit(day: str, *, rank: int = 16) -> dict[str, float]: ...


def loose(*rest, **named): ...


def test_a_call_that_fits_passes():
    """Positional and keyword arguments with codecs, and a result with one."""
    check_signature(fit, ("monday",), {"rank": 3})
    check_signature(loose, (1, 2), {"a": [1.5, None]})


@pytest.mark.parametrize(
    ("args", "kwargs", "field"),
    [((), {}, "day"), (("a",), {"rnak": 1}, "rnak"), (("a", "b"), {}, "arguments"), ((), {"rank": 1}, "day")],
)
def test_arguments_that_do_not_fit_are_named(args, kwargs, field):
    """A missing, misspelt or superfluous argument is known before a machine is."""
    with pytest.raises(InvalidInput) as caught:
        check_signature(fit, args, kwargs)
    assert caught.value.field == field
    assert "rank" in caught.value.remedy


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "field"),
    [
        (fit, (object(),), {}, "day"),
        (fit, ("a",), {"rank": object()}, "rank"),
        (loose, (1, object()), {}, "rest[1]"),
        (loose, (), {"x": object()}, "x"),
    ],
)
def test_an_argument_without_a_codec_is_named(function, args, kwargs, field):
    """Also inside *args and **kwargs; the prefix stands before the name."""
    with pytest.raises(NoCodec) as caught:
        check_signature(function, args, kwargs, field_prefix="params.")
    assert caught.value.field == f"params.{field}"


def test_a_return_annotation_without_a_codec_is_refused():
    """A function that says it returns a generator or a socket cannot give it back."""

    class Unknown: ...

    def bad() -> Unknown: ...

    bad.__annotations__["return"] = Unknown
    with pytest.raises(NoCodec) as caught:
        check_signature(bad)
    assert caught.value.field == "return"


def test_a_return_annotation_that_cannot_be_resolved_is_refused():
    """Text that names nothing at run time, as under TYPE_CHECKING, cannot be decoded either."""

    def bad(): ...

    bad.__annotations__["return"] = "NoSuchName"
    with pytest.raises(NoCodec, match="NoSuchName") as caught:
        check_signature(bad)
    assert "TYPE_CHECKING" in caught.value.remedy


def test_annotations_of_arguments_need_not_resolve():
    """Only what comes back is decoded by annotation."""

    def good(x): ...

    good.__annotations__.update({"x": "NoSuchName", "return": "float | None"})
    check_signature(good, (1,))


def test_a_signature_from_the_import_check_stands_in_for_the_function():
    """For text addresses the function is not loaded: parameters and values are checked all the same."""
    signature = inspect.Signature([inspect.Parameter("day", inspect.Parameter.POSITIONAL_OR_KEYWORD)])
    check_signature(signature, ("a",))
    with pytest.raises(InvalidInput, match="missing"):
        check_signature(signature)
    with pytest.raises(NoCodec):
        check_signature(signature, (object(),))


SERVED = """
from __future__ import annotations

import multiprocessing

import cloudpickle

from mlinfra_prefect import ModelArtifact
from mlinfra_prefect.code import check_signature
from mlinfra_prefect.integration.work import _annotation


def fit(rows: int) -> ModelArtifact: ...


def child(sent: bytes) -> None:
    function = cloudpickle.loads(sent)
    assert "ModelArtifact" not in function.__globals__
    check_signature(function, (1,))
    print("told", _annotation(function).__name__)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=child, args=(cloudpickle.dumps(fit),))
    process.start()
    process.join()
"""


def test_a_function_of_a_served_script_keeps_what_its_annotations_name(tmp_path: Path) -> None:
    """`flow.serve` sends a script's functions to its child by value, without the names that only annotations use."""
    (tmp_path / "served.py").write_text(SERVED)
    done = subprocess.run(
        [sys.executable, "served.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "told ModelArtifact\n", done.stderr
