"""AWS on a loopback port: moto behind the fault proxy, for tests of what needs a cloud (extra ``emulator``)."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from mlinfra_prefect.errors import UnsupportedHere
from mlinfra_prefect.testing.faults import Application, FaultProxy

Wrapper = Callable[[Application], Application]
REGION = "us-east-1"
JOIN_SECONDS = 10.0


class MotoServer:
    """moto behind a fault proxy, in a thread of this process; a context manager.

    moto keeps its accounts in the process, so two servers in one process show the same ones: use buckets of your own,
    or `reset`. Requests are carried out one at a time: S3's conditional write is one step, and moto's is two.

    Args:
        port: of the loopback interface; 0: a free one.
        behind: wraps moto, behind the proxy: what moto lacks, under the same faults.
        before: wraps the proxy: what is to have neither faults nor a log.

    Raises:
        UnsupportedHere: moto is not installed.
        OSError: the port is taken.
    """

    def __init__(self, *, port: int = 0, behind: Wrapper | None = None, before: Wrapper | None = None) -> None:
        try:
            from moto.server import DomainDispatcherApplication, create_backend_app
            from werkzeug.serving import WSGIRequestHandler, make_server
        except ImportError:
            raise UnsupportedHere("The emulator is not installed.", "pip install 'mlinfra_prefect[emulator]'") from None

        class Quiet(WSGIRequestHandler):
            """Keeps connections open, and prints no line for each request."""

            protocol_version = "HTTP/1.1"

            def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
                """Close it: a connection that is kept open would only look slow to the client."""
                del error, environ
                self.close_connection = True

            def log(self, *_: Any, **__: Any) -> None:
                """Say nothing: the proxy has a log."""

        moto: Application = DomainDispatcherApplication(create_backend_app)
        self.proxy = FaultProxy(behind(moto) if behind else moto, serial=True)
        front: Application = before(self.proxy) if before else self.proxy
        # Bound here: Werkzeug ends the program where a port is taken.
        with socket.create_server(("127.0.0.1", port), backlog=128) as bound:
            self._server = make_server(
                "127.0.0.1", port, front, threaded=True, request_handler=Quiet, fd=bound.fileno()
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="moto", daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the SDK and Terraform reach it and nothing else, with credentials that are none."""
        return {
            "AWS_ENDPOINT_URL": self.url, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def reset(self) -> None:
        """Forget every account, and every rule of the proxy."""
        self.proxy.clear()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")).close()  # noqa: S310 (ours)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.proxy.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(JOIN_SECONDS)
