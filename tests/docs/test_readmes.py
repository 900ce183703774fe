"""Docs cannot rot: every block of code in the pages is run, or checked as far as it can be.

A Python block is compiled; unless a comment before it says why not, it is also run, as the file that its first line
names. Commands in console blocks are parsed by the real command line, and run where anybody can run them. The blocks of
a page share one project and one home, in the order of the page.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlinfra_prefect.code.project import read_project
from mlinfra_prefect.lifecycle.config import load_config
from mlinfra_prefect.lifecycle.declaration_file import declares_endpoints, read_declaration
from mlinfra_prefect.lifecycle.request_file import read_request

_spec = importlib.util.spec_from_file_location("mlinfra_docs_pages", Path(__file__).with_name("pages.py"))
assert _spec is not None
assert _spec.loader is not None
md = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = md
_spec.loader.exec_module(md)

PAGES = md.pages()
KINDS = {"", "console", "hcl", "json", "mermaid", "python", "text", "toml", "yaml"}
PLACEHOLDERS = {"LEASE", "ID", "ENDPOINT"}
RUN_WITH_AN_ID = {"show", "release"}
RUN_ELSEWHERE = {"demo", "emulate"}
"""Too long for here: `make test` runs the demo from the built wheel. What a page emulates, `Emulator` does."""


def all_blocks(*kinds: str) -> list:
    return [
        pytest.param(page, block, id=f"{page}:{block.line}")
        for page in PAGES
        for block in md.blocks(page)
        if block.kind in kinds
    ]


def by_anybody(words: list[str]) -> bool:
    return words[0] in {"mlinfra-prefect", "python"} and words[1] not in RUN_ELSEWHERE


def runnable(page: Path) -> bool:
    found = md.blocks(page)
    return any(block.kind == "python" and not block.not_run and not block.part for block in found) or any(
        by_anybody(words) for block in found if block.kind == "console" for words in block.commands()
    )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    """A block of another kind would be read by nobody but people."""
    strange = [f"{page}:{block.line}: {block.kind}" for block in md.blocks(page) if block.kind not in KINDS]
    assert not strange


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files of the checkout, and their anchors name headings there."""
    lost = []
    for target in md.links(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (md.CHECKOUT / page).parent / name if name else md.CHECKOUT / page
        there = path.exists()
        if not there or (anchor and anchor not in md.anchors(path.resolve().relative_to(md.CHECKOUT))):
            lost.append(target)
    assert not lost, f"{page} links to what is not there: {lost}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_page_names_a_place_of_one_machine(page: Path) -> None:
    """What is published works anywhere: absolute paths are the examples' own, or everybody's."""
    text = (md.CHECKOUT / page).read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.:/>)\]-])/[a-z]\w*(?:/[\w.-]+)*", text)
    everybodys = (
        "/v2/",
        "/mlinfra/",
        "/data",
        "/srv/ml",
        "/dev/",
        "/proc",
        "/nightly",
        "/on",
    )  # the last two are deployments
    assert not [path for path in found if not path.startswith(everybodys)]


@pytest.mark.parametrize(("page", "block"), all_blocks("python"))
def test_python_compiles(page: Path, block: md.Block) -> None:
    """Also what is not run has no error of syntax. Excerpts stand word for word in the file they are from."""
    if block.part:
        assert block.text in ((md.CHECKOUT / page).parent / block.name).read_text(encoding="utf-8")
    else:
        assert block.name, f"{page}:{block.line}: the first line has to name a file, as `# train.py`"
        compile(block.text, f"{page}:{block.line}", "exec")


@pytest.mark.parametrize(("page", "block"), all_blocks("toml"))
def test_configuration_loads(page: Path, block: md.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TOML is read by what reads the user's, and names no key that it does not know."""
    monkeypatch.delenv("MLINFRA_CONFIG", raising=False)
    values = tomllib.loads(block.text)
    if "tool" in values:
        (tmp_path / "pyproject.toml").write_text(block.text)
        table = values["tool"]["mlinfra-prefect"]
        project = read_project(tmp_path)
        assert [*table.get("include", ()), *table.get("exclude", ())] == [*project.include, *project.exclude]
    else:
        (tmp_path / "mlinfra-prefect.toml").write_text(block.text)
        table = values
    config = load_config(tmp_path)
    assert set(table.get("environments", {})) <= set(config.environments)
    assert set(table) <= {"environments", "terraform", "ledger", "include", "exclude", "max_code_mib", "requirements"}


@pytest.mark.parametrize(("page", "block"), all_blocks("yaml"))
def test_requests_and_declarations_load(page: Path, block: md.Block, tmp_path: Path) -> None:
    """YAML is a request or declares endpoints, read by what reads the user's; excerpts stand in their file."""
    if block.part:
        assert block.text in ((md.CHECKOUT / page).parent / block.name).read_text(encoding="utf-8")
        return
    path = tmp_path / (block.name or "request.yaml")
    path.write_text(block.text)
    assert read_declaration(path).endpoints if declares_endpoints(path) else read_request(path).accelerator


@pytest.mark.parametrize(("page", "block"), all_blocks("json"))
def test_json_lines_parse(page: Path, block: md.Block) -> None:
    """One object per line."""
    assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())


@pytest.mark.parametrize(("page", "block"), all_blocks("mermaid"))
def test_pictures_are_balanced(page: Path, block: md.Block) -> None:
    """A diagram of a known type, in which every bracket, quote and subgraph is closed."""
    first, *lines = block.text.strip().splitlines()
    assert first.split()[0] in {"flowchart", "stateDiagram-v2", "sequenceDiagram"}
    assert sum(line.split()[:1] == ["subgraph"] for line in lines) == sum(line.strip() == "end" for line in lines)
    for line in lines:
        assert line.count('"') % 2 == 0, line
        bare = re.sub(r'"[^"]*"', "", line)
        while (less := re.sub(r"\[\*\]|\(\)|\[\]|\{\}", "", bare)) != bare:
            bare = less
        bare = re.sub(r"\[[^\[\]()]*\]|\([^\[\]()]*\)", "", bare)
        assert not set("[](){}") & set(bare), line


@pytest.mark.parametrize(("page", "block"), all_blocks("console"))
def test_commands_are_ones_that_there_are(page: Path, block: md.Block) -> None:
    """Verbs and options of the command line, targets of the Makefile, extras of the package, files of an example."""
    from mlinfra_prefect.cli.app import app

    project = tomllib.loads((md.CHECKOUT / "pyproject.toml").read_text())["project"]
    makefile = (md.CHECKOUT / "Makefile").read_text()
    assert all(line.startswith("$ ") for line in block.text.splitlines()), "output stands in a `text` block"
    for words in block.commands():
        match words:
            case ["mlinfra-prefect", *rest]:
                app.parse_args(rest, exit_on_error=False, print_error=False)
            case ["make", target, *_]:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), words
            case ["pip", "install", requirement]:
                name, _, extra = requirement.rstrip("]").partition("[")
                assert name == project["name"]
                assert extra in project["optional-dependencies"]
            case ["python", script]:
                of_this_page = {each.name for each in md.blocks(page) if not each.part}
                assert script in of_this_page or ((md.CHECKOUT / page).parent / script).is_file(), words
            case _:
                raise AssertionError(f"{page}:{block.line}: {words} is not checked by anything")


def test_exit_codes_of_the_readme_are_those_of_the_command_line() -> None:
    """The table has every code that the command line ends with, and no other."""
    from mlinfra_prefect.cli import outcome

    told = {int(code) for code in re.findall(r"^\| (\d+) \|", md.prose(Path("README.md")), re.MULTILINE)}
    assert told == {value for name, value in vars(outcome).items() if name.isupper() and isinstance(value, int)}


class Emulator:
    """An emulated AWS for all pages that want one, from the first that does; what one of them makes the others have."""

    def __init__(self, until_the_end: contextlib.ExitStack, scratch: Path) -> None:
        self.initialised: list[list[str]] = []
        self._until_the_end, self._scratch = until_the_end, scratch
        self._variables: dict[str, str] = {}

    def reached(self) -> dict[str, str]:
        """The variables that lead to it. Skips where Terraform has no AWS provider, as `aws_place` says."""
        if not self._variables:
            from mlinfra_prefect.testing.aws.apart import emulated_apart

            place = md.CHECKOUT / "tests" / "aws" / "aws_place.py"
            spec = importlib.util.spec_from_file_location("mlinfra_docs_aws_place", place)
            assert spec is not None
            assert spec.loader is not None
            aws_place = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = aws_place
            spec.loader.exec_module(aws_place)
            aws_place.require_provider(self._scratch)
            self._variables = self._until_the_end.enter_context(emulated_apart())
        return self._variables


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with contextlib.ExitStack() as until_the_end:
        yield Emulator(until_the_end, tmp_path_factory.mktemp("emulator"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=str)
def test_what_a_page_says_works(page: Path, reader, emulator: Emulator) -> None:
    """A reader who does it all, in order, in an empty project (or in a copy of the example) gets what is said."""
    if page.parts[0] == "examples":
        shutil.copytree((md.CHECKOUT / page).parent, reader.project, dirs_exist_ok=True)
    printed = ""
    for block in md.blocks(page):
        if block.kind in {"python", "yaml"} and block.name and not block.part:
            (reader.project / block.name).write_text(block.text)
        if block.kind == "python" and not block.part and not block.not_run:
            printed += reader.does("python", block.name)
        elif block.kind == "console":
            for words in block.commands():
                if words[:3] == ["mlinfra-prefect", "emulate", "aws"]:
                    reader.env |= emulator.reached()
                elif words[1:3] != ["init", "aws"] or words not in emulator.initialised:
                    printed += _done(reader, words)
                    emulator.initialised += [words] if words[1:3] == ["init", "aws"] else []
        elif block.kind == "text":
            said = [md.without_numbers(line) for line in block.text.splitlines()]
            lines = [md.without_numbers(line) for line in printed.splitlines()]
            missing = [line for line in said if not any(found.endswith(line) for found in lines)]
            assert not missing, f"{page}:{block.line}: {missing} is not in\n{printed}"
    for record in reader.live():
        reader.does("mlinfra-prefect", "release", record)
    assert reader.live() == []


def _done(reader, words: list[str]) -> str:
    if not by_anybody(words):
        return ""
    if PLACEHOLDERS & set(words):
        live = reader.live()
        if words[1] not in RUN_WITH_AN_ID or not live:
            return ""
        words = [live[-1] if word in PLACEHOLDERS else word for word in words]
    return reader.does(*words)
