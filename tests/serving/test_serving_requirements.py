"""What is installed for an inference server follows from the artifact alone."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from mlinfra_prefect.agent import environments
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.local.serving_requirements import serving_requirements

RECORDED = {"python": "3.12.3", "scikit-learn": "1.7.2", "numpy": "2.3.1", "torch": "2.9.0"}


def test_recorded_versions_are_pinned_and_the_server_bounded() -> None:
    """The model is loaded by the versions that wrote it; what it does not need is not installed."""
    assert serving_requirements("sklearn-skops", RECORDED) == (
        "fastapi>=0.115,<0.151",
        "kserve==0.21.*",
        "numpy==2.3.1",
        "scikit-learn==1.7.2",
        "scipy",
        "skops>=0.13",
    )


def test_the_same_versions_in_another_order_are_the_same_environment() -> None:
    """The environment is found again by the hash of this tuple."""
    backwards = dict(reversed(RECORDED.items()))
    assert serving_requirements("sklearn-skops", backwards) == serving_requirements("sklearn-skops", RECORDED)
    names = {"Scikit_Learn": "1.7.2", "numpy": "2.3.1"}
    assert serving_requirements("sklearn-skops", names) == serving_requirements("sklearn-skops", RECORDED)


def test_a_python_predictor_gets_what_is_recorded_and_numpy() -> None:
    """A predictor may load what scikit-learn wrote; without a record of it, it is not installed."""
    assert "scikit-learn==1.7.2" in serving_requirements("python", RECORDED)
    assert serving_requirements("python", {}) == ("fastapi>=0.115,<0.151", "kserve==0.21.*", "numpy")


def test_a_local_build_is_pinned_to_its_public_version() -> None:
    """An index need not have the build ``+cpu`` of a version."""
    assert "numpy==2.3.1" in serving_requirements("python", {"numpy": "2.3.1+cpu"})


@pytest.mark.parametrize("version", ["2.3.1 --index-url http://x", "", "latest", "1\n2"])
def test_a_recorded_version_cannot_smuggle_options(version: str) -> None:
    """The versions come from the node, and the node is not trusted."""
    with pytest.raises(InvalidInput, match="versions"):
        serving_requirements("sklearn-skops", {"numpy": version})


def test_a_format_that_nobody_serves_is_refused() -> None:
    """The sentence lists those that can be served."""
    with pytest.raises(InvalidInput, match="python, sklearn-skops"):
        serving_requirements("files", {})


@pytest.mark.parametrize("format_", ["sklearn-skops", "python"])
def test_every_line_is_a_requirement(format_: str) -> None:
    """Both pip and the environment builder accept them."""
    requirements = serving_requirements(format_, RECORDED)
    environments.check_requirements(requirements)
    assert [str(Requirement(line)) for line in requirements]
