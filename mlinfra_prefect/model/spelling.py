"""How people spell what a job runs, needs and reads: each text is refused with what to write instead."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag

from mlinfra_prefect.agent.references import PATTERN
from mlinfra_prefect.agent.requirement import refusal
from mlinfra_prefect.model.names import ID_PATTERN, Id, Line

LONGEST_ENDPOINT_NAME = 40
"""It is part of host names in clusters, which allow 63 with what is put around it."""


def _installable(text: str) -> str:
    problem = refusal(text)
    if problem:
        raise ValueError(f"{problem}; must be a requirement such as 'torch==2.9.*'")
    return text


def _says_where(text: str) -> str:
    place, colon, name = text.rpartition(":")
    if not (place and colon and name):
        raise ValueError("must be 'module:function' or 'path/to/file.py:function'; a command is a list")
    return text


def _names_a_program(words: tuple[str, ...]) -> tuple[str, ...]:
    if not words or not words[0]:
        raise ValueError("names nothing to run")
    return words


def _refers(text: str) -> str:
    if not re.fullmatch(PATTERN, text):
        raise ValueError(
            "must be a reference such as 'env:HF_TOKEN' on local, 'aws-sm:NAME', 'aws-sm:ARN#KEY' or 'ssm:/NAME' on "
            "aws; a secret itself is never written here"
        )
    return text


def _short_name(text: str) -> str:
    if len(text) > LONGEST_ENDPOINT_NAME:
        raise ValueError(f"must have at most {LONGEST_ENDPOINT_NAME} characters")
    return text


def _kind_of_target(value: object) -> str:
    return "[command]" if isinstance(value, list | tuple) else "[function]"


SecretReference = Annotated[
    str,
    AfterValidator(_refers),
    Field(json_schema_extra={"pattern": f"^{PATTERN}$"}, examples=["env:HF_TOKEN", "aws-sm:hf-token"]),
]
Requirement = Annotated[
    Line, AfterValidator(_installable), Field(json_schema_extra={"minLength": 1}, examples=["torch==2.9.*"])
]
EndpointName = Annotated[
    Id,
    AfterValidator(_short_name),
    Field(json_schema_extra={"pattern": ID_PATTERN, "maxLength": LONGEST_ENDPOINT_NAME}),
]
Function = Annotated[Line, AfterValidator(_says_where), Field(examples=["acme.churn:train"])]
Command = Annotated[
    tuple[Line, ...], AfterValidator(_names_a_program), Field(min_length=1, examples=[["python", "train.py"]])
]
# Told apart by their type alone, so that an error speaks of what was meant; `invalid` leaves out tags in brackets.
Target = Annotated[
    Annotated[Function, Tag("[function]")] | Annotated[Command, Tag("[command]")], Discriminator(_kind_of_target)
]
