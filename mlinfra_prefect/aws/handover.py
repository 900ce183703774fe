"""A job on its way to a node: its directory, inputs, artifacts and checkpoint as blocks, and an object that names them.

The object ``in/jobs/<id>.json`` is written last, so a node that sees it can have all of it. Small blocks travel in it.
Inputs on S3 do not pass through here: the node gets an address for each object, presigned for reading that one only.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent import blocks, checkpoints
from mlinfra_prefect.agent.transfer import TransferError, check_relative, digest
from mlinfra_prefect.agent.unpacking import HANDOVER_SCHEMA, NODE_PATH
from mlinfra_prefect.agent.wire import MANIFEST
from mlinfra_prefect.aws.mailbox import Mailbox, in_lanes
from mlinfra_prefect.aws.sdk import bucket_region, link
from mlinfra_prefect.errors import InvalidInput

INLINE_BYTES = 1 << 20
"""How much of its blocks a job's object carries itself."""
LARGEST_INLINE = 256 << 10
LARGEST_INPUT = 2 << 30
"""Of inputs that lie on this machine; larger ones belong on S3, beside the node."""
MOST_OBJECTS = 10_000
"""Of one input on S3: each has a presigned address in the job's object."""
PRESIGNED_SECONDS = 12 * 3600
"""How long an address can be read: inputs are fetched when the job arrives, and that may take hours."""
BLOCKS_AT_ONCE = 4


@dataclass
class Handover:
    """What one job takes along; its `origin` is for keepers in other homes.

    `upload` writes blocks as they are met; nothing is visible before `finish`.
    """

    mailbox: Mailbox
    job: dict[str, Any]
    client_of: Callable[[str], Any]
    secrets: Mapping[str, str] = field(default_factory=dict)
    """References by the name of their variable; no value comes this way."""
    packs: dict[str, Any] = field(default_factory=dict)
    fetch: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    _inline: dict[str, str] = field(default_factory=dict)
    _room: int = INLINE_BYTES
    _there: set[str] | None = None

    def take_all(self, staged: Path) -> None:
        """Take along the staged directory and whatever the job names on this machine or on S3.

        Raises:
            InvalidInput: an input leads nowhere, or is too large to go through this machine.
            MailboxUnavailable: S3 does not answer, or refuses.
        """
        job_id = str(self.job["job_id"])
        self.pack("job", staged, blocks.listed(staged))
        self.job["inputs"] = {name: self._input(job_id, name, uri) for name, uri in self.job["inputs"].items()}
        artifacts: Mapping[str, str] = self.job.get("artifacts") or {}
        for artifact_id, path in artifacts.items():
            self.pack(f"artifacts/{artifact_id}", Path(path), blocks.listed(Path(path)))
        self.job["artifacts"] = {each: f"{NODE_PATH}jobs/{job_id}/artifacts/{each}" for each in artifacts}
        self.job["upload_dir"] = f"{NODE_PATH}uploads/{job_id}"
        if self.job.get("checkpoint"):
            store = Path(self.job["checkpoint"]["store"])
            self.job["checkpoint"] = {**self.job["checkpoint"], "store": f"{NODE_PATH}checkpoints/{job_id}"}
            self._take_checkpoint(store)

    def finish(self) -> None:
        """Let the node see the job. Raises MailboxUnavailable."""
        payload = {
            "schema": HANDOVER_SCHEMA, "job": self.job, "packs": self.packs, "fetch": self.fetch,
            "checkpoint": self.checkpoint, "inline": self._inline, "secrets": dict(self.secrets),
            "origin": dict(self.origin),
        }  # fmt: skip
        self.mailbox.put(f"jobs/{self.job['job_id']}.json", json.dumps(payload, allow_nan=False).encode("ascii"))

    def pack(self, name: str, root: Path, files: tuple[blocks.Packed, ...]) -> None:
        """Take along files of a directory. Raises TransferError, OSError, MailboxUnavailable."""
        names: list[str] = []
        waiting: list[tuple[str, bytes]] = []
        for data in blocks.stream(root, files):
            names.append(blocks.sha256(data))
            waiting.append((names[-1], data))
            if len(waiting) == BLOCKS_AT_ONCE:
                self._put(waiting)
                waiting = []
        listing = blocks.Pack(files, tuple(names)).listing()
        parts = [listing[start:end] for start, end in blocks.spans(len(listing))]
        waiting += [(blocks.sha256(part), part) for part in parts]
        self._put(waiting)
        self.packs[name] = {"size": len(listing), "blocks": [blocks.sha256(part) for part in parts]}

    def _put(self, some: list[tuple[str, bytes]]) -> None:
        left = {}
        for name, data in some:
            if name in self._inline:
                continue
            if len(data) <= min(LARGEST_INLINE, self._room):
                self._room -= len(data)
                self._inline[name] = base64.b64encode(data).decode("ascii")
            else:
                left[name] = data
        if left and self._there is None:
            self._there = self.mailbox.names("blocks")  # of a try that was broken off, or of the job before
        there = self._there or set()
        new = [name for name in left if name not in there]
        in_lanes(lambda name: self.mailbox.put(f"blocks/{name}", left[name]), new)
        there |= left.keys()

    # --- inputs -------------------------------------------------------------------------------------------------------

    def _input(self, job_id: str, name: str, uri: str) -> str:
        place = f"{NODE_PATH}inputs/{job_id}/{name}"
        if uri.startswith("s3://"):
            return f"{place}{self._on_s3(name, uri)}"
        path = Path(uri.removeprefix("file://"))
        if "://" in uri.removeprefix("file://") or not path.is_absolute():
            raise InvalidInput(f"inputs.{name}", f"{uri!r} cannot be read", "Use s3://, file:// or an absolute path.")
        if not path.exists():
            raise InvalidInput(f"inputs.{name}", f"{path} does not exist")
        try:
            # A file travels as a directory that holds only it.
            root = path if path.is_dir() else path.parent
            files = blocks.listed(path) if path.is_dir() else (blocks.Packed(path.name, path.stat().st_size, "f"),)
            size = sum(each.size for each in files)
            if size > LARGEST_INPUT:
                problem = (
                    f"{path} has {size / (1 << 30):.1f} GiB, and {LARGEST_INPUT >> 30} may go through this machine"
                )
                remedy = "Copy it to S3 and write its s3:// address: the node fetches it from there."
                raise InvalidInput(f"inputs.{name}", problem, remedy)
            self.pack(f"inputs/{name}", root, files)
        except (TransferError, OSError) as error:
            raise InvalidInput(f"inputs.{name}", f"{path} cannot be read: {error}") from error
        return place if path.is_dir() else f"{place}/{path.name}"

    def _on_s3(self, name: str, uri: str) -> str:
        """Presign what an address means; returns what follows the input's own directory on the node."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise InvalidInput(f"inputs.{name}", f"{uri!r} names no bucket", "Write s3://bucket/prefix.")
        client = self.client_of(bucket)
        objects = _objects(client, bucket, key, f"inputs.{name}")
        one = objects.get(key)
        if one is not None and key and not key.endswith("/"):
            found, base = {key: one}, key.rpartition("/")[0]
        else:
            base = key.rstrip("/")
            found = {each: size for each, size in objects.items() if not base or each.startswith(f"{base}/")}
            found = {each: size for each, size in found.items() if not each.endswith("/")}
        if not found:
            raise InvalidInput(f"inputs.{name}", f"there is nothing at {uri}")
        region = bucket_region(bucket, client)
        for each, size in found.items():
            relative = each.removeprefix(f"{base}/" if base else "")
            try:
                check_relative(relative)
            except TransferError as error:
                raise InvalidInput(f"inputs.{name}", f"the key {each!r} of {uri} cannot be a path") from error
            url = link(bucket, each, region=region, seconds=PRESIGNED_SECONDS)
            self.fetch.append({"path": f"inputs/{name}/{relative}", "url": url, "size": size})
        return f"/{key.rpartition('/')[2]}" if one is not None and key and not key.endswith("/") else ""

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _take_checkpoint(self, store: Path) -> None:
        """Take along the newest commit of a store that is what its manifest says; others are stepped over."""
        try:
            latest = int((store / checkpoints.LATEST).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return
        numbers = [int(each.name) for each in store.iterdir() if each.name.isdecimal()]
        for number in sorted((each for each in numbers if each <= latest), reverse=True):
            place = store / str(number)
            try:
                files = _committed(place)
                if files is None:
                    continue
                self.pack("checkpoint", place, files)
            except (TransferError, OSError):
                continue
            self.checkpoint = number
            return


def _committed(place: Path) -> tuple[blocks.Packed, ...] | None:
    """The files of a commit with its manifest; None where they are not what it says. Raises TransferError, OSError."""
    commit = checkpoints.read_commit(place)
    if commit is None or any(digest(place / each.path) != (each.sha256, each.size) for each in commit.files):
        return None
    wanted = {MANIFEST, *(each.path for each in commit.files)}
    return tuple(each for each in blocks.listed(place) if each.path in wanted)


def _objects(client: Any, bucket: str, key: str, field_name: str) -> dict[str, int]:
    """The keys that begin with an address, and their sizes."""
    from botocore.exceptions import BotoCoreError, ClientError

    found: dict[str, int] = {}
    more: dict[str, Any] = {}
    try:
        while True:
            answer = client.list_objects_v2(Bucket=bucket, Prefix=key, **more)
            found |= {str(each["Key"]): int(each["Size"]) for each in answer.get("Contents", ())}
            if len(found) > MOST_OBJECTS:
                raise InvalidInput(
                    field_name, f"s3://{bucket}/{key} has more than {MOST_OBJECTS} objects",
                    "Name a smaller prefix, or pack the objects into archives.",
                )  # fmt: skip
            if not answer.get("NextContinuationToken"):
                return found
            more = {"ContinuationToken": answer["NextContinuationToken"]}
    except (BotoCoreError, ClientError) as error:
        raise InvalidInput(field_name, f"s3://{bucket}/{key} cannot be listed ({error})") from error
