"""What a node is told when it boots, and what its client tells it once it is there: checked where it enters."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from .fields import Fields
from .wire import SpecError

BOOT_SCHEMA: Final = "mlinfra-prefect/boot/1"
NODE_SCHEMA: Final = "mlinfra-prefect/node-spec/1"
_ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Boot:
    """One boot. ``deadline`` in epoch seconds; ``gpus`` and ``gpu_memory_gib`` (of each) are what was paid for."""

    region: str
    endpoint: str
    bucket: str
    agent_sha256: str
    role_id: str
    ledger_id: str
    lease_id: str
    attempt: int
    deadline: float
    gpus: int
    gpu_memory_gib: float

    @classmethod
    def from_text(cls, encoded: str) -> Boot:
        """Decode the base64 of user data, check and build; raises SpecError naming the field."""
        try:
            payload = json.loads(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError) as error:
            raise SpecError(f"boot: it is not base64 of a JSON object ({error})") from error
        fields = Fields(payload, "boot")
        fields.choice("schema", (BOOT_SCHEMA,))
        accepted = Fields(fields.take("acceptance", dict), "boot: acceptance")
        fields.take("agent_url", str)  # boot.sh has used it
        boot = cls(
            region=fields.take("region", str),
            endpoint=fields.take("endpoint", str),
            bucket=fields.take("bucket", str),
            agent_sha256=fields.take("agent_sha256", str),
            role_id=fields.take("role_id", str),
            ledger_id=fields.identifier("ledger_id"),
            lease_id=fields.identifier("lease_id"),
            attempt=fields.take("attempt", int),
            deadline=fields.number("deadline"),
            gpus=accepted.take("gpus", int),
            gpu_memory_gib=accepted.number("gpu_memory_gib"),
        )
        fields.finish()
        accepted.finish()
        if boot.endpoint and not boot.endpoint.startswith(("http://", "https://")):
            raise SpecError("boot: the field 'endpoint' must be an address with http:// or https://, or empty")
        if not _ROLE.fullmatch(boot.role_id):
            raise SpecError("boot: the field 'role_id' is not the id of a role")
        if boot.gpus < 0:
            raise SpecError("boot: acceptance: the field 'gpus' must not be negative")
        return boot


@dataclass(frozen=True)
class NodeSpec:
    """What the client decides about its node. All in seconds.

    ``heartbeat_seconds`` and ``poll_seconds`` are the agent's (`specs.AgentSpec`); ``sync_seconds`` is how often the
    courier lists what came in, ``look_seconds`` how often it looks for what has to go out.
    """

    heartbeat_seconds: float = 2.0
    poll_seconds: float = 0.1
    sync_seconds: float = 1.0
    look_seconds: float = 0.1

    @classmethod
    def from_payload(cls, payload: object) -> NodeSpec:
        """Check and build; raises SpecError naming the field. Every field but the schema may be left out."""
        fields = Fields(payload, "node spec")
        fields.choice("schema", (NODE_SCHEMA,))
        spec = cls(
            heartbeat_seconds=fields.number("heartbeat_seconds", cls.heartbeat_seconds, least=0.01),
            poll_seconds=fields.number("poll_seconds", cls.poll_seconds, least=0.005),
            sync_seconds=fields.number("sync_seconds", cls.sync_seconds, least=0.05),
            look_seconds=fields.number("look_seconds", cls.look_seconds, least=0.02),
        )
        fields.finish()
        return spec

    def to_payload(self) -> dict[str, Any]:
        """The JSON object that `from_payload` reads."""
        return {"schema": NODE_SCHEMA, **asdict(self)}
