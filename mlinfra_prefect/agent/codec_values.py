"""Exact codecs for values of the standard library: scalars, containers, times.

Exact types only: a subclass is somebody else's type, and would come back as its base.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import math
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

from .codec_places import DEEPEST, CodecError, Reader, Writer

Inner = Callable[..., Any]

_INLINE_BYTES = 1 << 20
_PLAIN_INT = 1 << 53  # what every JSON reader keeps exactly


def encode(writer: Writer, value: Any, where: str, inner: Inner, depth: int) -> Any:
    """The encoded value, or NotImplemented when its exact type is none of ours."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind in _SCALARS:
        return _SCALARS[kind](value, where)
    if kind is bytes:
        return _encode_bytes(writer, value)
    if kind not in {list, tuple, dict, set, frozenset}:
        return NotImplemented
    if id(value) in writer.open:
        raise writer.refuse(where, value, "contains itself", "Pass a tree of values.")
    if depth > DEEPEST:
        raise writer.refuse(where, value, f"is nested more than {DEEPEST} deep", "Pass a flatter structure.")
    if kind is dict and _holds_tensors(value):
        return NotImplemented
    writer.open.add(id(value))
    try:
        return _encode_container(value, where, inner)
    finally:
        writer.open.discard(id(value))


def _holds_tensors(value: dict[Any, Any]) -> bool:
    """A dictionary of tensors is a safetensors file: `codec_files` takes it as a whole."""
    return bool(value) and all(
        type(item).__module__.partition(".")[0] == "torch" and hasattr(item, "detach") and type(key) is str
        for key, item in value.items()
    )


def _encode_container(value: Any, where: str, inner: Inner) -> Any:
    if isinstance(value, list):
        return [inner(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"codec": "tuple", "value": [inner(item, f"{where}[{index}]") for index, item in enumerate(value)]}
    if isinstance(value, dict):
        if all(type(key) is str for key in value):
            return {"codec": "dict", "value": {key: inner(item, f"{where}[{key!r}]") for key, item in value.items()}}
        pairs = [[inner(key, f"{where}: key"), inner(item, f"{where}[{key!r}]")] for key, item in value.items()]
        return {"codec": "map", "value": pairs}
    codec = "set" if isinstance(value, set) else "frozenset"
    # Sorted, so that the same set is encoded the same way in every process (hashes of strings differ).
    return {"codec": codec, "value": [inner(item, f"{where}{{}}") for item in sorted(value, key=repr)]}


def _encode_int(value: int, _where: str) -> Any:
    return value if abs(value) <= _PLAIN_INT else {"codec": "int", "value": hex(value)}


def _encode_float(value: float, _where: str) -> Any:
    return value if math.isfinite(value) else {"codec": "float", "value": repr(value)}


def _encode_bytes(writer: Writer, value: bytes) -> Any:
    if len(value) <= _INLINE_BYTES:
        return {"codec": "bytes", "value": base64.b64encode(value).decode("ascii")}
    if writer.directory is None:
        return {}
    path = writer.fresh(".bin")
    path.write_bytes(value)
    return {"codec": "bytes", **writer.seal(path)}


def _encode_zone(zone: dt.tzinfo | None, where: str) -> Any:
    if zone is None:
        return None
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        plain = dt.timezone(offset).tzname(None) == name
        return {"offset": _span(offset), "name": None if plain else name}
    if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return {"zone": zone.key}
    raise CodecError(
        where, type(zone).__qualname__, "is a time zone of a foreign kind",
        "Use datetime.timezone or zoneinfo.ZoneInfo.",
    )  # fmt: skip


def _decode_zone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    if "zone" in zone:
        return zoneinfo.ZoneInfo(zone["zone"])
    offset = dt.timedelta(*zone["offset"])
    if zone["name"] is not None:
        return dt.timezone(offset, zone["name"])
    return dt.timezone(offset)


def _span(value: dt.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _encode_datetime(value: dt.datetime | dt.time, where: str) -> Any:
    codec = "datetime" if isinstance(value, dt.datetime) else "time"
    text = value.replace(tzinfo=None, fold=0).isoformat()
    return {"codec": codec, "value": text, "fold": value.fold, "zone": _encode_zone(value.tzinfo, where)}


def _decode_datetime(_reader: Reader, envelope: dict[str, Any], _where: str, _inner: Inner) -> Any:
    kind = dt.datetime if envelope["codec"] == "datetime" else dt.time
    found = kind.fromisoformat(envelope["value"])
    return found.replace(fold=envelope["fold"], tzinfo=_decode_zone(envelope["zone"]))


def _decode_bytes(reader: Reader, envelope: dict[str, Any], where: str, _inner: Inner) -> bytes:
    if "file" in envelope:
        return reader.file(envelope, where).read_bytes()
    return base64.b64decode(envelope["value"], validate=True)


_SCALARS: dict[type, Callable[[Any, str], Any]] = {
    int: _encode_int,
    float: _encode_float,
    dt.datetime: _encode_datetime,
    dt.time: _encode_datetime,
    dt.date: lambda value, _: {"codec": "date", "value": value.isoformat()},
    dt.timedelta: lambda value, _: {"codec": "timedelta", "value": _span(value)},
    decimal.Decimal: lambda value, _: {"codec": "decimal", "value": str(value)},
    uuid.UUID: lambda value, _: {"codec": "uuid", "value": value.hex},
}

DECODERS: dict[str, Callable[[Reader, dict[str, Any], str, Inner], Any]] = {
    "int": lambda _r, e, _w, _i: int(e["value"], 16),
    "float": lambda _r, e, _w, _i: float(e["value"]),
    "tuple": lambda _r, e, w, i: tuple(i(item, f"{w}[{n}]") for n, item in enumerate(e["value"])),
    "dict": lambda _r, e, w, i: {key: i(item, f"{w}[{key!r}]") for key, item in e["value"].items()},
    "map": lambda _r, e, _w, i: {i(key): i(item) for key, item in e["value"]},
    "set": lambda _r, e, _w, i: {i(item) for item in e["value"]},
    "frozenset": lambda _r, e, _w, i: frozenset(i(item) for item in e["value"]),
    "bytes": _decode_bytes,
    "datetime": _decode_datetime,
    "time": _decode_datetime,
    "date": lambda _r, e, _w, _i: dt.date.fromisoformat(e["value"]),
    "timedelta": lambda _r, e, _w, _i: dt.timedelta(*e["value"]),
    "decimal": lambda _r, e, _w, _i: decimal.Decimal(e["value"]),
    "uuid": lambda _r, e, _w, _i: uuid.UUID(e["value"]),
}
