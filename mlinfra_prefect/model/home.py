"""The home: one directory per ledger, and where everything of it lies.

Two homes never see each other. Everything in it is private (0700), and release never touches ``artifacts/`` and
``checkpoints/``.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.errors import LedgerUnavailable

HOME_VARIABLE = "MLINFRA_HOME"
CACHE_VARIABLE = "MLINFRA_CACHE"
DEFAULT_HOME = "~/.mlinfra-prefect"


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below one ``MLINFRA_HOME``."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """Return the home that ``MLINFRA_HOME`` names, or the default; nothing is created."""
        return cls(Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser().absolute())

    def ensure(self) -> Home:
        """Create the home, private, and return it. Idempotent.

        Raises:
            LedgerUnavailable: it cannot be created or written, or is another user's.
        """
        try:
            self._refuse_a_strangers()
            for place in (
                self.root,
                self.keeper,
                self.cards,
                self.clients,
                self.work,
                self.artifacts,
                self.checkpoints,
                self.cache,
                self.slots,
            ):
                private_folder(place)
        except OSError as error:
            raise LedgerUnavailable(
                f"{HOME_VARIABLE}: {self.root} cannot be used ({error.strerror}).",
                f"Point {HOME_VARIABLE} at a directory that you can write, with room on its disk.",
            ) from error
        return self

    def _refuse_a_strangers(self) -> None:
        """Nothing is written into the home of another user: `sudo` would lock its owner's keeper out of it (R8)."""
        for place in (self.ledger, self.keeper):
            if place.exists() and (owner := place.stat().st_uid) != os.getuid():
                raise LedgerUnavailable(
                    f"{HOME_VARIABLE}: {self.root} is the home of user {owner}, and this is user {os.getuid()}.",
                    f"Run it as that user (sudo -u '#{owner}'), or point {HOME_VARIABLE} at a home of your own.",
                )

    @property
    def ledger(self) -> Path:
        """The SQLite ledger."""
        return self.root / "ledger.sqlite"

    @property
    def keeper(self) -> Path:
        """The watcher's desk."""
        return self.root / "keeper"

    @property
    def cards(self) -> Path:
        """Cards of records that the watcher looks after."""
        return self.keeper / "cards"

    @property
    def clients(self) -> Path:
        """Named pipes that clients hold open."""
        return self.keeper / "clients"

    @property
    def work(self) -> Path:
        """Working directories of leases and endpoints."""
        return self.root / "work"

    def record_dir(self, record_id: str) -> Path:
        """The working directory of one lease or endpoint."""
        return self.work / record_id

    @property
    def artifacts(self) -> Path:
        """Finished artifacts; never touched by release."""
        return self.root / "artifacts"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints; never touched by release."""
        return self.root / "checkpoints"

    @property
    def cache(self) -> Path:
        """Engines, environments and archives that can be made again; ``MLINFRA_CACHE`` may name one for all homes."""
        return Path(os.environ.get(CACHE_VARIABLE) or self.root / "cache").expanduser().absolute()

    @property
    def init_cache(self) -> Path:
        """What Terraform's ``init`` leaves, by module and engine."""
        return self.cache / "init"

    @property
    def aws(self) -> Path:
        """What this home knows of AWS: environments that were initialised, prices, and how to log in."""
        return self.root / "aws"

    @property
    def slots(self) -> Path:
        """Locks that limit the Terraform processes of this host: one place for all homes of a user.

        A place that somebody else made first is not trusted; then this home has a limit of its own.
        """
        shared = Path(tempfile.gettempdir()) / f"mlinfra-prefect-{os.getuid()}"
        try:
            shared.mkdir(mode=0o700, exist_ok=True)
            status = shared.lstat()
        except OSError:
            return self.cache / "slots"
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
        return (shared if ours else self.cache) / "slots"
