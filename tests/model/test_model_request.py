"""Requests merge and never drop a field; jobs and servings are refused with the field's name before anything exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.json_values import DEEPEST
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import ServingRequest, TrainingJob, TrainingRequest, resume_key

FULL = TrainingRequest.model_validate(
    {"accelerator": "A100:2", "name": "churn", "environment": "prod", "max_minutes": 30, "max_usd": 5, "market": "spot"}
)
KEPT = TrainingRequest(on_client_lost="keep", keep_minutes=30)


@pytest.mark.parametrize(
    ("base", "overrides", "expected"),
    [
        (FULL, {}, {}),
        (FULL, {"max_minutes": 10}, {"max_minutes": 10}),
        (FULL, {"accelerator": "L4"}, {"accelerator": "L4:1"}),
        (FULL, {"max_usd": None}, {"max_usd": None}),
        (FULL, {"on_client_lost": "keep", "keep_minutes": 5}, {"on_client_lost": "keep", "keep_minutes": 5}),
        (KEPT, {"max_minutes": 10}, {"max_minutes": 10}),
        (KEPT, {"keep_minutes": 60}, {"keep_minutes": 60}),
        (KEPT, {"on_client_lost": "release_now"}, {"on_client_lost": "release_now", "keep_minutes": None}),
    ],
)
def test_overrides_replace_only_what_they_name(
    base: TrainingRequest, overrides: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """A partial override never drops the other fields."""
    assert base.merged(overrides).model_dump() == {**base.model_dump(), **expected}


@pytest.mark.parametrize(
    ("overrides", "field", "says"),
    [
        ({"max_minute": 5}, "max_minute", "is not a field.*max_minutes"),
        ({"max_minutes": 0}, "max_minutes", "greater than or equal to 1"),
        ({"max_minutes": -5}, "max_minutes", "greater than or equal to 1"),
        ({"max_minutes": 43_201}, "max_minutes", "less than or equal to 43200"),
        ({"max_minutes": 1.5}, "max_minutes", "valid integer"),
        ({"max_minutes": "ten"}, "max_minutes", "valid integer"),
        ({"max_usd": float("nan")}, "max_usd", "finite|greater"),
        ({"max_usd": float("inf")}, "max_usd", "finite|less"),
        ({"max_usd": 0}, "max_usd", "greater than 0"),
        ({"max_hourly_usd": -1}, "max_hourly_usd", "greater than 0"),
        ({"nodes": 2}, "nodes", "less than or equal to 1"),
        ({"market": "preemptible"}, "market", "'on-demand', 'spot' or 'reserved'"),
        ({"platform": "gcp"}, "platform", "'local'"),
        ({"grace_seconds": 0}, "grace_seconds", "greater than or equal to 0.1"),
        ({"on_client_lost": "keep"}, "keep_minutes", "give both or neither"),
        ({"keep_minutes": 5}, "keep_minutes", "give both or neither"),
        ({"name": None}, "name", "valid string"),
    ],
)
def test_a_wrong_override_names_its_field(overrides: Mapping[str, Any], field: str, says: str) -> None:
    """Bounds, kinds and unknown names are told in one sentence with the field's name."""
    with pytest.raises(InvalidInput, match=says) as raised:
        TrainingRequest().merged(overrides)
    assert raised.value.field == field


def test_servings_merge_the_same_way() -> None:
    """The same rule for servings."""
    base = ServingRequest(name="churn", port=8123, predictor="serve.py:predict")
    assert base.merged({"expires_minutes": 5}) == base.revised(expires_minutes=5)
    with pytest.raises(InvalidInput, match="canary: is not a field"):
        base.merged({"canary": [10, 50, 100]})


def test_the_hash_is_of_every_field() -> None:
    """Two requests that differ anywhere have different hashes; the same request always has the same."""
    changes: list[dict[str, Any]] = [{"max_minutes": 31}, {"name": "churn2"}, {"max_usd": 6}, {"grace_seconds": 31}]
    hashes = {FULL.merged(change).hash for change in changes} | {FULL.hash, FULL.merged({}).hash}
    assert len(hashes) == len(changes) + 1


@pytest.mark.parametrize(
    ("values", "field", "says"),
    [
        ({}, "target", "is required"),
        ({"target": ""}, "target", "must be 'module:function'"),
        ({"target": "train"}, "target", "must be 'module:function'"),
        ({"target": ":train"}, "target", "must be 'module:function'"),
        ({"target": "acme:"}, "target", "must be 'module:function'"),
        ({"target": 5}, "target", "valid string"),
        ({"target": []}, "target", "names nothing to run|at least 1"),
        ({"target": [""]}, "target", "names nothing to run"),
        ({"target": ["python", "a\nb"]}, "target.1", "control characters"),
        ({"target": ["python", 5]}, "target.1", "valid string"),
        ({"params": {"x": float("nan")}}, "params", "x is nan; JSON has no such number"),
        ({"params": {"x": [1, {"y": float("inf")}]}}, "params", r"x\[1\]\.y is inf"),
        ({"params": {"x": {1: 2}}}, "params", "x has the key 1; keys in JSON are text"),
        ({"params": {"x": {1, 2}}}, "params", "x is a set; only JSON values"),
        ({"params": {"x": object()}}, "params", "x is a object; only JSON values"),
        ({"params": {"x": b"raw"}}, "params", "x is a bytes; only JSON values"),
        ({"params": {"x": "\ud800"}}, "params", "half a surrogate pair"),
        ({"params": [1]}, "params", "valid dictionary"),
        ({"inputs": {"BAD NAME": "/data"}}, "inputs.BAD NAME", "name of an environment variable"),
        ({"inputs": {"A": "/data\0"}}, "inputs.A", "control characters"),
        ({"secrets": {"TOKEN": "literal"}}, "secrets.TOKEN", "must be a reference such as 'env:HF_TOKEN'"),
        ({"secrets": {"TOKEN": "env:"}}, "secrets.TOKEN", "must be a reference"),
        ({"secrets": {"TOKEN": "env:X\n"}}, "secrets.TOKEN", "must be a reference"),
        ({"secrets": {"TOKEN": "aws-sm:a b"}}, "secrets.TOKEN", "must be a reference"),
        ({"secrets": {"TOKEN": "ssm:name"}}, "secrets.TOKEN", "must be a reference"),
        ({"secrets": {"TOKEN": "ssm:/name#key"}}, "secrets.TOKEN", "must be a reference"),
        ({"secrets": {"TOKEN": "k8s:name"}}, "secrets.TOKEN", "must be a reference"),
        ({"secrets": {"MLINFRA_GRANT": "env:X"}}, "secrets.MLINFRA_GRANT", "must not start with MLINFRA_"),
        ({"secrets": {"TOKEN\n": "env:X"}}, "secrets.TOKEN ", "name of an environment variable"),
        ({"requirements": "torch"}, "requirements", "must be a list of requirements"),
        ({"requirements": [""]}, "requirements.0", "is empty; must be a requirement"),
        ({"requirements": ["-r /etc/passwd"]}, "requirements.0", "is an option of pip"),
        ({"requirements": [" --index-url=x"]}, "requirements.0", "is an option of pip"),
        ({"requirements": ["torch\n--index-url=x"]}, "requirements.0", "control characters"),
        ({"resume": "key\n"}, "resume", "control characters"),
        ({"progress_timeout_minutes": 0}, "progress_timeout_minutes", "greater than 0"),
        ({"progress_timeout_minutes": float("inf")}, "progress_timeout_minutes", "finite|less"),
        ({"checkpoint": "x"}, "checkpoint", "is not a field"),
    ],
)
def test_a_wrong_job_names_its_field(values: dict[str, Any], field: str, says: str) -> None:
    """Bad input to a job is one sentence that names the field, before anything is created."""
    complete = values if "target" in values or not values else {"target": "acme:train", **values}
    with pytest.raises(InvalidInput, match=says) as raised:
        parsed(TrainingJob, complete)
    assert raised.value.field == field


@pytest.mark.parametrize("target", ["acme.churn:train", "path/to/file.py:train", ["python", "train.py", ""]])
def test_a_job_is_a_function_or_a_command(target: object) -> None:
    """A text names a function, a list is a command; its arguments may be empty."""
    assert parsed(TrainingJob, {"target": target}).target == (tuple(target) if isinstance(target, list) else target)


@pytest.mark.parametrize("secret", ["hf_verysecret", "env:hf-verysecret", ["hf_verysecret"], {"v": "hf_verysecret"}])
def test_a_secret_pasted_for_its_reference_is_never_shown(secret: object) -> None:
    """People paste the secret where its reference belongs; no message repeats it."""
    values = {"target": "acme:train", "secrets": {"TOKEN": secret}}
    with pytest.raises(InvalidInput) as raised:
        parsed(TrainingJob, values)
    assert "verysecret" not in repr(raised.value) + str(raised.value)
    with pytest.raises(ValidationError) as unparsed:
        TrainingJob.model_validate(values)
    assert "verysecret" not in str(unparsed.value)


def test_parameters_are_kept_as_json_gives_them_back() -> None:
    """A tuple is a list from the start, so that a record equals its own JSON."""
    job = TrainingJob(target="a:b", params={"grid": (1, (2, 3)), "deep": {"x": (4,)}})
    assert job.params == {"grid": [1, [2, 3]], "deep": {"x": [4]}}
    assert TrainingJob.model_validate_json(job.model_dump_json()) == job


def test_parameters_may_not_be_endlessly_deep() -> None:
    """A deep value is refused by us, and neither checking nor showing it exhausts the stack."""
    fits: list[Any] = []
    for _ in range(DEEPEST - 2):
        fits = [fits]
    TrainingJob(target="a:b", params={"x": fits})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidInput, match=f"nested more than {DEEPEST} levels"):
        parsed(TrainingJob, {"target": "a:b", "params": {"x": deep}})
    with pytest.raises(InvalidInput, match="name: "):
        parsed(TrainingRequest, {"name": deep})


@pytest.mark.parametrize(
    ("values", "field", "says"),
    [
        ({"name": "x" * 41}, "name", "at most 40 characters"),
        ({"name": "Churn"}, "name", "a-z, 0-9"),
        ({"port": 80}, "port", "greater than or equal to 1024"),
        ({"port": 65_536}, "port", "less than or equal to 65535"),
        ({"expires_minutes": 0}, "expires_minutes", "greater than or equal to 1"),
        ({"ready_seconds": float("inf")}, "ready_seconds", "finite|less"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas", "must be at least replicas, which is 3"),
        ({"max_replicas": 17}, "max_replicas", "less than or equal to 16"),
        ({"target_in_flight": 0}, "target_in_flight", "greater than 0"),
        ({"predictor": "serve.py"}, "predictor", "must be 'file.py:function'"),
        ({"predictor": ":predict"}, "predictor", "must be 'file.py:function'"),
        ({"predictor": "serve.sh:predict"}, "predictor", "must be 'file.py:function'"),
        ({"predictor": "/serve.py:predict"}, "predictor", "must be 'file.py:function'"),
        ({"predictor": "../serve.py:predict"}, "predictor", "must be 'file.py:function'"),
        ({"predictor": "serve.py:a.b"}, "predictor", "must be 'file.py:function'"),
        ({"predictor": "serve.py:a:b"}, "predictor", "must be 'file.py:function'"),
        ({"predictor": "serve.py:f\n"}, "predictor", "control characters"),
    ],
)
def test_a_wrong_serving_names_its_field(values: dict[str, Any], field: str, says: str) -> None:
    """Bad input to a serving is one sentence that names the field."""
    with pytest.raises(InvalidInput, match=says) as raised:
        parsed(ServingRequest, {"name": "churn", **values})
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("template", "params", "key"),
    [
        ("lora", {}, "lora"),
        ("lora-{base}-r{rank}", {"base": "llama", "rank": 16, "other": [1]}, "lora-llama-r16"),
        ("{lr}", {"lr": 0.1}, "0.1"),
        ("{{literal}}", {}, "{literal}"),
        ("{a}{a}", {"a": "{b}"}, "{b}{b}"),
    ],
)
def test_a_resume_key_is_filled_from_the_parameters(template: str, params: dict[str, Any], key: str) -> None:
    """Places are filled with texts and numbers, once: what a parameter holds is never a template."""
    assert resume_key(template, params) == key


@pytest.mark.parametrize(
    ("template", "params", "says"),
    [
        ("{base}", {}, "'base', which is no text or number among the parameters.*There are no parameters"),
        ("{base}", {"rank": 1}, "There are: rank"),
        ("{base}", {"base": [1]}, "no text or number"),
        ("{base}", {"base": None}, "no text or number"),
        ("{}", {"base": 1}, "names ''"),
        ("{0}", {"base": 1}, "names '0'"),
        ("{base.__class__}", {"base": "x"}, "names 'base.__class__'"),
        ("{base[0]}", {"base": "x"}, r"names 'base\[0\]'"),
        ("{base!r}", {"base": "x"}, "only plain places"),
        ("{base:>999999999}", {"base": "x"}, "only plain places"),
        ("{base", {"base": "x"}, "malformed"),
        ("base}", {"base": "x"}, "malformed"),
        ("{base}", {"base": "a\nb"}, "control characters"),
        ("{base}", {"base": "a\0b"}, "control characters"),
        ("{base}", {"base": "x" * 200_000}, "at most 512"),
    ],
)
def test_a_resume_key_that_cannot_be_filled_names_the_field(template: str, params: dict[str, Any], says: str) -> None:
    """No attributes, no formatting, no surprise: the sentence names `resume`."""
    with pytest.raises(InvalidInput, match=says) as raised:
        resume_key(template, params)
    assert raised.value.field == "resume"
    assert len(str(raised.value)) < 400


def test_the_first_problem_is_told_and_the_others_are_counted() -> None:
    """One sentence, however much is wrong; a prefix says where the values came from."""
    with pytest.raises(InvalidInput, match=r"^request\.market: .*2 more field\(s\) are wrong too") as raised:
        parsed(TrainingRequest, {"max_minutes": 0, "name": "A", "market": "x"}, prefix="request")
    assert raised.value.field == "request.market"


@pytest.mark.parametrize("values", [None, 5, "A100", [1], [("name", "x")]])
def test_values_that_are_no_fields_at_all_are_refused(values: object) -> None:
    """A YAML file may hold anything."""
    with pytest.raises(InvalidInput, match=r"^value: .*valid dictionary"):
        parsed(TrainingRequest, values)
