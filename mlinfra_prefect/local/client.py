"""Talks to an inference server by the Open Inference Protocol v2: is it ready, and what does it predict.

Standard library only, because the keeper's short operations and a user's script both need it and neither should pay
for an HTTP framework. A proxy of the environment is never asked for a loopback address: it could not reach it, and
must not see it.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.errors import EndpointNotReady, InvalidInput, PermanentError

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_SECONDS = 0.05
"""Between two looks at a starting server: each costs it nothing, as it refuses connections until it is ready."""

_READY_TIMEOUT = 1.0  # seconds; readiness is answered from memory, and a busy machine is the only reason to wait
_NATURAL = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}


def ready(url: str) -> bool:
    """Whether the server answers that it is ready. Blocks for a second at most; an absent server is just not ready.

    Raises:
        InvalidInput: the URL is not an http address.
    """
    _check_scheme(url)
    try:
        return _ask(f"{url.rstrip('/')}/v2/health/ready", None, _READY_TIMEOUT).get("ready") is True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def wait_ready(url: str, deadline: float, alive: Callable[[], bool], look: Callable[[str], bool] = ready) -> float:
    """Wait until the server is ready; return the seconds that took. Blocking.

    Args:
        url: the endpoint's.
        deadline: epoch seconds, as every deadline of a lease.
        alive: whether what should become ready still runs; asked between looks, so a crash ends the wait at once.
        look: how one sees that it is ready.

    Raises:
        EndpointNotReady: it ended, or the deadline passed.
    """
    began = time.monotonic()
    patience = deadline - time.time()
    while True:
        # Asked before looking: a server that answers and then dies must not be lost to the other order.
        lives = alive()
        if look(url):
            return time.monotonic() - began
        if not lives:
            raise EndpointNotReady(f"The server at {url} ended before it was ready.", "Its log says why.")
        if time.monotonic() - began >= patience:
            message = f"The server at {url} was not ready within {max(patience, 0):.0f} s."
            raise EndpointNotReady(message, "Its log says what it was doing; allow it more time if it was loading.")
        time.sleep(POLL_SECONDS)


def infer(
    url: str,
    name: str,
    inputs: Any,
    *,
    token: str | None = None,
    datatype: str | None = None,
    output: str | None = None,
    timeout: float = 30,
) -> list[Any]:
    """Ask the model for its predictions. Blocking; idempotent as far as the model is.

    Args:
        url: the endpoint's.
        name: the model's name in the URL.
        inputs: a nested list, or anything with ``tolist()``; the first axis is the examples.
        token: the endpoint's; None: it asks for none.
        datatype: the protocol's (``FP32``, ``INT64``, ``BYTES``, …); None: BOOL, INT64, FP64 or BYTES by the values.
        output: the output wanted, and then the only one computed where the model can; None: ``predict`` where the
            answer has it, otherwise the first.
        timeout: seconds to wait for the answer.

    Returns:
        The output as a nested list of its shape.

    Raises:
        InvalidInput: the URL is not an http address, the inputs are ragged or mixed, or the server refused the
            request (its sentence is in the error) or the token.
        EndpointNotReady: nobody answers there, or not in time, or the model is not loaded.
        PermanentError: the model itself failed; the message carries what it raised.
    """
    _check_scheme(url)
    nested = inputs.tolist() if hasattr(inputs, "tolist") else inputs
    shape, flat = _flatten(nested)
    tensor = {"name": "input", "shape": shape, "datatype": datatype or _datatype(flat), "data": flat}
    request: dict[str, Any] = {"inputs": [tensor]}
    if output is not None:
        request["outputs"] = [{"name": output}]
    path = f"/v2/models/{urllib.parse.quote(name, safe='')}/infer"
    try:
        answer = _ask(url.rstrip("/") + path, json.dumps(request).encode(), timeout, token)
        outputs = {entry["name"]: entry for entry in answer["outputs"]}
        chosen = outputs[output or ("predict" if "predict" in outputs else next(iter(outputs)))]
        return _nest(list(chosen["data"]), list(chosen["shape"]))
    except urllib.error.HTTPError as error:
        raise _refusal(error, url, name) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        message = f"The endpoint at {url} did not answer ({reason})."
        raise EndpointNotReady(message, "See whether it is still there: mlinfra-prefect endpoints.") from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise PermanentError(f"What answered at {url} does not speak the Open Inference Protocol v2.") from error


def bearer(token: str | None) -> dict[str, str]:
    """The header that shows a token; none where there is none to show."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _ask(url: str, body: bytes | None, timeout: float, token: str | None = None) -> dict[str, Any]:
    """One request; raises what urllib raises, ValueError where the answer is no JSON object."""
    request = urllib.request.Request(  # noqa: S310
        url, data=body, headers={"Content-Type": "application/json"}
    )
    for key, value in bearer(token).items():
        request.add_unredirected_header(key, value)  # whoever answers with another address does not get it
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if _loopback(request.host) else None
    with (opener.open if opener else urllib.request.urlopen)(request, timeout=timeout) as response:
        answer = json.load(response)
    if not isinstance(answer, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 -- as for any other answer that cannot be read
    return answer


def _check_scheme(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise InvalidInput("url", f"{url!r} is not an http address")


def _loopback(netloc: str) -> bool:
    host = urllib.parse.urlsplit(f"//{netloc}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refusal(error: urllib.error.HTTPError, url: str, name: str) -> Exception:
    try:
        said = str(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        said = str(error.reason)
    if error.code == http.client.UNAUTHORIZED:
        return InvalidInput("token", said, "`mlinfra-prefect endpoints --token NAME` prints it.")
    if error.code == http.client.SERVICE_UNAVAILABLE:
        return EndpointNotReady(f"The model {name!r} at {url} is not ready: {said}")
    if error.code < http.client.INTERNAL_SERVER_ERROR:
        return InvalidInput("inputs" if error.code == http.client.BAD_REQUEST else "name", said)
    return PermanentError(f"The model {name!r} at {url} failed: {said}", "Its log has the traceback.")


def _flatten(nested: Any) -> tuple[list[int], list[Any]]:
    """Shape and flat values of a nested list; InvalidInput where it is ragged or not a list."""
    if not isinstance(nested, list | tuple):
        raise InvalidInput(
            "inputs", f"a {type(nested).__name__} is not an array", "Pass a list with one entry per example."
        )
    shape: list[int] = []
    level = [nested]
    while all(isinstance(entry, list | tuple) for entry in level) and level:
        lengths = {len(entry) for entry in level}
        if len(lengths) != 1:
            raise InvalidInput("inputs", f"rows of different lengths: {sorted(lengths)}")
        shape.append(lengths.pop())
        level = [value for entry in level for value in entry]
    if any(isinstance(value, list | tuple) for value in level):
        raise InvalidInput("inputs", "values and rows are mixed on one level")
    return shape, level


def _datatype(flat: list[Any]) -> str:
    kinds = {type(value) for value in flat}
    if kinds == {int, float}:
        return "FP64"
    if len(kinds) > 1 or not kinds <= _NATURAL.keys():
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidInput("inputs", f"values of these types cannot be one tensor: {names}", "Use one type of number.")
    return _NATURAL[kinds.pop()] if kinds else "FP64"


def _nest(flat: list[Any], shape: list[int]) -> list[Any]:
    """Give a flat list its shape back; ValueError where it does not have that many values."""
    for size in reversed(shape[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)] if size else []
    if shape and len(flat) != shape[0] and 0 not in shape:
        raise ValueError("the output's data do not fill its shape")
    return flat
