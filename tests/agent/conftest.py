"""Fixtures of the agent's tests; what they do is in `agent_harness`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest's importlib mode imports no siblings; the harness is one, shared by this area's tests.
sys.path.insert(0, str(Path(__file__).parent))

from agent_harness import NodeUnderTest

from mlinfra_prefect.agent.archive import build_archive
from mlinfra_prefect.agent.specs import ServeSpec


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent's archive, built once."""
    return build_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def node(tmp_path: Path, archive: Path) -> Iterator[NodeUnderTest]:
    """A node directory whose agent is not started yet; everything of its lease is gone after the test."""
    under_test = NodeUnderTest(tmp_path, archive)
    yield under_test
    under_test.close()


@pytest.fixture
def endpoint(node: NodeUnderTest) -> Callable[..., NodeUnderTest]:
    """Start the node's agent in the role of an endpoint that runs a shell script as its server."""

    def start(script: str = "", *, argvs: Any = (), listen: int | None = None, **spec: Any) -> NodeUnderTest:
        commands = tuple(map(tuple, argvs)) or (("sh", "-c", script),)
        serve = ServeSpec(commands, {"SERVER_SETTING": "on"}, node.root, listen)
        return node.start(role="endpoint", serve=serve, **spec)

    return start
