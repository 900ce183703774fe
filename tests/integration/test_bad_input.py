"""Bad input: one error that names the field and the remedy, before anything is asked for."""

from __future__ import annotations

from pathlib import Path

import node_work
import pytest
from integration_harness import Asked, row, run_script
from prefect.blocks.system import Secret
from pydantic import SecretStr

from mlinfra_prefect import Plan, gpu, lease, plan, provision
from mlinfra_prefect.errors import CapacityUnavailable, InvalidInput, NoCodec, NotImportable
from mlinfra_prefect.integration.phase import context


def outer():
    def inner() -> int:
        return 1

    return inner


CALLS = {
    "argument without a codec": (NoCodec, "thing", node_work.takes_opaque, (node_work.Opaque(),)),
    "return annotation without a codec": (NoCodec, "return", node_work.gives_opaque, ()),
    "missing argument": (InvalidInput, "a", node_work.add, ()),
    "unknown argument": (InvalidInput, "c", node_work.add, {"a": 1, "c": 2}),
    "secret": (InvalidInput, "secrets=", node_work.add, (SecretStr("hunter2"),)),
    "secret in a list": (InvalidInput, "secrets=", node_work.add, ([SecretStr("hunter2")],)),
    "secret block": (InvalidInput, "secrets=", node_work.add, (Secret(value="hunter2"),)),
    "closure": (NotImportable, "by_value", outer(), ()),
    "lambda": (NotImportable, "lambda", lambda: 1, ()),
    "an object": (NotImportable, "function", print, ()),
}


@row("gpu-bad-call")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_cannot_travel_provisions_nothing(name: str, asked: Asked) -> None:
    """Every argument and the return annotation have codecs, the function is importable, or nothing is asked for."""
    kind, said, function, args = CALLS[name]
    positional, named = ((), args) if isinstance(args, dict) else (args, {})
    with pytest.raises(kind) as caught:
        gpu("cpu", max_minutes=5)(function)(*positional, **named)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert asked.leases == []


@row("gpu-not-importable")
def test_what_only_this_process_can_import_is_refused(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that rests on this process does not import elsewhere, and no machine is paid to find that out."""
    monkeypatch.setenv("MLINFRA_TEST_ONLY_HERE", "1")
    import only_here

    with pytest.raises(NotImportable, match="fresh interpreter"):
        gpu("cpu", max_minutes=5)(only_here.work)()
    assert asked.leases == []


@row("gpu-missing-guard")
def test_a_script_without_its_guard_is_refused(asked: Asked, home: Path) -> None:
    """A missing `__main__` guard would start the flow on its own node: one sentence, and nothing was asked for."""
    ended = run_script(Path("unguarded.py").read_text(), MLINFRA_TEST="1")
    assert ended.returncode != 0
    assert "guard" in ended.stderr
    assert 'if __name__ == "__main__":' in ended.stderr
    assert asked.leases == []


REQUESTS = {
    "accelerator": {"request": "A1000:1"},
    "count": {"request": "A100:-1"},
    "absurd count": {"request": "A100:100000"},
    "max_minutes": {"max_minutes": 0},
    "negative max_minutes": {"max_minutes": -5},
    "environment": {"environment": "moon"},
    "name with a newline": {"name": "a\nb"},
    "name with NUL": {"name": "a\0b"},
    "nodes": {"nodes": 0},
    "keep_minutes": {"on_client_lost": "keep"},
    "unknown field": {"max_minuets": 5},
    "platform": {"platform": "moon"},
    "key with a newline is fine, a missing file is not": {"request": "no-such-file.yaml"},
}


@row("request-bad")
@pytest.mark.parametrize("name", REQUESTS)
def test_a_bad_request_is_refused_before_anything_is_asked_for(name: str, asked: Asked) -> None:
    """Unknown accelerator, absurd counts, zero minutes, unknown environment, control characters: an error by field."""
    wanted = dict(REQUESTS[name])
    with pytest.raises(InvalidInput) as caught, lease(wanted.pop("request", "cpu"), **wanted):
        pass
    said = str(caught.value)
    field = {"count": "accelerator", "absurd count": "accelerator", "negative max_minutes": "max_minutes"}.get(
        name, name
    )
    field = {"unknown field": "max_minuets"}.get(field, field.split(" with ")[0])
    assert field in said or "no-such-file.yaml" in said
    assert "\n" not in said.replace(caught.value.remedy, "") or name.startswith("name")
    assert asked.leases == []


@row("request-cap")
def test_a_request_may_only_lower_a_cap(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caps belong to the environment: lower is taken, higher is refused naming the field, nothing is asked for."""
    home, config = tmp_path / "home", tmp_path / "mlinfra-prefect.toml"
    config.write_text("[environments.dev.caps]\nmax_minutes = 10\n")
    monkeypatch.setenv("MLINFRA_HOME", str(home))
    monkeypatch.setenv("MLINFRA_CONFIG", str(config))
    with pytest.raises(InvalidInput, match="max_minutes"), lease("cpu", max_minutes=11):
        pass
    with pytest.raises(InvalidInput, match="max_minutes"):
        provision.fn("cpu", max_minutes=11)
    made = plan.fn("cpu", max_minutes=9)
    assert isinstance(made, Plan)
    assert made.max_minutes == 9
    assert context().ledger.records() == []


@row("request-no-capacity")
def test_what_this_machine_lacks_is_said_before_anything_is_asked_for(asked: Asked) -> None:
    """The local platform has what this machine has: another accelerator or market is `CapacityUnavailable`."""
    for wanted in ({"request": "H200:999"}, {"market": "spot"}):
        with pytest.raises((CapacityUnavailable, InvalidInput)), lease(wanted.pop("request", "cpu"), **wanted):
            pass
    assert asked.leases == []


@row("options-bad")
def test_a_bad_option_of_work_is_refused_and_the_lease_lives_on(asked: Asked) -> None:
    """Unknown options, requirements that are options of pip, resume keys with unknown names: errors by field."""
    with lease("cpu", max_minutes=5) as infra:
        for options, said in (
            ({"inptus": {}}, "inptus"),
            ({"requirements": ["--index-url=x"]}, "requirements"),
            ({"secrets": {"TOKEN": "hunter2"}}, "secrets"),
            ({"inputs": {"a b": "/x"}}, "inputs"),
        ):
            with pytest.raises(InvalidInput, match=said) as caught:
                infra.with_options(**options)
            assert "hunter2" not in str(caught.value)
        with pytest.raises(InvalidInput, match="resume"):
            infra.with_options(resume="{nothing}").run(node_work.add, 1)
        with pytest.raises(InvalidInput, match="MLINFRA_TEST_UNSET"):
            infra.with_options(secrets={"TOKEN": "env:MLINFRA_TEST_UNSET"}).run(node_work.add, 1)
        assert infra.run(node_work.add, 1) == 2
    assert asked.all_released(1)
