"""How the rows are played in which a whole host is lost, its home with it, and the ledger lies in the state bucket."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from mlinfra_prefect.chaos.place import Place
from mlinfra_prefect.chaos.plan import Plan
from mlinfra_prefect.chaos.playing_cloud import EVERYBODY, LOOK_SECONDS, until_so

KEPT_SECONDS = 300.0
"""The lease's TTL, and what a reaper needs."""
TRAINS_SECONDS = 6.0
ENDED_SECONDS = 60.0
UPLOADED_SECONDS = 10.0
BOOT_ID = "/proc/sys/kernel/random/boot_id"
ANOTHER_BOOT = "0b00757a-0000-4000-8000-00000000000b"
_BEGIN = f'hostname another && mount --bind "$0" {BOOT_ID} && exec "$@"'
ANOTHER_HOST = ("unshare", "--uts", "--mount", "sh", "-c", _BEGIN)
"""Begins a command on another host, as far as names and boots tell: what it sees of processes proves nothing there."""


def home_lost(place: Place, plan: Plan) -> None:
    """Client, keeper, Terraform and their home are gone at any moment; a reaper elsewhere has the ledger alone."""
    place.share_ledger()
    place.client("lease", seconds=plan.options["training"])
    for strike in plan.strikes:
        place.strike(strike)
    _lose(place)


def host_lost(place: Place, plan: Plan) -> None:
    """The same while it trains, or has trained and nobody has collected that; the reaper is on another host.

    It can prove nobody dead, so it waits for the TTL. It has the mailbox, and so what the training made: that is kept.
    """
    place.share_ledger()
    trained = bool(plan.options["trained"])
    place.client("lease", seconds=TRAINS_SECONDS if trained else 600.0)
    # The job is named before it is handed over: only what runs on the machine has a life of its own.
    if not place.wait("job") or not until_so(place, lambda: bool(place.victims("training")), ENDED_SECONDS):
        return
    place.hit(place.victims("client"), "STOP")  # it collects nothing any more; its keeper would at the release
    if trained and not _ended(place):
        return
    time.sleep(plan.options["later"])
    _lose(place)
    boot = place.root / "boot"
    boot.write_text(f"{ANOTHER_BOOT}\n")
    place.wrap_reapers = (*ANOTHER_HOST, str(boot))
    if trained:
        place.wait_gone(time.time() + KEPT_SECONDS, reaper=True)
        if not list(place.home.glob("artifacts/*/files/*")):
            place.problems.append("what was trained is lost: the next keeper did not bring it home")


def _ended(place: Place) -> bool:
    """Wait until nothing trains on the machine any more, and what it made may have left it."""
    until = time.time() + ENDED_SECONDS
    while place.victims("training"):
        if time.time() > until:
            return False
        time.sleep(LOOK_SECONDS)
    time.sleep(UPLOADED_SECONDS)
    return True


def needs_another_host() -> str:
    """Why no other host can be played on this one."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    boot = Path(BOOT_ID)
    if not boot.exists():
        return "this host does not tell its boot"
    tried = subprocess.run([*ANOTHER_HOST, str(boot), "true"], check=False, capture_output=True)
    return "" if tried.returncode == 0 else "another host cannot be played here: it needs root"


def _lose(place: Place) -> None:
    for _ in range(2):  # a keeper may be starting an operation while it is killed
        place.hit([seen for role in EVERYBODY for seen in place.victims(role)], "KILL")
        time.sleep(0.2)
    place.lose_home()
