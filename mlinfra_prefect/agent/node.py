"""``node()``: what training code may ask and say about the node it runs on.

It works the same in a callable and in a Python program started as a command, because everything it knows comes from
the environment and everything it says goes into files. Nothing here needs the network or Prefect.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import checkpoints, drafts, events
from .wire import read_json_if_there, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlinfra_prefect.model.artifact import ModelArtifact  # for type checkers only: nothing of ours is imported here

_SHARED = "_mlinfra_node"


class NotOnNode(RuntimeError):
    """``node()`` was called somewhere else than in a training that an agent started."""


def node() -> Node:
    """The node this training runs on. Cheap; the same object every time.

    Raises:
        NotOnNode: this process was not started by an agent.
    """
    shared = _shared()
    if shared.node is None:
        if not on_node():
            raise NotOnNode(
                "node() works only inside a training on a node. Call it in the function that infra.run(...) or @gpu "
                "runs there, not in the flow."
            )
        shared.node = Node()
    return shared.node  # type: ignore[no-any-return]


def on_node() -> bool:
    """Whether this process is a training that an agent started."""
    return os.environ.get("MLINFRA_ON_NODE") == "1" and "MLINFRA_OUTPUT_DIR" in os.environ


def listen() -> None:
    """Turn SIGTERM into `Node.should_stop`.

    Idempotent; does nothing outside the main thread, or where the user has a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


class Node:
    """What is known about this node, and the way to speak to whoever waits for the training."""

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters of the job (``MLINFRA_PARAMS``)."""
        return types.MappingProxyType(json.loads(os.environ.get("MLINFRA_PARAMS") or "{}"))

    @property
    def inputs(self) -> Mapping[str, Path]:
        """The inputs by the name they were given (``MLINFRA_INPUT_<NAME>`` in other languages)."""
        found = json.loads(os.environ.get("MLINFRA_INPUTS") or "{}")
        return types.MappingProxyType({name: Path(path) for name, path in found.items()})

    @property
    def output_dir(self) -> Path:
        """Where the model is written; everything in it is uploaded after success."""
        return Path(os.environ["MLINFRA_OUTPUT_DIR"])

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints are written, and where the resumed one lies when `resumed`."""
        return Path(os.environ["MLINFRA_CHECKPOINT_DIR"])

    @property
    def resumed(self) -> bool:
        """Whether a committed checkpoint was put into `checkpoint_dir` before the training started."""
        return bool(os.environ.get("MLINFRA_RESUMED_FROM"))

    @property
    def deadline(self) -> float | None:
        """The lease's hard deadline in epoch seconds, or None."""
        text = os.environ.get("MLINFRA_DEADLINE")
        return float(text) if text else None

    @property
    def should_stop(self) -> bool:
        """Whether the training was told to commit a checkpoint and return (SIGTERM). Stays True."""
        listen()
        return bool(_shared().stopping)

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` when the training is told to stop; at once when it already was.

        It runs in the main thread between two lines of your code. An exception in it is logged; ``SystemExit`` ends
        the training.
        """
        listen()
        shared = _shared()
        shared.callbacks.append(callback)
        if shared.stopping:
            _call(callback)

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far the training is: 0 to 1 (values beyond are cut). Raises ValueError for NaN."""
        value = float(fraction)
        if math.isnan(value):
            raise ValueError("progress(fraction) is NaN")
        self._event({"progress": min(1.0, max(0.0, value)), "message": str(message)})

    def metrics(self, step: int | None = None, **values: float) -> None:
        """Record metrics; the last value of each goes into the artifact.

        NaN and infinities are recorded (a run may recover), but when one is the last value the training fails.
        Raises BadMetrics for what is not a number.
        """
        found = {name: events.as_json(drafts.number(name, value)) for name, value in values.items()}
        self._event({"metrics": found, "step": step})

    def log(self, message: str) -> None:
        """One line into the training's log."""
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()

    def commit_checkpoint(self, step: int | None = None, *, timeout: float = 600.0) -> bool:
        """Commit what is in `checkpoint_dir`: only a committed checkpoint is ever resumed.

        Blocks until the checkpoint is stored outside the node (where the job has a ``resume`` key), so that its files
        may be overwritten afterwards.

        Returns:
            True when it is stored; False when it could not be (the log says why) or ``timeout`` seconds passed.

        Raises:
            ValueError: the directory is empty.
        """
        made = checkpoints.commit(self.checkpoint_dir, step)
        ack = os.environ.get("MLINFRA_CHECKPOINT_ACK")
        until = time.monotonic() + timeout
        while ack and time.monotonic() < until:
            answer = read_json_if_there(Path(ack))
            if answer is not None and answer.get("id") == made.id:
                return bool(answer.get("stored"))
            time.sleep(0.02)
        return not ack

    def artifact(
        self,
        *,
        format: str,  # noqa: A002  (the word users type)
        name: str | None = None,
        metrics: Mapping[str, float] | None = None,
        **metadata: Any,
    ) -> ModelArtifact:
        """Say what is in `output_dir`: return it from the training function. The last call counts.

        On the node it is a draft (`drafts.ArtifactDraft`); the caller of the training gets the `ModelArtifact` that is
        stored and verified, so that is what the function's own annotation says, and what type checkers are told here.

        Raises:
            BadMetrics: a metric is NaN, infinite or not a number.
            ValueError: no format, or metadata that is not JSON.
        """
        draft = drafts.make_draft(format, name, metrics, metadata)
        place = os.environ.get("MLINFRA_DRAFT")
        if place:
            write_json(Path(place), draft.to_payload())
        return draft  # type: ignore[return-value]

    def _event(self, event: Mapping[str, Any]) -> None:
        events.append(Path(os.environ["MLINFRA_EVENTS"]), {"time": time.time(), **event})


def _shared() -> Any:
    """State of this process, shared by the copy of this module in the archive and the one in the installed package."""
    module = sys.modules.get(_SHARED)
    if module is None:
        module = types.ModuleType(_SHARED)
        vars(module).update(node=None, stopping=False, callbacks=[])
        sys.modules[_SHARED] = module
    return module


def _on_sigterm(*_: object) -> None:
    shared = _shared()
    if shared.stopping:
        return
    shared.stopping = True
    for callback in list(shared.callbacks):
        _call(callback)


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:  # noqa: BLE001  (the user's; raised from a signal handler it would hit an arbitrary line)
        with contextlib.suppress(OSError):
            traceback.print_exc()
