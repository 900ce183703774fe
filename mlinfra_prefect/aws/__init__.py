"""Amazon's SDK, and nothing else of the package knows it: the ledger on S3.

The names below are loaded when they are first used; without the extra ``aws`` one sentence says what to install.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlinfra_prefect.aws.ledger import S3Ledger

__all__ = ["S3Ledger"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlinfra_prefect.aws.ledger import S3Ledger

    globals()[name] = S3Ledger
    return S3Ledger
