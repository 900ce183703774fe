"""The ledger on S3 keeps every rule of a ledger, over moto's S3."""

from __future__ import annotations

import functools

import pytest
from s3_stores import lose, open_store, spoil

from mlinfra_prefect.testing.ledger import LedgerConformance


class TestS3Ledger(LedgerConformance):
    """S3 passes the conformance suite."""

    wins_each = 1
    in_processes = False  # one such race is below: a minute of starting processes would prove nothing more

    @pytest.fixture
    def open_ledger(self, moto, bucket):
        return functools.partial(open_store, moto.environment, bucket)

    @pytest.fixture
    def damage(self, bucket):
        return functools.partial(spoil, bucket)

    @pytest.fixture
    def lose(self, bucket):
        return functools.partial(lose, bucket)
