"""Settings: read where Prefect's own are, and in force in every process that we start."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.integration.requesting import as_request
from mlinfra_prefect.integration.saying import Reporter
from mlinfra_prefect.integration.settings import PREFIX, MlinfraSettings, apply_settings, settings
from mlinfra_prefect.lifecycle.training import Progress
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.request import TrainingRequest

VARIABLES = {"home": "MLINFRA_HOME", "cache": "MLINFRA_CACHE", "config": "MLINFRA_CONFIG"}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting and no variable of ours, in a user's home of its own; what a test applies is gone when it ends."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for variable in VARIABLES.values():
        monkeypatch.setenv(variable, "x")
        monkeypatch.delenv(variable)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("mlinfra_prefect.integration.settings._ours", {})
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("field", MlinfraSettings.model_fields)
def test_every_setting_has_a_default_a_title_and_a_sentence(field: str) -> None:
    """Nothing has to be set; what can be set says what it is."""
    told = MlinfraSettings.model_fields[field]
    assert not told.is_required()
    assert told.title
    assert told.description.endswith(".")


@pytest.mark.parametrize("place", ["variable", ".env", "prefect.toml", "pyproject.toml"])
def test_settings_are_read_where_those_of_prefect_are(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A variable, a `.env`, and the two files of a project."""
    match place:
        case "variable":
            monkeypatch.setenv(f"{PREFIX}DEFAULT_ENVIRONMENT", "staging")
        case ".env":
            (tmp_path / ".env").write_text(f"{PREFIX}DEFAULT_ENVIRONMENT=staging\n")
        case "prefect.toml":
            (tmp_path / "prefect.toml").write_text('[integrations.mlinfra]\ndefault_environment = "staging"\n')
        case "pyproject.toml":
            (tmp_path / "pyproject.toml").write_text(
                '[tool.prefect.integrations.mlinfra]\ndefault_environment = "staging"\n'
            )
    assert settings().default_environment == "staging"


@pytest.mark.parametrize("field", VARIABLES)
def test_a_place_that_is_set_holds_until_somebody_says_else(
    field: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """MLINFRA_* goes before the setting, the setting before the default; a setting may change, or go."""
    variable, setting = VARIABLES[field], f"{PREFIX}{field.upper()}"
    apply_settings()
    assert variable not in os.environ
    monkeypatch.setenv(setting, "there")
    apply_settings()
    apply_settings()
    assert os.environ[variable] == str(tmp_path / "there")
    monkeypatch.setenv(setting, str(tmp_path / "elsewhere"))
    apply_settings()
    assert os.environ[variable] == str(tmp_path / "elsewhere")
    os.environ[variable] = "said"
    apply_settings()
    assert os.environ[variable] == "said"
    os.environ[variable] = str(tmp_path / "elsewhere")
    monkeypatch.setenv(setting, "")  # empty: not set, and not the working directory
    apply_settings()
    assert variable not in os.environ


def test_a_home_that_is_set_stays_when_the_process_goes_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative path is meant where it was read first, and `~` is the user's home."""
    (tmp_path / "inner").mkdir()
    monkeypatch.setenv(f"{PREFIX}HOME", "home")
    monkeypatch.setenv(f"{PREFIX}CACHE", "~/cache")
    apply_settings()
    monkeypatch.chdir(tmp_path / "inner")
    assert Home.from_environment().root == tmp_path / "home"
    assert Home.from_environment().cache == Path.home() / "cache"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APPROVAL_TIMEOUT_MINUTES", "soon"),
        ("APPROVAL_TIMEOUT_MINUTES", "-1"),
        ("APPROVAL_TIMEOUT_MINUTES", "nan"),
        ("LOG_LINES_PER_MINUTE", "0"),
        ("DEFAULT_ENVIRONMENT", "Prod!"),
        ("EVENTS_ENABLED", "perhaps"),
    ],
)
def test_a_setting_that_is_wrong_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the variable that the user wrote, before anything is created."""
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    for reader in (settings, apply_settings):
        with pytest.raises(InvalidInput) as error:
            reader()
        assert error.value.field == f"{PREFIX}{name}"


def test_the_default_environment_is_that_of_requests_that_name_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However the request is given; one that names an environment keeps it, also where it names dev."""
    file = tmp_path / "request.yaml"
    file.write_text("accelerator: cpu\n")
    monkeypatch.setenv(f"{PREFIX}DEFAULT_ENVIRONMENT", "staging")
    for given in (None, "cpu", {"accelerator": "cpu"}, TrainingRequest(max_minutes=3), file):
        assert as_request(given, {}).environment == "staging"
        assert as_request(given, {"max_minutes": 5}).environment == "staging"
        assert as_request(given, {"environment": "dev"}).environment == "dev"
    assert as_request(TrainingRequest(environment="dev"), {}).environment == "dev"
    assert as_request({"environment": "prod"}, {"max_minutes": 5}).environment == "prod"


def test_prefect_s_profiles_are_read_and_do_not_keep_them(tmp_path: Path) -> None:
    """What the docs say of profiles: a value in the file counts, and `prefect config set` refuses to write one."""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLINFRA_"))},
        "PREFECT_HOME": str(tmp_path),
    }
    (tmp_path / "profiles.toml").write_text(f'active = "x"\n[profiles.x]\n{PREFIX}LOG_LINES_PER_MINUTE = "7"\n')
    script = textwrap.dedent("""
        from mlinfra_prefect.integration.settings import settings
        print(settings().log_lines_per_minute)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60, check=False, cwd=tmp_path
    )
    assert done.stdout == "7\n", done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "config", "set", f"{PREFIX}LOG_LINES_PER_MINUTE=8"],
        capture_output=True, text=True, env=env, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Unknown setting" in done.stdout + done.stderr


def test_a_home_that_is_set_is_the_one_that_the_phases_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also when it is set after the first phase; the variable of the shell still goes before it."""
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path / "one"))
    assert context().home.root == tmp_path / "one"
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path / "two"))
    assert context().home.root == tmp_path / "two"
    monkeypatch.setenv("MLINFRA_HOME", str(tmp_path / "three"))
    assert context().home.root == tmp_path / "three"


def test_as_many_lines_go_to_prefect_as_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a minute's lines is in the whole log only."""
    heard: list[str] = []
    logger = logging.getLogger("as-many-lines")
    logger.setLevel(logging.INFO)
    monkeypatch.setattr(logger, "handle", lambda record: heard.append(record.getMessage()))
    monkeypatch.setenv(f"{PREFIX}LOG_LINES_PER_MINUTE", "3")
    reporter = Reporter("fit", logger=logger, clock=lambda: 0.0)
    for number in range(10):
        reporter(Progress(log=f"line {number}"))
    assert heard == ["line 0", "line 1", "line 2"]
