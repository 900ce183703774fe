"""How a job comes to the node: its blocks, its inputs and its checkpoint, and then all of it at once.

Jobs are unpacked by threads, for their inputs may be large. A job becomes visible to the agent by one rename, when all
of it is there and every block of it has the sha256 that it is named by. Addresses of inputs are presigned by the
client: the node has no right of its own to read them. Of secrets a handover has references only; who reads them is told
by the courier.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import json
import os
import shutil
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from . import blocks
from .bucket import BucketError
from .checkpoints import LATEST
from .committing import FORWARDED
from .folders import private_folder
from .outbox import CHECKPOINTS
from .secrets import SecretServer, make_fifo
from .status import read_status
from .transfer import TransferError, check_relative
from .wire import JOB, JOBS, STATUS_SCHEMA, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .bucket import Bucket

    Secrets = Callable[[Mapping[str, str]], Mapping[str, str] | str]

HANDOVER_SCHEMA: Final = "mlinfra-prefect/handover/1"
NODE_PATH: Final = "/@node/"
"""How the client writes the node's directory, which only the node knows."""
BLOCKS: Final = "blocks/"
INCOMING: Final = "incoming"
LANES: Final = 4
JOBS_AT_ONCE: Final = 4
TRIES: Final = 5
"""Of what is there and wrong: a block with another hash, an input that is refused."""
AGAIN_SECONDS: Final = 1.0
CHUNK: Final = 1 << 20
TIMEOUT_SECONDS: Final = 30.0
_LONGEST_HANDOVER = 256 << 20


class Cancelled(Exception):
    """The job was told to stop before all of it was there."""


class Unpacker:
    """Brings jobs from the bucket into the agent's directory.

    Args:
        bucket: the bucket.
        prefix: ``nodes/<id>/in/``.
        root: the node's directory.
        say: writes a line into the courier's log.
        stopped: whether a job was told to stop.
        secrets: from a job's references to their values, or to why there are none; called when the job asks.
    """

    def __init__(
        self, bucket: Bucket, prefix: str, root: Path, say: Callable[[str], None], *,
        stopped: Callable[[str], bool], secrets: Secrets,
    ) -> None:  # fmt: skip
        self._bucket, self._prefix, self._root, self._say, self._stopped = bucket, prefix, root, say, stopped
        self._secrets = secrets
        self._jobs = ThreadPoolExecutor(JOBS_AT_ONCE, "mlinfra-job")
        self._lanes = ThreadPoolExecutor(LANES, "mlinfra-in")
        self._closed = threading.Event()
        self.said: dict[str, dict[str, Any]] = {}
        """Statuses of jobs that are not with the agent, by id: on their way, or that they never will be."""
        self.given: dict[str, int] = {}
        """Of each job the number of the checkpoint that came with it."""

    def take(self, job_id: str) -> None:
        """Bring a job. Returns at once; a second time changes nothing."""
        if job_id not in self.said:
            self.said[job_id] = {"schema": STATUS_SCHEMA, "state": "queued", "queued_at": time.time()}
            if not (self._root / JOBS / job_id).exists():
                self._jobs.submit(self._bring, job_id)

    def close(self) -> None:
        """Bring nothing more."""
        self._closed.set()
        self._jobs.shutdown(wait=False, cancel_futures=True)
        self._lanes.shutdown(wait=False, cancel_futures=True)

    def _bring(self, job_id: str) -> None:
        wrong, told = 0, ""
        while not self._closed.is_set():
            try:
                self._unpack(job_id)
                return
            except Cancelled:
                self._end(job_id, "stopped", "the job was told to stop before it started", "")
                return
            except (TransferError, BucketError, OSError) as error:
                # Absent or another hash: it may be on its way still. No room, or refused for good: it never will be.
                passing = isinstance(error, BucketError) and not error.absent
                wrong += not passing
                if getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or wrong >= TRIES:
                    self._say(f"job {job_id} cannot be unpacked: {error}")
                    self._end(job_id, "failed", f"the job could not be brought to the node: {error}", "InvalidInput")
                    return
                if str(error) != told:
                    told = str(error)
                    self._say(f"job {job_id} is not unpacked yet: {error}")
            except Exception as error:  # noqa: BLE001  (whatever it is, the client must hear of it)
                told = f"{type(error).__name__}: {error}"
                self._say(f"job {job_id} cannot be unpacked: {told}")
                self._end(job_id, "failed", f"the job could not be read: {told}", "InvalidInput")
                return
            self._closed.wait(AGAIN_SECONDS)

    def _end(self, job_id: str, state: str, reason: str, kind: str) -> None:
        failure = {"type": kind, "message": reason, "traceback": "", "builtin": False, "args": []} if kind else None
        told = {**self.said[job_id], "state": state, "reason": reason, "error": failure, "finished_at": time.time()}
        shutil.rmtree(self._root / INCOMING / job_id, ignore_errors=True)
        self.said[job_id] = told

    def _unpack(self, job_id: str) -> None:
        data = self._bucket.get(f"{self._prefix}{JOBS}/{job_id}.json", most=_LONGEST_HANDOVER)
        told = json.loads(data)
        if told.get("schema") != HANDOVER_SCHEMA:
            raise TransferError(f"the handover of {job_id} has another schema")
        inline = {name: base64.b64decode(text) for name, text in told["inline"].items()}
        place = private_folder(self._root / INCOMING / job_id)
        for name, entry in told["packs"].items():
            self._assemble(job_id, place / check_relative(name), entry, inline)
        for each in told["fetch"]:
            self._fetch(job_id, place / check_relative(each["path"]), str(each["url"]), int(each["size"]))
        if told["job"].get("checkpoint") is not None:
            self._put_checkpoint(job_id, place / "checkpoint", int(told.get("checkpoint") or 0))
        self._move(place / "inputs", self._root / "inputs" / job_id)
        staged = private_folder(place / "job")
        self._move(place / "artifacts", staged / "artifacts")
        write_json(staged / JOB, localised(told["job"], self._root), durable=True)
        references: dict[str, str] = dict(told.get("secrets") or {})
        if references:
            with contextlib.suppress(FileExistsError):  # of a rename that failed
                make_fifo(staged)
        target = private_folder(self._root / JOBS) / job_id
        staged.rename(target)
        if references:
            SecretServer(target, lambda: self._secrets(references), lambda: self._over(target))
        shutil.rmtree(place, ignore_errors=True)

    def _over(self, job: Path) -> bool:
        """Whether a job asks for nothing any more."""
        status = read_status(job)
        return self._closed.is_set() or (status is not None and status.final)

    def _move(self, source: Path, target: Path) -> None:
        if source.is_dir():
            private_folder(target.parent)
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)

    def _put_checkpoint(self, job_id: str, source: Path, number: int) -> None:
        """Make the store of a job's checkpoints, with the one that came along, if there is one (0: none)."""
        store = private_folder(self._root / CHECKPOINTS / job_id)
        (store / FORWARDED).write_text(str(number), "ascii")
        if number:
            self.given[job_id] = number
            if not (store / str(number)).exists():
                source.rename(store / str(number))
            (store / LATEST).write_text(str(number), "ascii")

    def _assemble(self, job_id: str, target: Path, entry: dict[str, Any], inline: dict[str, bytes]) -> None:
        parts = [self._block(name, inline) for name in entry["blocks"]]
        pack = blocks.Pack.from_listing(b"".join(parts))
        assembly = blocks.Assembly(target, pack)

        def bring(number: int) -> None:
            if self._closed.is_set() or self._stopped(job_id):
                raise Cancelled
            assembly.write(number, self._block(pack.blocks[number], inline))

        for future in [self._lanes.submit(bring, number) for number in assembly.missing()]:
            future.result()
        assembly.finish()

    def _block(self, name: str, inline: dict[str, bytes]) -> bytes:
        if not blocks.is_sha256(name):
            raise TransferError("a block has no name")
        data = inline.get(name)
        if data is None:
            data = self._bucket.get(f"{self._prefix}{BLOCKS}{name}", most=blocks.BLOCK)
        if blocks.sha256(data) != name:
            raise TransferError(f"block {name[:12]} is not what its name says")
        return data

    def _fetch(self, job_id: str, target: Path, url: str, size: int) -> None:
        """Bring one input by its presigned address; goes on where a connection broke off."""
        private_folder(target.parent)
        if target.exists() and target.stat().st_size == size:
            return
        part = target.with_name(f".{target.name}.part")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            if os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, 0)
            while (have := os.fstat(descriptor).st_size) < size:
                self._fetch_from(job_id, url, have, size, file)
            os.fsync(descriptor)
        part.replace(target)

    def _fetch_from(self, job_id: str, url: str, start: int, size: int, file: Any) -> None:
        parts = urlsplit(url)
        where = f"{parts.path}?{parts.query}" if parts.query else parts.path
        host = parts.netloc
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(host, timeout=TIMEOUT_SECONDS)
        name = parts.path.rpartition("/")[2]
        try:
            connection.request("GET", where, headers={"Range": f"bytes={start}-{size - 1}"})
            answer = connection.getresponse()
            if answer.status == http.HTTPStatus.OK and start == 0:
                left = size
            elif answer.status == http.HTTPStatus.PARTIAL_CONTENT:
                left = size - start
            elif answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise BucketError("Unavailable", answer.status, f"input {name}")
            else:
                raise TransferError(f"the input {name} was refused with {answer.status}")
            while left:
                if self._closed.is_set() or self._stopped(job_id):
                    raise Cancelled
                data = answer.read(min(CHUNK, left))
                if not data:
                    raise BucketError("BrokenOff", 0, f"input {name}")
                file.write(data)
                left -= len(data)
            file.flush()
        except http.client.HTTPException as error:
            raise BucketError(type(error).__name__, 0, f"input {name}") from error
        except (ConnectionError, TimeoutError) as error:
            raise BucketError(type(error).__name__, 0, f"input {name} ({error})") from error
        finally:
            with contextlib.suppress(OSError):
                file.flush()
            connection.close()


def localised(job: dict[str, Any], root: Path) -> dict[str, Any]:
    """A job with the node's directory in the four places where the client cannot know it; nothing else is touched."""

    def here(text: str) -> str:
        return str(root / check_relative(text.removeprefix(NODE_PATH))) if text.startswith(NODE_PATH) else text

    found = dict(job)
    found["upload_dir"] = here(job["upload_dir"])
    if job.get("checkpoint") is not None:
        found["checkpoint"] = {**job["checkpoint"], "store": here(job["checkpoint"]["store"])}
    for name in ("inputs", "artifacts"):
        found[name] = {key: here(text) for key, text in (job.get(name) or {}).items()}
    return found
