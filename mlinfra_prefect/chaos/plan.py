"""A run, decided: everything that chance decides comes from the seed and the run's number, before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.lifecycle.leasing import TTL_SECONDS
from mlinfra_prefect.lifecycle.provisioning import PROVISION_SECONDS
from mlinfra_prefect.lifecycle.releasing import UPLOAD_SECONDS
from mlinfra_prefect.local.platform import AGENT_END_SECONDS

if TYPE_CHECKING:
    from mlinfra_prefect.chaos.place import Place

REAPER_INTERVAL_SECONDS = 2.0
"""In the rows in which nobody but a reaper is left, one comes this often: a cron job's minute, shortened."""
GRACE_SECONDS = 5.0
"""What the clients ask for."""
DESTROY_SECONDS = {"local": 30.0, "aws": 120.0}
"""What Terraform and the sweeps may take on a busy machine: on ``terraform_data``, and with a provider of a cloud."""
AT_POINT = -1.0
"""A strike at the moment at which a kill point was reached."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: who, how, and when (seconds after the first client began)."""

    at: float
    victims: tuple[str, ...]
    how: str
    pause: float = 0.0
    """Between two signals of one strike: the second SIGTERM, or what ends a SIGSTOP."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does."""

    row: str
    seed: int
    number: int
    points: str = ""
    strikes: tuple[Strike, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        """Whether its moment was chosen by chance, and not by a named point."""
        return not self.points

    def told(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Plan:
        """Return a plan from its plain JSON.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        strikes = tuple(Strike(**{**each, "victims": tuple(each["victims"])}) for each in told["strikes"])
        return cls(**{**told, "strikes": strikes})


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the matrix.

    Args:
        name: on the command line and in the table.
        about: what is done, and what must hold, in one line.
        victims: groups, of which chance takes one; all of a group are struck in the same moment.
        hows: KILL, TERM, TERM-TERM, INT, STOP-CONT, STOP-KILL; chance takes one.
        points: kill points, of which chance takes one for every other run.
        together: who else is struck when the point is reached.
        both: a point and a strike at a random moment, in every run.
        play: starts the run's clients and strikes.
        reaper: whether nobody but a reaper is left to finish it.
        life: seconds after the client's beginning over which random moments are spread.
        weight: how often chance takes it.
        ttl: whether death cannot be proven, so that the lease's TTL is part of the promise.
        operation: whether a Terraform hangs, so that its operation's deadline is part of the promise.
        needs: says why this machine cannot run it; empty when it can.
        options: what else chance decides.
        serves: whether it needs a model.
        on: what it was measured on.
        platform: on which it leases.
        extra: seconds that it is promised beyond all that, and why is in the row's `about`.
        regions: how many regions its environment needs.
    """

    name: str
    about: str
    play: Callable[[Place, Plan], None]
    victims: tuple[tuple[str, ...], ...] = (("client",),)
    hows: tuple[str, ...] = ("KILL",)
    points: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    both: bool = False
    reaper: bool = False
    life: float = 6.0
    weight: int = 10
    ttl: bool = False
    operation: bool = False
    needs: Callable[[], str] = lambda: ""
    options: Callable[[Random], dict[str, Any]] = lambda _: {}
    serves: bool = False
    on: str = "terraform_data"
    platform: str = "local"
    extra: float = 0.0
    regions: int = 1

    @property
    def promise(self) -> float:
        """Seconds from the last fault, or from when nobody wants it any more, within which all must be gone.

        The promise of the README with this row's figures: a TTL and an operation's deadline only where it needs them.
        """
        teardown = GRACE_SECONDS + UPLOAD_SECONDS + AGENT_END_SECONDS + DESTROY_SECONDS[self.platform] + self.extra
        ttl = TTL_SECONDS if self.ttl else 0.0
        operation = PROVISION_SECONDS if self.operation else 0.0
        return ttl + operation + (REAPER_INTERVAL_SECONDS if self.reaper else 0.0) + teardown

    def plan(self, seed: int, number: int) -> Plan:
        """Decide a run of this row. Pure: the same seed and number decide the same."""
        chance = Random(f"{seed}:{number}:{self.name}")  # noqa: S311 (it must be repeatable)
        points, strikes = "", []
        if self.points and (self.both or chance.random() < 0.5):
            points = chance.choice(self.points)
            if self.together:
                strikes.append(Strike(AT_POINT, self.together, "KILL"))
        if self.victims and (self.both or not points):
            moment = round(chance.uniform(0.0, self.life), 3)
            how = chance.choice(self.hows)
            strikes.append(Strike(moment, chance.choice(self.victims), how, round(chance.uniform(0.05, 2.5), 3)))
        options = {"seconds": round(chance.uniform(0.3, 2.5), 3), **self.options(chance)}
        return Plan(self.name, seed, number, points, tuple(strikes), options)
