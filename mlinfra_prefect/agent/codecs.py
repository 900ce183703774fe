"""How values travel between the flow and the node: exactly, or not at all, and never as a pickle.

A pickle from a node would run the node's code in the flow, with the flow's credentials; so there is none, in either
direction. Each value becomes an *envelope*, a JSON object ``{"codec": ..., ...}``, with files beside it for what is
large. What would come back as something else (a named tuple as a tuple, an int subclass as an int) is refused with the
name of the field, its type and a remedy.

| codec | values |
|---|---|
| json | None, bool, int, float, str, and lists of anything here |
| int, float, tuple, dict, map, set, frozenset, bytes | what JSON cannot say: huge ints, NaN, other containers |
| datetime, date, time, timedelta, decimal, uuid | of the standard library |
| enum, dataclass, pydantic | instances of importable classes, with the exact state they had |
| path | an existing file or directory, copied |
| numpy, numpy-scalar, pandas, polars, pyarrow, tensors | ``.npy``, Parquet, safetensors |
| artifact, draft | models |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import codec_classes, codec_files, codec_values
from .annotations import check_annotation
from .codec_places import CodecError, Reader, Writer

__all__ = ["CodecError", "check_annotation", "check_value", "decode", "encode"]

_WRITERS = (codec_values.encode, codec_classes.encode, codec_files.encode)
_READERS = {**codec_values.DECODERS, **codec_classes.DECODERS, **codec_files.DECODERS}


def encode(
    value: Any,
    directory: Path,
    *,
    name: str,
    annotation: Any = None,
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Encode a value as a JSON object, with files in ``directory`` (made 0700 when needed).

    Args:
        value: what travels.
        directory: where files go; many values may share it.
        name: the argument's name, for errors and file names.
        annotation: accepted for symmetry with `decode`; a value's codec follows from the value alone.
        aliases: see `codec_places.Writer`.

    Raises:
        CodecError: it cannot travel exactly; names field, type and remedy.
    """
    del annotation
    return _envelope(Writer(directory, name, aliases or {}), value)


def check_value(value: Any, name: str, *, aliases: Mapping[str, str] | None = None) -> None:
    """Raise CodecError if `encode` would, as far as that is known without writing anything."""
    _envelope(Writer(None, name, aliases or {}), value)


def decode(
    envelope: Mapping[str, Any],
    directory: Path,
    annotation: Any = None,
    artifacts: Mapping[str, Path] | None = None,
    *,
    name: str = "value",
    aliases: Mapping[str, str] | None = None,
) -> Any:
    """Give back what `encode` took.

    Args:
        envelope: what `encode` returned.
        directory: where its files are; every file is checked against its sha256.
        annotation: ``Path`` makes an artifact come as the path of its files.
        artifacts: where the files of artifacts lie here, by artifact id.
        name: for errors.
        aliases: the same mapping that the flow's side gives to `encode`; the node's side gives none.

    Raises:
        CodecError: unknown codec, a changed file, a class that is not here.
    """
    reader = Reader(directory, artifacts or {}, aliases or {})
    if envelope.get("codec") == "artifact" and annotation is Path:
        return codec_classes.artifact_path(reader, envelope, name)
    try:
        return _decode(reader, dict(envelope), name)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CodecError(name, str(envelope.get("codec")), f"cannot be read: {error!r}") from error


def _envelope(writer: Writer, value: Any) -> dict[str, Any]:
    encoded = _encode(writer, value, writer.name, 0)
    return encoded if isinstance(encoded, dict) else {"codec": "json", "value": encoded}


def _encode(writer: Writer, value: Any, where: str, depth: int) -> Any:
    def inner(child: Any, place: str) -> Any:
        return _encode(writer, child, place, depth + 1)

    for codec in _WRITERS:
        found = codec(writer, value, where, inner, depth)
        if found is not NotImplemented:
            return found
    raise writer.refuse(where, value, "has no codec", codec_classes.remedy(value))


def _decode(reader: Reader, encoded: Any, where: str) -> Any:
    def inner(child: Any, place: str = where) -> Any:
        return _decode(reader, child, place)

    if isinstance(encoded, list):
        return [inner(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    codec = encoded.get("codec")
    if codec == "json":
        return inner(encoded["value"])
    if codec not in _READERS:
        raise CodecError(
            where, str(codec), "was encoded by a codec that is not known here", "Both sides need the same version."
        )
    try:
        return _READERS[codec](reader, encoded, where, inner)
    except CodecError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise CodecError(where, str(codec), f"cannot be read: {error}") from error
