"""Requests and answers of AWS as the emulator itself reads and writes them, by Amazon's own service models.

EC2's form and XML are read and written from the shapes that the SDK ships, so that a name is spelt as EC2 spells it and
not as someone here remembers it. Pure, but for `read` taking the body out of a WSGI request and putting it back.
"""

from __future__ import annotations

import base64
import io
import json
import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from mlinfra_prefect.testing.aws_operations import Operation, error_body

_SCOPE = re.compile(r"Credential=[^/]+/\d{8}/(?P<region>[^/]+)/")
_EC2 = "http://ec2.amazonaws.com/doc/2016-11-15/"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read. `asked`: its parameters by the API's own names."""

    operation: Operation
    region: str
    asked: dict[str, Any] = field(default_factory=dict)
    form: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, written."""

    status: str
    kind: str
    body: bytes


class Refused(Exception):
    """AWS's answer is an error.

    Args:
        code: such as InsufficientInstanceCapacity.
        message: its sentence.
        status: the HTTP status.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code, message, status)
        self.code, self.message, self.status = code, message, status


def read(environ: dict[str, Any], operation: Operation, fallback_region: str) -> Request:
    """Read a request, and leave its body as it was."""
    scope = _SCOPE.search(str(environ.get("HTTP_AUTHORIZATION", "")))
    region = scope["region"] if scope else fallback_region
    if operation.style not in {"query", "json"}:
        return Request(operation, region)
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    if operation.style == "json":
        return Request(operation, region, json.loads(body or b"{}"))
    form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
    shape = _operation(operation.name) if operation.service == "ec2" else None
    return Request(operation, region, _taken(shape.input_shape, form, "") if shape else {}, form)


def ec2_answer(name: str, said: dict[str, Any]) -> Answer:
    """Write EC2's answer to an operation, by the API's own names."""
    shape = _operation(name)
    assert shape is not None
    body = "".join(_written(member, said[key], member.serialization.get("name", key))
                   for key, member in shape.output_shape.members.items() if said.get(key) is not None)  # fmt: skip
    text = f'<?xml version="1.0" encoding="UTF-8"?><{name}Response xmlns="{_EC2}"><requestId>{uuid.uuid4()}</requestId>'
    return Answer("200 OK", "text/xml;charset=UTF-8", f"{text}{body}</{name}Response>".encode())


def json_answer(said: dict[str, Any]) -> Answer:
    """Write the answer of a service that speaks JSON."""
    return Answer("200 OK", "application/x-amz-json-1.1", json.dumps(said).encode())


def refusal(operation: Operation, refused: Refused) -> Answer:
    """Write an error as that service writes it."""
    message = escape(refused.message) if operation.style != "json" else json.dumps(refused.message)[1:-1]
    kind, body = error_body(operation, refused.code, message)
    return Answer(f"{refused.status} {HTTPStatus(refused.status).phrase}", kind, body)


@cache
def _model() -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2")


def _operation(name: str) -> Any:
    return _model().operation_model(name) if name in _model().operation_names else None


def _taken(shape: Any, form: dict[str, str], prefix: str) -> Any:
    """Read one shape out of a form; what is not there is left out."""
    if shape.type_name == "structure":
        found = {}
        for name, member in shape.members.items():
            said = member.serialization
            part = said.get("queryName") or _capital(said.get("name", name))
            key = f"{prefix}.{part}" if prefix else part
            if any(each == key or each.startswith(f"{key}.") for each in form):
                found[name] = _taken(member, form, key)
        return found
    if shape.type_name == "list":
        parts = (each[len(prefix) + 1 :].partition(".")[0] for each in form if each.startswith(f"{prefix}."))
        numbers = sorted({int(each) for each in parts if each.isdigit()})
        return [_taken(shape.member, form, f"{prefix}.{number}") for number in numbers]
    text = form[prefix]
    if shape.type_name in {"integer", "long"}:
        return int(text)
    if shape.type_name in {"double", "float"}:
        return float(text)
    return text == "true" if shape.type_name == "boolean" else text


def _written(shape: Any, value: Any, name: str) -> str:
    if shape.type_name == "structure":
        inner = "".join(_written(member, value[key], member.serialization.get("name", key))
                        for key, member in shape.members.items() if value.get(key) is not None)  # fmt: skip
    elif shape.type_name == "list":
        inner = "".join(_written(shape.member, each, shape.member.serialization.get("name", "item")) for each in value)
    elif shape.type_name == "boolean":
        inner = "true" if value else "false"
    elif shape.type_name == "timestamp" and isinstance(value, datetime):
        inner = value.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    elif shape.type_name == "blob":
        inner = base64.b64encode(value).decode()
    else:
        inner = escape(str(value))
    return f"<{name}>{inner}</{name}>"


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
