"""What could not run where a request leads is refused before anything is rented, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.platform import Platform
from mlinfra_prefect.lifecycle.suiting import refuse_unsuited
from mlinfra_prefect.lifecycle.training import Work
from mlinfra_prefect.model.environment import Environment
from mlinfra_prefect.model.request import TrainingRequest


@dataclass
class Place:
    """What a platform knows of itself, and the configuration that leads to it."""

    has_packages_of_flow: bool = False
    python: str | None = "3.12"
    name: str = "aws"
    asked: dict[str, str] = field(default_factory=dict)

    def python_of(self, request: TrainingRequest) -> str | None:
        return self.python if request.ami is None else None

    def take_secrets(self, environment: str, references: Mapping[str, str]) -> Mapping[str, str]:
        self.asked[environment] = ",".join(references.values())
        return references

    def platform(self, name: str) -> Platform:
        assert name == self.name
        return cast("Platform", self)

    @property
    def config(self) -> Any:
        return self

    def environment(self, name: str) -> Environment:
        return Environment(name=name)

    def refuses(self, work: Work, **request: Any) -> None:
        refuse_unsuited(cast("Context", self), TrainingRequest(platform=self.name, **request), work)


def test_a_function_by_value_needs_the_same_minor_version() -> None:
    """Both are named, and what to do; what does not travel by value may go to any."""
    with pytest.raises(InvalidInput) as caught:
        Place().refuses(Work(label="fit", python="3.11"))
    said = str(caught.value)
    assert "fit travels by value from Python 3.11, and nodes on platform aws have Python 3.12" in said
    assert all(word in said for word in ("Run the flow on Python 3.12", "leave by_value out", "Python 3.11 with ami="))
    Place().refuses(Work(label="fit", python="3.12"))
    Place().refuses(Work(label="fit"))


def test_where_the_nodes_python_is_not_known_the_node_refuses() -> None:
    """An image that the request names may have any."""
    Place().refuses(Work(label="fit", python="3.11"), ami="ami-0abcdef1234567890")
    Place(python=None).refuses(Work(label="fit", python="3.11"))


@pytest.mark.parametrize(("text", "problem"), [("-e .\n", "option of pip"), (None, "cannot be read")])
def test_a_projects_file_of_requirements_matters_where_it_is_installed(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    """A node with the flow's own packages needs none of it, so a mistake in it stops nothing there."""
    if text is not None:
        (tmp_path / "needs.txt").write_text(text)
    work = Work(label="fit", project=tmp_path, requirements_file="needs.txt")
    Place(has_packages_of_flow=True).refuses(work)
    with pytest.raises(InvalidInput, match=problem):
        Place().refuses(work)


def test_secrets_are_the_platforms_to_take() -> None:
    """It is asked for the request's environment, before there is a lease."""
    place = Place()
    place.refuses(Work(label="fit", secrets={"TOKEN": "aws-sm:hf-token"}), environment="prod")
    assert place.asked == {"prod": "aws-sm:hf-token"}
