"""The JSON Schemas in ``docs/schemas`` describe what we write and what people may write, and never change silently."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from model_strategies import BY_MODEL

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.record import Record
from mlinfra_prefect.model.request import ServingRequest, TrainingRequest
from mlinfra_prefect.model.schemas import SCHEMAS, Schema, main, schema_of, text_of, write_schemas

COMMITTED = Path(__file__).parents[2] / "docs" / "schemas"
NAMES = [schema.name for schema in SCHEMAS]


def validator(schema: Schema) -> jsonschema.Draft202012Validator:
    """Return a validator of a schema, which is itself checked."""
    body = schema_of(schema)
    jsonschema.Draft202012Validator.check_schema(body)
    return jsonschema.Draft202012Validator(body)


@pytest.mark.parametrize("schema", SCHEMAS, ids=NAMES)
def test_the_committed_schema_is_the_model_s(schema: Schema) -> None:
    """A changed model without a new version, or without its file, fails here."""
    path = COMMITTED / schema.file_name
    assert path.read_text("utf-8") == text_of(schema), (
        f"{path.name} is not what the model says: raise its version in model/schemas.py if that version was published, "
        "and run python -m mlinfra_prefect.model.schemas docs/schemas"
    )


def test_every_committed_file_is_an_exported_schema_or_its_past() -> None:
    """No stray file: each is named by a schema's name and a version up to today's, and carries that id."""
    versions = {schema.name: schema.version for schema in SCHEMAS}
    for path in COMMITTED.iterdir():
        name, version, extension = path.name.split(".")
        assert extension == "json"
        assert 1 <= int(version) <= versions[name]
        assert json.loads(path.read_text("utf-8"))["$id"] == f"urn:mlinfra-prefect:schema:{name}:{version}"


def test_names_are_unique() -> None:
    """Two schemas never share an id."""
    assert len({schema.id for schema in SCHEMAS}) == len(SCHEMAS)


@pytest.mark.parametrize("schema", SCHEMAS, ids=NAMES)
@settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_written_validates_and_comes_back_exactly(schema: Schema, data: st.DataObject) -> None:
    """Every record survives JSON unchanged, and its JSON is what its schema says."""
    record: Record = data.draw(BY_MODEL[schema.model])
    written = record.model_dump_json()
    again = schema.model.model_validate_json(written)
    assert again == record
    assert again.model_dump_json() == written
    validator(schema).validate(json.loads(written))


@pytest.mark.parametrize("schema", SCHEMAS, ids=NAMES)
def test_unknown_fields_are_refused_by_the_schema_too(schema: Schema) -> None:
    """The schema is as closed as the model."""
    assert schema_of(schema)["additionalProperties"] is False


@pytest.mark.parametrize("schema", SCHEMAS, ids=NAMES)
def test_what_we_write_has_every_field_and_what_people_write_need_not(schema: Schema) -> None:
    """Readers of our files need no defaults; writers of requests may leave them out."""
    body = schema_of(schema)
    if schema.written_by == "us":
        assert set(body["required"]) == set(body["properties"])
    else:
        required = {field.alias or name for name, field in schema.model.model_fields.items() if field.is_required()}
        assert set(body.get("required", ())) == required


@pytest.mark.parametrize(
    ("model", "document", "valid"),
    [
        (TrainingRequest, {}, True),
        (TrainingRequest, {"accelerator": "A100-80GB:8", "max_minutes": 30}, True),
        (TrainingRequest, {"accelerator": "a100 80"}, False),
        (TrainingRequest, {"accelerator": {"name": "A100", "count": 1}}, False),
        (TrainingRequest, {"name": "../../x"}, False),
        (TrainingRequest, {"max_minutes": 0}, False),
        (TrainingRequest, {"minutes": 5}, False),
        (ServingRequest, {"name": "churn"}, True),
        (ServingRequest, {"name": "x" * 41}, False),
        (ServingRequest, {"name": "churn", "port": 80}, False),
    ],
)
def test_people_s_documents_are_judged_by_the_schema(model: type[Record], document: object, valid: bool) -> None:  # noqa: FBT001
    """An editor that knows the schema finds the same faults as we do."""
    schema = next(schema for schema in SCHEMAS if schema.model is model)
    assert validator(schema).is_valid(document) is valid


def test_a_changed_schema_is_not_written_over(tmp_path: Path) -> None:
    """A published file never changes: without a new version nothing is written, with one the old file stays."""
    before = Schema("thing", ServingRequest, 1, "people")
    assert write_schemas(tmp_path, [before]) == (tmp_path / "thing.1.json",)
    assert write_schemas(tmp_path, [before]) == ()
    published = (tmp_path / "thing.1.json").read_text("utf-8")
    changed, other = Schema("thing", TrainingRequest, 1, "people"), Schema("other", TrainingRequest, 1, "people")
    with pytest.raises(InvalidInput, match=r"thing\.1\.json changed and its version did not"):
        write_schemas(tmp_path, [other, changed])
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {"thing.1.json": published}
    raised = Schema("thing", TrainingRequest, 2, "people")
    assert write_schemas(tmp_path, [raised]) == (tmp_path / "thing.2.json",)
    assert (tmp_path / "thing.1.json").read_text("utf-8") == published
    assert write_schemas(tmp_path, [changed], overwrite=True) == (tmp_path / "thing.1.json",)


def test_the_module_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes what is committed, refuses to write over it, and says how it is used."""
    command = [sys.executable, "-W", "error", "-m", "mlinfra_prefect.model.schemas", str(tmp_path)]
    done = subprocess.run(command, cwd=COMMITTED.parents[1], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {schema.file_name for schema in SCHEMAS}
    (tmp_path / "card.1.json").write_text("{}")
    assert main([str(tmp_path)]) == 1
    assert "card.1.json changed" in capsys.readouterr().err
    assert main([str(tmp_path), "--unreleased"]) == 0
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().err
