"""One Terraform command of a stack from start to decision: slot, process, events, and what a failure means."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.terraform import decisions, events, process
from mlinfra_prefect.terraform.environment import environment
from mlinfra_prefect.terraform.files import write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mlinfra_prefect.terraform.events import Event
    from mlinfra_prefect.terraform.layout import Layout
    from mlinfra_prefect.terraform.slots import Slots


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs the commands of one stack; ``env`` is what to add to the allow-list, ``grace`` as in `process.run`."""

    layout: Layout
    slots: Slots
    env: Mapping[str, str]
    grace: float

    def succeed(
        self,
        argv: list[str],
        cwd: Path,
        deadline: float,
        on_event: Callable[[Event], None] | None = None,
        check: Callable[[], None] | None = None,
    ) -> process.Finished:
        """Blocks until the command has succeeded, and returns its output files.

        Args:
            argv: from `command`.
            cwd: working directory.
            deadline: epoch seconds; waiting for a slot counts.
            on_event: called in this thread with each event within about 0.1 s.
            check: called once nobody else can run a command of this stack, before this one starts; may raise.

        Raises:
            TerraformFailed: or one of the decisions of `decisions`.
            OperationTimedOut, StateLocked, EngineMissing: as in `process.run`.
        """
        name = argv[1]
        output = private_folder(self.layout.output) / f"{time.time_ns()}-{name}"
        reader = events.Reader(output.with_name(output.name + ".out"))

        def follow() -> None:
            for event in reader.read():
                if on_event and not _is_noise(event):
                    on_event(event)

        with self.slots.take(deadline):
            finished = process.run(
                argv,
                cwd=cwd,
                env=environment(os.environ, self.env),
                lock_file=self.layout.lock,
                output=output,
                deadline=deadline,
                follow=follow if on_event else None,
                suspect=lambda reason: write_private(self.layout.suspect, f"{reason}\n".encode()),
                grace=self.grace,
                check=check,
            )
        if finished.returncode == 0:
            return finished
        told = events.Reader(finished.stdout).read(final=True)
        found = [event for event in told if isinstance(event, events.Diagnostic)]
        stderr = finished.stderr.read_text(encoding="utf-8", errors="replace")
        raise decisions.failure(name, found, stderr=stderr, returncode=finished.returncode)


def _is_noise(event: Event) -> bool:
    """Since 1.11 Terraform warns at each command that ``-state`` is deprecated (why we use it: `layout`)."""
    return isinstance(event, events.Diagnostic) and event.summary == "Deprecated flag: -state"
