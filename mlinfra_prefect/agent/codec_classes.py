"""Exact codecs for instances of importable classes: enums, dataclasses, pydantic models, and our own models.

What travels is the instance's *state*, and it is put back without running ``__init__``: a validator that hashes or a
``__post_init__`` that adds would otherwise change the value on its way. The class is found by name, and only a class
of the very kind (enum, dataclass, pydantic model) is accepted: an envelope can never call a function.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .codec_places import CodecError, Reader, Writer
from .drafts import ArtifactDraft

Inner = Callable[..., Any]

_STATEFUL = (BaseException, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)
_MODEL_ARTIFACT = "mlinfra_prefect.model.artifact:ModelArtifact"


def encode(writer: Writer, value: Any, where: str, inner: Inner, _depth: int) -> Any:
    """The encoded value, or NotImplemented when it is none of ours."""
    kind = type(value)
    if getattr(kind, "__mlinfra_artifact__", None) is not None:
        made = value.__mlinfra_artifact__
        return {"codec": "artifact", "payload": dict(made() if callable(made) else made)}
    if getattr(kind, "__mlinfra_draft__", False):
        return {"codec": "draft", "draft": value.to_payload()}
    if isinstance(value, enum.Enum):
        return _encode_enum(writer, value, where)
    if id(value) in writer.open:
        raise writer.refuse(where, value, "contains itself", "Pass a tree of values.")
    writer.open.add(id(value))
    try:
        if is_pydantic(kind):
            return _encode_pydantic(writer, value, where, inner)
        if dataclasses.is_dataclass(kind):
            return _encode_dataclass(writer, value, where, inner)
    finally:
        writer.open.discard(id(value))
    return NotImplemented


def is_pydantic(kind: type) -> bool:
    """Whether a class is a pydantic model, without importing pydantic."""
    pydantic = sys.modules.get("pydantic")
    base = getattr(pydantic, "BaseModel", None)
    return base is not None and isinstance(kind, type) and issubclass(kind, base)


def remedy(value: object) -> str:
    """What to do about a value that has no codec."""
    kind = type(value)
    if isinstance(value, tuple):
        return "Pass a plain tuple or a dataclass: a named tuple would come back as a tuple."
    base = next((base for base in _STATEFUL if isinstance(value, base)), None)
    if base is not None and not isinstance(value, BaseException):
        return f"Convert it with {base.__name__}(...): a subclass would come back as a plain {base.__name__}."
    if hasattr(kind, "__next__") or hasattr(kind, "__anext__"):
        return "Collect it into a list first."
    if callable(value):
        return "Functions and classes do not travel as values; pass what they are called with."
    return (
        "Use JSON values, dataclasses, pydantic models, numpy arrays, data frames, pathlib.Path or ModelArtifact, or "
        "write it to a file and pass the Path."
    )


# --- enums -----------------------------------------------------------------------------------------------------------


def _encode_enum(writer: Writer, value: enum.Enum, where: str) -> Any:
    kind = type(value)
    reference = writer.class_reference(kind, where)
    if isinstance(value, enum.Flag):
        return {"codec": "enum", "type": reference, "flags": hex(value.value)}
    return {"codec": "enum", "type": reference, "member": value.name}


def _decode_enum(reader: Reader, envelope: dict[str, Any], where: str, _inner: Inner) -> Any:
    kind = reader.find_class(envelope["type"], where)
    if not issubclass(kind, enum.Enum):
        raise CodecError(where, envelope["type"], "names a class that is not an enum")
    try:
        return kind(int(envelope["flags"], 16)) if "flags" in envelope else kind[envelope["member"]]
    except KeyError as error:
        raise CodecError(where, envelope["type"], f"has no member {error}") from error


# --- dataclasses -----------------------------------------------------------------------------------------------------


def _encode_dataclass(writer: Writer, value: Any, where: str, inner: Inner) -> Any:
    kind = type(value)
    if issubclass(kind, _STATEFUL):
        raise writer.refuse(where, value, "is a dataclass that is also a builtin type", "Use a plain dataclass.")
    reference = writer.class_reference(kind, where)
    names = [entry.name for entry in dataclasses.fields(value)]
    extra = [name for name in getattr(value, "__dict__", {}) if name not in names and not _derived(kind, name)]
    if extra:
        raise writer.refuse(where, value, f"has the attribute {extra[0]!r}, which is not a field", "Make it a field.")
    present = [name for name in names if hasattr(value, name)]
    return {"codec": "dataclass", "type": reference, "fields": _encode_fields(value, present, where, inner)}


def _encode_fields(value: Any, names: list[str], where: str, inner: Inner) -> dict[str, Any]:
    return {name: inner(getattr(value, name), f"{where}.{name}") for name in names}


def _derived(kind: type, name: str) -> bool:
    """A cached property is computed again; what typing notes about generics says nothing about the value."""
    return name == "__orig_class__" or isinstance(getattr(kind, name, None), functools.cached_property)


def _decode_dataclass(reader: Reader, envelope: dict[str, Any], where: str, inner: Inner) -> Any:
    kind = reader.find_class(envelope["type"], where)
    if not dataclasses.is_dataclass(kind) or issubclass(kind, _STATEFUL):
        raise CodecError(where, envelope["type"], "names a class that is not a dataclass")
    known = {entry.name for entry in dataclasses.fields(kind)}
    if not known >= set(envelope["fields"]):
        raise CodecError(
            where, envelope["type"], "has fields that the class here does not have", "Both sides need the same code."
        )
    made = object.__new__(kind)
    for name, item in envelope["fields"].items():
        object.__setattr__(made, name, inner(item, f"{where}.{name}"))
    return made


# --- pydantic --------------------------------------------------------------------------------------------------------


def _encode_pydantic(writer: Writer, value: Any, where: str, inner: Inner) -> Any:
    kind = type(value)
    reference = writer.class_reference(kind, where)
    try:
        return {
            "codec": "pydantic",
            "type": reference,
            "fields": _encode_fields(
                value, [name for name in value.__dict__ if name in kind.model_fields], where, inner
            ),
            "extra": None if value.__pydantic_extra__ is None else inner(value.__pydantic_extra__, where),
            "private": None if value.__pydantic_private__ is None else inner(value.__pydantic_private__, where),
            "set": sorted(value.__pydantic_fields_set__),
        }
    except CodecError:
        # A field of a type that only pydantic knows (a URL): its own JSON will do if that gives back the same value.
        # A secret does not: it is written as asterisks.
        try:
            text = value.model_dump_json(round_trip=True)
            same = kind.model_validate_json(text) == value
        except Exception:  # noqa: BLE001  (serializers and validators are the user's: whatever they raise means "no")
            same = False
        if not same:
            raise
        return {"codec": "pydantic", "type": reference, "json": text}


def _decode_pydantic(reader: Reader, envelope: dict[str, Any], where: str, inner: Inner) -> Any:
    kind: Any = reader.find_class(envelope["type"], where)
    if not is_pydantic(kind):
        raise CodecError(where, envelope["type"], "names a class that is not a pydantic model")
    if "json" in envelope:
        return kind.model_validate_json(envelope["json"])
    if not set(kind.model_fields) >= set(envelope["fields"]):
        raise CodecError(
            where, envelope["type"], "has fields that the class here does not have", "Both sides need the same code."
        )
    made = kind.__new__(kind)
    made.__setstate__(
        {
            "__dict__": {name: inner(item, f"{where}.{name}") for name, item in envelope["fields"].items()},
            "__pydantic_extra__": None if envelope["extra"] is None else inner(envelope["extra"]),
            "__pydantic_private__": None if envelope["private"] is None else inner(envelope["private"]),
            "__pydantic_fields_set__": set(envelope["set"]),
        }
    )
    return made


# --- our own models --------------------------------------------------------------------------------------------------


def artifact_path(reader: Reader, envelope: Mapping[str, Any], where: str) -> Path:
    """Where the files of an artifact lie here; raises CodecError when they were not brought."""
    found = reader.artifacts.get(str(envelope["payload"].get("id")))
    if found is None:
        raise CodecError(
            where, "ModelArtifact", "has no files here", "Pass it as an argument, so that its files are brought along."
        )
    return Path(found)


def _decode_artifact(reader: Reader, envelope: dict[str, Any], where: str, _inner: Inner) -> Any:
    try:
        kind: Any = reader.find_class(_MODEL_ARTIFACT, where)
    except CodecError as error:
        raise CodecError(
            where, "ModelArtifact", "needs mlinfra_prefect to be installed here",
            "Annotate the parameter with pathlib.Path to get the path of its files instead.",
        ) from error  # fmt: skip
    path = reader.artifacts.get(str(envelope["payload"].get("id")))
    return kind.from_wire(envelope["payload"], path)


DECODERS: dict[str, Callable[[Reader, dict[str, Any], str, Inner], Any]] = {
    "enum": _decode_enum,
    "dataclass": _decode_dataclass,
    "pydantic": _decode_pydantic,
    "artifact": _decode_artifact,
    "draft": lambda _r, e, _w, _i: ArtifactDraft.from_payload(e["draft"]),
}
