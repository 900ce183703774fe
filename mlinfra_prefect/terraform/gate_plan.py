"""Reads the JSON of a plan into what the rules ask about, whatever that JSON looks like.

The rules must not have to tell "not set" from "not known before the apply" by themselves, and must never fail on a plan
of an odd shape: so what is planned and what is unknown of it are laid over each other once, here, and everything that
cannot be understood becomes a finding. It does not judge anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from mlinfra_prefect.terraform.gate_policy import Finding


class Unknown(Enum):
    """The type of `UNKNOWN`."""

    UNKNOWN = "known after apply"


UNKNOWN: Final = Unknown.UNKNOWN
"""A value that Terraform will know only after the apply."""

MODES = ("managed", "data")
_INDEX = re.compile(r'\[(?:"(?:[^"\\]|\\.)*"|\d+)\]')


@dataclass(frozen=True, slots=True)
class Configured:
    """A resource block as it is written: ``module`` is its module's address without indices, ``""`` for the root."""

    module: str
    address: str
    mode: str
    type: str
    content: Mapping[str, Any]

    @property
    def expressions(self) -> Mapping[str, Any]:
        """Attributes and blocks; a ``dynamic`` block is not among them."""
        return mapping(self.content.get("expressions"))


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the plan.

    Attributes:
        values: what it will be, with `UNKNOWN` in it; None where it will not exist.
        block: how it is written; None where the plan does not say.
        imported: it exists already and is adopted.
    """

    address: str
    type: str
    mode: str
    provider: str
    actions: tuple[str, ...]
    values: Mapping[str, Any] | None
    block: Configured | None
    imported: bool


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan: its resources, its configuration, and what of it could not be understood."""

    resources: tuple[Resource, ...] = ()
    configured: tuple[Configured, ...] = ()
    providers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def rented(self) -> Iterator[tuple[Resource, Mapping[str, Any]]]:
        """Every resource of AWS that will exist, with its values."""
        for resource in self.resources:
            if resource.mode == "managed" and resource.type.startswith("aws_") and resource.values is not None:
                yield resource, resource.values


# --- reading ---------------------------------------------------------------------------------------------------------


def read(document: Mapping[str, Any]) -> PlanView:
    """Reads the JSON of a plan. Pure, and total: an odd shape is a finding."""
    findings: list[Finding] = []
    if not isinstance(document, Mapping) or not isinstance(document.get("format_version"), str):
        return PlanView(findings=(_odd("", "it is not the JSON of a Terraform plan"),))
    configuration = document.get("configuration")
    if not isinstance(configuration, Mapping) or not isinstance(configuration.get("root_module"), Mapping):
        findings.append(_odd("", "it does not say how it is configured"))
    configured = tuple(_configured(mapping(mapping(configuration).get("root_module")), "", findings))
    by_place = {(item.module, item.mode, item.address): item for item in configured}
    resources = []
    for item in _list(document.get("resource_changes"), "resource_changes", findings):
        resource = _resource(item, by_place)
        resources.append(resource) if isinstance(resource, Resource) else findings.append(resource)
    providers = _providers(mapping(configuration).get("provider_config"), findings)
    findings.extend(_incomplete(document))
    return PlanView(tuple(resources), configured, providers, tuple(findings))


def _incomplete(document: Mapping[str, Any]) -> Iterator[Finding]:
    if document.get("errored"):
        yield _odd("", "planning ended with an error")
    if document.get("complete", True) is not True or document.get("deferred_changes"):
        yield _odd("", "a part of it is put off to a second plan")
    if document.get("action_invocations"):
        yield Finding("", "program-runs", "The plan invokes actions, which nothing checks; remove the action blocks.")


def _resource(item: Any, blocks: Mapping[tuple[str, str, str], Configured]) -> Resource | Finding:
    record = mapping(item)
    address, change = record.get("address"), mapping(record.get("change"))
    if not isinstance(address, str) or not address:
        return _odd("", "a change of it names no address")
    words = {name: record.get(name) for name in ("type", "name", "mode", "provider_name")}
    actions = change.get("actions")
    if not all(isinstance(word, str) and word for word in words.values()) or words["mode"] not in MODES:
        return _odd(address, "the plan does not say what it is")
    if not isinstance(actions, list) or not actions or not all(isinstance(action, str) for action in actions):
        return _odd(address, "the plan does not say what happens to it")
    after = change.get("after")
    values = overlaid(after, change.get("after_unknown")) if after is not None else None
    exists = not {"delete", "forget"}.issuperset(actions)
    if exists and not isinstance(values, Mapping):
        return _odd(address, "the plan does not say what it will be")
    module = record.get("module_address")
    place = _INDEX.sub("", module) if isinstance(module, str) else ""
    kind, mode = str(words["type"]), str(words["mode"])
    prefix = "data." if mode == "data" else ""
    return Resource(
        address=address,
        type=kind,
        mode=mode,
        provider=str(words["provider_name"]),
        actions=tuple(actions),
        values=values if isinstance(values, Mapping) and exists else None,
        block=blocks.get((place, mode, f"{prefix}{kind}.{words['name']}")),
        imported=bool(change.get("importing")),
    )


def _configured(module: Mapping[str, Any], place: str, findings: list[Finding]) -> Iterator[Configured]:
    for item in _list(module.get("resources"), f"{place or 'root'} resources", findings):
        record = mapping(item)
        words = [record.get(name) for name in ("address", "mode", "type")]
        if not all(isinstance(word, str) for word in words):
            findings.append(_odd(place, "a resource block of it has no address, mode or type"))
            continue
        address, mode, kind = map(str, words)
        yield Configured(place, address, mode, kind, record)
    calls = module.get("module_calls")
    if calls is not None and not isinstance(calls, Mapping):
        findings.append(_odd(place, "its module calls have an odd shape"))
    for name, call in mapping(calls).items():
        inner = mapping(call).get("module")
        path = f"{place}.module.{name}" if place else f"module.{name}"
        if not isinstance(inner, Mapping):
            findings.append(_odd(path, "the plan does not say what is in this module"))
        yield from _configured(mapping(inner), path, findings)


def _providers(config: Any, findings: list[Finding]) -> Mapping[str, Mapping[str, Any]]:
    if config is not None and not isinstance(config, Mapping):
        findings.append(_odd("", "its provider configurations have an odd shape"))
    found: dict[str, Mapping[str, Any]] = {}
    for key, item in mapping(config).items():
        if not isinstance(item, Mapping) or not isinstance(item.get("full_name"), str):
            findings.append(_odd(f"provider {key}", "the plan does not say which provider it is"))
            continue
        found[str(key)] = item
    return found


def _list(value: Any, name: str, findings: list[Finding]) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        findings.append(_odd("", f"its {name} are not a list"))
        return []
    return value


def _odd(address: str, what: str) -> Finding:
    told = f"This plan cannot be checked: {what}; plan it again, with an engine that is known to work."
    return Finding(address, "plan-unreadable", told)


# --- values ----------------------------------------------------------------------------------------------------------


def overlaid(after: Any, unknown: Any) -> Any:
    """Returns ``after`` with `UNKNOWN` wherever ``after_unknown`` says true."""
    if unknown is True:
        return UNKNOWN
    if isinstance(unknown, Mapping) and unknown and (after is None or isinstance(after, Mapping)):
        known = mapping(after)
        return {**known, **{name: overlaid(known.get(name), inner) for name, inner in unknown.items()}}
    if isinstance(unknown, list) and unknown and (after is None or isinstance(after, list)):
        items = list(after or [])
        items += [None] * (len(unknown) - len(items))
        return [overlaid(item, inner) for item, inner in zip(items, unknown, strict=False)] + items[len(unknown) :]
    return after


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is an object; an empty one for everything else."""
    return value if isinstance(value, Mapping) else {}


def blocks(values: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...] | Unknown:
    """The blocks of that name, `UNKNOWN` where they are not known or are no blocks."""
    found = values.get(name)
    if found is None:
        return ()
    items = found if isinstance(found, list) else [found]
    known = tuple(item for item in items if isinstance(item, Mapping))
    return known if len(known) == len(items) else UNKNOWN


def is_true(value: Any) -> bool:
    """Whether it is true; launch templates write their booleans as text."""
    return value is True or value == "true"


def is_false(value: Any) -> bool:
    """Whether it is false, and not just not set."""
    return value is False or value == "false"
