"""Which files travel."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mlinfra_prefect.code import collect, find_root
from mlinfra_prefect.code.project import read_requirements
from mlinfra_prefect.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

DECLARED = {"pyproject.toml": ""}


def paths(root: Path) -> list[str]:
    return [file.path for file in collect(root).files]


def test_a_project_begins_at_the_nearest_pyproject(project):
    """The nearest directory with a pyproject.toml at or above the start is the root; a file may be the start."""
    root = project({"pyproject.toml": "", "services/train/pyproject.toml": "", "services/train/deep/fit.py": ""})
    assert find_root(root / "services/train/deep/fit.py") == root / "services/train"
    assert find_root(root / "services") == root


def test_a_root_is_never_looked_for_above_home(project, monkeypatch):
    """A pyproject.toml above the home directory belongs to somebody else."""
    root = project({"pyproject.toml": "", "home/ada/work/fit.py": ""})
    monkeypatch.setenv("HOME", str(root / "home/ada"))
    assert find_root(root / "home/ada/work") is None
    (root / "home/ada/pyproject.toml").write_text("")
    assert find_root(root / "home/ada/work") == root / "home/ada"


def test_every_file_travels_that_nothing_excludes(project):
    """Code, configuration and small data go without being listed."""
    root = project({**DECLARED, "train.py": "", "conf/a.yaml": "x: 1", "data/table.csv": "1,2"})
    assert paths(root) == ["conf/a.yaml", "data/table.csv", "pyproject.toml", "train.py"]


@pytest.mark.parametrize(
    "name",
    [".env", ".env.production", "certs/server.pem", "deploy.key", "id_rsa", ".aws/credentials", ".git/config",
     ".venv/lib/x.py", ".venv-3.11/x.py", "venv/x.py", "a/__pycache__/x.cpython-311.pyc", "stray.pyc",
     "node_modules/x.js", ".mypy_cache/x.json", "infra/terraform.tfstate", "infra/prod.tfvars", "SERVER.PEM"],
)  # fmt: skip
def test_secrets_and_machinery_never_travel_not_even_when_included(project, name):
    """No `include` brings back a secret, a virtual environment or a cache, by pattern or by full name."""
    root = project({"pyproject.toml": f'[tool.mlinfra-prefect]\ninclude = ["**", "{name}"]', "train.py": "", name: "x"})
    assert paths(root) == ["pyproject.toml", "train.py"]


def test_a_virtual_environment_is_known_by_its_marker_not_only_by_its_name(project):
    """A directory with a pyvenv.cfg is an environment whatever it is called."""
    root = project({**DECLARED, "myenv/pyvenv.cfg": "", "myenv/lib/x.py": ""})
    assert paths(root) == ["pyproject.toml"]


def test_our_own_home_inside_the_project_does_not_travel(project, monkeypatch):
    """The ledger changes with every lease; packing it would change the package each time."""
    root = project({**DECLARED, "state/ledger.sqlite": "x", "train.py": ""})
    monkeypatch.setenv("MLINFRA_HOME", str(root / "state"))
    assert paths(root) == ["pyproject.toml", "train.py"]


def test_the_deepest_gitignore_has_the_last_word(project):
    """A nested .gitignore takes back what an outer one ignores, and adds its own, only below itself."""
    root = project(
        {**DECLARED, ".gitignore": "*.csv\nbuild/\n/top.txt\n", "a/.gitignore": "!keep.csv\n*.log\n", "a/keep.csv": "",
         "a/drop.csv": "", "a/x.log": "", "b/x.log": "", "b/keep.csv": "", "a/build/x.py": "", "top.txt": "",
         "a/top.txt": ""}
    )  # fmt: skip
    assert paths(root) == [".gitignore", "a/.gitignore", "a/keep.csv", "a/top.txt", "b/x.log", "pyproject.toml"]


def test_nothing_below_an_ignored_directory_comes_back(project):
    """Git does not enter an ignored directory, so neither do we."""
    root = project({**DECLARED, ".gitignore": "data/\n", "data/.gitignore": "!keep.csv\n", "data/keep.csv": ""})
    assert paths(root) == [".gitignore", "pyproject.toml"]


def test_the_gitignore_of_the_repository_above_the_project_holds_too(project):
    """A project in a monorepo is under the repository's rules, and under no others."""
    root = project({".gitignore": "*.skip\n", "repo/.git/HEAD": "", "repo/.gitignore": "*.csv\n/sub/only-here.txt\n",
                    "repo/sub/pyproject.toml": "", "repo/sub/a.csv": "", "repo/sub/a.skip": "",
                    "repo/sub/only-here.txt": ""})  # fmt: skip
    assert paths(root / "repo/sub") == ["a.skip", "pyproject.toml"]


def test_taking_a_directory_back_does_not_take_back_what_other_rules_ignore_in_it(project):
    """`!conf` speaks of conf, not of the keys in it."""
    root = project(
        {**DECLARED, ".gitignore": "keys/\n*.csv\n!conf\n", "conf/keys/a": "", "conf/b.csv": "", "conf/c": ""}
    )
    assert paths(root) == [".gitignore", "conf/c", "pyproject.toml"]


NAMES = st.sampled_from(["a", "b", "a.py", "b.csv", "c.txt"])
PATTERNS = st.sampled_from(
    ["*.py", "*.csv", "a", "a/", "/a", "b/", "!a.py", "!b.csv", "a/*", "**/c.txt", "!c.txt", "/b/*.csv", "a/b"]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.sets(st.lists(NAMES, min_size=1, max_size=3).map(tuple), min_size=1, max_size=6),
    outer=st.lists(PATTERNS, max_size=4),
    inner=st.lists(PATTERNS, max_size=3),
)
def test_gitignore_files_mean_what_they_mean_to_git(tmp_path_factory, files, outer, inner):
    """For any tree and any rules, what travels is what `git` would list as untracked and not ignored."""
    root = tmp_path_factory.mktemp("tree").resolve()
    (root / "pyproject.toml").write_text("")
    for parts in sorted(files):
        path = root.joinpath(*parts)
        if path.exists() or any(parent.is_file() for parent in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (root / ".gitignore").write_text("\n".join(outer) + "\n")
    if (root / "a").is_dir():
        (root / "a" / ".gitignore").write_text("\n".join(inner) + "\n")
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(root.parent)}
    subprocess.run(["git", "init", "-q", str(root)], check=True, env=environment)  # noqa: S607
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],  # noqa: S607
        cwd=root, env=environment, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    assert paths(root) == sorted(name for name in listed if name)


def test_include_narrows_and_exclude_takes_away(project):
    """`include` lists what travels, in .gitignore syntax; `exclude` wins over it."""
    settings_text = '[tool.mlinfra-prefect]\ninclude = ["src/**", "*.yaml"]\nexclude = ["src/heavy/"]'
    root = project(
        {"pyproject.toml": settings_text, "src/a.py": "", "src/heavy/b.py": "", "conf/c.yaml": "", "notes.txt": ""}
    )
    assert paths(root) == ["conf/c.yaml", "src/a.py"]


def test_a_path_included_in_full_outweighs_gitignore(project):
    """A generated file that Git ignores can still be named, and then travels."""
    root = project({"pyproject.toml": '[tool.mlinfra-prefect]\ninclude = ["*.py", "gen/weights.bin"]',
                    ".gitignore": "gen/\n", "train.py": "", "gen/weights.bin": "x", "gen/other.py": ""})  # fmt: skip
    assert paths(root) == ["gen/weights.bin", "train.py"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[tool.mlinfra-prefect\n", "pyproject.toml"),
        ('[tool.mlinfra-prefect]\ninclude = "src"', "include"),
        ("[tool.mlinfra-prefect]\nexclude = [1]", "exclude"),
        ("[tool.mlinfra-prefect]\nmax_code_mib = 0", "max_code_mib"),
        ("[tool.mlinfra-prefect]\nmax_code_mib = true", "max_code_mib"),
        ("[tool.mlinfra-prefect]\nrequirements = ['numpy']", "requirements"),
        ('[tool]\nmlinfra-prefect = "x"', "mlinfra-prefect"),
    ],
)
def test_a_wrong_pyproject_is_an_error_that_names_the_key(project, text, field):
    """Unreadable TOML and wrong values stop before anything is packed."""
    with pytest.raises(InvalidInput) as caught:
        collect(project({"pyproject.toml": text}))
    assert field in caught.value.field


NAMES_THEM = '[tool.mlinfra-prefect]\nrequirements = "needs.txt"'


def test_the_file_of_requirements_is_read_with_its_hashes(project):
    """As pip-compile and uv export write it: comments, markers, and hashes on lines that go on."""
    text = (
        "# by hand\n\nnumpy==2.1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "torch>=2; sys_platform == 'linux'  # the GPU one\nthing @ https://example.org/thing.whl#sha256=cc\n"
    )
    root = project({"pyproject.toml": NAMES_THEM, "needs.txt": text})
    assert read_requirements(root, collect(root).requirements) == (
        "numpy==2.1.0 --hash=sha256:aa --hash=sha256:bb", "torch>=2; sys_platform == 'linux'",
        "thing @ https://example.org/thing.whl#sha256=cc",
    )  # fmt: skip
    bare = project({"pyproject.toml": "[project]\nname = 'x'"})
    assert read_requirements(bare, collect(bare).requirements) == ()


@pytest.mark.parametrize("line", ["-e .", "-r more.txt", "--index-url https://example.org"])
def test_an_option_of_pip_in_it_is_refused(project, line):
    """It could name files that do not travel, and indexes that nobody agreed to."""
    with pytest.raises(InvalidInput, match="is an option of pip"):
        read_requirements(project({"needs.txt": f"numpy\n{line}\n"}), "needs.txt")


@pytest.mark.parametrize("name", ["absent.txt", "../outside.txt", "/etc/hosts"])
def test_a_file_of_requirements_that_is_not_there_is_refused(project, name):
    """It lies in the project, or it is none of its."""
    with pytest.raises(InvalidInput) as caught:
        read_requirements(project({}), name)
    assert "requirements" in caught.value.field


def test_keys_of_the_table_that_are_not_about_code_are_left_alone(project):
    """Environments live in the same table."""
    assert paths(project({"pyproject.toml": "[tool.mlinfra-prefect.environments.dev]\nplatform = 'local'"}))


@pytest.mark.parametrize("target", ["file", "directory"])
def test_a_link_out_of_the_root_is_refused_by_name(project, tmp_path, target):
    """What a link outside leads to is not the project's, and must not leave this machine."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("secret")
    root = project({**DECLARED, "train.py": ""})
    (root / "sneaky").symlink_to(outside if target == "directory" else outside / "passwd")
    with pytest.raises(InvalidInput, match=r"'sneaky' leaves the project root") as caught:
        collect(root)
    assert "exclude" in caught.value.remedy


def test_an_excluded_link_out_of_the_root_does_no_harm(project, tmp_path):
    """The remedy that the refusal names works; so does a .gitignore."""
    root = project({"pyproject.toml": '[tool.mlinfra-prefect]\nexclude = ["sneaky"]', ".gitignore": "other\n"})
    (root / "sneaky").symlink_to(tmp_path)
    (root / "other").symlink_to(tmp_path)
    assert paths(root) == [".gitignore", "pyproject.toml"]


def test_a_link_inside_the_root_travels_as_what_it_leads_to(project):
    """A linked file and a linked directory are files on the node; a link to a directory above ends there."""
    root = project({**DECLARED, "flows/a.py": "A", "pkg/__init__.py": ""})
    (root / "pkg/flows").symlink_to("../flows")
    (root / "pkg/b.py").symlink_to("../flows/a.py")
    (root / "pkg/loop").symlink_to("..")
    assert paths(root) == ["flows/a.py", "pkg/__init__.py", "pkg/b.py", "pkg/flows/a.py", "pyproject.toml"]


def test_a_link_to_a_secret_is_a_secret(project):
    """Renaming `.env` by a link does not make it travel."""
    root = project({**DECLARED, ".env": "TOKEN=x", ".git/config": "x"})
    (root / "settings.txt").symlink_to(".env")
    (root / "gitconfig.txt").symlink_to(".git/config")
    (root / "metadata").symlink_to(".git")
    assert paths(root) == ["pyproject.toml"]


@pytest.mark.parametrize("target", ["nowhere", "gone"])
def test_a_dangling_link_is_refused_by_name(project, target):
    """A file that is not there cannot travel, and leaving it out silently would be found on the node."""
    root = project(DECLARED)
    (root / "gone").symlink_to(target)
    with pytest.raises(InvalidInput, match=r"'gone' leads nowhere"):
        collect(root)


def test_over_the_cap_the_biggest_files_and_the_remedy_are_named(project):
    """The message says what is big, biggest first, and names `include`."""
    root = project({"pyproject.toml": "[tool.mlinfra-prefect]\nmax_code_mib = 1", "big.bin": bytes(900_000),
                    "bigger.bin": bytes(1_000_000), "small.py": "x"})  # fmt: skip
    with pytest.raises(InvalidInput) as caught:
        collect(root)
    assert caught.value.message.index("bigger.bin (1.0 MiB)") < caught.value.message.index("big.bin (0.9 MiB)")
    assert "`include`" in caught.value.remedy
    (root / "pyproject.toml").write_text('[tool.mlinfra-prefect]\nmax_code_mib = 1\nexclude = ["big*.bin"]')
    assert collect(root).size < 1000


def test_too_many_files_stop_the_walk(project, monkeypatch):
    """A dataset of tiny files is under the size cap and still no code."""
    monkeypatch.setattr("mlinfra_prefect.code.collecting.MAX_FILES", 3)
    with pytest.raises(InvalidInput, match="more than 3 files"):
        collect(project({f"{number}.txt": "" for number in range(5)}))


@pytest.mark.parametrize("name", ["new\nline.py", "back\\slash.py", "bell\a.py", "a:b.py"])
def test_a_file_name_that_cannot_travel_is_an_error(project, name):
    """Control characters and backslashes mean other things elsewhere."""
    with pytest.raises(InvalidInput, match="cannot travel"):
        collect(project({**DECLARED, name: ""}))


def test_a_script_in_a_home_directory_does_not_send_the_home_directory(project, monkeypatch):
    """Without a pyproject.toml, a shared place gives its Python files and packages, nothing else."""
    root = project(
        {"train.py": "", "tax.pdf": "x", "pkg/__init__.py": "", "pkg/a.py": "", "pkg/t.csv": "", "photos/x.py": ""}
    )
    assert "tax.pdf" in paths(root)
    monkeypatch.setenv("HOME", str(root))
    assert paths(root) == ["pkg/__init__.py", "pkg/a.py", "train.py"]


def test_the_hash_covers_what_git_keeps_and_nothing_else(project):
    """Touching a file keeps the hash; changing, renaming or making one runnable changes it."""
    root = project({**DECLARED, "a.py": "1"})
    first = collect(root).sha256
    os.utime(root / "a.py", (1, 1))
    (root / "a.py").chmod(0o604)
    assert collect(root).sha256 == first
    (root / "a.py").write_text("2")
    second = collect(root).sha256
    (root / "a.py").rename(root / "b.py")
    third = collect(root).sha256
    (root / "b.py").chmod(0o744)
    fourth = collect(root).sha256
    assert len({first, second, third, fourth}) == 4
