"""``keeper``: be the keeper service of this home, or say whether there is one that lives."""

from __future__ import annotations

from mlinfra_prefect.cli.outcome import DONE, FAILED
from mlinfra_prefect.model.home import Home


def keep(*, with_reaper: bool, check: bool) -> int:
    """Become the service (does not return), or check it: 0 where it lives, else 1."""
    from mlinfra_prefect.keeper.service import become_service, check_health

    if not check:
        from mlinfra_prefect.lifecycle.context import Context

        become_service(Context(), with_reaper=with_reaper)
    health = check_health(Home.from_environment())
    print(health.said)
    return DONE if health.well else FAILED
