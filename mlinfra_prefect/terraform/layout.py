"""Where everything of one stack stands in its private directory, and what was written down about its module.

==========================  ==========================================================================
``root/``                   a copy of the module and of the local modules it calls
``module.json``             what the copy holds, to tell whether it is intact
``variables.tfvars.json``   the variables, mode 0600
``terraform.tfstate``       the state, unless the module names a backend
``plan.tfplan plan.json``   the plan that will be applied, and what it says
``bundle/``                 the teardown bundle
``output/``                 what each command printed, mode 0600
``lock``                    inherited by every Terraform process of this stack (see `lock`)
``errored.tfstate``         what a former copy's Terraform could not store, until `prepare` has stored it
``suspect``                 exists where the state can no longer be trusted: tags must decide
==========================  ==========================================================================

The state stands outside of the module's copy, so that losing the copy cannot look like an empty state. It is named to
Terraform with ``-state``, because the backend block that would replace that option needs an ``init``.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.terraform import module
from mlinfra_prefect.terraform.files import write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlinfra_prefect.terraform.module import Module


ERRORED = "errored.tfstate"
"""What Terraform calls a state that its backend did not take."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of the stack in ``directory``; reading any of them when it is not there is not an error."""

    directory: Path

    @property
    def root(self) -> Path:
        """The copy of the module and of the local modules it calls."""
        return self.directory / "root"

    @property
    def bundle(self) -> Path:
        """The teardown bundle."""
        return self.directory / "bundle"

    @property
    def output(self) -> Path:
        """What each command printed."""
        return self.directory / "output"

    @property
    def var_file(self) -> Path:
        """The variables."""
        return self.directory / "variables.tfvars.json"

    @property
    def state(self) -> Path:
        """The local state file."""
        return self.directory / "terraform.tfstate"

    @property
    def plan(self) -> Path:
        """The saved plan."""
        return self.directory / "plan.tfplan"

    @property
    def plan_json(self) -> Path:
        """The saved plan as JSON."""
        return self.directory / "plan.json"

    @property
    def errored(self) -> Path:
        """What Terraform would have stored, where it left that: in the working directory."""
        return self.workdir / ERRORED

    @property
    def unstored(self) -> Path:
        """The same, saved from a copy that was made anew."""
        return self.directory / ERRORED

    @property
    def lock(self) -> Path:
        """The lock that Terraform inherits."""
        return self.directory / "lock"

    @property
    def suspect(self) -> Path:
        """The mark of a state that cannot be trusted."""
        return self.directory / "suspect"

    @property
    def about(self) -> dict[str, Any] | None:
        """What `record` wrote; None before."""
        return read_json(self.directory / "module.json")

    @property
    def about_bundle(self) -> dict[str, Any] | None:
        """What `bundle.write` wrote beside the bundle; None before."""
        return read_json(self.bundle / "engine.json")

    @property
    def workdir(self) -> Path:
        """Where the root module stands in the copy."""
        return self.root / str((self.about or {}).get("workdir", "."))

    @property
    def has_backend(self) -> bool:
        """True where the module says where its state is kept."""
        return bool((self.about or self.about_bundle or {}).get("backend"))

    @property
    def state_option(self) -> Path | None:
        """The state file to name to Terraform; None where a backend keeps the state."""
        return None if self.has_backend else self.state

    @property
    def intact(self) -> bool:
        """True where the copy holds exactly the recorded files, and the variables are there."""
        about = self.about
        if not about or not self.var_file.is_file():
            return False
        return bool(about["digest"]) and module.digest(self.root, about["files"]) == about["digest"]

    @property
    def provider_sources(self) -> Mapping[tuple[str, str], Mapping[str, str]]:
        """The recorded `Module.providers`."""
        return {(name, alias): raw for name, alias, raw in (self.about or {}).get("providers", [])}

    @property
    def initialised_backend(self) -> dict[str, Any] | None:
        """``{"type": ..., "config": {...}}`` as ``init`` left it; None without a backend."""
        if not self.has_backend:
            return None
        known: dict[str, Any] = (read_json(self.workdir / ".terraform" / "terraform.tfstate") or {})["backend"]
        if known["type"] == "local":  # its path is relative to the directory that Terraform runs in
            path = self.workdir / (known["config"].get("path") or "terraform.tfstate")
            known = {**known, "config": {**known["config"], "path": str(path)}}
        return known

    def record(self, found: Module) -> None:
        """Writes down what the copy holds, after it was copied."""
        names = sorted(found.files)
        about = {
            "workdir": found.workdir,
            "files": names,
            "digest": module.digest(self.root, names),
            "backend": found.has_backend,
            "providers": [[name, alias, dict(raw)] for (name, alias), raw in found.providers.items()],
        }
        write_private(self.directory / "module.json", json.dumps(about).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is no file, or no object in it."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(path.read_bytes())
        return document if isinstance(document, dict) else None
    return None
