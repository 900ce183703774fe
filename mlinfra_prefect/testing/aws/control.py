"""The emulator's own endpoint, for other processes: what runs, what was asked, and which faults hold.

* ``GET  /_emulator/instances``: every instance, with its machine.
* ``GET  /_emulator/log?since=N``: the requests after the N-th, phase by phase, and what happened to the machines.
* ``POST /_emulator/faults``: ``{"fault": "no_capacity", "types": ["g5.*"]}``, the methods of `Faults` by name.
* ``POST /_emulator/settle``: answers when every machine is as its instance.

It is on the loopback interface like the rest, and has no password: whoever reaches it may run what the emulator runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

from mlinfra_prefect.errors import MlinfraError
from mlinfra_prefect.testing.aws.faults import Faults
from mlinfra_prefect.testing.aws.machines import EmulatedInstance, Machines
from mlinfra_prefect.testing.faults import StartResponse

PREFIX = "/_emulator/"


class Control:
    """Answers under ``/_emulator/``.

    Args:
        faults: what is asked for is done to these.
        machines: what is told of.
        settle: returns when every machine is as its instance.
    """

    def __init__(self, faults: Faults, machines: Machines, settle: Callable[[], None]) -> None:
        self._faults, self._machines, self._settle = faults, machines, settle

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request with JSON; what is wrong with it is 400 and a sentence."""
        try:
            said = self._said(environ)
            status = "200 OK" if said is not None else "404 Not Found"
        except (MlinfraError, ValueError, KeyError, TimeoutError) as error:
            status, said = "400 Bad Request", {"error": str(error)}
        body = json.dumps(said if said is not None else {"error": "There is no such path."}).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _said(self, environ: dict[str, Any]) -> Any:
        asked = f"{environ.get('REQUEST_METHOD')} {str(environ['PATH_INFO']).removeprefix(PREFIX)}"
        if asked == "GET instances":
            return [_shown(each) for each in self._machines.view()]
        if asked == "GET log":
            since = int(parse_qs(str(environ.get("QUERY_STRING", ""))).get("since", ["0"])[0])
            return {
                "requests": [asdict(each) for each in self._faults.proxy.log if each.request > since],
                "machines": [asdict(each) for each in self._machines.events],
            }
        if asked == "POST faults":
            body = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            if not isinstance(body, dict) or not isinstance(body.get("fault"), str):
                raise ValueError('The body is to be an object such as {"fault": "late", "seconds": 5}.')
            self._faults.apply_fault(body.pop("fault"), body)
            return {"done": True}
        if asked == "POST settle":
            self._settle()
            return {"done": True}
        return None


def _shown(each: EmulatedInstance) -> dict[str, Any]:
    return {**asdict(each), "root": str(each.root), "console": each.console}
