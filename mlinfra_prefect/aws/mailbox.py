"""The client's side of a node's mailbox: a prefix of the artifact bucket, of which the node reads ``in`` only.

What is here knows S3 and nothing of jobs: the index of ``out/`` with S3's own time of it, blocks by their sha256, and
objects of ``in/``. Errors of S3 come as `MailboxUnavailable`, which may pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from mlinfra_prefect.agent import blocks
from mlinfra_prefect.agent.transfer import TransferError
from mlinfra_prefect.aws.sdk import code_of
from mlinfra_prefect.errors import TemporaryError

LANES = 4
"""Blocks that are on their way at once; each is up to 32 MiB of memory."""
LONGEST_INDEX = 64 << 20
ABSENT = frozenset({"NoSuchKey", "404"})
UNCHANGED = 304
SAME_KEYS = 1000
"""Of one DeleteObjects."""


class MailboxUnavailable(TemporaryError):
    """The mailbox of a node cannot be read or written now; the node itself goes on."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at an index: its bytes (None: it is as it was), its tag, and how old it is by S3's clock, in seconds."""

    body: bytes | None
    etag: str
    age: float


class Mailbox:
    """The prefix of one node. Safe for threads.

    Args:
        client: an S3 client of boto3.
        bucket: the artifact bucket.
        prefix: ``nodes/<role id>:<instance id>``, without a slash at its end.
    """

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client, self.bucket, self.prefix = client, bucket, prefix.rstrip("/")
        self._modified: datetime | None = None

    # --- out/ ---------------------------------------------------------------------------------------------------------

    def look(self, etag: str) -> Look | None:
        """Look at the index; None: there is none (yet). `etag` is of the last look, empty for the first.

        Raises:
            MailboxUnavailable: S3 does not answer, or refuses.
        """
        condition = {"IfNoneMatch": etag} if etag else {}
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/out/index.json", **condition)
            body = answer["Body"].read(LONGEST_INDEX + 1)
        except self._errors as error:
            code, status = code_of(error)
            if status == UNCHANGED:
                return Look(None, etag, self._age(getattr(error, "response", None)))
            if code in ABSENT:
                return None
            raise self._unavailable(error) from error
        if len(body) > LONGEST_INDEX:
            raise MailboxUnavailable(f"The index of {self.prefix} is larger than {LONGEST_INDEX >> 20} MiB.")
        self._modified = answer["LastModified"].astimezone(UTC)
        return Look(body, str(answer["ETag"]), self._age(answer))

    def block(self, place: str, name: str, size: int) -> bytes:
        """Fetch a block of ``out/<place>/`` and check it.

        Raises:
            TransferError: it is not there any more, or is not what its name says: a newer index has another.
            MailboxUnavailable: S3 does not answer, or refuses.
        """
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/out/{place}/{name}")
            data: bytes = answer["Body"].read(size + 1)
        except self._errors as error:
            if code_of(error)[0] in ABSENT:
                raise TransferError(f"block {name[:12]} is not there") from error
            raise self._unavailable(error) from error
        if len(data) != size or blocks.sha256(data) != name:
            raise TransferError(f"block {name[:12]} is not what its name says")
        return data

    # --- in/ ----------------------------------------------------------------------------------------------------------

    def put(self, name: str, body: bytes) -> None:
        """Write an object of ``in/``. Raises MailboxUnavailable."""
        self._do("put_object", Key=f"{self.prefix}/in/{name}", Body=body)

    def get(self, name: str) -> bytes | None:
        """Read an object of ``in/``; None: there is none. Raises MailboxUnavailable."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/in/{name}")
            body: bytes = answer["Body"].read()
        except self._errors as error:
            if code_of(error)[0] in ABSENT:
                return None
            raise self._unavailable(error) from error
        return body

    def delete(self, name: str) -> None:
        """Delete an object of ``in/``; an absent one is success. Raises MailboxUnavailable."""
        self._do("delete_object", Key=f"{self.prefix}/in/{name}")

    def names(self, place: str) -> set[str]:
        """The names below ``in/<place>/``. Raises MailboxUnavailable."""
        prefix = f"{self.prefix}/in/{place}/"
        return {key.removeprefix(prefix) for key in self._keys(prefix)}

    def erase(self) -> None:
        """Delete everything of the node's, in and out. Idempotent. Raises MailboxUnavailable."""
        keys = self._keys(f"{self.prefix}/")
        for start in range(0, len(keys), SAME_KEYS):
            some = [{"Key": key} for key in keys[start : start + SAME_KEYS]]
            self._do("delete_objects", Delete={"Objects": some, "Quiet": True})

    def _keys(self, prefix: str) -> list[str]:
        found: list[str] = []
        more: dict[str, Any] = {}
        while True:
            answer = self._do("list_objects_v2", Prefix=prefix, **more)
            found += [str(each["Key"]) for each in answer.get("Contents", ())]
            if not answer.get("NextContinuationToken"):
                return found
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def _do(self, operation: str, **arguments: Any) -> Any:
        try:
            return getattr(self.client, operation)(Bucket=self.bucket, **arguments)
        except self._errors as error:
            raise self._unavailable(error) from error

    def _age(self, answer: Any) -> float:
        """How long ago the index was written, by the clock of S3 alone: no other clock is compared with it."""
        headers = ((answer or {}).get("ResponseMetadata") or {}).get("HTTPHeaders") or {}
        try:
            now = parsedate_to_datetime(headers.get("date", "")).astimezone(UTC)
        except (ValueError, TypeError):
            return 0.0
        return max(0.0, (now - self._modified).total_seconds()) if self._modified else 0.0

    def _unavailable(self, error: Exception) -> MailboxUnavailable:
        code, status = code_of(error)
        said = f"S3 answered {code}" if status else str(error) or type(error).__name__
        return MailboxUnavailable(
            f"The mailbox s3://{self.bucket}/{self.prefix} cannot be used ({said.rstrip('.')}).",
            "The node goes on meanwhile; look at the network and at your permissions if it stays.",
        )

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        # A body that breaks off while it is read comes as urllib3's own.
        return (BotoCoreError, ClientError, HTTPClientError, OSError)


def in_lanes(act: Callable[[Any], Any], each: Iterable[Any]) -> None:
    """Do something with each of them, some at once; raises the first error, after the others have ended."""
    with ThreadPoolExecutor(LANES, "mlinfra-mailbox") as pool:
        for future in [pool.submit(act, one) for one in each]:
            future.result()
