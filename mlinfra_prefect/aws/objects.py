"""The objects of a ledger on S3: conditional writes, and what to make of an answer that says too little.

A conditional write can be carried out and its answer lost: then the SDK's next try is refused (412), for it lies in its
own way. Or a 500, a closed connection or a time-out leaves it open whether it was carried out. In all these cases the
object itself is read, and whoever wrote it decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from mlinfra_prefect.aws.clock import StoreClock
from mlinfra_prefect.aws.sdk import code_of, unavailable
from mlinfra_prefect.errors import LedgerUnavailable
from mlinfra_prefect.ledger.objects import Found
from mlinfra_prefect.model.ledger_address import LedgerAddress

CONFLICT_PAUSES = (0.05, 0.1, 0.2, 0.4)
"""S3 answers 409 while another conditional write of the same key is going on, and asks to try again."""
LOST = frozenset({"PreconditionFailed", "412"})
ABSENT = frozenset({"NoSuchKey", "404"})
CONFLICT = 409


class S3Objects:
    """See `ledger.objects.ObjectStore`. `client` is an S3 client of boto3; handles share it and its connections."""

    def __init__(self, client: Any, address: LedgerAddress, *, clock: StoreClock | None = None) -> None:
        self._client, self._address, self._closed = client, address, False
        self._clock = clock or StoreClock()

    @property
    def name(self) -> str:
        """See `ObjectStore.name`."""
        return str(self._address)

    def now(self) -> datetime:
        """See `ObjectStore.now`; asks the store when it has answered nothing for a while."""
        found = self._clock.now()
        if found is None:
            # Whether there is such a key does not matter; the answer has a date. GetObject, so no further permission.
            self.get("ledger.json")
            found = self._clock.now()
        if found is None:
            raise LedgerUnavailable(f"The ledger {self.name} does not tell the time.", "Its answers carry no Date.")
        return found

    def get(self, key: str) -> Found | None:
        """See `ObjectStore.get`."""
        try:
            answer = self._call("get_object", Key=self._key(key))
            return Found(answer["Body"].read(), str(answer["ETag"]))
        except self._errors as error:
            if code_of(error)[0] in ABSENT:
                return None
            raise unavailable(self.name, error) from error

    def write(self, key: str, body: bytes, *, over: str | None, ours: Callable[[bytes], bool]) -> str | None:
        """See `ObjectStore.write`."""
        condition = {"IfNoneMatch": "*"} if over is None else {"IfMatch": over}
        for pause in (*CONFLICT_PAUSES, None):
            try:
                answer = self._call(
                    "put_object", Key=self._key(key), Body=body, ContentType="application/json", **condition
                )
                return str(answer["ETag"])
            except self._errors as error:
                code, status = code_of(error)
                if 400 <= status < 500 and code not in LOST | ABSENT and status != CONFLICT:
                    raise unavailable(self.name, error) from error
                if code == "NoSuchBucket":
                    raise unavailable(self.name, error) from error
                problem = error
            found = self.get(key)
            if found is not None and ours(found.body):
                return found.tag
            if (found.tag if found else None) != over:
                return None  # somebody else's
            if code in LOST | ABSENT:
                # Refused, and yet it lies there as it did before: it changed and changed back, or it is being changed.
                return None
            if status != CONFLICT or pause is None:
                raise unavailable(self.name, problem) from problem
            time.sleep(pause)
        raise AssertionError("unreachable")

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        try:
            self._call("delete_object", Key=self._key(key))
        except self._errors as error:
            raise unavailable(self.name, error) from error

    def list(self, prefix: str, *, limit: int | None = None, since: datetime | None = None) -> list[str]:
        """See `ObjectStore.list`: one call for each thousand keys."""
        found: list[str] = []
        more: dict[str, Any] = {} if limit is None else {"MaxKeys": limit}
        try:
            while True:
                answer = self._call("list_objects_v2", Prefix=self._key(prefix), **more)
                found += [
                    str(each["Key"]).removeprefix(self._key(""))
                    for each in answer.get("Contents", ())
                    if since is None or each["LastModified"] >= since.replace(microsecond=0)  # S3 tells whole seconds
                ]
                token = answer.get("NextContinuationToken")
                if not token or limit is not None:
                    return found
                more = {"ContinuationToken": token}
        except self._errors as error:
            raise unavailable(self.name, error) from error

    def close(self) -> None:
        """See `ObjectStore.close`; the client is the process's and stays."""
        self._closed = True

    def _key(self, key: str) -> str:
        return f"{self._address.prefix}/{key}" if self._address.prefix else key

    def _call(self, operation: str, **arguments: Any) -> Any:
        if self._closed:
            raise LedgerUnavailable(f"The ledger {self.name} is closed.")
        sent = self._clock.start()
        try:
            answer = getattr(self._client, operation)(Bucket=self._address.bucket, **arguments)
        except self._errors as error:
            self._learn(getattr(error, "response", None), sent)
            raise
        self._learn(answer, sent)
        return answer

    def _learn(self, answer: Any, sent: float) -> None:
        metadata = (answer or {}).get("ResponseMetadata") or {}
        # After a retry the first try was sent long ago, which only makes the measurement less sharp.
        self._clock.learn((metadata.get("HTTPHeaders") or {}).get("date"), sent)

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        from botocore.exceptions import BotoCoreError, ClientError

        return (BotoCoreError, ClientError)
