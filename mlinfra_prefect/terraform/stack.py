"""One instance of a root module with its own state: prepared, planned, applied once, destroyed until nothing is left.

A stack is a private directory, and all about it is in there (see `layout`): any process of this host can go on with it.
Every method that starts a process blocks, takes a host-wide slot, and leaves Terraform running when the caller is
interrupted. Nothing here decides *whether* to destroy, retry or give up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.errors import (
    InvalidInput,
    MlinfraError,
    NotYetDestroyed,
    OperationTimedOut,
    PermanentError,
    PlanStale,
    StateLocked,
    TerraformFailed,
)
from mlinfra_prefect.terraform import bundle, command, initialised, lock, module, planned, stale, state
from mlinfra_prefect.terraform.files import write_private
from mlinfra_prefect.terraform.layout import Layout
from mlinfra_prefect.terraform.operation import Runner
from mlinfra_prefect.terraform.process import GRACE_SECONDS
from mlinfra_prefect.terraform.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from mlinfra_prefect.terraform.engine import Engine
    from mlinfra_prefect.terraform.events import Event
    from mlinfra_prefect.terraform.planned import PlannedChanges
    from mlinfra_prefect.terraform.slots import Slots

    Listener = Callable[[Event], None] | None

STATE_PULL_SECONDS = 120.0
"""How long reading a backend's state may take where the caller gave no deadline."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What exists after an apply: addresses, output values, and how many seconds it took."""

    resources: tuple[str, ...]
    outputs: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class Destroyed:
    """What a destroy removed; ``remaining`` is what the state still names, which is nothing when `destroy` returns."""

    destroyed: tuple[str, ...]
    remaining: tuple[str, ...]
    seconds: float


class Stack:
    """A stack in ``directory``; creating the object reads and writes nothing.

    Args:
        directory: private to this stack; made with mode 0700 by `prepare`.
        engine: the program to run.
        slots: the host's limit.
        env: exactly what to add to the allow-listed environment.
        grace: seconds between SIGINT and SIGKILL past a deadline.
    """

    def __init__(
        self, directory: Path, *, engine: Engine, slots: Slots, env: Mapping[str, str], grace: float = GRACE_SECONDS
    ) -> None:
        self.directory = directory.absolute()
        self.engine = engine
        self._layout = Layout(self.directory)
        self._runner = Runner(self._layout, slots, dict(env), grace)

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def lock_file(self) -> Path:
        """The file whose lock every Terraform process of this stack inherits."""
        return self._layout.lock

    @property
    def module(self) -> Path:
        """The copy of the root module that this stack runs."""
        return self._layout.workdir

    def in_flight(self) -> bool:
        """True while any Terraform process of this stack is alive, whoever started it. Does not block."""
        return lock.in_flight(self.lock_file)

    @property
    def suspect(self) -> bool:
        """True where resources may exist that the state does not name.

        Terraform was stopped or ended by a signal, it could not store its state, or an apply left none at all.
        """
        layout = self._layout
        if layout.suspect.exists() or layout.errored.exists() or layout.unstored.exists():
            return True
        applied = any(layout.output.glob("*-apply.out"))
        return applied and not layout.has_backend and not layout.state.exists()

    def why_suspect(self) -> str:
        """Why the state cannot tell all that exists, or existed; empty where it can. What it is told by stays 0600."""
        layout = self._layout
        errored = layout.errored if layout.errored.exists() else layout.unstored
        if errored.exists():
            errored.chmod(0o600)
            return f"Terraform could not store it ({errored} is what it would have stored)"
        if layout.suspect.exists():
            return layout.suspect.read_text(encoding="utf-8", errors="replace").strip() or "it was marked suspect"
        if self.suspect:
            return "an apply left none"
        if not layout.has_backend and layout.state.exists():
            try:
                state.read(layout.state)
            except TerraformFailed:
                return f"cannot be read ({layout.state.stat().st_size} bytes)"
        return ""

    def mark_suspect(self, reason: str) -> None:
        """Says that the state can no longer be trusted: a Terraform of it was ended, and not by its starter."""
        write_private(self._layout.suspect, f"{reason}\n".encode())

    def saved_plan(self) -> str:
        """The sha256 of the saved plan, to tell whether it is the one that somebody was shown; empty: there is none."""
        with contextlib.suppress(FileNotFoundError):
            return hashlib.sha256(self._layout.plan.read_bytes()).hexdigest()
        return ""

    def resources(self) -> tuple[str, ...]:
        """Addresses of the managed resources in the state; none where there is no state.

        Raises:
            TerraformFailed: ``state suspect``: there is a state that cannot be read.
        """
        return self._state().resources

    def outputs(self) -> Mapping[str, Any]:
        """Values of the root module's outputs in the state; none where there is no state. Raises like `resources`."""
        return self._state().outputs

    def break_stale_lock(self) -> stale.Held | None:
        """Break the lock that a dead Terraform left beside a local state; returns it, None where there was none.

        Idempotent. The lock of a Terraform that runs, and one that was taken on another host, is left as it is.
        """
        path = stale.beside(self._layout.state)
        held = stale.read(path)
        if held is None or not held.here:
            return None
        try:
            descriptor = lock.acquire(self.lock_file)  # and nobody starts one meanwhile
        except StateLocked:
            return None
        try:
            if stale.read(path) != held:
                return None
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        return held

    # --- what can be done --------------------------------------------------------------------------------------------

    def prepare(
        self,
        root_module: Path,
        variables: Mapping[str, Any],
        *,
        deadline: float,
        within: Path | None = None,
        backend: Mapping[str, str] | None = None,
        init_cache: Path | None = None,
    ) -> None:
        """Copies the module and its variables into the stack, and initialises it where that is needed.

        Idempotent; creates nothing outside of the directory. Starts no process for a module that uses only the
        built-in provider. A state that the backend did not take the last time is stored first.

        Args:
            root_module: the module's directory.
            variables: JSON values by variable name.
            deadline: epoch seconds.
            within: directory that the module's own local modules may lie in; default: the module's directory.
            backend: settings for a partial backend block of the module.
            init_cache: where what ``init`` leaves is kept for the next stack of this module; None: nowhere.

        Raises:
            InvalidInput: the module cannot be copied, or a variable is not declared or not a JSON value.
            StateLocked: Terraform is running on this stack, or another one has locked the state to be stored.
            TerraformFailed: ``init`` failed (or one of the decisions of `decisions`).
        """
        layout, found = self._layout, module.inspect(root_module, within=within)
        for name, value in variables.items():
            if name not in found.variables:
                told = f"the module {root_module} declares no such variable."
                raise InvalidInput(name, told, f"It declares: {_list(found.variables)}.")
            _check_json(name, value)
        self._check_free()
        private_folder(self.directory).chmod(0o700)
        for former in (layout.plan, layout.plan_json):
            former.unlink(missing_ok=True)
        if layout.errored.exists():
            layout.errored.replace(layout.unstored)
        shutil.rmtree(layout.root, ignore_errors=True)
        module.copy(found, layout.root)
        write_private(layout.var_file, json.dumps(dict(variables)).encode())
        layout.record(found)
        if found.needs_init:
            kept = None
            if init_cache is not None and not found.has_backend:
                kept = initialised.place(init_cache, self.engine, str((layout.about or {})["digest"]))
                if initialised.restore(kept, layout.workdir, locked=found.locked):
                    return
            argv = command.init(self.engine.path, locked=found.locked, backend=backend or {})
            self._runner.succeed(argv, layout.workdir, deadline)
            if kept is not None:
                initialised.keep(kept, layout.workdir)
                initialised.restore(kept, layout.workdir, locked=found.locked)
        if found.has_backend and layout.unstored.exists() and layout.unstored.stat().st_size:
            self._unlocked(self._push, deadline, None)
            layout.unstored.unlink()

    def plan(self, *, deadline: float, on_event: Listener = None) -> PlannedChanges:
        """Plans, saves the plan and what it says, and writes the teardown bundle. Creates nothing.

        A lock that a dead Terraform of this stack left in the backend is broken.

        Raises:
            TerraformFailed: or one of the decisions of `decisions`.
            OperationTimedOut, StateLocked: as in `process.run`.
            PermanentError: the stack is not prepared.
        """
        layout, program = self._layout, self.engine.path
        self._check_prepared()
        if layout.has_backend:
            self._unlocked(self._save_plan, deadline, on_event)
        else:
            self._save_plan(deadline, on_event)
        shown = self._runner.succeed(command.show(program, layout.plan), layout.workdir, deadline)
        shown.stdout.replace(layout.plan_json)
        document = planned.load(layout.plan_json)
        content = bundle.root(document, layout.provider_sources, layout.initialised_backend)
        bundle.write(layout.bundle, content, engine=self.engine, workdir=layout.workdir, has_backend=layout.has_backend)
        return planned.parse(document, layout.plan_json, content.unresolved)

    def apply(self, *, deadline: float, on_event: Listener = None, expected: str = "") -> Applied:
        """Applies the saved plan. Not idempotent: a plan is applied once, and a stale one is refused by Terraform.

        Args:
            deadline: epoch seconds.
            on_event: as in `plan`.
            expected: `saved_plan` of the one that was agreed to; empty: whichever is there.

        Raises:
            TerraformFailed: or one of the decisions of `decisions`; what was created until then is in the state.
            PlanStale: the state changed since it was planned, or it is not the expected plan; nothing was applied.
            OperationTimedOut, StateLocked: as in `process.run`.
            PermanentError: there is no plan.
        """
        layout = self._layout
        self._check_prepared()
        if not layout.plan.is_file() or layout.about_bundle is None:
            raise PermanentError(f"The stack in {self.directory} has no plan to apply.", "Plan it first.")
        argv = command.apply(self.engine.path, layout.plan, state=layout.state_option)

        def check() -> None:  # somebody may have planned while this waited for its turn
            if expected and self.saved_plan() != expected:
                raise PlanStale(f"The stack in {self.directory} was planned again.", "Plan it again.")

        finished = self._runner.succeed(argv, layout.workdir, deadline, on_event, check)
        found = self._state(deadline)
        return Applied(found.resources, found.outputs, finished.seconds)

    def destroy(self, *, deadline: float, on_event: Listener = None) -> Destroyed:
        """Destroys until the state names nothing. Idempotent: no state, or an empty one, starts no process.

        Uses the module while it is intact, because destroy provisioners run only with it; where that fails or cannot
        be tried (module or variables gone, ``prevent_destroy``), the teardown bundle. Goes on while it makes progress.

        Raises:
            TerraformFailed: or one of the decisions of `decisions`: the last command's diagnostics, when a whole
                round removed nothing. ``state suspect`` where the state cannot be read.
            NotYetDestroyed: Terraform said success and the state still names resources.
            PermanentError: there are resources and neither module nor bundle.
            OperationTimedOut, StateLocked: as in `process.run`.
        """
        started = time.monotonic()
        self._check_free()
        before = remaining = self._state(deadline).resources
        while remaining:
            remaining = self._destroy_round(remaining, deadline, on_event)
        return Destroyed(before, remaining, time.monotonic() - started)

    # --- how ---------------------------------------------------------------------------------------------------------

    def _push(self, deadline: float, on_event: Listener) -> None:
        argv = command.state_push(self.engine.path, self._layout.unstored)
        self._runner.succeed(argv, self._layout.workdir, deadline, on_event)

    def _save_plan(self, deadline: float, on_event: Listener) -> None:
        layout = self._layout
        argv = command.plan(self.engine.path, out=layout.plan, var_file=layout.var_file, state=layout.state_option)
        self._runner.succeed(argv, layout.workdir, deadline, on_event)

    def _destroy_round(self, before: tuple[str, ...], deadline: float, on_event: Listener) -> tuple[str, ...]:
        """Tries the module, then the bundle; returns what remains, or raises where that is all there was before."""
        remaining, error, tried = before, None, False
        for attempt, possible in (
            (self._destroy_by_module, self._layout.intact),
            (self._destroy_by_bundle, self._layout.about_bundle is not None),
        ):
            if not possible:
                continue
            tried = True
            try:
                self._unlocked(attempt, deadline, on_event)
            except (StateLocked, OperationTimedOut):
                raise
            except MlinfraError as failed:
                error = failed
            remaining = self._state(deadline).resources
            if not remaining:
                return ()
        if len(remaining) < len(before):
            return remaining
        if error:
            raise error
        if tried:
            raise NotYetDestroyed(f"Terraform said success and its state still names {_list(remaining)}.")
        raise PermanentError(
            f"The stack in {self.directory} has resources and neither its module nor its teardown bundle is there.",
            f"Destroy by hand: {_list(remaining)}.",
        )

    def _unlocked(self, attempt: Callable[[float, Listener], None], deadline: float, on_event: Listener) -> None:
        """Make an attempt; where a dead Terraform of this stack left the backend's lock, break that one and try again.

        One that another host took stays, and one of this host that may be another stack's, with what to do about it.
        """
        began = time.time()
        try:
            attempt(deadline, on_event)
        except StateLocked as error:
            held = stale.described(error.message, before=began)
            if held is None or self.in_flight():
                raise
            if not held.here or not stale.left_by(self._layout.output, held):
                why = "which may be another home's" if held.here else "which cannot be seen from here"
                raise StateLocked(
                    f"The state in {self.directory} is locked by {held.who}, {why}.",
                    f"Where that is certainly gone: terraform force-unlock {held.id}.",
                ) from error
            root = self._layout.bundle if attempt == self._destroy_by_bundle else self._layout.workdir
            self._runner.succeed(command.force_unlock(self.engine.path, held.id), root, deadline)
            attempt(deadline, on_event)

    def _destroy_by_module(self, deadline: float, on_event: Listener) -> None:
        layout = self._layout
        argv = command.destroy(self.engine.path, state=layout.state_option, var_file=layout.var_file)
        self._runner.succeed(argv, layout.workdir, deadline, on_event)

    def _destroy_by_bundle(self, deadline: float, on_event: Listener) -> None:
        self._initialise_bundle(deadline)
        argv = command.destroy(self.engine.path, state=self._layout.state_option, var_file=None)
        self._runner.succeed(argv, self._layout.bundle, deadline, on_event)

    def _initialise_bundle(self, deadline: float) -> None:
        layout = self._layout
        about = layout.about_bundle or {}
        if about.get("backend") or (about.get("needs_init") and not bundle.has_providers(layout.bundle)):
            locked = (layout.bundle / module.LOCK_FILE).is_file()
            argv = command.init(self.engine.path, locked=locked, backend={}, reconfigure=True)
            self._runner.succeed(argv, layout.bundle, deadline)

    def _state(self, deadline: float | None = None) -> State:
        """The state: read directly where it is a local file, pulled (a process) where a backend keeps it."""
        layout = self._layout
        if not layout.has_backend:
            return state.read(layout.state) or State()
        deadline = deadline or time.time() + STATE_PULL_SECONDS
        root = layout.workdir
        if not (root / ".terraform").is_dir():
            root = layout.bundle
            self._initialise_bundle(deadline)
        pulled = self._runner.succeed(command.state_pull(self.engine.path), root, deadline).stdout
        # Terraform prints nothing at all where the backend holds no state.
        return (state.read(pulled) if pulled.stat().st_size else None) or State()

    def _check_prepared(self) -> None:
        if self._layout.about is None:
            raise PermanentError(f"The stack in {self.directory} is not prepared.", "Prepare it first.")

    def _check_free(self) -> None:
        if self.in_flight():
            raise StateLocked(
                f"A Terraform process of the stack in {self.directory} is still running.", "Wait until it has ended."
            )


def _check_json(name: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(name, f"the value cannot be written as JSON: {error}.") from error


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
