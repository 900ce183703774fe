"""Runs in the fresh interpreter of an import check: loads one function with the node's own loader and says how it went.

It is started by path, with the loader's path as an argument, so that nothing of this package needs to be importable
there: only what the node will have decides. Standard library only.

Usage: ``python probe.py LOADER REQUEST RESULT``: REQUEST and RESULT are JSON files.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def _describe(function: Any) -> dict[str, Any]:
    # The function's own signature, not that of a wrapper's *args: what `inspect` follows is what the call meets.
    parameters = [
        {"name": parameter.name, "kind": int(parameter.kind), "required": parameter.default is parameter.empty}
        for parameter in inspect.signature(function).parameters.values()
    ]
    return {"parameters": parameters}


def _sendable(function: Any) -> str:
    if isinstance(function, type):
        return "is a class"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "is a generator, whose values cannot travel one by one"
    return ""


def _failure(error: BaseException) -> dict[str, Any]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    guard = next((item for item in chain if getattr(item, "mlinfra_missing_guard", False)), None)
    missing = next((item.name for item in chain if isinstance(item, ModuleNotFoundError) and item.name), None)
    return {
        "kind": "guard" if guard is not None else "missing" if missing else "raised",
        "missing": missing,
        "message": str(guard) if guard is not None else "".join(traceback.format_exception_only(error)).strip(),
        "traceback": "".join(traceback.format_exception(error))[-8000:],
    }


def main() -> None:
    """Load, describe, write the result, end: without waiting for threads that the import may have started."""
    loader_path, request_path, result_path = sys.argv[1:4]
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("mlinfra_loading", loader_path)
    assert spec is not None
    assert spec.loader is not None
    loading = importlib.util.module_from_spec(spec)
    sys.modules["mlinfra_loading"] = loading
    spec.loader.exec_module(loading)
    sys.argv[:] = [request["file"] or request["module"]]
    code_root = request["code_root"]
    result: dict[str, Any]
    try:
        function = loading.load(
            Path(code_root) if code_root else None,
            request["import_root"],
            request["file"],
            request["module"],
            request["qualname"],
        )
        problem = _sendable(function)
        result = {"kind": "unsendable", "message": problem} if problem else {"kind": "ok", **_describe(function)}
    except BaseException as error:  # noqa: BLE001 - the boundary of user code; SystemExit and KeyboardInterrupt included
        result = _failure(error)
    unfinished = Path(result_path + ".part")
    unfinished.write_text(json.dumps(result), encoding="utf-8")
    unfinished.replace(result_path)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
