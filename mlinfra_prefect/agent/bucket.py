"""A small client of S3 for the node: get, put, delete and list, and nothing that the courier does not use.

Requests are signed with the credentials of the instance's role, which are renewed before they end. What may pass (a
closed connection, a 5xx, throttling, a wrong clock, credentials that just ended) is tried again, a few times and with
jitter; what does not pass is raised and left to the courier, which tries for ever, one poll after the other.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import re
import ssl
import threading
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from . import sigv4

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .imds import RoleCredentials

TRIES: Final = 4
TIMEOUT_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.2
RENEW_SECONDS: Final = 300.0
"""How long before they end credentials are renewed: EC2 has the next ones five minutes before."""
ASK_AGAIN_SECONDS: Final = 10.0
"""Between two tries to renew credentials that did not come."""
_AGAIN = frozenset({400, 429, 500, 502, 503, 504})
_PASSING = frozenset({
    "RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException", "503",
})  # fmt: skip
_RENEWED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"})
_LONGEST_ERROR = 1 << 16
_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")


class BucketError(OSError):
    """S3 did not do what was asked.

    Args:
        code: S3's word for it, or the kind of the error of the connection.
        status: the HTTP status; 0 where there was no answer.
        what: the request, for people.
    """

    def __init__(self, code: str, status: int, what: str) -> None:
        super().__init__(f"{what}: {code}" + (f" ({status})" if status else ""))
        self.code = code
        self.status = status

    @property
    def absent(self) -> bool:
        """Whether there is no such object, as far as a node can know.

        A node may list its own prefix only, and to whom may not list all of a bucket S3 says 403 for what is not there.
        """
        if self.status == HTTPStatus.FORBIDDEN:
            return self.code == "AccessDenied"
        return self.status == HTTPStatus.NOT_FOUND and self.code != "NoSuchBucket"


@dataclass(frozen=True)
class Listed:
    """One object of a listing; ``modified`` is S3's time as text that sorts."""

    key: str
    etag: str
    modified: str = ""


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Bucket:
    """One bucket. Safe for threads: each has a connection of its own.

    Args:
        name: the bucket's.
        region: where it is; a wrong one is corrected by what S3 answers.
        endpoint: ``http(s)://host[:port]`` with the bucket in the path; empty: AWS's own address of the bucket.
        credentials: asks for fresh ones; may raise OSError.
        sleep: waits between tries.
    """

    def __init__(
        self,
        name: str,
        region: str,
        endpoint: str,
        credentials: Callable[[], RoleCredentials],
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name, self._region, self._endpoint = name, region, endpoint
        self._ask, self._sleep = credentials, sleep
        self._lock = threading.Lock()
        self._found: RoleCredentials | None = None
        self._ask_at = 0.0
        self._offset = timedelta(0)
        self._local = threading.local()
        self._open: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        """Close the connections of all threads. Idempotent; a later call opens new ones."""
        for connection in self._open:
            connection.close()

    def get(self, key: str, *, most: int | None = None) -> bytes:
        """An object's bytes. Raises BucketError (`absent`), also where it is larger than ``most`` bytes."""
        return self._call("GET", key, most=most).body

    def put(self, key: str, body: bytes) -> None:
        """Write an object. Raises BucketError."""
        self._call("PUT", key, body=body)

    def delete(self, key: str) -> None:
        """Delete an object; an absent one is success. Raises BucketError."""
        self._call("DELETE", key)

    def list(self, prefix: str, *, after: str = "") -> list[Listed]:
        """All objects whose key begins with ``prefix`` and comes after ``after``, in order. Raises BucketError."""
        found: list[Listed] = []
        query = {"list-type": "2", "prefix": prefix, **({"start-after": after} if after else {})}
        while True:
            answer = self._call("GET", "", query=query)
            try:
                root = ET.fromstring(answer.body)  # noqa: S314 (S3's own answer; expat here knows no external entities)
                space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
                for each in root.iterfind(f"{space}Contents"):
                    text = {child.tag.removeprefix(space): child.text or "" for child in each}
                    found.append(Listed(text["Key"], text["ETag"].strip('"'), text.get("LastModified", "")))
                token = root.findtext(f"{space}NextContinuationToken")
            except (ET.ParseError, KeyError, ValueError) as error:
                raise BucketError("UnreadableAnswer", answer.status, f"list {prefix}") from error
            if not token:
                return found
            query["continuation-token"] = token

    # --- one request, and what to make of its answer ------------------------------------------------------------------

    def _call(
        self, method: str, key: str, *, query: Mapping[str, str] | None = None, body: bytes = b"",
        most: int | None = None,
    ) -> _Answer:  # fmt: skip
        what = f"{method} {key or (query or {}).get('prefix', '')}"
        digest = hashlib.sha256(body).hexdigest() if body else sigv4.EMPTY_SHA256
        problem = BucketError("NotTried", 0, what)
        corrected = set[str]()
        stale = False
        for number in range(TRIES):
            if number and not stale:
                self._sleep(random.uniform(0.5, 1.0) * PAUSE_SECONDS * 2 ** (number - 1))  # noqa: S311 (jitter)
            kept = getattr(self._local, "connection", None) is not None
            try:
                answer = self._once(method, key, query or {}, body=body, digest=digest, most=most)
            except BucketError:
                raise
            except (OSError, http.client.HTTPException) as error:
                self._close()
                stale = kept and number == 0  # the other side closed a connection that lay idle
                problem = BucketError(type(error).__name__, 0, f"{what} ({error})")
                continue
            stale = False
            if answer.status < HTTPStatus.MULTIPLE_CHOICES:
                return answer
            found = _CODE.search(answer.body)
            code = found[1].decode("ascii", "replace") if found else HTTPStatus(answer.status).name
            problem = BucketError(code, answer.status, what)
            if self._mended(code, answer) and code not in corrected:
                corrected.add(code)
                continue
            if answer.status not in _AGAIN or (answer.status == HTTPStatus.BAD_REQUEST and code not in _PASSING):
                break
        raise problem

    def _mended(self, code: str, answer: _Answer) -> bool:
        """Whether the answer says what was wrong with us, and it is right now."""
        if code == "RequestTimeTooSkewed":
            try:
                told = parsedate_to_datetime(answer.headers.get("date", ""))
            except ValueError:
                return False
            self._offset = told.astimezone(UTC) - datetime.now(UTC)
            return True
        region = answer.headers.get("x-amz-bucket-region", "")
        if region and region != self._region and answer.status in {301, 307, 400}:
            self._region = region
            self._close()
            return True
        if code in _RENEWED:
            with self._lock:
                self._found, self._ask_at = None, 0.0
            return True
        return False

    def _once(
        self, method: str, key: str, query: Mapping[str, str], *, body: bytes, digest: str, most: int | None
    ) -> _Answer:
        host, hosted = self._host()
        path = f"/{key}" if hosted else f"/{self._name}/{key}"
        headers = sigv4.signed(
            method, path, query, {"host": host}, digest,
            credentials=self._credentials().credentials, region=self._region, at=datetime.now(UTC) + self._offset,
        )  # fmt: skip
        del headers["host"]  # http.client writes it itself, the same
        connection = self._connection()
        asked = sigv4.encoded_query(query)
        connection.request(method, sigv4.encoded_path(path) + (f"?{asked}" if asked else ""), body or None, headers)
        answer = connection.getresponse()
        known = {name.lower(): value for name, value in answer.getheaders()}
        good = answer.status < HTTPStatus.MULTIPLE_CHOICES
        limit = most if good else _LONGEST_ERROR
        data = answer.read() if limit is None else answer.read(limit + 1)
        if limit is not None and len(data) > limit:
            self._close()  # what is left of it would be read as the next answer
            if good:
                raise BucketError("TooLarge", answer.status, f"{method} {key}")
        return _Answer(answer.status, known, data)

    def _host(self) -> tuple[str, bool]:
        """The Host header, and whether the bucket's name is in it (otherwise it is in the path)."""
        if self._endpoint:
            return urlsplit(self._endpoint).netloc, False
        domain = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
        return f"{self._name}.s3.{self._region}.{domain}", True

    def _connection(self) -> http.client.HTTPConnection:
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if kept is not None:
            return kept
        host, _ = self._host()
        if self._endpoint.startswith("http://"):
            made = http.client.HTTPConnection(host, timeout=TIMEOUT_SECONDS)
        else:
            made = http.client.HTTPSConnection(host, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context())
        self._local.connection = made
        self._open.append(made)
        return made

    def _close(self) -> None:
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if kept is not None:
            kept.close()
            self._open.remove(kept)
            self._local.connection = None

    def _credentials(self) -> RoleCredentials:
        """What we have, renewed in time; old ones rather than none: S3 has the last word on them."""
        with self._lock:
            now = time.time()
            if (self._found is None or now >= self._found.expires - RENEW_SECONDS) and time.monotonic() >= self._ask_at:
                try:
                    self._found = self._ask()
                except OSError:
                    if self._found is None:
                        raise
                self._ask_at = time.monotonic() + ASK_AGAIN_SECONDS
            if self._found is None:
                raise OSError("there are no credentials of the instance's role")
            return self._found
