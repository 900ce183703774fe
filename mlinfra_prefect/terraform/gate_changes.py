"""The rules of what a plan does as a whole: whose programs it runs, with which providers, and what it may change.

An ephemeral plan is applied once to an empty state, so all it may do is create; it is destroyed from a teardown root
that holds constants only, so every provider configuration must be known before the apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlinfra_prefect.terraform.bundle import NOT_NEEDED
from mlinfra_prefect.terraform.gate_plan import PlanView, mapping
from mlinfra_prefect.terraform.gate_policy import Finding, Policy

RUNS_PROGRAMS = frozenset({"external", "aws_lambda_invocation", "shell_script"})
"""Data sources and resources that run somebody's program when they are read or created."""

_HARMLESS = frozenset({("create",), ("no-op",), ("read",)})


def findings(view: PlanView, policy: Policy, unresolved: Iterable[str]) -> Iterator[Finding]:
    """Providers, programs, and what is changed.

    Args:
        view: the plan.
        policy: what it must keep.
        unresolved: `PlannedChanges.unresolved`: what the teardown bundle could not copy.
    """
    yield from _providers(view, policy)
    for item in sorted({*unresolved, *_unresolved(view)}):
        key, _, what = item.partition(": ")
        told = f"Destroying from the teardown bundle would run without {what or 'a part of it'}"
        remedy = "use a constant, or a variable by itself, in the root module."
        yield Finding(f"provider {key}", "provider-unresolved", f"{told}; {remedy}")
    if not policy.allow_programs:
        yield from _programs(view)
    if policy.ephemeral:
        yield from _changes(view)


def _providers(view: PlanView, policy: Policy) -> Iterator[Finding]:
    seen = {resource.provider: resource.address for resource in reversed(view.resources)}
    named = {str(item["full_name"]): f"provider {key}" for key, item in view.providers.items()}
    for source, address in sorted({**seen, **named}.items()):
        if source not in policy.providers:
            told = f"The provider {source} is not allowed; use {', '.join(sorted(policy.providers))}."
            yield Finding(address, "provider-not-allowed", told)


def _unresolved(view: PlanView) -> Iterator[str]:
    """What is certain to be missing in the bundle, as `bundle.root` words it; it knows more, from the module's text."""
    for key, item in view.providers.items():
        expressions = mapping(item.get("expressions"))
        if item.get("module_address"):
            yield from [f"{key}: configured in a module"] if expressions else []
        else:
            yield from (f"{key}: {path}" for path in _not_constant(expressions, ""))


def _not_constant(expressions: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, expression in expressions.items():
        path = f"{prefix}{name}"
        for item in expression if isinstance(expression, list) else [expression]:
            words = mapping(item)
            if path in NOT_NEEDED or "constant_value" in words:
                continue
            references = words.get("references")
            if references is None:
                yield from _not_constant(words, f"{path}.")
            elif not isinstance(references, list) or [str(each)[:4] for each in references] != ["var."]:
                yield path


def _programs(view: PlanView) -> Iterator[Finding]:
    for block in view.configured:
        address = f"{block.module}.{block.address}" if block.module else block.address
        provisioners = block.content.get("provisioners")
        for item in provisioners if isinstance(provisioners, list) else [provisioners] if provisioners else []:
            kind = mapping(item).get("type")
            yield _program(address, f"{kind} provisioner" if isinstance(kind, str) else "provisioner")
        if block.type in RUNS_PROGRAMS:
            yield _program(address, block.type)


def _program(address: str, what: str) -> Finding:
    told = f"It runs a program outside of every check ({what}); remove it, or allow programs in the policy."
    return Finding(address, "program-runs", told)


def _changes(view: PlanView) -> Iterator[Finding]:
    for resource in view.resources:
        if resource.actions not in _HARMLESS:
            what = " and ".join(resource.actions)
            told = f"An attempt only creates, and this plan would {what} it; give the attempt a state of its own."
            yield Finding(resource.address, "not-only-creates", told)
        elif resource.imported:
            told = "It exists already, and giving the attempt back would destroy it; remove the import block."
            yield Finding(resource.address, "import-refused", told)
