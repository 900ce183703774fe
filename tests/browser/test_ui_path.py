"""What a person does in Prefect's UI (form, run, approval, artifacts): a real server, a real worker, a real browser."""

from __future__ import annotations

import inspect

import prefect_screen
import pytest

from mlinfra_prefect.flows.model_lifecycle import model_lifecycle

# Here and not in a fixture, so that it is one line for all of them; a run that must have a browser fails in a fixture.
if (why := prefect_screen.missing()) and not prefect_screen.required():
    pytest.skip(why, allow_module_level=True)

pytestmark = pytest.mark.slow
RUN_SECONDS = 120.0
SCHEDULER_SECONDS = 90.0
"""The server looks for new deployments every few seconds, and at all of them every minute."""

RENDERED = {
    "mlinfra-plan": ("table", "svg[id*='mermaid']"),
    "mlinfra-receipt": ("table", "strong:text('Clean')"),
    "mlinfra-endpoint": ("table", "h2 a[href^='http://127.0.0.1']"),
    "mlinfra-timeline": ("table", "img[src^='data:image/svg+xml']"),
}
"""What the page of each kind of artifact must hold: markdown that was rendered, not shown."""


def test_the_form_has_a_described_field_for_each_parameter(place, form) -> None:
    """Flat scalar parameters render: each is a field with its default in it and a sentence under its name."""
    form.shot("form")
    described = place.deployment("model-lifecycle/on-demand")["parameter_openapi_schema"]["properties"]
    parameters = inspect.signature(model_lifecycle.fn).parameters
    assert set(parameters) == set(described)
    for name, parameter in parameters.items():
        if "enum" in described[name]:  # a select, which is no input: it shows what is chosen
            form.shows(name)
            form.shows(str(parameter.default))
            form.shows(described[name]["description"])
            continue
        field = form.field(name)
        if isinstance(parameter.default, bool):
            assert field.is_checked() is parameter.default
        else:
            assert field.input_value() == str(parameter.default)
        form.shows(described[name]["description"])


def test_text_where_a_number_belongs_is_refused(place, form) -> None:
    """The field takes whole numbers only; past it, the server names the field and what it got. No run is made."""
    deployment = place.deployment("model-lifecycle/on-demand")["id"]
    before = place.runs(deployment)
    epochs = form.field("epochs")
    epochs.click()
    epochs.press("ControlOrMeta+a")
    epochs.press_sequentially("many")
    assert not epochs.input_value()
    for wrong in ("2.5", "0"):
        form.fill(epochs=wrong)
        form.click_submit()
        # The browser's own bubble, which no page can read; this is what it says.
        assert epochs.evaluate("field => field.validationMessage")
    form.shot("none")
    form.fill_json("epochs", '"many"')
    form.send()
    form.shows("'many' is not of type 'integer'")
    form.shot("text")
    refused = place.answer(
        "POST", f"/deployments/{deployment}/create_flow_run", json={"parameters": {"epochs": "many"}}
    )
    assert refused.is_client_error
    assert "'epochs'" in refused.text
    assert place.runs(deployment) == before


@pytest.mark.parametrize(
    ("accelerator", "says"),
    [
        ("NOPE", "'NOPE' is not a known accelerator"),
        # No machine has as many of these: two at most, in one kind of AWS instance.
        ("T4G:8", "T4G:8"),
    ],
)
def test_an_accelerator_that_is_not_to_be_had_ends_in_one_clear_error(place, form, accelerator, says) -> None:
    """The run fails before anything is created, and its state's message says why in one sentence."""
    before = len(place.records())
    form.fill(accelerator=accelerator)
    run_id, _ = form.submit()
    form.shows_state("Failed", seconds=RUN_SECONDS)
    form.shot("failed")
    form.tab("Details")
    form.shows(says)
    form.shot("details")
    message = place.run(run_id)["state"]["message"]
    assert says in message
    assert "\n" not in message
    assert len(place.records()) == before


def test_an_approved_plan_goes_on_to_a_served_model(place, form) -> None:
    """Fill the form, submit, read the plan, approve it; logs and artifacts appear, and all is given back at the end."""
    before = len(place.records())
    form.fill(accelerator="cpu", epochs="3", max_minutes="5")
    form.field("approve").click()
    form.shot("1-form")
    run_id, _ = form.submit()
    with form.left():
        place.paused(run_id, seconds=RUN_SECONDS)
    form.shows_state("Paused")
    form.shot("2-paused")
    # Reviewed before anything exists.
    assert len(place.records()) == before
    dialog = form.ask_to_resume()
    dialog.get_by_role("table").first.wait_for()
    dialog.get_by_text("terraform_data.node", exact=True).first.wait_for()
    dialog.locator("svg[id*='mermaid']").wait_for()
    form.shot("3-plan")
    form.choose(dialog, "approve")
    form.shot("4-approve")
    form.resume(dialog)
    with form.left():
        place.over(run_id, seconds=RUN_SECONDS)
    form.shows_log("evaluated: accuracy=")
    form.shot("5-logs")
    form.shows_state("Completed")
    form.shot("6-completed")

    found = form.artifacts()
    form.shot("7-artifacts")
    assert_rendered(form, found)
    made = place.records()[before:]
    assert {"lease", "endpoint"} <= {record["kind"] for record in made}
    assert {record["state"] for record in made} == {"released"}


def test_a_rejected_plan_creates_nothing(place, form) -> None:
    """Resuming a run asks for a decision; *reject* ends it well, with the note as its reason and nothing created."""
    before = len(place.records())
    form.field("approve").click()
    run_id, _ = form.submit()
    with form.left():
        place.paused(run_id, seconds=RUN_SECONDS)
    form.shows_state("Paused")
    dialog = form.ask_to_resume()
    form.choose(dialog, "reject")
    dialog.get_by_label("Note (Optional)").fill("not before Monday")
    form.shot("reject")
    form.resume(dialog)
    with form.left():
        place.over(run_id, seconds=RUN_SECONDS)
    form.shows_state("NotApproved")
    form.shot("rejected")
    assert "not before Monday" in place.over(run_id, seconds=10)["state"]["message"]
    assert len(place.records()) == before


def test_the_schedules_have_a_next_run(place, screen) -> None:
    """The server plans the runs of what is scheduled: a reaper that never runs would be no line of defence."""
    for name in ("reap/every-minute", "model-lifecycle/nightly"):
        deployment = place.deployment(name)["id"]
        place.wait(lambda wanted=deployment: place.runs(wanted), SCHEDULER_SECONDS, f"no run of {name} is planned")
        screen.open_deployment(deployment)
        screen.shows("Next Run")
        screen.shot(name.replace("/", "-"))


def assert_rendered(screen, found: dict[str, str]) -> None:
    """Go to an artifact of each kind and look for what its markdown becomes."""
    for kind, parts in RENDERED.items():
        key = next((key for key in found if key.startswith(kind)), None)
        assert key, f"no {kind} among {sorted(found)}"
        shown = screen.open_artifact(found[key])
        for part in parts:
            shown.locator(part).first.wait_for()
        # A picture that cannot be drawn has no size.
        assert all(shown.locator("img").evaluate_all("pictures => pictures.map(each => each.naturalWidth)"))
        screen.shot(f"8-{key}")
