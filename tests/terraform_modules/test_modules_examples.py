"""What the READMEs of the modules say: their examples are planned by the real provider, their tables are complete."""

from __future__ import annotations

import re

import pytest
from modules_harness import AWS_MODULES, AWS_STACKS, SOURCES, Modules, examples, planned

from mlinfra_prefect.terraform import blocks

EVERY = (*AWS_MODULES, *AWS_STACKS)


@pytest.fixture(scope="module")
def by_example(modules: Modules) -> dict[str, list[dict]]:
    """What each example plans. One plan for all of them: starting the provider is what costs."""
    found = examples()
    root = modules.root("examples", "")
    calls = []
    for name, text in found.items():
        place = root / name.replace("/", "-")
        place.mkdir()
        (place / "terraform").symlink_to(modules.place / "terraform", target_is_directory=True)
        (place / "main.tf").write_text(text)
        calls.append(f'module "{place.name}" {{\n  source = "./{place.name}"\n}}\n')
    (root / "main.tf").write_text("".join(calls))
    for stack in AWS_STACKS:
        (modules.place / "terraform" / stack / "backend.tf").unlink(missing_ok=True)
    modules.init(root)
    document = modules.plan(root)
    return {
        name: [each for each in planned(document) if each["address"].startswith(f"module.{name.replace('/', '-')}.")]
        for name in found
    }


@pytest.mark.parametrize("name", EVERY)
def test_the_example_plans_what_its_last_line_says(name: str, by_example: dict[str, list[dict]]) -> None:
    """Copied beside the modules it is a root module that the real provider plans."""
    said = re.search(r"^# plans (\d+) resources$", examples()[name], re.MULTILINE)
    assert said, "the example does not say how many resources it plans"
    assert len(by_example[name]) == int(said[1]), [each["address"] for each in by_example[name]]


@pytest.mark.parametrize("name", EVERY)
def test_whatever_can_carry_tags_carries_those_of_the_example(name: str, by_example: dict[str, list[dict]]) -> None:
    """Also what costs nothing: people find it, and `init` destroys it."""
    bare = [
        each["address"]
        for each in by_example[name]
        if "tags" in each["values"] and (each["values"]["tags"] or {}).get("mlinfra-prefect:environment") != "dev"
    ]
    assert not bare


@pytest.mark.parametrize("name", EVERY)
def test_the_readme_names_every_variable_and_output(name: str) -> None:
    """And no other; each has a type, a description and, where it may be left out, its default."""
    told = (SOURCES / name / "README.md").read_text()
    for file, heading in (("variables.tf", "## Variables"), ("outputs.tf", "## Outputs")):
        declared = {block.labels[0] for block in blocks.read(SOURCES / name / file)}
        table = told.partition(heading)[2].partition("\n## ")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == declared
    for block in blocks.read(SOURCES / name / "variables.tf"):
        assert {"type", "description"} <= block.attributes.keys(), block.labels
    for block in blocks.read(SOURCES / name / "outputs.tf"):
        assert {"value", "description"} <= block.attributes.keys(), block.labels


def test_every_variable_that_can_be_wrong_is_checked_in_its_module() -> None:
    """Text and numbers have a rule with a sentence; what is only passed on is checked where it is used."""
    free = {"name", "tags", "instance_profile", "region", "artifact_bucket", "function_name", "log_group", "handler",
            "archive", "state_bucket", "input_buckets", "buckets", "services"}  # fmt: skip
    unchecked = []
    for name in AWS_MODULES:
        for block in blocks.read(SOURCES / name / "variables.tf"):
            checked = any(inner.type == "validation" for inner in block.blocks)
            if not checked and block.attributes["type"] != "bool" and block.labels[0] not in free:
                unchecked.append(f"{name}: {block.labels[0]}")
    assert not unchecked
