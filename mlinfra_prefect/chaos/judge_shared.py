"""The judge of a ledger that lies in a bucket: its objects, read with the standard library alone.

It imports nothing of ours, as the judge of a home does not: it believes what S3 answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mlinfra_prefect.chaos import judge_account


@dataclass(frozen=True, slots=True)
class SharedLedger:
    """A ledger by its place.

    Args:
        url: where S3 answers.
        bucket: which.
        prefix: below which its objects lie.
    """

    url: str
    bucket: str
    prefix: str

    @property
    def address(self) -> str:
        """As it is told to those who use it."""
        return f"s3://{self.bucket}/{self.prefix}"

    def ledger_id(self) -> str | None:
        """Its uuid; None while there is no ledger."""
        found = judge_account.content(self.url, self.bucket, f"{self.prefix}/ledger.json")
        return None if found is None else str(json.loads(found)["ledger_id"])

    def texts(self) -> dict[str, str]:
        """Every record as it is stored, JSON or not."""
        return {name: str(each["text"]) for name, each in self._records().items()}

    def history(self, record_id: str) -> list[dict[str, Any]]:
        """Every line of a record's history."""
        return [dict(line) for line in self._records()[record_id]["lines"]]

    def _records(self) -> dict[str, dict[str, Any]]:
        found = {}
        for key in self._keys("records/"):
            body = judge_account.content(self.url, self.bucket, key)
            if body is not None:
                found[key.rpartition("/")[2].removesuffix(".json")] = json.loads(body)
        return found

    def _keys(self, place: str) -> list[str]:
        return [key for key in judge_account.keys(self.url, self.bucket) if key.startswith(f"{self.prefix}/{place}")]
