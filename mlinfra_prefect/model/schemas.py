"""JSON Schemas of what leaves this package: files in ``docs/schemas``, versioned, for readers in any language.

A published schema never changes. When a model changes, its version goes up here and a new file appears beside the old
one; writing over a published file is refused, so that a forgotten version is an error and not a surprise to readers.

``python -m mlinfra_prefect.model.schemas docs/schemas`` writes them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic.json_schema import GenerateJsonSchema

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.card import Card
from mlinfra_prefect.model.declaration import ServingDeclaration
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.environment import Environment
from mlinfra_prefect.model.lease import LeaseRecord
from mlinfra_prefect.model.offer import Offer, Plan
from mlinfra_prefect.model.probe import ProbeRequest
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.record import Record
from mlinfra_prefect.model.request import ServingRequest, TrainingJob, TrainingRequest

OVERWRITE_FLAG = "--unreleased"


@dataclass(frozen=True, slots=True)
class Schema:
    """One exported schema.

    Attributes:
        name: as it stands in its ``$id`` and file name.
        model: what it describes.
        version: one higher with every change to a published schema.
        written_by: people, so that what has a default may be left out, or us, so that every field is there.
    """

    name: str
    model: type[Record]
    version: int
    written_by: Literal["people", "us"]

    @property
    def id(self) -> str:
        """Its ``$id``: a name, not an address."""
        return f"urn:mlinfra-prefect:schema:{self.name}:{self.version}"

    @property
    def file_name(self) -> str:
        """Its file in ``docs/schemas``."""
        return f"{self.name}.{self.version}.json"


SCHEMAS = (
    Schema("training-request", TrainingRequest, 1, "people"),
    Schema("training-job", TrainingJob, 1, "people"),
    Schema("serving-request", ServingRequest, 1, "people"),
    Schema("environment", Environment, 1, "people"),
    Schema("offer", Offer, 1, "us"),
    Schema("plan", Plan, 1, "us"),
    Schema("lease-record", LeaseRecord, 1, "us"),
    Schema("endpoint-record", EndpointRecord, 1, "us"),
    Schema("rollout-record", RolloutRecord, 1, "us"),
    Schema("probe", ProbeRequest, 1, "people"),
    Schema("serving-declaration", ServingDeclaration, 1, "people"),
    Schema("model-artifact", ModelArtifact, 1, "us"),
    Schema("receipt", Receipt, 1, "us"),
    Schema("card", Card, 1, "us"),
)


def schema_of(schema: Schema) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) as it is now."""
    mode: Literal["validation", "serialization"] = "validation" if schema.written_by == "people" else "serialization"
    body = schema.model.model_json_schema(mode=mode)
    return {"$schema": GenerateJsonSchema.schema_dialect, "$id": schema.id, **body}


def text_of(schema: Schema) -> str:
    """Return the text of its file; the same on every host."""
    return json.dumps(schema_of(schema), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_schemas(directory: Path, schemas: Sequence[Schema] = SCHEMAS, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write every schema to its file and return the files that changed; idempotent.

    Args:
        directory: where; made when it is absent.
        schemas: which.
        overwrite: write over a file of the same version, which is right only before that version was ever published.

    Raises:
        InvalidInput: a schema changed and its version did not; nothing was written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = {directory / schema.file_name: text_of(schema) for schema in schemas}
    changed = {path: text for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text}
    broken = [path.name for path in changed if path.exists()]
    if broken and not overwrite:
        raise InvalidInput(
            "version",
            f"the model behind {', '.join(broken)} changed and its version did not",
            f"Raise it in mlinfra_prefect/model/schemas.py, or pass {OVERWRITE_FLAG} if it was never published.",
        )
    for path, text in changed.items():
        path.write_text(text, "utf-8")
    return tuple(changed)


def main(arguments: Sequence[str]) -> int:
    """Write the schemas to a directory: ``DIRECTORY [--unreleased]``; return the exit code."""
    places = [argument for argument in arguments if argument != OVERWRITE_FLAG]
    if len(places) != 1:
        sys.stderr.write(f"usage: python -m mlinfra_prefect.model.schemas DIRECTORY [{OVERWRITE_FLAG}]\n")
        return 2
    try:
        write_schemas(Path(places[0]), overwrite=OVERWRITE_FLAG in arguments)
    except InvalidInput as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
