"""Values come back exactly as they were, or are refused by name: never a pickle, never silently something else."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import json
import math
import pickle
import types
import typing
import uuid
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agent_codec_types as kinds
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mlinfra_prefect.agent import codecs, drafts
from mlinfra_prefect.agent.codecs import CodecError


def again(value: Any, directory: Path, **options: Any) -> Any:
    """Through the wire and back: the envelope goes through JSON, as it does in a job."""
    envelope = json.loads(json.dumps(codecs.encode(value, directory, name="value", **options), allow_nan=False))
    return codecs.decode(envelope, directory)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in every type inside; NaN is NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (
            left == right
            and math.copysign(1, left) == math.copysign(1, right)
            or (math.isnan(left) and math.isnan(right))
        )
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) and same(x, y) for (a, x), (b, y) in zip(left.items(), right.items(), strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dt.datetime | dt.time):
        return left == right and left.fold == right.fold and repr(left.tzinfo) == repr(right.tzinfo)
    if isinstance(left, int):
        return left == right  # repr() of a huge one is refused by Python
    if isinstance(left, set | frozenset):
        return sorted(map(repr, left)) == sorted(map(repr, right))
    return repr(left) == repr(right)  # tells 1 from True inside a dataclass, and sNaN cannot be compared


ZONES = st.one_of(
    st.none(),
    st.just(dt.UTC),
    st.just(zoneinfo.ZoneInfo("UTC")),
    st.integers(-86399, 86399).map(lambda seconds: dt.timezone(dt.timedelta(seconds=seconds))),
    st.just(dt.timezone(dt.timedelta(hours=1), "mine")),
)
HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(max_size=20),
    st.uuids(),
    st.dates(),
    st.timedeltas(),
    st.sampled_from([*kinds.Color, *kinds.Level, kinds.Mode.READ | kinds.Mode.WRITE, kinds.Mode(0)]),
)
SCALARS = st.one_of(
    HASHABLE,
    st.floats(),
    st.decimals(),
    st.characters(categories=["Cs"]),
    st.datetimes(timezones=ZONES),
    st.times(timezones=ZONES),
    st.datetimes().map(lambda t: t.replace(fold=1)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(), inner, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.sets(HASHABLE, max_size=3),
        st.frozensets(HASHABLE, max_size=3),
        st.builds(kinds.Layer, st.integers(), st.sampled_from(kinds.Color)),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_every_value_comes_back_exactly(value: Any, tmp_path: Path) -> None:
    """Value and types, at every depth: -0.0, NaN, surrogates, huge ints, folds, zones, keys of any kind."""
    codecs.check_value(value, "value")
    assert same(again(value, tmp_path), value)


@pytest.mark.parametrize(
    "value",
    [
        10**5000,
        -(2**53) - 1,
        b"x" * (1 << 20),
        b"y" * ((1 << 20) + 1),
        decimal.Decimal("sNaN"),
        decimal.Decimal("1.10"),
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("UTC")),
        {"codec": "tuple", "value": [1]},
        uuid.UUID(int=5),
        [],
        {},
        (),
        set(),
        kinds.Color.CRIMSON,
    ],
    ids=lambda value: type(value).__name__,
)
def test_edge_values_come_back(value: Any, tmp_path: Path) -> None:
    """The limits between one form and another, and a dictionary that looks like an envelope."""
    assert same(again(value, tmp_path), value)


def test_instances_come_back_with_the_state_they_had(tmp_path: Path) -> None:
    """Neither __init__ nor __post_init__ nor a validator runs on the way: each would change the value once more."""
    config = kinds.Config([kinds.Layer(3)], notes={"t": (1, 2)})
    assert config.depth == 1
    found = again(config, tmp_path)
    assert found == config
    assert type(found.notes["t"]) is tuple
    assert found.doubled == 2
    assert again(kinds.Slotted(1, (2,)), tmp_path) == kinds.Slotted(1, (2,))
    model = kinds.Model(name="a", scores=(math.inf, 0.5), anything={1, 2})
    model._cache = 5
    back = again(model, tmp_path)
    assert back == model
    assert (back.name, back._cache, back.model_fields_set) == ("a!", 5, {"name", "scores", "anything"})
    assert again(kinds.Open(x=1, y=(2,)), tmp_path) == kinds.Open(x=1, y=(2,))
    assert again(kinds.Linked(url="https://example.org/a"), tmp_path) == kinds.Linked(url="https://example.org/a")


def recursive() -> Any:
    value: list[Any] = []
    value.append({"inner": value})
    return value


def deep() -> Any:
    value: Any = 1
    for _ in range(150):
        value = [value]
    return value


@dataclasses.dataclass
class LocalError(Exception):
    a: int


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (kinds.Pair(1, 2), "named tuple"),
        (kinds.MyInt(3), "int"),
        (collections.OrderedDict(a=1), "dict"),
        (collections.defaultdict(list), "dict"),
        (bytearray(b"x"), "no codec"),
        (1j, "no codec"),
        (object(), "no codec"),
        (iter([1]), "list first"),
        ((n for n in range(2)), "list first"),
        (lambda: 1, "Functions"),
        (kinds.Layer, "Functions"),
        (recursive(), "contains itself"),
        (deep(), "nested"),
        (ValueError("x"), "no codec"),
        (types, "no codec"),
        (Path("/no/such/thing"), "nothing at it"),
        (kinds.Keyed(key="secret-canary"), "SecretStr"),
        (dt.datetime(2024, 1, 1, tzinfo=type("Zone", (dt.tzinfo,), {})()), "foreign"),
        (LocalError(1), "builtin type"),
        (dataclasses.make_dataclass("Made", ["a"])(1), "cannot be imported"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("check", [True, False], ids=["check", "encode"])
def test_what_would_come_back_changed_is_refused(value: Any, said: str, check: bool, tmp_path: Path) -> None:
    """By field, type and remedy; before anything is provisioned, and nothing is written."""
    with pytest.raises(CodecError, match=said) as caught:
        codecs.check_value({"cfg": [value]}, "arg") if check else codecs.encode({"cfg": [value]}, tmp_path, name="arg")
    assert caught.value.field.startswith("arg['cfg'][0]")
    assert "secret-canary" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_extra_attributes_of_a_dataclass_are_not_dropped(tmp_path: Path) -> None:
    """State that is not a field would be lost."""
    config = kinds.Config([])
    config.smuggled = 1  # type: ignore[attr-defined]
    with pytest.raises(CodecError, match="smuggled"):
        codecs.encode(config, tmp_path, name="c")


@pytest.mark.parametrize(
    "envelope",
    [
        {"codec": "dataclass", "type": "os:system", "fields": {}},
        {"codec": "dataclass", "type": "builtins:dict", "fields": {}},
        {"codec": "enum", "type": "subprocess:Popen", "member": "x"},
        {"codec": "pydantic", "type": "agent_codec_types:Layer", "fields": {}},
        {"codec": "dataclass", "type": "agent_codec_types:function", "fields": {}},
        {"codec": "dataclass", "type": "no.such:X", "fields": {}},
        {"codec": "dataclass", "type": "agent_codec_types:Layer", "fields": {"nope": 1}},
        {"codec": "dataclass", "type": ":", "fields": {}},
        {"codec": "enum", "type": "agent_codec_types:Color", "member": "PINK"},
        {"codec": "pickle", "value": "gASVAAAA"},
        {"codec": "decimal", "value": "x"},
        {"codec": "set", "value": [[1]]},
        {"codec": "tuple"},
        {},
        {"codec": "uuid", "value": 1},
        {"codec": "draft", "draft": {}},
        {"codec": "artifact", "payload": {"id": "x"}},
    ],
    ids=lambda envelope: json.dumps(envelope)[:60],
)
def test_an_envelope_calls_nothing_and_loads_no_pickle(envelope: dict[str, Any], tmp_path: Path) -> None:
    """A node is arbitrary code: whatever it sends, only classes of the right kind are made, and errors are one kind."""
    with pytest.raises(CodecError):
        codecs.decode(envelope, tmp_path)


def test_a_path_travels_with_its_content(tmp_path: Path) -> None:
    """Files and directories, names, empty folders and the executable bit; verified on arrival."""
    source = tmp_path / "source"
    (source / "empty/deeper").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "run.sh").write_text("#!")
    (source / "run.sh").chmod(0o755)
    wire = tmp_path / "wire"
    folder = codecs.encode(source, wire, name="data")
    file = codecs.encode(source / "a.txt", wire, name="data")
    codecs.encode(source / "a.txt", wire, name="other")
    found = codecs.decode(folder, wire)
    assert found.name == "source"
    assert (found / "a.txt").read_text() == "a"
    assert (found / "empty/deeper").is_dir()
    assert (found / "run.sh").stat().st_mode & 0o777 == 0o700
    single = codecs.decode(file, wire)
    assert (single.name, single.read_text()) == ("a.txt", "a")
    assert found != source
    single.write_text("b")
    with pytest.raises(CodecError, match="changed or cut"):
        codecs.decode(file, wire)


def test_a_directory_with_a_link_out_of_it_is_refused(tmp_path: Path) -> None:
    """It would carry somebody else's file, or lose it."""
    (tmp_path / "d").mkdir()
    (tmp_path / "secret").touch()
    (tmp_path / "d/link").symlink_to(tmp_path / "secret")
    with pytest.raises(CodecError, match="link"):
        codecs.check_value(tmp_path / "d", "data")


@pytest.mark.parametrize("file", ["../outside", "/etc/hostname", "link"])
def test_a_file_reference_cannot_leave_its_directory(file: str, tmp_path: Path) -> None:
    """Not by dots, not absolutely, not through a link."""
    wire = tmp_path / "wire"
    wire.mkdir()
    (tmp_path / "outside").write_bytes(b"secret")
    (wire / "link").symlink_to(tmp_path / "outside")
    import hashlib

    envelope = {"codec": "bytes", "file": file, "sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    with pytest.raises(CodecError):
        codecs.decode(envelope, wire)


def test_classes_of_the_script_are_known_by_their_name_on_the_node(tmp_path: Path) -> None:
    """`__main__` here is a module there; without that mapping the value is refused, not sent into the void."""
    aliases = {"agent_codec_types": "train_there"}
    envelope = codecs.encode(kinds.Layer(1), tmp_path, name="a", aliases=aliases)
    assert envelope["type"] == "train_there:Layer"
    assert codecs.decode(envelope, tmp_path, aliases=aliases) == kinds.Layer(1)
    with pytest.raises(CodecError, match="train_there"):
        codecs.decode(envelope, tmp_path)
    with pytest.raises(CodecError, match="script itself"):
        codecs.encode(kinds.Layer(1), tmp_path, name="a", aliases={"agent_codec_types": "__main__"})


def test_models_travel_by_reference_and_drafts_as_they_are(tmp_path: Path) -> None:
    """An artifact's files are brought by their id; a Path annotation gets the path."""
    envelope = codecs.encode(kinds.Artifact("m-1"), tmp_path, name="model")
    assert envelope == {"codec": "artifact", "payload": {"id": "m-1"}}
    assert codecs.decode(envelope, tmp_path, Path, {"m-1": tmp_path / "files"}) == tmp_path / "files"
    with pytest.raises(CodecError, match="no files here"):
        codecs.decode(envelope, tmp_path, Path, {})
    draft = drafts.ArtifactDraft("skops", "churn", {"auc": 0.5}, {"k": [1]})
    assert again(draft, tmp_path) == draft


# --- arrays, tables, tensors -----------------------------------------------------------------------------------------


def test_arrays_come_back_with_dtype_order_and_shape(tmp_path: Path) -> None:
    """.npy, without pickles."""
    np = pytest.importorskip("numpy")
    arrays = [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.asfortranarray(np.ones((2, 3), np.float16)),
        np.array(5.0),
        np.zeros((0, 4)),
        np.array(["a", "bc"]),
        np.array(["2024-01-01"], "M8[ns]"),
        np.zeros(2, [("a", "i4"), ("b", "f8", (2,))]),
        np.array([np.nan, -0.0]),
    ]
    for array in arrays:
        found = again({"x": array}, tmp_path)["x"]
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.flags["F_CONTIGUOUS"] == array.flags["F_CONTIGUOUS"]
        assert found.tobytes("A") == array.tobytes("A")
    for scalar in (
        np.float32(0.1),
        np.int8(-1),
        np.bool_(True),
        np.str_("x"),
        np.datetime64("2024-01-01"),
        np.float64("nan"),
    ):
        found = again(scalar, tmp_path)
        assert type(found) is type(scalar)
        assert found.tobytes() == scalar.tobytes()


def test_arrays_that_npy_cannot_keep_are_refused(tmp_path: Path) -> None:
    """Objects would need a pickle; a subclass would come back as its base."""
    np = pytest.importorskip("numpy")
    for value in (
        np.array([{}], dtype=object),
        np.ma.masked_array([1], [True]),
        np.rec.array([(1,)], dtype=[("a", "i4")]),
        np.zeros(2, [("a", "O")]),
        np.zeros(1, np.dtype("i4", metadata={"unit": "s"})),
        np.array(["a"], np.dtypes.StringDType()),
    ):
        with pytest.raises(CodecError):
            codecs.encode(value, tmp_path, name="x")
    planted = tmp_path / "planted.npy"
    planted.write_bytes(pickle.dumps({"evil": 1}))
    from mlinfra_prefect.agent.transfer import digest

    sha256, size = digest(planted)
    with pytest.raises(CodecError, match="cannot be read"):
        codecs.decode({"codec": "numpy", "file": "planted.npy", "sha256": sha256, "size": size}, tmp_path)


@pytest.mark.filterwarnings("ignore:The DataFrame has column names of mixed type")
def test_data_frames_come_back_exactly(tmp_path: Path) -> None:
    """Types, index with its frequency, missing values; what Parquet changes is refused."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(
        {
            "a": [1, 2],
            "b": [0.5, None],
            "c": pd.Categorical(["x", "y"]),
            "d": ["u", None],
            "e": pd.array([1, None], "Int64"),
        },
        index=pd.date_range("2024-01-01", periods=2, freq="D", name="day"),
    )
    pd.testing.assert_frame_equal(again(frame, tmp_path), frame)
    for bad in (
        pd.DataFrame({"a": [1, "x"]}),
        pd.DataFrame({1: [1], "a": [2]}),
        pd.Series([1]),
        pd.DataFrame({"a": [object()]}),
    ):
        with pytest.raises(CodecError):
            codecs.encode(bad, tmp_path, name="frame")


def test_polars_and_arrow_tables_come_back_exactly(tmp_path: Path) -> None:
    """Schema and values."""
    pl = pytest.importorskip("polars")
    pa = pytest.importorskip("pyarrow")
    frame = pl.DataFrame({"a": [1, None], "b": [[1.5], []], "c": [dt.date(2024, 1, 1), None]})
    found = again(frame, tmp_path)
    assert found.equals(frame)
    assert found.schema == frame.schema
    table = pa.table({"a": pa.array([1, None], pa.int8()), "d": pa.array(["x", "y"]).dictionary_encode()})
    assert again(table, tmp_path).equals(table)
    with pytest.raises(CodecError, match="collect"):
        codecs.encode(frame.lazy(), tmp_path, name="x")


def test_tensors_come_back_exactly(tmp_path: Path) -> None:
    """safetensors: bfloat16, empty, non-contiguous, tied weights; gradients do not travel."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    weight = torch.arange(6.0).reshape(2, 3)
    state = {
        "w": weight,
        "tied": weight,
        "t": weight.t(),
        "b": torch.ones(2, dtype=torch.bfloat16),
        "e": torch.empty(0),
    }
    found = again(state, tmp_path)
    assert list(found) == sorted(found) or set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)
    assert torch.equal(again([weight[0]], tmp_path)[0], weight[0])
    with pytest.raises(CodecError, match="detach"):
        codecs.encode({"w": torch.ones(1, requires_grad=True)}, tmp_path, name="x")


# --- annotations -----------------------------------------------------------------------------------------------------


class Typed(typing.TypedDict):
    a: int


Good = typing.NewType("Good", int)


@pytest.mark.parametrize(
    "annotation",
    [
        None,
        int,
        dict[str, float],
        dict[str, list[kinds.Layer]],
        tuple[int, ...],
        int | None,
        bytes | None,
        Any,
        object,
        kinds.Config,
        kinds.Model,
        kinds.Color,
        Typed,
        Good,
        typing.Literal["a"],
        typing.Annotated[int, "x"],
        Path,
        kinds.Artifact,
        typing.Mapping[str, int],
        collections.abc.Sequence[float],
        drafts.ArtifactDraft,
        decimal.Decimal,
        "Unresolved",
        list,
        typing.TypeVar("T"),
    ],
    ids=str,
)
def test_annotations_of_values_that_travel_are_accepted(annotation: Any) -> None:
    """And those that say nothing, which are checked when the value is there."""
    codecs.check_annotation(annotation, "return")


@pytest.mark.parametrize(
    "annotation",
    [
        kinds.Pair,
        kinds.MyInt,
        complex,
        Iterator[int],
        typing.Generator[int, None, None],
        typing.Awaitable[int],
        Callable[[], int],
        dict[str, complex],
        list[kinds.MyInt],
        int | complex,
        type,
        collections.OrderedDict,
        collections.OrderedDict[str, int],
        ValueError,
        type("Local", (), {}),
        types.ModuleType,
        typing.Annotated[complex, 1],
        bytearray,
    ],
    ids=str,
)
def test_annotations_that_no_value_could_meet_are_refused(annotation: Any) -> None:
    """Before anything is provisioned, not after a night of training."""
    with pytest.raises(CodecError) as caught:
        codecs.check_annotation(annotation, "return")
    assert caught.value.field.startswith("return")


def test_annotations_of_arrays_and_frames_are_accepted() -> None:
    """The installed ones, with and without parameters."""
    np = pytest.importorskip("numpy")
    import numpy.typing as npt

    for annotation in (np.ndarray, npt.NDArray[np.float32], np.float64, dict[str, np.ndarray]):
        codecs.check_annotation(annotation, "return")
