"""Prefect's own pages as a person uses them: the form of a deployment, a run with its logs, approval, artifacts.

Facts about them, of Prefect 3.8.8 (its second UI, which is what ``/`` leads to; the first is still at ``/deployments``
and the like):

* Fields are found by their labels (``epochs (Optional)``), which are the names of the flow's parameters; the text under
  one is that parameter's line in the flow's docstring. Text is a ``textarea``, numbers are ``input[type=number]``.
* *Submit* leads back to the deployment, with a message whose button *View run* leads to the run.
* On SQLite the server may answer 503 when it is busy ("database is locked"). Prefect's clients try again; the form says
  nothing at all, and one clicks again. (Seen in 1 of 10 clicks on two cores with a load of 8.)
* *Resume* is in the menu behind the three dots, and *Open menu* is what a screen reader calls that button. The
  description of `pause_flow_run` is rendered in the dialog, tables and mermaid too. (The first UI shows a picture's
  source there, and has *Resume* as a button.)
* A page asks again every few seconds. While a run is paused its log panel does not.
* Clicking an artifact of a run leads to all artifacts of that key, newest first.
* The second UI asks Amplitude for its configuration on every page, also with the server's analytics switched off. It
  goes on well without an answer. The first UI asks nobody.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Response, Route

REQUIRED = "MLINFRA_REQUIRE_BROWSER"
SHOWN_MS = 30_000
"""How long anything may take to be on the screen, on a busy machine."""
TRIES = 5
BUSY = 503
REFUSED = "Error creating flow run"
OVER = frozenset({"Completed", "Failed", "Crashed", "Cancelled", "GateRefused", "NotApproved"})
KNOWN_OUTSIDE = frozenset({"sr-client-cfg.amplitude.com"})


def missing() -> str | None:
    """Why there can be no browser here, in one line; None if there can."""
    try:
        import playwright.sync_api  # noqa: F401, PLC0415
    except ImportError:
        return "no browser: pip install playwright"
    return None if chromium() else "no browser: apt-get install chromium"


def required() -> bool:
    """Whether a run without a browser is a failure: continuous integration says so."""
    return os.environ.get(REQUIRED) == "1"


def chromium() -> str | None:
    """Where the distribution's Chromium is."""
    return which("chromium") or which("chromium-browser")


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium that resolves no name and downloads nothing."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        window = playwright.chromium.launch(
            executable_path=chromium(),
            headless=True,
            # Containers run as root and have no user namespaces, so Chromium's sandbox cannot start there. It shows
            # pages of our own server only. The rule is for what Chromium itself would ask for, outside of any page.
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        try:
            yield window
        finally:
            window.close()


class Screen:
    """One window on one server. It reaches nothing else; what it tried is in `outside`."""

    def __init__(self, window: Browser, url: str, shots: Path) -> None:
        self.url = url
        self.shots = shots
        self.outside: set[str] = set()
        self._context = window.new_context(viewport={"width": 1400, "height": 1100})
        self._context.set_default_timeout(SHOWN_MS)
        self._context.route(lambda asked: not asked.startswith(f"{url}/"), self._refuse)
        self.page: Page = self._context.new_page()

    def close(self) -> None:
        self._context.close()

    def _refuse(self, route: Route) -> None:
        self.outside.add(urlsplit(route.request.url).hostname or route.request.url)
        route.abort()

    def shot(self, name: str) -> None:
        """Keep a picture of the whole page."""
        self.shots.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self.shots / f"{name}.png", full_page=True)

    # --- a deployment and its form

    def open_deployment(self, deployment_id: str) -> None:
        """Go to a deployment, in the UI that a person gets."""
        told = self._context.request.get(f"{self.url}/ui-settings").json()
        base = str(told[f"{told['default_ui']}_base_url"]).rstrip("/")
        self.page.goto(f"{self.url}{base}/deployments/deployment/{deployment_id}")
        self.page.get_by_role("button", name="Run", exact=True).wait_for()

    def open_form(self, deployment_id: str) -> None:
        """To the deployment, *Run*, *Custom run*."""
        self.open_deployment(deployment_id)
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        self.page.get_by_role("button", name="Submit").wait_for()

    def field(self, name: str) -> Locator:
        """The field of a parameter."""
        return self.page.get_by_label(re.compile(rf"^{name}( \(Optional\))?$"))

    def fill(self, **values: str) -> None:
        """Type into fields."""
        for name, value in values.items():
            self.field(name).fill(value)

    def fill_json(self, name: str, text: str) -> None:
        """*Use JSON Input* for a field: the form's way around its own kind of input."""
        row = self.page.locator("div").filter(has=self.field(name)).filter(has=self._menu()).last
        row.get_by_role("button", name="Open menu").click()
        self.page.get_by_role("menuitem", name="Use JSON Input").click()
        editor = self.page.locator("main .cm-content")
        editor.click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.type(text)

    def _menu(self) -> Locator:
        return self.page.get_by_role("button", name="Open menu")

    def click_submit(self) -> None:
        """Click *Submit*, where the form itself may refuse."""
        self.page.get_by_role("button", name="Submit").click()

    def send(self) -> float:
        """Click *Submit* until the server has answered; returns when it was clicked (seconds of the epoch)."""
        for _ in range(TRIES):
            with self.page.expect_response(re.compile("/create_flow_run$")) as answer:
                clicked = time.time()
                self.click_submit()
            if answer.value.status != BUSY:
                return clicked
            time.sleep(1)
        raise AssertionError(f"the server was busy {TRIES} times")

    def submit(self) -> tuple[str, float]:
        """Send the form and go to the run that was made; returns its id, and when it was clicked."""
        clicked = self.send()
        made = self.page.get_by_role("button", name="View run")
        refused = self.page.get_by_text(REFUSED)
        made.or_(refused).first.wait_for()
        assert not refused.count(), refused.first.inner_text()
        made.first.click()
        self.page.wait_for_url(re.compile("/runs/flow-run/"))
        # The address changes before the page does, and the old one shows states of other runs.
        self.page.get_by_role("tab", name="Logs", exact=True).wait_for()
        return self.page.url.partition("/runs/flow-run/")[2].partition("?")[0], clicked

    # --- a run

    @contextmanager
    def left(self) -> Iterator[None]:
        """Leave the page meanwhile, and come back: an open one asks and draws on cores that the run needs."""
        address = self.page.url
        self.page.goto("about:blank")
        yield
        self.page.goto(address)
        self.page.get_by_role("tab", name="Logs", exact=True).wait_for()

    def shows(self, text: str, *, seconds: float = SHOWN_MS / 1000) -> None:
        """Wait until a text is somewhere on the page."""
        self.page.get_by_text(text).first.wait_for(timeout=seconds * 1000)

    def shows_log(self, text: str, *, seconds: float = SHOWN_MS / 1000) -> None:
        """Wait until a line of a run's log is shown; a run that ends without it does not let us wait."""
        line = self.page.get_by_text(text)
        line.or_(self._state(OVER)).first.wait_for(timeout=seconds * 1000)
        line.first.wait_for()

    def shows_state(self, name: str, *, seconds: float = SHOWN_MS / 1000) -> None:
        """Wait until the run's state is shown; one that ends in another state does not let us wait."""
        badge = self._state({name, *OVER})
        badge.first.wait_for(timeout=seconds * 1000)
        if (shown := badge.first.inner_text()) != name:
            self.tab("Details")
            self.shows("State Message")
            raise AssertionError(f"the run is {shown}: {self.page.locator('main').inner_text()}")

    def _state(self, names: Iterable[str]) -> Locator:
        return self.page.locator("main").get_by_text(re.compile(f"^({'|'.join(names)})$"))

    def tab(self, name: str) -> None:
        """Go to a tab of the page."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def ask_to_resume(self) -> Locator:
        """Open the dialog of a paused run, and return it."""
        self._menu().first.click()
        self.page.get_by_role("menuitem", name="Resume").click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("button", name="Resume").wait_for()
        return dialog

    def resume(self, dialog: Locator) -> None:
        """Click *Resume* in the dialog until the server has answered."""
        for _ in range(TRIES):
            with self.page.expect_response(_resumed) as answer:
                dialog.get_by_role("button", name="Resume").click()
            if answer.value.status != BUSY:
                dialog.wait_for(state="hidden")
                return
            time.sleep(1)
        raise AssertionError(f"the server was busy {TRIES} times")

    def choose(self, within: Locator, value: str) -> None:
        """Choose one of the values of a `Literal` that has no default; the only one within."""
        # It has a label, but the label is not for it.
        within.get_by_text("Select", exact=True).click()
        self.page.get_by_role("option", name=value, exact=True).click()

    # --- artifacts

    def artifacts(self) -> dict[str, str]:
        """The artifacts on a run's tab *Artifacts*: key to address of its page."""
        self.tab("Artifacts")
        cards = self.page.locator("main a[href*='/artifacts/key/']")
        cards.first.wait_for()
        links = [str(card.get_attribute("href")) for card in cards.all()]
        return {link.rpartition("/")[2]: link for link in links}

    def open_artifact(self, address: str) -> Locator:
        """Go to the newest artifact of a key; returns what is rendered of it."""
        self.page.goto(f"{self.url}{address}")
        self.page.locator("main a[href*='/artifacts/artifact/']").first.click()
        self.page.wait_for_url(re.compile("/artifacts/artifact/"))
        self.page.get_by_role("tab", name="Raw").wait_for()
        return self.page.locator("main")


def _resumed(response: Response) -> bool:
    # What was filled in is checked by one call, and the run is resumed by the next; the second may not come about.
    path = urlsplit(response.url).path
    return path.endswith("/resume") or (path.endswith("/ui/schemas/validate") and response.status == BUSY)
