"""The plan gate (rule R11): what Terraform says it would do is held against a policy before any of it exists.

Mistakes that cost money while nobody looks (an untagged disk, a machine that a power-off only stops, a group that grows
again) cannot be seen once a state is lost, and can all be seen in a plan. The gate reads one and answers with
everything that is wrong in it at once. It never repairs, never asks a cloud, and knows no prices: a plan that it cannot
understand is refused as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlinfra_prefect.errors import PlanRejected
from mlinfra_prefect.terraform import gate_changes, gate_compute, gate_network, gate_plan, gate_source, gate_tags
from mlinfra_prefect.terraform.gate_policy import AWS, BUILTIN, Finding, Policy

__all__ = ["AWS", "BUILTIN", "Finding", "Policy", "check", "enforce"]


def check(document: Mapping[str, Any], policy: Policy, *, unresolved: Iterable[str] = ()) -> tuple[Finding, ...]:
    """Returns every rule that a plan breaks, by address; none where it may be applied. Pure, and never raises.

    Args:
        document: ``terraform show -json`` of the plan.
        policy: what it must keep.
        unresolved: `PlannedChanges.unresolved`, provider attributes that the teardown bundle lacks. What is certain
            from the plan alone is found without it.
    """
    try:
        view = gate_plan.read(document)
        found = {
            *view.findings,
            *gate_changes.findings(view, policy, unresolved),
            *gate_tags.findings(view, policy),
            *gate_compute.findings(view, policy),
            *gate_network.findings(view, policy),
        }
    except RecursionError:
        return (Finding("", "plan-unreadable", "This plan cannot be checked: it is nested too deeply; simplify it."),)
    return tuple(sorted(found))


def enforce(
    document: Mapping[str, Any], policy: Policy, *, unresolved: Iterable[str] = (), module: Path | None = None
) -> None:
    """Returns where a plan may be applied.

    Args:
        document: as in `check`.
        policy: as in `check`.
        unresolved: as in `check`.
        module: directory of the root module that was planned; with it, what plans do not say is read from its text
            (``prevent_destroy`` above all).

    Raises:
        PlanRejected: it may not; the message lists every finding.
    """
    found = check(document, policy, unresolved=unresolved)
    if module is not None:
        found += gate_source.check(module, policy)
    if found:
        many = "one rule" if len(found) == 1 else f"{len(found)} rules"
        listed = "\n".join(f"- {finding}" for finding in found)
        raise PlanRejected(
            f"The plan breaks {many}, and nothing was created:\n{listed}",
            "Change the module or its variables, and plan again.",
        )
