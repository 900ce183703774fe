"""A quick look at a ledger that another process is just making."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mlinfra_prefect.ledger import SqliteLedger, listing


def test_a_look_waits_for_a_ledger_that_is_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there before its first table: that is no error, and not the answer either while somebody makes it."""
    path = tmp_path / "ledger.sqlite"
    path.touch()
    looked = threading.Event()

    def pause(_: float) -> None:
        looked.set()
        maker.join(10)

    maker = threading.Thread(target=lambda: looked.wait(10) and SqliteLedger(path).close())
    maker.start()
    monkeypatch.setattr(listing.time, "sleep", pause)
    assert listing.rows(path) == []
    assert looked.is_set()


def test_a_ledger_that_was_never_finished_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it died before its first table: nothing was ever written."""
    path = tmp_path / "ledger.sqlite"
    path.touch()
    monkeypatch.setattr(listing, "MAKING_SECONDS", 0.0)
    assert listing.rows(path) == []
