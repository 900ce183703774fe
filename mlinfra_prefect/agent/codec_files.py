"""Codecs for what is a file rather than a number: paths, arrays, tables, tensors.

None of these libraries is needed: a value of theirs can only be here when they are. Arrays are ``.npy`` without
pickles, tables are Parquet and are read back before they count as written, tensors are safetensors and always come
back on the CPU (where a tensor lies is not part of its value).
"""

from __future__ import annotations

import base64
import importlib
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .codec_places import CodecError, Reader, Writer, type_name
from .folders import private_folder
from .transfer import FileEntry, TransferError, check_relative, copy_file, copy_tree, tree

Inner = Callable[..., Any]


def encode(writer: Writer, value: Any, where: str, _inner: Inner, _depth: int) -> Any:
    """The encoded value, or NotImplemented when it is none of ours."""
    if isinstance(value, Path):
        return _encode_path(writer, value, where)
    library = type(value).__module__.partition(".")[0]
    if type(value) is dict:
        library = "torch"  # `codec_values` leaves us only dictionaries of tensors
    coder = _ENCODERS.get(library)
    return NotImplemented if coder is None else coder(writer, value, where)


def _needs(writer: Writer, value: Any, where: str, *modules: str) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            package = module.partition(".")[0]
            raise writer.refuse(
                where, value, f"needs {package}, which is not installed", f"Install {package} on both sides."
            ) from error


# --- paths -----------------------------------------------------------------------------------------------------------


def _encode_path(writer: Writer, value: Path, where: str) -> Any:
    if type(value) is not type(Path()):
        raise writer.refuse(where, value, "is not a plain path", "Pass a pathlib.Path.")
    if not value.is_file() and not value.is_dir():
        remedy = "A path travels with its content; pass str(path) for a name."
        raise writer.refuse(where, value, f"is a path with no file or directory, {value}, and so nothing at it", remedy)
    try:
        names = tree(value) if value.is_dir() else []
        return {} if writer.directory is None else _copy_path(writer, value, names)
    except (TransferError, OSError) as error:
        raise writer.refuse(where, value, f"cannot be copied: {error}") from error


def _copy_path(writer: Writer, value: Path, names: list[str]) -> dict[str, Any]:
    name = value.resolve().name or "root"
    place = writer.fresh("")
    place.mkdir(mode=0o700)
    folders: list[str] | None = None
    if value.is_file():
        entries = [FileEntry(name, *copy_file(value, place / name))]
    else:
        found = (path for path in value.rglob("*") if path.is_dir() and not path.is_symlink())
        folders = sorted(path.relative_to(value).as_posix() for path in found)
        for folder in (".", *folders):
            private_folder(place / name / folder)
        entries = copy_tree(value, place / name, names)
    files = [entry.to_payload() for entry in entries]
    return {"codec": "path", "root": place.name, "name": name, "files": files, "folders": folders}


def _decode_path(reader: Reader, envelope: dict[str, Any], where: str, _inner: Inner) -> Path:
    try:
        root, name = check_relative(envelope["root"]), check_relative(envelope["name"])
        base = root if envelope["folders"] is None else root / name
        for entry in envelope["files"]:
            reader.file({"codec": "path", **entry, "file": str(base / check_relative(entry["path"]))}, where)
        for folder in envelope["folders"] or ():
            (reader.directory / base / check_relative(folder)).mkdir(mode=0o700, parents=True, exist_ok=True)
        if envelope["folders"] is not None:
            private_folder(reader.directory / base)
    except TransferError as error:
        raise CodecError(where, "path", f"cannot be read: {error}") from error
    return reader.directory / root / name


# --- arrays ----------------------------------------------------------------------------------------------------------


def _encode_numpy(writer: Writer, value: Any, where: str) -> Any:
    import numpy as np

    scalar = isinstance(value, np.generic)
    if not scalar and type(value) is not np.ndarray:
        if isinstance(value, np.ndarray):
            raise writer.refuse(where, value, "is a subclass of numpy.ndarray", "Pass numpy.asarray(value).")
        return NotImplemented
    dtype = value.dtype
    if dtype.hasobject or dtype.metadata or not _keeps(np, dtype):
        raise writer.refuse(
            where,
            value,
            f"has the dtype {dtype}, which .npy cannot keep without pickles",
            "Use a dtype of numbers or fixed-size strings.",
        )
    if scalar:
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(value), allow_pickle=False)
        return {"codec": "numpy-scalar", "value": base64.b64encode(buffer.getvalue()).decode("ascii")}
    if writer.directory is None:
        return {}
    path = writer.fresh(".npy")
    np.save(path, value, allow_pickle=False)
    return {"codec": "numpy", **writer.seal(path)}


def _keeps(np: Any, dtype: Any) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype))
    return bool(found == dtype and found.isalignedstruct == dtype.isalignedstruct)


def _decode_numpy(reader: Reader, envelope: dict[str, Any], where: str, _inner: Inner) -> Any:
    np: Any = _library("numpy", where)
    if envelope["codec"] == "numpy-scalar":
        return np.load(io.BytesIO(base64.b64decode(envelope["value"])), allow_pickle=False)[()]
    return np.load(reader.file(envelope, where), allow_pickle=False)


def _library(module: str, where: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise CodecError(
            where, package, f"needs {package}, which is not installed here", f"Install {package} on both sides."
        ) from error


# --- tables ----------------------------------------------------------------------------------------------------------


def _encode_pandas(writer: Writer, value: Any, where: str) -> Any:
    import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]

    if type(value) is not pd.DataFrame:
        raise writer.refuse(
            where,
            value,
            "is not a DataFrame",
            "Pass .to_frame() of a Series, .to_pydatetime() of a Timestamp, .to_numpy() of the rest.",
        )
    freq = (
        getattr(value.index, "freqstr", None) if isinstance(value.index, pd.DatetimeIndex | pd.TimedeltaIndex) else None
    )
    _needs(writer, value, where, "pyarrow.parquet")

    def same(path: Path) -> bool:
        back = _with_frequency(pd.read_parquet(path, engine="pyarrow"), freq)
        pd.testing.assert_frame_equal(back, value, check_exact=True)
        return bool(back.attrs == value.attrs and type(back.index) is type(value.index))

    written = _table(writer, value, where, lambda path: value.to_parquet(path, engine="pyarrow"), same)
    return {"codec": "pandas", "freq": freq, **written}


def _with_frequency(frame: Any, freq: str | None) -> Any:
    if freq is not None:
        frame.index.freq = freq  # Parquet does not know it
    return frame


def _encode_polars(writer: Writer, value: Any, where: str) -> Any:
    import polars as pl  # type: ignore[import-not-found,unused-ignore]

    if type(value) is not pl.DataFrame:
        raise writer.refuse(
            where, value, "is not a DataFrame", "Pass .collect() of a LazyFrame, .to_frame() of a Series."
        )

    def same(path: Path) -> bool:
        back = pl.read_parquet(path)
        return bool(back.schema == value.schema and back.equals(value))

    return {"codec": "polars", **_table(writer, value, where, value.write_parquet, same)}


def _encode_pyarrow(writer: Writer, value: Any, where: str) -> Any:
    import pyarrow as pa  # type: ignore[import-not-found,import-untyped,unused-ignore]

    if type(value) is not pa.Table:
        raise writer.refuse(where, value, "is not a Table", "Pass a pyarrow.Table.")
    parquet = importlib.import_module("pyarrow.parquet")

    def same(path: Path) -> bool:
        back = parquet.read_table(path)
        return bool(back.schema.equals(value.schema, check_metadata=True) and back.num_rows == value.num_rows)

    return {"codec": "pyarrow", **_table(writer, value, where, lambda path: parquet.write_table(value, path), same)}


def _table(
    writer: Writer, value: Any, where: str, write: Callable[[Path], Any], same: Callable[[Path], bool]
) -> dict[str, Any]:
    if writer.directory is None:
        return {}
    path = writer.fresh(".parquet")
    problem = "does not come back from Parquet as it was"
    try:
        write(path)
        kept = same(path)
    except Exception as error:  # noqa: BLE001  (three libraries, each with errors of its own: all of them mean "no")
        kept, problem = False, f"{problem}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    if not kept:
        path.unlink(missing_ok=True)
        raise writer.refuse(
            where, value, problem, "Give every column one type that Parquet has, and plain column names."
        )
    return writer.seal(path)


def _decode_table(reader: Reader, envelope: dict[str, Any], where: str, _inner: Inner) -> Any:
    path = reader.file(envelope, where)
    if envelope["codec"] == "pandas":
        return _with_frequency(_library("pandas", where).read_parquet(path, engine="pyarrow"), envelope["freq"])
    if envelope["codec"] == "polars":
        return _library("polars", where).read_parquet(path)
    return _library("pyarrow.parquet", where).read_table(path)


# --- tensors ---------------------------------------------------------------------------------------------------------


def _encode_torch(writer: Writer, value: Any, where: str) -> Any:
    torch = sys.modules["torch"]
    tensors = value if isinstance(value, dict) else {"": value}
    for name, tensor in tensors.items():
        place = f"{where}[{name!r}]" if isinstance(value, dict) else where
        if type(tensor) is not torch.Tensor:
            raise CodecError(place, type_name(type(tensor)), "is not a plain tensor", "Pass .detach() of a parameter.")
        if tensor.requires_grad:
            raise CodecError(place, "torch.Tensor", "requires a gradient, which does not travel", "Pass .detach().")
    _needs(writer, value, where, "safetensors.torch")
    if writer.directory is None:
        return {}
    save = importlib.import_module("safetensors.torch").save_file
    path = writer.fresh(".safetensors")
    try:
        # Cloned: tied weights share memory, which the format refuses; they come back equal, and apart.
        save({name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}, path)
    except (ValueError, RuntimeError, KeyError) as error:
        raise writer.refuse(where, value, f"cannot be written as safetensors: {error}") from error
    return {"codec": "tensors", "single": not isinstance(value, dict), **writer.seal(path)}


def _decode_tensors(reader: Reader, envelope: dict[str, Any], where: str, _inner: Inner) -> Any:
    tensors = _library("safetensors.torch", where).load_file(reader.file(envelope, where))
    return tensors[""] if envelope["single"] else tensors


_ENCODERS: dict[str, Callable[[Writer, Any, str], Any]] = {
    "numpy": _encode_numpy,
    "pandas": _encode_pandas,
    "polars": _encode_polars,
    "pyarrow": _encode_pyarrow,
    "torch": _encode_torch,
}

DECODERS: dict[str, Callable[[Reader, dict[str, Any], str, Inner], Any]] = {
    "path": _decode_path,
    "numpy": _decode_numpy,
    "numpy-scalar": _decode_numpy,
    "pandas": _decode_table,
    "polars": _decode_table,
    "pyarrow": _decode_table,
    "tensors": _decode_tensors,
}
