"""From a function to its address: what the node needs to find it again, and why some functions have none.

Sending *where the code is* and not the code keeps what runs on the node readable, versioned and free of pickle. The
price is that a function must be reachable by name from a module; each kind that is not is refused here, by its own
sentence, before anything is created.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.agent.loading import unwrap
from mlinfra_prefect.code.address import (
    FIELD,
    TOP_LEVEL_REMEDY,
    CallableReference,
    Located,
    file_address,
    text_address,
)
from mlinfra_prefect.errors import NotImportable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BY_VALUE_REMEDY = (
    "Define it with `def` at the top level of a .py file, or pass `by_value=True` to send the function itself "
    "(the node's Python must then have the same minor version)."
)


def refuse_unsendable(function: Any) -> None:
    """Raise for what can be sent neither by name nor by value. Pure.

    Raises:
        NotImportable: a partial, a class, a builtin, a bound method of an instance, a callable object, a generator.
    """
    kind = ""
    if isinstance(function, functools.partial):
        raise NotImportable(
            FIELD,
            "is a functools.partial, which has no name on the node.",
            "Pass the function itself and give it the arguments.",
        )
    if isinstance(function, type):
        kind = f"is the class {function.__qualname__}"
    elif isinstance(function, types.MethodType) and not isinstance(function.__self__, type):
        kind = f"is the method {function.__name__} bound to an instance of {type(function.__self__).__qualname__}"
    elif isinstance(function, types.BuiltinFunctionType | types.MethodWrapperType | types.WrapperDescriptorType):
        kind = f"is the builtin {getattr(function, '__qualname__', function)}"
    elif not isinstance(function, types.FunctionType | types.MethodType):
        kind = (
            f"is a callable object of type {type(function).__qualname__}" if callable(function) else "is not callable"
        )
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        kind = f"{function.__qualname__} is a generator, whose values cannot travel one by one"
    if kind:
        raise NotImportable(FIELD, f"{kind}.", TOP_LEVEL_REMEDY)


def locate(target: Callable[..., Any] | str) -> Located:
    """Return the reference of `target` and the root of its project. Runs no user code.

    Call it when the function is *called*, not while its module is being imported: only then does its name exist.

    Raises:
        NotImportable: the function has no address; the message says why and what to do.
    """
    if isinstance(target, str):
        return text_address(target)
    function = unwrap(target)
    refuse_unsendable(function)
    qualname = _qualname(function)
    if "<lambda>" in qualname:
        raise NotImportable(FIELD, "is a lambda, which has no name on the node.", BY_VALUE_REMEDY)
    if "<locals>" in qualname:
        raise NotImportable(FIELD, f"{qualname} is defined inside another function.", BY_VALUE_REMEDY)
    namespace = namespace_of(function)
    if is_interactive(function):
        raise NotImportable(
            FIELD, f"{qualname} is defined in a notebook or an interactive session, not in a file.", BY_VALUE_REMEDY
        )
    found = _walk(namespace, qualname)
    if found is not function and not (isinstance(function, types.MethodType) and found == function):
        state = "not there" if found is None else "something else"
        raise NotImportable(
            FIELD,
            f"the name {qualname!r} in {function.__module__} is {state}, so the node would not find it.",
            "Give the function a name of its own at the top level of its module; a decorator must use functools.wraps.",
        )
    return module_address(function)


def module_address(function: Any) -> Located:
    """Return the address of a function that a file holds, without asking whether its name leads back to it."""
    namespace = namespace_of(function)
    name = str(namespace.get("__name__", function.__module__))
    return file_address(Path(namespace["__file__"]).resolve(), name, namespace.get("__spec__"), _qualname(function))


def reference(target: Callable[..., Any] | str) -> CallableReference:
    """Return where `target` is; see `locate`, which also knows the project's root."""
    return locate(target).reference


def resolve(target: Callable[..., Any] | str) -> Callable[..., Any] | None:
    """Return the function without our decorators and Prefect's; None for a name whose module is not loaded here.

    Never imports: importing a script that lacks its guard would run it inside the flow. For a name that is not
    loaded, `Prepared.signature` knows the parameters.
    """
    if not isinstance(target, str):
        return unwrap(target)  # type: ignore[no-any-return]
    located = text_address(target)
    address = located.reference
    file = located.root / address.file if located.root is not None and address.file is not None else None
    for name, module in list(sys.modules.items()):
        origin = vars(module).get("__file__") if isinstance(module, types.ModuleType) else None
        loaded = name == address.module if file is None else isinstance(origin, str) and Path(origin).resolve() == file
        if loaded and callable(found := _walk(vars(module), address.qualname)):
            return found  # type: ignore[no-any-return]
    return None


def namespace_of(function: Any) -> Mapping[str, Any]:
    """Return the globals of the module that defines `function`, below every decorator that used functools.wraps.

    The globals and not ``sys.modules``: Prefect loads a flow's file under a name of its own making.
    """
    if isinstance(function, types.MethodType):
        return vars(sys.modules.get(function.__self__.__module__, types.ModuleType("")))
    try:
        inner = inspect.unwrap(function)
    except ValueError:  # a cycle of __wrapped__
        inner = function
    if isinstance(inner, types.FunctionType):
        return inner.__globals__
    return vars(sys.modules.get(function.__module__, types.ModuleType("")))


def names_for_annotations(function: Any) -> Mapping[str, Any]:
    """Return what the annotations of `function` may name: its globals, and what else its module has.

    `flow.serve` sends the flow of a script to a child process by value. The globals are then only what the code itself
    uses, and an annotation that is text uses nothing; but the child has imported the script as well.
    """
    own = namespace_of(function)
    module = vars(sys.modules.get(str(own.get("__name__", "")), types.ModuleType("")))
    same_file = own.get("__file__") is not None and own.get("__file__") == module.get("__file__")
    return {**module, **own} if same_file else own


def is_interactive(function: Any) -> bool:
    """Say whether the function was typed into a notebook, ``python -c`` or a prompt: no file holds it."""
    namespace = namespace_of(function)
    origin = namespace.get("__file__")
    if not isinstance(origin, str) or not Path(origin).is_file():
        return True
    if namespace.get("__name__") != "__main__":
        return False
    inner = inspect.unwrap(getattr(function, "__func__", function))
    source = Path(inner.__code__.co_filename)
    return not source.is_file() or any(part.startswith("ipykernel_") for part in source.parts)


def _qualname(function: Any) -> str:
    if isinstance(function, types.MethodType):  # a class method: the class it was taken from, which may be a subclass
        owner: Any = function.__self__
        return f"{owner.__qualname__}.{function.__name__}"
    return str(function.__qualname__)


def _walk(namespace: Mapping[str, Any], qualname: str) -> Any:
    first, *rest = qualname.split(".")
    found = namespace.get(first)
    for part in rest:
        found = getattr(found, part, None)
    return unwrap(found)
