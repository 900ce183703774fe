"""The context of the story: one home, its ledger, the project's configuration, and the platforms.

Everything is opened when it is first needed, so that a listing pays for nothing but the ledger.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path

from mlinfra_prefect.agent import allowlist
from mlinfra_prefect.artifacts import ArtifactStore
from mlinfra_prefect.errors import LedgerUnavailable, NotFound, UnsupportedHere
from mlinfra_prefect.ledger import KeptRecord, Ledger, SqliteLedger
from mlinfra_prefect.lifecycle import cloud_access
from mlinfra_prefect.lifecycle.config import Config, load_config
from mlinfra_prefect.lifecycle.ledger_place import from_environment, ledger_address, open_shared
from mlinfra_prefect.lifecycle.platform import Platform
from mlinfra_prefect.model.endpoint import EndpointRecord
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import OPEN, LeaseRecord
from mlinfra_prefect.model.ledger_address import LedgerAddress
from mlinfra_prefect.model.marks import common_marks, marks
from mlinfra_prefect.terraform import Engine, Slots, Stack, find_engine, recorded_engine

LOCK_NAME = "lock"
"""The file of a stack whose lock every Terraform of it inherits (`terraform.Stack.lock_file`)."""
ENGINE_VARIABLE = "MLINFRA_TERRAFORM"
CLOCK_SECONDS = 3.0
"""A host's clock that is wrong by less is taken for right: a store tells its time in whole seconds."""
STACKS = Path(__file__).resolve().parent.parent / "hcl" / "stacks"


class Context:
    """Where the story happens. Cheap to make; not shared between processes."""

    def __init__(self, home: Home | None = None) -> None:
        if sys.platform == "win32":
            raise UnsupportedHere("Windows is not supported: use WSL 2, which is Linux.")
        from_environment(os.environ)  # a malformed address is told before anything is made
        self.home = (home or Home.from_environment()).ensure()
        self.born = time.monotonic()
        self.login = cloud_access.Login(self.home, os.environ)
        """How this process logs in to a cloud, which operations change to what a client lent."""
        self._ahead = 0.0
        self.tell: Callable[[KeptRecord], None] = lambda _: None
        """Called when an operation was recorded and is about to begin; the keeper lays a fresh card."""

    @cached_property
    def ledger(self) -> Ledger:
        """The home's ledger: its own file, or the shared one."""
        return SqliteLedger(self.home.ledger) if self.address is None else open_shared(self.home, self.address)

    @cached_property
    def address(self) -> LedgerAddress | None:
        """Where the shared ledger lies; None: the home has one of its own."""
        return ledger_address(self.home, os.environ)

    @property
    def shared(self) -> bool:
        """Whether other hosts use this ledger too."""
        return self.address is not None

    def here(self, moment: datetime) -> float:
        """Return a moment of the ledger's clock as epoch seconds of this host's, which may be wrong.

        Records hold the ledger's time only; whatever waits, or looks at a clock of its own, is told this host's. What
        two operations tell of one moment is the same text, so a store's clock that tells whole seconds is not refined.
        """
        if self.shared:
            # While the ledger does not answer, the last difference is the best that there is.
            with contextlib.suppress(LedgerUnavailable):
                ahead = time.time() - self.ledger.now().timestamp()
                self._ahead = 0.0 if abs(ahead) < CLOCK_SECONDS else CLOCK_SECONDS * round(ahead / CLOCK_SECONDS)
        return moment.timestamp() + self._ahead

    @cached_property
    def config(self) -> Config:
        """The project's configuration."""
        return load_config()

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """The home's artifact store."""
        return ArtifactStore(self.home.artifacts)

    @cached_property
    def engine(self) -> Engine:
        """The Terraform engine: configured, on PATH, or embedded."""
        configured = os.environ.get(ENGINE_VARIABLE)
        return find_engine(Path(configured) if configured else self.config.terraform, cache_dir=self.home.cache)

    @cached_property
    def slots(self) -> Slots:
        """The host-wide limit on Terraform processes."""
        return Slots(self.home.slots)

    @cached_property
    def actor(self) -> str:
        """Who acts, for the ledger's history."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have a number only
            user = str(os.getuid())
        return f"{user}@{socket.gethostname()}/{os.getpid()}"

    def platform(self, name: str) -> Platform:
        """Return a platform by name.

        Raises:
            NotFound: no such platform in this version.
        """
        if name == "local":
            return self._local
        if name == "aws":
            return self._aws
        raise NotFound(f"Platform {name!r} is not in this version.", "There is: local, aws.")

    @cached_property
    def _local(self) -> Platform:
        from mlinfra_prefect.local.platform import LocalPlatform

        return LocalPlatform(cache=self.home.cache, stacks=STACKS, here=self.here)

    @cached_property
    def _aws(self) -> Platform:
        from mlinfra_prefect.aws.platform import AwsPlatform

        return AwsPlatform(
            cache=self.home.cache, place=self.home.aws, stacks=STACKS,
            settings=lambda name: self.config.environment(name).aws, here=self.here,
        )  # fmt: skip

    def directory(self, record: KeptRecord, written: str) -> Path:
        """Where a directory of a record lies for this home: what a cloud rents may be kept by another host's next."""
        path = Path(written)
        return path if record.platform == "local" else self.home.work.joinpath(*path.parts[-3:])

    def open_stack(self, directory: Path, record: KeptRecord, attempt: int) -> Stack:
        """Open the Terraform stack of one attempt."""
        # The agent is started by Terraform and runs pip, so pip's own settings travel through both.
        env = {**allowlist.inherited(pip=True), **marks(record, attempt, self.here), **_access(record.platform)}
        # What one engine made another one may not be able to destroy.
        return Stack(directory, engine=recorded_engine(directory) or self.engine, slots=self.slots, env=env)

    def open_scratch_stack(self, directory: Path, platform: str = "local") -> Stack:
        """Open a stack that is planned and thrown away."""
        env = {**common_marks(self.ledger.ledger_id), **_access(platform)}
        return Stack(directory, engine=self.engine, slots=self.slots, env=env)

    def record(self, record_id: str) -> KeptRecord:
        """Return a lease or endpoint by id, or an endpoint by its name.

        Raises:
            NotFound: there is none.
        """
        found = self.ledger.read(record_id)
        if found is None:
            # In a shared ledger a name that nobody has would cost a call for each record that ever was.
            states = OPEN if self.shared else None
            named = [
                seen.record
                for seen in self.ledger.records(states=states)
                if isinstance(seen.record, EndpointRecord) and seen.record.name == record_id
            ]
            if not named:
                raise NotFound(
                    f"{record_id!r} is no lease or endpoint of {self.home.root}.",
                    "`mlinfra-prefect ps --all` lists what there is.",
                )
            return named[-1]
        return found.record

    def endpoint(self, name: str, environment: str = "dev") -> EndpointRecord:
        """Return the endpoint of a name, or of an id, that is not released.

        Raises:
            NotFound: there is none.
        """
        found = self.ledger.read(self.ledger.holder(f"endpoint:{environment}:{name}") or name)
        if found is None or not isinstance(found.record, EndpointRecord) or found.record.released_at is not None:
            raise NotFound(
                f"There is no endpoint {name!r} in environment {environment!r}.",
                "`mlinfra-prefect endpoints` lists what is served.",
            )
        return found.record

    def lease(self, lease_id: str) -> LeaseRecord:
        """Return a lease.

        Raises:
            NotFound: there is none of that id, or it is an endpoint.
        """
        found = self.record(lease_id)
        if not isinstance(found, LeaseRecord):
            raise NotFound(f"{lease_id!r} is {'an' if found.kind == 'endpoint' else 'a'} {found.kind}, not a lease.")
        return found


GARBAGE_COLLECTOR = {"GOGC": "400"}
"""Of Terraform with a cloud's provider, whose schema is a hundred megabytes of small pieces: a fifth less work for each
command, and a fifth more memory (measured with the AWS provider 5.100)."""


def _access(platform: str) -> dict[str, str]:
    """What Terraform needs beside the allow-list to work with a platform's cloud."""
    return {} if platform == "local" else {**GARBAGE_COLLECTOR, **cloud_access.variables()}
