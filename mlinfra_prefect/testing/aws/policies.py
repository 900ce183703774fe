"""Whether policies of IAM allow an action: by action, resource, variables and conditions. Pure.

Enough of the language for policies as this package writes them, and closed where it ends: a policy variable that isn't
known matches nothing. A condition on a key that the emulator does not follow counts as met in an ``Allow`` and as not
met in a ``Deny``, so that a test is not refused for what only AWS knows; what it would forbid is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Context = Mapping[str, tuple[str, ...]]
"""Condition keys in lower case with their values; a key that is followed and has no value here is absent."""
FOLLOWED = (
    "aws:userid", "aws:username", "aws:principalarn", "aws:requestedregion", "aws:requesttag/", "aws:resourcetag/",
    "ec2:resourcetag/", "aws:tagkeys", "aws:securetransport", "s3:prefix",
)  # fmt: skip
"""The keys whose absence means something."""
_VARIABLE = re.compile(r"\$\{(?P<key>[^}]+)\}")


def allowed(documents: Iterable[Mapping[str, Any]], action: str, resource: str | None, context: Context) -> bool:
    """Whether the policies together allow an action: some statement does, and none denies it.

    Args:
        documents: the policies.
        action: such as ``s3:GetObject``.
        resource: its ARN; None: resources are not looked at.
        context: of the request.
    """
    found = False
    for document in documents:
        for statement in _listed(document.get("Statement", [])):
            if _applies(statement, action, resource, context):
                if statement.get("Effect") == "Deny":
                    return False
                found = True
    return found


def _applies(statement: Mapping[str, Any], action: str, resource: str | None, context: Context) -> bool:
    said = _listed(statement.get("Action", statement.get("NotAction", [])))
    hit = any(_matches(each.lower(), action.lower(), context) for each in said)
    if hit == ("NotAction" in statement):
        return False
    if resource is not None and ("Resource" in statement or "NotResource" in statement):
        said = _listed(statement.get("Resource", statement.get("NotResource", [])))
        hit = any(_matches(each, resource, context) for each in said)
        if hit == ("NotResource" in statement):
            return False
    denies = statement.get("Effect") == "Deny"
    return all(
        _met(operator, key, _listed(values), context, unknown=not denies)
        for operator, keys in (statement.get("Condition") or {}).items()
        for key, values in keys.items()
    )


def _met(operator: str, key: str, wanted: list[Any], context: Context, *, unknown: bool) -> bool:
    """Whether one condition is met; `unknown`: what to say of a key that is not followed."""
    quantifier, _, name = operator.rpartition(":")
    if_exists, name = name.endswith("IfExists"), name.removesuffix("IfExists")
    present = context.get(key.lower())
    if present is None and not key.lower().startswith(FOLLOWED):
        return unknown
    if name == "Null":
        return any((present is None) == (str(each).lower() == "true") for each in wanted)
    if present is None:
        return if_exists or "Not" in name or quantifier == "ForAllValues"
    texts = [str(each).lower() if isinstance(each, bool) else str(each) for each in wanted]

    def one(value: str) -> bool:
        if name.endswith("IgnoreCase"):
            hit = any(value.lower() == str(_filled(each, context)).lower() for each in texts)
        elif name.startswith(("StringEquals", "StringNotEquals", "ArnEquals", "Bool")):
            hit = any(value == _filled(each, context) for each in texts)
        elif name.startswith(("StringLike", "StringNotLike", "ArnLike", "ArnNotLike")):
            hit = any(_matches(each, value, context) for each in texts)
        else:
            return unknown
        return hit != ("Not" in name)

    return all(map(one, present)) if quantifier == "ForAllValues" or "Not" in name else any(map(one, present))


def _filled(text: str, context: Context) -> str | None:
    """Return a text with its variables filled in; None: one isn't known."""
    known = {key: key for key in ("*", "?", "$")} | {key: each[0] for key, each in context.items() if len(each) == 1}
    if any(each["key"].lower() not in known for each in _VARIABLE.finditer(text)):
        return None
    return _VARIABLE.sub(lambda each: known[each["key"].lower()], text)


def _matches(pattern: str, text: str, context: Context) -> bool:
    # Variables are filled in after the wildcards were found: a value with a star in it is only a text.
    parts = re.split(r"(\$\{[^}]+\}|\*|\?)", pattern)
    expression = ""
    for part in parts:
        if part in {"*", "?"}:
            expression += ".*" if part == "*" else "."
        elif part.startswith("${"):
            filled = _filled(part, context)
            if filled is None:
                return False
            expression += re.escape(filled)
        else:
            expression += re.escape(part)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list | tuple) else [found]
