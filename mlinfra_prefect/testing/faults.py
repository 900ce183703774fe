"""The fault proxy: WSGI middleware that makes a cloud behave as badly as a real one, one operation at a time.

In front of moto it turns an emulator that always answers into one that is slow, refuses, answers 500 after it did what
was asked, or drops the connection. In front of any other WSGI application it does the same by method and path::

    proxy = FaultProxy(application)
    proxy.fault("RunInstances", drop_after=True)                     # carried out once, and nobody hears of it
    proxy.fault("PutObject", match="records/", status=500, times=3)  # refused three times, never carried out
    ...
    proxy.wait_for("RunInstances", "executed")

Safe for threads. Needs no other package.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any, Literal

from mlinfra_prefect.testing.aws_operations import Operation, error_body, recognised

Phase = Literal["received", "executed", "answered", "dropped"]
StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to a request.

    Args:
        operation: its name, such as ``PutObject``, ``RunInstances`` or ``POST /clusters``; ``*`` stands for any text.
        match: only where the path holds this text.
        times: how often; None: for ever.
        delay_before: seconds before it is carried out.
        delay_after: seconds after it was carried out and before it is answered.
        drop_before: close the connection without carrying it out.
        drop_after: carry it out, then close the connection without an answer.
        status: answer with this HTTP status instead.
        code: the error's code in that answer, such as ``SlowDown``; default the status's own name.
        executed: carry it out before it is answered with `status`.
    """

    operation: str
    match: str = ""
    times: int | None = 1
    delay_before: float = 0.0
    delay_after: float = 0.0
    drop_before: bool = False
    drop_after: bool = False
    status: int | None = None
    code: str = ""
    executed: bool = False

    def fits(self, operation: str, path: str) -> bool:
        """Whether it is about such a request. Pure."""
        return fnmatchcase(operation, self.operation) and self.match in path


@dataclass(frozen=True, slots=True)
class Seen:
    """One line of the log: a request has come to a phase. `request` numbers the requests from 1."""

    request: int
    phase: Phase
    operation: str
    method: str
    path: str
    status: int | None
    at: float
    """Of `time.monotonic`."""


class FaultProxy:
    """A WSGI application before another one.

    Args:
        application: what carries the requests out.
        serial: let it carry out one at a time. For an emulator whose check and whose write are two steps, where the
            real service has one.
    """

    def __init__(self, application: Application, *, serial: bool = False) -> None:
        self._application = application
        self._one = threading.RLock() if serial else None
        self._changed = threading.Condition()
        self._rules: list[Rule] = []
        self._log: list[Seen] = []
        self._requests = 0
        self._closing = threading.Event()

    # --- for tests ---------------------------------------------------------------------------------------------------

    def fault(self, operation: str, **what: Any) -> Rule:
        """Add a rule (see `Rule`) and return it; of several that fit, the oldest one holds."""
        return self.add(Rule(operation, **what))

    def add(self, rule: Rule) -> Rule:
        """Add a rule and return it."""
        with self._changed:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget every rule; what is delayed already stays so."""
        with self._changed:
            self._rules.clear()

    @property
    def log(self) -> list[Seen]:
        """Everything that was seen, oldest first."""
        with self._changed:
            return list(self._log)

    def count(self, operation: str = "*", phase: Phase = "received", *, match: str = "", since: int = 0) -> int:
        """Return how many requests of an operation came to a phase, after the first `since` requests."""
        return len(self._found(Rule(operation, match), phase, since))

    def wait_for(
        self, operation: str, phase: Phase = "received", *, match: str = "", times: int = 1, since: int = 0,
        seconds: float = PATIENCE_SECONDS,
    ) -> Seen:  # fmt: skip
        """Wait until an operation has come to a phase so many times, and return the last line of it.

        Raises:
            TimeoutError: it has not.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self._found(Rule(operation, match), phase, since)) >= times, seconds
            ):
                raise TimeoutError(f"{operation} was not {phase} {times} time(s) within {seconds:.0f} s")
            return self._found(Rule(operation, match), phase, since)[times - 1]

    @property
    def requests(self) -> int:
        """How many requests there were so far; `since` takes it."""
        with self._changed:
            return self._requests

    def close(self) -> None:
        """End every delay at once. Idempotent."""
        self._closing.set()

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep requests from being carried out meanwhile; with `serial` only. Re-entrant in one thread.

        For what reads or changes the application's state from outside a request.
        """
        if self._one is None:
            yield
            return
        with self._one:
            yield

    def _found(self, rule: Rule, phase: Phase, since: int) -> list[Seen]:
        with self._changed:
            return [
                each for each in self._log
                if each.phase == phase and each.request > since and rule.fits(each.operation, each.path)
            ]  # fmt: skip

    # --- for the server ----------------------------------------------------------------------------------------------

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Carry a request out, or what a rule makes of it.

        Raises:
            ConnectionAbortedError: the server is to close the connection without an answer (Werkzeug's does).
        """
        operation, path = read_operation(environ), str(environ.get("PATH_INFO", ""))
        rule, seen = self._taken(operation, str(environ.get("REQUEST_METHOD", "")), path)
        self._pause(rule.delay_before)
        if rule.drop_before:
            self._note(seen, "dropped")
            raise ConnectionAbortedError("dropped before it was carried out")
        status, headers, body = "", list[tuple[str, str]](), b""
        if rule.status is None or rule.executed:
            status, headers, body = self._carried_out(environ)
            self._note(seen, "executed", int(status.partition(" ")[0]))
        self._pause(rule.delay_after)
        if rule.drop_after:
            self._note(seen, "dropped")
            raise ConnectionAbortedError("dropped after it was carried out")
        if rule.status is not None:
            named = HTTPStatus(rule.status)
            kind, body = error_body(operation, rule.code or named.phrase.replace(" ", ""), "made by the fault proxy")
            body = b"" if environ.get("REQUEST_METHOD") == "HEAD" else body
            status, headers = (
                f"{rule.status} {named.phrase}",
                [("Content-Type", kind), ("Content-Length", str(len(body)))],
            )
        # Before the bytes leave: who has the answer finds it in the log.
        self._note(seen, "answered", int(status.partition(" ")[0]))
        start_response(status, headers)
        return [body]

    def _carried_out(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        told: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
            del exc_info
            told.append((status, headers))
            return written.append

        written: list[bytes] = []
        if self._one is None:
            parts = self._run(environ, start)
        else:
            with self._one:
                parts = self._run(environ, start)
        status, headers = told[-1]
        return status, headers, b"".join((*written, *parts))

    def _run(self, environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        answer = self._application(environ, start)
        try:
            return list(answer)
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()

    def _taken(self, operation: Operation, method: str, path: str) -> tuple[Rule, Seen]:
        """Number a request, and use one of the times of the rule that fits it."""
        with self._changed:
            self._requests += 1
            seen = Seen(self._requests, "received", operation.name, method, path, None, time.monotonic())
            self._log.append(seen)
            self._changed.notify_all()
            for number, rule in enumerate(self._rules):
                if rule.fits(operation.name, path):
                    if rule.times is not None:
                        left = replace(rule, times=rule.times - 1)
                        self._rules[number : number + 1] = [left] if left.times else []
                    return rule, seen
        return Rule("*"), seen

    def _note(self, seen: Seen, phase: Phase, status: int | None = None) -> None:
        with self._changed:
            self._log.append(replace(seen, phase=phase, status=status, at=time.monotonic()))
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        if seconds:
            self._closing.wait(seconds)


def read_operation(environ: dict[str, Any]) -> Operation:
    """Recognise a WSGI request, and leave its body as it was."""
    headers = {name[5:].replace("_", "-").lower(): str(value) for name, value in environ.items() if name[:5] == "HTTP_"}
    headers["content-type"] = str(environ.get("CONTENT_TYPE") or "")
    body = b""
    if headers["content-type"].startswith("application/x-www-form-urlencoded"):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
    return recognised(
        str(environ.get("REQUEST_METHOD", "")), headers.get("host", ""), str(environ.get("PATH_INFO", "")),
        str(environ.get("QUERY_STRING", "")), headers=headers, body=body,
    )  # fmt: skip
