"""The conformance suite of a ledger: a store that passes it can hold leases, and one that does not will leak.

The author of a store writes one test class with three fixtures and gets every rule as a test::

    class TestMyLedger(LedgerConformance):
        @pytest.fixture
        def open_ledger(self, tmp_path):
            return functools.partial(open_my_ledger, tmp_path)

        @pytest.fixture
        def damage(self, tmp_path):
            return functools.partial(damage_my_ledger, tmp_path)

        @pytest.fixture
        def lose(self, tmp_path):
            return functools.partial(lose_my_ledger, tmp_path)

``open_ledger(store="first")`` returns a new handle of the store of that name, made on first use and the same ever
after. Where it can be pickled, and so opened by another process, races run in processes as well as in threads.
``damage(record_id, kind)`` spoils a record of the store "first" behind the ledger's back, see `Damage`; ``lose()``
takes that store away.

What a store must give: create-if-absent and compare-and-swap of one object, a list of keys, and a clock. One that
gives just these keeps a ledger through `mlinfra_prefect.ledger.ObjectLedger` and has nothing else to write. A slow
store may lower ``wins_each`` of its class.

Needs pytest.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "mlinfra_prefect.testing.ledger_history",
    "mlinfra_prefect.testing.ledger_holds",
    "mlinfra_prefect.testing.ledger_losses",
    "mlinfra_prefect.testing.ledger_races",
    "mlinfra_prefect.testing.ledger_writes",
)

from mlinfra_prefect.testing.ledger_fixtures import Damage, LedgerFixtures, Lose, OpenLedger, Spoil  # noqa: E402
from mlinfra_prefect.testing.ledger_history import HistoryRules  # noqa: E402
from mlinfra_prefect.testing.ledger_holds import HoldRules  # noqa: E402
from mlinfra_prefect.testing.ledger_losses import LossRules  # noqa: E402
from mlinfra_prefect.testing.ledger_races import RaceRules  # noqa: E402
from mlinfra_prefect.testing.ledger_writes import WriteRules  # noqa: E402

__all__ = ["Damage", "LedgerConformance", "LedgerFixtures", "Lose", "OpenLedger", "Spoil"]


class LedgerConformance(WriteRules, HistoryRules, HoldRules, LossRules, RaceRules):
    """Every rule of `mlinfra_prefect.ledger.Ledger`; subclass it with `open_ledger`, `damage` and `lose`."""
