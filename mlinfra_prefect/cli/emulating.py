"""``mlinfra-prefect emulate aws``: the emulated AWS as a process of its own, for shells, flows and other programs."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlinfra_prefect.testing.aws import MachineEvent


def emulate_aws(*, port: int = 0, run_any_user_data: bool = False, iam: bool = False) -> int:
    """Run an emulated AWS until Ctrl-C or SIGTERM; every process of its instances is ended then.

    Prints where it answers, a line to paste into a shell, and a line for each instance that starts or ends.

    Args:
        port: of the loopback interface; 0: a free one.
        run_any_user_data: run user data that this package has not rendered as well, as you.
        iam: carry out only what the policies of the credentials allow.

    Returns:
        The exit status.

    Raises:
        UnsupportedHere: the extra ``emulator`` is not installed.
        InvalidInput: the port is taken.
    """
    from mlinfra_prefect.errors import InvalidInput
    from mlinfra_prefect.testing.aws import Emulator

    over = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        over.set()

    try:
        emulator = Emulator(port=port, run_any_user_data=run_any_user_data, iam=iam, told=_said)
    except OSError as error:
        taken = f"{port} cannot be had ({error.strerror})"
        raise InvalidInput("--port", taken, "Leave it out for a free one.") from None
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with emulator:
            variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in emulator.environment.items())
            print(f"AWS is emulated at {emulator.url} (account {emulator.account}).")
            print(f"export {variables}", flush=True)
            over.wait()
            print("Ending every instance.", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _said(event: MachineEvent) -> None:
    detail = f" ({event.detail})" if event.detail else ""
    print(f"{time.strftime('%H:%M:%S', time.localtime(event.at))} {event.instance_id} {event.kind}{detail}", flush=True)
