"""AWS on a loopback port, with instances that run: for tests of whatever asks it for machines (extra ``emulator``)."""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlinfra_prefect.errors import UnsupportedHere
from mlinfra_prefect.testing.aws import bucket_policies
from mlinfra_prefect.testing.aws.account import Account
from mlinfra_prefect.testing.aws.control import PREFIX as CONTROL, Control
from mlinfra_prefect.testing.aws.faults import Faults
from mlinfra_prefect.testing.aws.machines import EmulatedInstance, MachineEvent, Machines
from mlinfra_prefect.testing.aws.metadata import PREFIX as METADATA, Metadata
from mlinfra_prefect.testing.aws.permissions import Permissions
from mlinfra_prefect.testing.aws.service import Service
from mlinfra_prefect.testing.emulator import REGION, MotoServer
from mlinfra_prefect.testing.faults import Application, FaultProxy, StartResponse

SETTLE_SECONDS = 30.0
_numbers = itertools.count(100_000_000_001)


class Emulator(Faults):
    """AWS in this process: moto, what it lacks, real processes for instances, and faults. A context manager.

    An account of its own: two emulators in one process do not see each other, and all of an account is forgotten when
    its emulator ends. Its processes are ended then too, and its files removed.

    Args:
        port: of the loopback interface; 0: a free one.
        run_any_user_data: run user data that this package has not rendered as well. It runs as you, with your files in
            reach, so only for user data that you would run by hand.
        iam: carry out only what the policies of the credentials allow; `environment` then has the keys of an
            administrator. What of IAM that is stands in `permissions` and `policies`.
        minute_seconds: how long a minute of ``shutdown -P +N`` lasts.
        told: hears what happens to the machines, from another thread.

    Raises:
        UnsupportedHere: this is not Linux, or moto is not installed.
        OSError: the port is taken.
    """

    def __init__(
        self, *, port: int = 0, run_any_user_data: bool = False, iam: bool = False, minute_seconds: float = 60.0,
        told: Callable[[MachineEvent], None] = lambda _: None,
    ) -> None:  # fmt: skip
        if sys.platform != "linux":
            raise UnsupportedHere(
                "The emulated machines need Linux.", "In tests of requests alone `MotoServer` will do."
            )
        super().__init__()
        self._account = Account(f"{next(_numbers):012d}")
        self._permissions = Permissions(self._account, enforced=iam)
        self._service: Service
        self._server = MotoServer(port=port, behind=self._behind, before=self._before)
        self.proxy = self._server.proxy
        self._root = Path(tempfile.mkdtemp(prefix="mlinfra-aws-"))
        self._machines = Machines(
            self._account, self.proxy.exclusively, self._root, lambda number: f"{self.url}{METADATA}{number}",
            run_any=run_any_user_data, minute_seconds=minute_seconds, broken=self.gpus_broken, told=told,
        )  # fmt: skip
        self._metadata = Metadata(self._account, self.proxy.exclusively)
        self._control = Control(self, self._machines, self.settle)
        self._service.console = self._console
        self._service.changed = self._machines.wake
        self._service.rebooted = self._machines.reboot

    @property
    def account(self) -> str:
        """The account's twelve digits."""
        return self._account.id

    @property
    def url(self) -> str:
        """Where it answers."""
        return self._server.url

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the SDK and Terraform reach it and nothing else."""
        return self._server.environment | self._permissions.credentials

    @property
    def instances(self) -> tuple[EmulatedInstance, ...]:
        """Every instance of every region, oldest first, the terminated ones included."""
        return self._machines.view()

    @property
    def events(self) -> list[MachineEvent]:
        """What happened to the machines so far, oldest first."""
        return self._machines.events

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Return when every machine is as its instance: what runs has begun, and of what ended nothing is left.

        Raises:
            TimeoutError: not within so many seconds.
        """
        until = time.monotonic() + seconds
        while not self._machines.settled():
            if time.monotonic() > until:
                raise TimeoutError(f"The emulated machines are not as their instances after {seconds:.0f} s.")
            self._machines.wake()
            time.sleep(0.02)

    def __enter__(self) -> Self:
        bucket_policies.mend()
        self._permissions.begin()
        self._server.__enter__()
        self._machines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._machines.close()
        self._server.__exit__(kind, error, trace)
        self._account.forget()
        shutil.rmtree(self._root, ignore_errors=True)

    def _behind(self, moto: Application) -> Application:
        self._service = Service(moto, self._account, self, REGION, self._permissions.check)
        return self._service

    def _before(self, proxy: FaultProxy | Application) -> Application:
        def routed(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            path = str(environ.get("PATH_INFO", ""))
            if path.startswith(METADATA):
                return self._metadata(environ, start_response)
            if path.startswith(CONTROL):
                return self._control(environ, start_response)
            return proxy(environ, start_response)

        return routed

    def _console(self, instance_id: str) -> str | None:
        return next((each.console for each in self._machines.view() if each.id == instance_id), None)
