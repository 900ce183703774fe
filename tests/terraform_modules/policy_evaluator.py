"""A small evaluator of IAM policies: as much of the language as ours use, and an error for everything else.

An explicit deny wins, then an allow, then nothing is allowed. Names of actions have no case, wildcards are `*` and `?`,
variables are replaced in resources and values, and a condition on a key that the request does not have is not met
(`ForAllValues`: met; `Null`: told by its presence). Source: the IAM user guide, "Policy evaluation logic", "IAM JSON
policy elements: Condition operators".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Document = Mapping[str, Any]


def listed(value: Any) -> list[Any]:
    """IAM writes one thing without brackets."""
    return value if isinstance(value, list) else [value]


def statements(document: Document) -> list[dict[str, Any]]:
    """The statements of a document; one with a part that is not evaluated here fails."""
    assert document["Version"] == "2012-10-17"
    for each in document["Statement"]:
        assert set(each) <= {"Sid", "Effect", "Action", "Resource", "Condition", "Principal"}, each
    return list(document["Statement"])


def allows(documents: Iterable[Document], action: str, resource: str, context: Mapping[str, Any] | None = None) -> bool:
    """Whether the policies of one principal let it do `action` on `resource` with these keys of context."""
    given = dict(context or {})
    fitting = [
        each
        for document in documents
        for each in statements(document)
        if any(_like(action.lower(), str(item).lower()) for item in listed(each["Action"]))
        and any(_like(resource, _filled(item, given)) for item in listed(each["Resource"]))
        and _conditions(each.get("Condition") or {}, given)
    ]
    return bool(fitting) and all(each["Effect"] == "Allow" for each in fitting)


def _like(value: str, pattern: str) -> bool:
    parts = (".*" if each == "*" else "." if each == "?" else re.escape(each) for each in pattern)
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None


def _filled(text: str, context: Mapping[str, Any]) -> str:
    # A variable without a value makes the statement fit nothing; no ARN has a NUL.
    return re.sub(r"\$\{([^}]+)\}", lambda found: str(context.get(found[1], "\0")), text)


def _conditions(conditions: Mapping[str, Any], context: Mapping[str, Any]) -> bool:
    return all(
        _met(operator, context.get(key), [_filled(str(item), context) for item in listed(wanted)])
        for operator, keys in conditions.items()
        for key, wanted in keys.items()
    )


def _met(operator: str, given: Any, wanted: list[str]) -> bool:
    match operator:
        case "Null":
            return (given is None) == (wanted == ["true"])
        case "ForAllValues:StringEquals":
            return all(item in wanted for item in listed(given)) if given is not None else True
        case "StringEquals" | "Bool":
            return given is not None and any(str(item) in wanted for item in listed(given))
        case "StringLike" | "ArnEquals":
            return given is not None and any(_like(str(item), pattern) for item in listed(given) for pattern in wanted)
    raise AssertionError(f"{operator} is not evaluated here")
