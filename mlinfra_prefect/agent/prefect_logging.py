"""Prefect's ``get_run_logger()`` on a node: the same call, a plain logger, no server.

There is no run on the node, so Prefect's own would raise. What it logs goes to standard output, which is the
training's log. Prefect is patched when user code imports it, and never imported by us: that would cost every training
a second.
"""

from __future__ import annotations

import importlib.machinery
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_LOGGERS = "prefect.logging.loggers"
_COPIES = ("prefect.logging", "prefect")


def install() -> None:
    """Make ``get_run_logger`` work in this process, whether Prefect is loaded already or later. Idempotent."""
    module = sys.modules.get(_LOGGERS)
    if module is not None:
        _patch(module)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def run_logger(context: object = None, **kwargs: Any) -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """What ``get_run_logger`` is on a node: same parameters; extra fields are kept on the records."""
    del context
    logger = logging.getLogger("mlinfra.node")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)-7s | %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logging.LoggerAdapter(logger, kwargs) if kwargs else logger


def _patch(module: ModuleType) -> None:
    vars(module)["get_run_logger"] = run_logger
    for name in _COPIES:
        copy = sys.modules.get(name)
        if copy is not None and "get_run_logger" in vars(copy):
            vars(copy)["get_run_logger"] = run_logger


class _Finder:
    """Lets the others find the module, and patches it right after it ran; everyone who imports from it gets ours."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _LOGGERS:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: importlib.machinery.ModuleSpec | None = (
                None if finder is self or find is None else find(name, path, target)
            )
            if spec is not None and spec.loader is not None:
                run = spec.loader.exec_module

                def exec_module(module: ModuleType) -> None:
                    run(module)  # noqa: B023  (we return in this very turn of the loop)
                    _patch(module)

                vars(spec.loader)["exec_module"] = exec_module
                return spec
        return None
