"""The teardown bundle: all that destroying a stack needs besides its state, written before anything exists.

A module can be edited or deleted, its variables can go missing, and one ``prevent_destroy`` blocks a whole destroy. A
root that holds provider and backend blocks only destroys everything that is in the state, so such a root is written at
plan time: every provider alias that the plan names (a state made through a missing alias cannot be destroyed), constant
values only, the provider lock file, and which engine it was. Destroy provisioners do not run from it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.terraform.engine import Engine
from mlinfra_prefect.terraform.files import write_private
from mlinfra_prefect.terraform.module import LOCK_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

BUILTIN = "terraform.io/builtin/terraform"
NOT_NEEDED = frozenset({"default_tags", "ignore_tags"})
"""Provider blocks that change what is created and not what is destroyed; they are often not constant."""

PROVIDERS = ".terraform/providers"
"""Where ``init`` puts provider programs, relative to the directory that Terraform runs in."""

_UNKNOWN = object()


@dataclass(frozen=True, slots=True)
class Root:
    """The content of ``main.tf.json``, and the provider attributes that could not be copied as constants."""

    document: Mapping[str, Any]
    unresolved: tuple[str, ...]
    needs_init: bool


def root(
    plan: Mapping[str, Any],
    sources: Mapping[tuple[str, str], Mapping[str, str]],
    backend: Mapping[str, Any] | None,
) -> Root:
    """Builds the teardown root from the JSON of a plan. Pure.

    Args:
        plan: ``terraform show -json`` of the plan.
        sources: raw text of the root module's provider attributes (`Module.providers`): the plan says only *which*
            variables an expression uses, so a variable is copied as its value where the text is that variable alone.
        backend: ``{"type": ..., "config": {...}}`` as initialised; None where the state is a local file of the stack.
    """
    resolver = _Resolver({name: item.get("value") for name, item in (plan.get("variables") or {}).items()})
    providers: dict[str, list[dict[str, Any]]] = {}
    required: dict[str, dict[str, str]] = {}
    configured = (plan.get("configuration") or {}).get("provider_config") or {}
    for key, item in sorted(configured.items()):
        if item.get("module_address"):
            # A provider configured inside a child module has no place in a root of ours.
            resolver.unresolved.extend([f"{key}: configured in a module"] if item.get("expressions") else [])
            continue
        name, alias = item["name"], item.get("alias", "")
        values = resolver.block(key, "", item.get("expressions") or {}, sources.get((name, alias), {}))
        providers.setdefault(name, []).append({**({"alias": alias} if alias else {}), **values})
        if item["full_name"] != BUILTIN:
            required[name] = {"source": item["full_name"]}
    terraform: dict[str, Any] = {}
    if required:
        terraform["required_providers"] = required
    if backend:
        config = {name: literal(value) for name, value in backend["config"].items() if value is not None}
        terraform["backend"] = {backend["type"]: config}
    document = {**({"terraform": terraform} if terraform else {}), **({"provider": providers} if providers else {})}
    return Root(document, tuple(resolver.unresolved), needs_init=bool(terraform))


def literal(value: Any) -> Any:
    """Returns a value that Terraform's JSON syntax reads as exactly ``value``: templates in strings are escaped."""
    if isinstance(value, str):
        return value.replace("${", "$${").replace("%{", "%%{")
    if isinstance(value, list):
        return [literal(item) for item in value]
    if isinstance(value, dict):
        return {literal(name): literal(item) for name, item in value.items()}
    return value


def write(directory: Path, content: Root, *, engine: Engine, workdir: Path, has_backend: bool) -> None:
    """Writes the bundle durably; ``workdir`` is where the module was initialised (its lock file and provider cache)."""
    private_folder(directory)
    lock = workdir / LOCK_FILE
    if lock.is_file():
        write_private(directory / LOCK_FILE, lock.read_bytes())
    cache, link = workdir / PROVIDERS, directory / PROVIDERS
    if cache.is_dir() and not link.is_symlink():
        # With the providers at hand a destroy needs no network; where the link dangles, init fetches them again.
        private_folder(link.parent)
        link.symlink_to(os.path.relpath(cache, link.parent), target_is_directory=True)
    write_private(directory / "main.tf.json", json.dumps(content.document, indent=1).encode())
    about = {
        **asdict(engine),
        "needs_init": content.needs_init,
        "backend": has_backend,
        "unresolved": list(content.unresolved),
    }
    write_private(directory / "engine.json", json.dumps(about, indent=1, default=str).encode())


def recorded_engine(stack_directory: Path) -> Engine | None:
    """Returns the engine that made a stack, as its bundle names it; None where there is none, or it is gone."""
    try:
        about = json.loads((stack_directory / "bundle" / "engine.json").read_bytes())
        found = Engine(Path(about["path"]), str(about["name"]), str(about["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if os.access(found.path, os.X_OK) else None


def has_providers(directory: Path) -> bool:
    """True where the bundle's link to the provider programs does not dangle."""
    return (directory / PROVIDERS).is_dir()


class _Resolver:
    """Turns the plan's expressions into constants and notes the ones that are not."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self.unresolved: list[str] = []

    def block(self, key: str, prefix: str, expressions: Mapping[str, Any], raw: Mapping[str, str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, expression in expressions.items():
            path = f"{prefix}{name}"
            if path in NOT_NEEDED:
                continue
            if isinstance(expression, list):
                inner = {} if len(expression) > 1 else raw
                values[name] = [self.block(key, f"{path}.", item, inner) for item in expression]
            elif "constant_value" in expression or "references" in expression or not expression:
                value = self._constant(expression, raw.get(path, ""))
                if value is _UNKNOWN:
                    self.unresolved.append(f"{key}: {path}")
                elif value is not None:
                    values[name] = literal(value)
            else:
                values[name] = self.block(key, f"{path}.", expression, raw)
        return values

    def _constant(self, expression: Mapping[str, Any], raw: str) -> Any:
        if "constant_value" in expression:
            return expression["constant_value"]
        name = raw.removeprefix("var.")
        return self._variables[name] if raw == f"var.{name}" and name in self._variables else _UNKNOWN
