"""A file that declares endpoints: read as a whole, and every mistake told with the file, the endpoint and the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle.yaml_file import is_yaml, read_yaml
from mlinfra_prefect.model.declaration import EndpointDeclaration, ServingDeclaration
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.record import parsed

ENDPOINTS = "endpoints"
_EXAMPLE = "Write 'endpoints:' and below it a list, each entry with a name."


def declares_endpoints(path: Path) -> bool:
    """Whether a file declares endpoints, and is no request. False for what cannot be read."""
    if not is_yaml(path) or not path.is_file():
        return False
    try:
        values = read_yaml(path, "a declaration")
    except InvalidInput:
        return False
    return isinstance(values, dict) and ENDPOINTS in values


def read_declaration(path: Path) -> ServingDeclaration:
    """Read what a YAML (or JSON) file declares.

    Raises:
        InvalidInput: naming the file, the endpoint and the field.
    """
    values = read_yaml(path, "a declaration")
    if not isinstance(values, dict) or ENDPOINTS not in values:
        raise InvalidInput(str(path), "declares no endpoints", _EXAMPLE)
    unknown = [each for each in values if each != ENDPOINTS]
    if unknown:
        raise InvalidInput(f"{path.name}: {as_line(str(unknown[0]))}", "is not a field", "There is: endpoints.")
    listed = values[ENDPOINTS]
    if not isinstance(listed, list) or not listed:
        raise InvalidInput(f"{path.name}: {ENDPOINTS}", "must be a list, and not an empty one", _EXAMPLE)
    endpoints = [_entry(path, number, entry) for number, entry in enumerate(listed, 1)]
    try:
        return ServingDeclaration(endpoints=tuple(endpoints))
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{path.name}: {ENDPOINTS}", message) from None


def _entry(path: Path, number: int, entry: Any) -> EndpointDeclaration:
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"{path.name}: {ENDPOINTS}.{as_line(name)[:64] if isinstance(name, str) and name else number}"
    if not isinstance(entry, dict):
        raise InvalidInput(where, "must be fields of an endpoint, such as 'name: churn'")
    for key, value in entry.items():
        if value is None:  # half a line: it neither leaves a field alone nor sets it
            raise InvalidInput(f"{where}.{as_line(str(key))}", "is empty", "Leave the field out to leave it alone.")
    return parsed(EndpointDeclaration, entry, prefix=where)
