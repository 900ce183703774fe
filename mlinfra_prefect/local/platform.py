"""The local platform: a real agent process is the node, a real inference server is the endpoint.

It is not a mock. Terraform's built-in provider starts the agent at apply; destroying *revokes its grant*. The agent
dies with its grant, its lock or its deadline, whatever Terraform, the keeper or the flow do.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.archive import build_archive
from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.agent.leftovers import keep_logs_only
from mlinfra_prefect.agent.wire import write_json
from mlinfra_prefect.errors import EndpointNotReady, InvalidInput, NodeLost
from mlinfra_prefect.local import client, process, routing, tokens
from mlinfra_prefect.local.node import LocalNode, revoke
from mlinfra_prefect.local.serving import serve_spec
from mlinfra_prefect.model.endpoint import TOKEN, EndpointRecord, KeptRecord, RolloutRecord
from mlinfra_prefect.model.lease import Attempt, LeaseRecord
from mlinfra_prefect.model.marks import marks
from mlinfra_prefect.model.names import token
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.receipt import Search
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.model.served import Served
from mlinfra_prefect.model.stack import Found, Late, StackInput

AGENT_END_SECONDS = 6.0
"""How long an agent may take to end once its grant is revoked, before it is killed."""


class LocalPlatform:
    """See `lifecycle.platform.Platform`."""

    name = "local"
    consistency_seconds = 0.0
    settle_seconds = 0.0
    found_by_mark = True
    emulated = True
    most_attempts = 2
    destroys_later = False
    late_looks: tuple[float, ...] = ()
    has_packages_of_flow = True
    remarks: tuple[str, ...] = ()

    def __init__(self, *, cache: Path, stacks: Path, here: Callable[[datetime], float] = datetime.timestamp) -> None:
        self._cache = cache
        self._stacks = stacks
        self._here = here

    def account(self, environment: str) -> str:
        """There is none."""
        del environment
        return ""

    def check_login(self, record: KeptRecord) -> None:
        """Whoever runs here is here."""

    def python_of(self, request: TrainingRequest) -> str | None:
        """The flow's own."""
        del request
        return f"{sys.version_info.major}.{sys.version_info.minor}"

    def take_secrets(self, environment: str, references: Mapping[str, str]) -> Mapping[str, str]:
        """The values of this process's variables.

        Raises:
            InvalidInput: a variable is not set, or the reference is one that only nodes on AWS can resolve.
        """
        del environment
        values = {}
        for name, reference in references.items():
            kind, _, variable = reference.partition(":")
            if kind != "env":
                raise InvalidInput(
                    f"secrets.{name}", f"{kind}: is read by nodes on platform aws, with their role",
                    "On platform local refer to a variable of the flow's process: env:NAME.",
                )  # fmt: skip
            if variable not in os.environ:
                problem = f"the environment variable {variable} is not set"
                raise InvalidInput(f"secrets.{name}", problem, "Set it, then run again.")
            values[name] = os.environ[variable]
        return values

    def offers(self, request: TrainingRequest) -> tuple[Offer, ...]:
        """This machine, if it has what is asked for. It costs nothing that we could meter."""
        kind, count = request.accelerator.name, request.accelerator.count
        have = gpus()
        skipped = None
        if request.market != "on-demand":
            skipped = f"the local platform has no {request.market} market"
        elif count and sum(_matches(name, kind) for name in have) < count:
            skipped = f"this machine has {_listed(have)}, not {request.accelerator}"
        return (
            Offer(
                type="local",
                region=socket.gethostname(),
                market="on-demand",
                usd_per_hour=0.0,
                gpus=count,
                skipped=skipped,
            ),
        )

    def stack(self, record: KeptRecord, attempt: Attempt) -> StackInput:
        """Write the grant and the agent's spec, and return the stack that starts the agent.

        Raises:
            EndpointNotReady: the server's environment cannot be made, or somebody else took the endpoint's port.
        """
        node_dir = Path(attempt.node_dir)
        private_folder(node_dir)
        archive = build_archive(self._cache)
        grant, spec = grant_of(attempt), node_dir.parent / "agent-spec.json"
        secret = token()
        deadline = self._here(record.deadline) if record.deadline else None
        serve = None
        if isinstance(record, RolloutRecord):
            serve = serve_spec(record, self._cache, node_dir, marks(record, attempt.number, self._here))
        elif isinstance(record, EndpointRecord):
            if not _free(record.port):  # it was free when it was reserved; the agent would only say so to Terraform
                raise EndpointNotReady(
                    f"Port {record.port} of endpoint {record.name!r} is in use by another program.",
                    "End that program, or deploy on another port.",
                )
            serve = routing.router_spec(record, node_dir)
        write_json(
            spec,
            {
                "schema": "mlinfra-prefect/agent/1",
                "ledger_id": record.ledger_id,
                "lease_id": record.id,
                "attempt": attempt.number,
                "role": "endpoint" if serve else "node",
                "deadline": deadline,
                "node_dir": str(node_dir),
                "grant": str(grant),
                "grant_token": secret,
                "heartbeat_seconds": 2.0,
                "poll_seconds": 0.1,
                # The client's: the keeper may have been started from another environment of the same home.
                "python": (record.python if isinstance(record, LeaseRecord) else "") or sys.executable,
                "cache_dir": str(self._cache),
                "serve": serve,
            },
        )
        grant.touch(mode=0o600)  # before it has a content, so that nobody else can ever read one
        grant.write_text(f"{secret}\n")
        name = "local-endpoint" if serve else "local-node"
        variables: dict[str, Any] = {
            "mlinfra": {
                "ledger_id": record.ledger_id,
                "lease_id": record.id,
                "attempt": attempt.number,
                "deadline": str(deadline or ""),
                "environment": record.environment,
                "tags": {},
            },
            "agent": {
                "python": sys.executable,
                "archive": str(archive),
                "spec": str(spec),
                "grant": str(grant),
                "node_dir": str(node_dir),
            },
        }
        return StackInput(name=name, root_module=self._stacks / name, variables=variables)

    def plan_stack(self, request: TrainingRequest, rung: tuple[Offer, ...]) -> StackInput:  # noqa: ARG002 (clouds')
        """The stack of a node with placeholders, for plans made before any lease exists; creates nothing."""
        ids = {"ledger_id": "plan", "lease_id": "plan", "attempt": 1, "deadline": "", "environment": "plan", "tags": {}}
        agent = dict.fromkeys(("python", "archive", "spec", "grant", "node_dir"), "/planned")
        return StackInput(
            name="local-node", root_module=self._stacks / "local-node", variables={"mlinfra": ids, "agent": agent}
        )

    def check_up(
        self,
        record: KeptRecord,
        attempt: Attempt,
        outputs: Mapping[str, Any],  # noqa: ARG002 (the protocol's; clouds need them)
        deadline: float,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Found:
        """Success is what exists, not an exit code: the agent lives, and a server answers.

        Raises:
            NodeLost: the agent is not there.
            EndpointNotReady: the server did not answer before the deadline (epoch seconds), or is not wanted any more.
        """
        node = self.node(attempt)
        if not node.alive():
            raise NodeLost(f"The agent of {record.id} is not running. {node.why_gone()}".strip())
        if not isinstance(record, LeaseRecord):
            ready_by = min(deadline, time.time() + record.serving.ready_seconds)
            look = client.ready if isinstance(record, RolloutRecord) else routing.routes
            try:
                # Those beyond come under load only, and get no request before they are ready.
                first = record.serving.replicas
                for url in record.urls[:first] if isinstance(record, RolloutRecord) else (record.url,):
                    client.wait_ready(url, ready_by, lambda: node.lives() and wanted(), look=look)
            except EndpointNotReady as error:
                said = server_words(Path(attempt.node_dir))
                raise EndpointNotReady(f"{error.message} {node.why_gone()} {said}".strip(), error.remedy) from error
            # A stranger that got the port first would answer, too.
            if not node.lives():
                raise EndpointNotReady(
                    f"The server of {record.id} ended. {node.why_gone()}".strip(), "Its log says why."
                )
        return Found()

    def is_up(self, record: KeptRecord, attempt: Attempt) -> bool:  # noqa: ARG002 (the protocol's; clouds need it)
        """Whether the node or the server still lives."""
        return self.node(attempt).alive()

    def node(self, attempt: Attempt) -> LocalNode:
        """The node of an attempt."""
        return LocalNode(Path(attempt.node_dir))

    def stop_meter(self, record: KeptRecord, attempt: Attempt) -> None:  # noqa: ARG002 (the protocol's; clouds need it)
        """Revoke the grant and wait until the agent and all it started are gone. Idempotent; never queues."""
        revoke(grant_of(attempt))
        node = self.node(attempt)
        until = time.monotonic() + AGENT_END_SECONDS
        while node.lives() and time.monotonic() < until:
            time.sleep(0.02)

    def end_late(self, record: KeptRecord, attempts: Sequence[Attempt]) -> tuple[Late, ...]:
        """Nothing appears late on this host."""
        del record, attempts
        return ()

    def sweep(self, record: KeptRecord) -> Search:
        """Look for processes that carry the record's id, and end them."""
        return process.sweep(record.ledger_id, record.id)

    def tidy(self, record: KeptRecord, attempt: Attempt) -> None:
        """Keep a released node's logs and delete the rest of its directory. Idempotent; files never stop a release.

        An endpoint's token goes with it.
        """
        node_dir = Path(attempt.node_dir)
        if isinstance(record, EndpointRecord):
            with contextlib.suppress(OSError):
                (node_dir.parent.parent / TOKEN).unlink(missing_ok=True)
        keep_logs_only(node_dir, attempt.number)

    def route(self, endpoint: EndpointRecord, seconds: float = routing.ROUTE_SECONDS) -> Served:
        """Have the router route as the record says, and wait until it does (see `local.routing.route`)."""
        return routing.route(endpoint, seconds)

    def served(self, endpoint: EndpointRecord) -> Served | None:
        """What the router routes by now, and what it has counted; None where it does not answer."""
        return routing.served(endpoint)

    def ask(self, rollout: RolloutRecord, row: Any) -> list[Any]:
        """Ask one version's server for its answer to one row, past the router."""
        return client.infer(rollout.urls[0], rollout.name, [row], token=self.token(rollout))

    def token(self, record: EndpointRecord | RolloutRecord) -> str | None:
        """The token of an endpoint (a rollout's is its endpoint's); None: it asks for none, or is not up here."""
        if record.attempt is None:
            return None
        return tokens.read(tokens.token_file(record, Path(record.attempt.node_dir).parent.parent))

    def prolong(self, record: EndpointRecord | RolloutRecord, until: datetime | None) -> None:
        """Let what is up live until a moment, which may have moved (None: until it is revoked). Idempotent."""
        if record.attempt is None:
            return
        grant = grant_of(record.attempt)
        try:
            secret = grant.read_text().partition("\n")[0]
        except FileNotFoundError:
            return  # revoked: it is going
        scratch = grant.with_name(f".grant.{token()}")  # two may prolong it at once
        scratch.touch(mode=0o600)
        scratch.write_text(f"{secret}\n{'inf' if until is None else self._here(until)}\n")
        scratch.replace(grant)

    def choose_port(self, wanted: int | None, taken: Callable[[int], bool]) -> int:
        """Return a port of the loopback interface that nobody listens on and that no endpoint has reserved.

        Raises:
            InvalidInput: the wanted port is in use.
        """
        if wanted is not None:
            if taken(wanted) or not _free(wanted):
                raise InvalidInput("port", f"{wanted} is in use", "Choose another, or leave it out to get a free one.")
            return wanted
        for _ in range(64):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if not taken(port):
                return port
        raise InvalidInput("port", "no free port was found on the loopback interface", "Release an endpoint first.")


def grant_of(attempt: Attempt) -> Path:
    """The grant by which an attempt's agent lives."""
    return Path(attempt.node_dir).parent / "grant"


def server_words(node_dir: Path, lines: int = 5) -> str:
    """The last lines that a server wrote."""
    with contextlib.suppress(OSError):
        return " | ".join((node_dir / "server.log").read_text(errors="replace").splitlines()[-lines:])
    return ""


@functools.cache
def gpus() -> tuple[str, ...]:
    """The names of this machine's NVIDIA GPUs, as ``nvidia-smi`` tells them; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        told = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in told.stdout.splitlines() if line.strip())


def _matches(device: str, kind: str) -> bool:
    words = device.upper().replace("-", " ").split()
    return all(part in words for part in kind.upper().split("-"))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "no GPU"


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
