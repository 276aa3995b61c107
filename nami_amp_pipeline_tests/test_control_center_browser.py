"""The Control Center in a real browser: a new user's first event, every page for everybody, what the script does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Options as Strictness
from nami_amp_pipeline.sandbox import Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.storage.duckdb_engine import sql
from nami_amp_pipeline_tests.support.browser import look, look_as_usual, problems, too_wide, until
from nami_amp_pipeline_tests.support.command_line import tick
from nami_amp_pipeline_tests.support.control_center import served

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef"
WRONG_KEY = "99999999999999999999999999999999"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@dataclass(frozen=True)
class Place:
    """Where everything of this module is.

    Attributes:
        folder: of the home.
        url: of the pages.
        amplitude: the local one.
    """

    folder: Path
    url: str
    amplitude: SandboxServer

    @property
    def settings(self) -> Settings:
        """Of the home."""
        return Settings(home=self.folder / ".nami-amp")

    def add(self, app: str, name: str) -> None:
        """An integration without the help of a page."""
        from nami_amp_pipeline.operations.integrations import NewIntegration
        from nami_amp_pipeline.secrets import Secret

        with Operations(self.settings, by="ana") as operations:
            if f"{app}/{name}" not in {row.key for row in operations.integrations()}:
                operations.add(
                    NewIntegration(
                        app, name, self.amplitude.endpoint, Secret(f"{app}-{name}-key-0123456789"),
                        user_id_kind="nami_user_id", allow_custom_endpoint=True,
                        rename={"device.impression": HOSTILE},
                    )
                )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("control-center")
    settings = Settings(home=folder / ".nami-amp", http_timeout_seconds=5.0)
    settings.home.mkdir()
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=30)
    with duckdb.connect(str(settings.home / "warehouse.duckdb")) as connection:
        connection.execute(sql("nami_events"))
        connection.register("sample", pa.Table.from_batches(generate(12, apps=["radio", "fit"], start=start)))
        connection.execute("INSERT INTO nami_events BY NAME FROM sample")
    sandbox = Sandbox(refused_keys=[WRONG_KEY], options=Strictness(throttle=False))
    with SandboxServer(sandbox) as amplitude, served(settings, Options(endpoints=(amplitude.endpoint,))) as url:
        yield Place(folder, url, amplitude)


@pytest.fixture(autouse=True)
def as_usual(browser: Chrome) -> Iterator[None]:
    """A window of the usual width, and a log without what came before."""
    look(browser, 1280, "light")
    browser.get("about:blank")
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    yield
    look_as_usual(browser)


def press(browser: Chrome, selector: str) -> None:
    """Presses what a selector finds, in the middle of the window."""
    found = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()


def sees(browser: Chrome, wanted: str) -> None:
    """Waits until the page says something."""
    until(browser, lambda: wanted in text(browser))


def chosen(browser: Chrome) -> int:
    """How many events are ticked."""
    return len(browser.find_elements(By.CSS_SELECTOR, "input[name=event]:checked"))


def text(browser: Chrome, selector: str = "main") -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def test_a_new_user_goes_from_the_empty_page_to_an_event_in_amplitude(browser: Chrome, place: Place) -> None:
    browser.get(place.url)
    press(browser, "a[href='/?look=1']")
    press(browser, "a[href='/apps/radio/integrations']")
    sees(browser, "No integrations yet. Choose a service below")
    press(browser, ".tile a")
    browser.find_element(By.ID, "api_key").send_keys(f"  {KEY} ")
    press(browser, f"input[value='{place.amplitude.endpoint}']")
    press(browser, "button[value='test']")
    until(browser, lambda: "✓ Amplitude takes this key" in text(browser, "#trial"))
    press(browser, "#user_id-nami_user_id")
    press(browser, "#start-beginning")
    press(browser, "button.main")
    sees(browser, "Integration added")
    assert "On, waiting for the first event" in text(browser)
    (standing,) = [row for row in tick(place.folder, "first") if row.integration == "radio/main"]
    browser.execute_script("document.dispatchEvent(new Event('control-center:refresh'))")
    until(browser, lambda: f"{standing.delivered:,}" in text(browser, "#live td.num"))
    assert standing.delivered > 10
    assert text(browser, "#pill") == "All delivered"
    stores = place.amplitude.sandbox.stores()
    assert sum(len(batch.events()) for store in stores for batch in store.kept()) >= standing.delivered
    assert KEY not in browser.page_source
    press(browser, "th[scope=row] a")
    press(browser, "a[href$='/preview']")
    sees(browser, '"insert_id"')
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


PATHS = (
    "/", "/?q=nothing-like-it", "/apps/fit/integrations", "/apps/empty/integrations",
    "/apps/fit/integrations/amplitude/new", "/apps/fit/integrations/http/new", "/apps/fit/integrations/main",
    "/apps/fit/integrations/main/preview?show=1",
    "/apps/fit/integrations/main/switch", "/apps/fit/integrations/main/remove",
    "/apps/fit/integrations/main/test-event", "/apps/fit/properties", "/apps/fit/history",
    "/apps/fit/history?kind=people", "/apps/fit/nowhere",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_each_page_is_for_everybody(browser: Chrome, place: Place, width: int, scheme: str) -> None:
    place.add("fit", "main")
    tick(place.folder, f"{width}-{scheme}")
    look(browser, width, scheme)
    found = {}
    for path in PATHS:
        browser.get(place.url + path)
        complaints = [said for said in problems(browser) if "404 (Not Found)" not in said or "nowhere" not in path]
        if complaints:
            found[path] = complaints
        assert "owned" not in browser.title
    assert not found


@pytest.mark.parametrize("width", [320, 1600])
def test_no_page_scrolls_sideways(browser: Chrome, place: Place, width: int) -> None:
    place.add("fit", "main")
    look(browser, width, "light")
    for path in PATHS:
        browser.get(place.url + path)
        assert not too_wide(browser), path


def test_on_a_phone_an_integrations_row_is_seen_whole(browser: Chrome, place: Place) -> None:
    place.add("fit", "main")
    look(browser, 390, "light")
    browser.get(f"{place.url}/apps/fit/integrations")
    until(browser, lambda: browser.execute_script("return document.readyState") == "complete")
    for cell in browser.find_elements(By.CSS_SELECTOR, ".stack tbody tr > *"):
        assert cell.rect["x"] >= 0
        assert cell.rect["x"] + cell.rect["width"] <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_form_that_came_back_is_for_everybody(browser: Chrome, place: Place, scheme: str) -> None:
    look(browser, 390, scheme)
    browser.get(f"{place.url}/apps/fit/integrations/amplitude/new")
    name = browser.find_element(By.ID, "name")
    name.clear()
    name.send_keys("my app")
    browser.find_element(By.ID, "api_key").send_keys(WRONG_KEY)
    press(browser, "[data-none='every']")
    press(browser, "button.main")
    until(browser, lambda: browser.title.startswith("Error: "))
    assert "errors" in str(browser.switch_to.active_element.get_attribute("class"))
    press(browser, ".errors a[href='#name']")
    assert browser.switch_to.active_element.get_attribute("value") == "my app"
    complaints = [said for said in problems(browser) if "422" not in said]
    assert not complaints


def test_the_form_counts_what_is_chosen_and_keeps_what_is_typed(browser: Chrome, place: Place) -> None:
    place.add("fit", "main")
    tick(place.folder, "counts")
    browser.get(f"{place.url}/apps/fit/integrations/amplitude/new")
    browser.find_element(By.ID, "api_key").send_keys(KEY)
    total = text(browser, "[data-total]")
    press(browser, "[data-none='every']")
    assert text(browser, "[data-total]") == "0"
    assert text(browser, "[data-group='device'] [data-count]") == "0 of 2"
    press(browser, "[data-all='every']")
    assert text(browser, "[data-total]") == total != "0"
    assert browser.find_element(By.ID, "api_key").get_attribute("value") == KEY


def test_the_enter_key_saves(browser: Chrome, place: Place) -> None:
    browser.get(f"{place.url}/apps/fit/integrations/amplitude/new")
    browser.find_element(By.ID, "name").send_keys(" odd", Keys.ENTER)
    until(browser, lambda: browser.switch_to.active_element.get_attribute("id") == "api_key")  # the browser's own check
    browser.find_element(By.ID, "api_key").send_keys("two words", Keys.ENTER)
    until(browser, lambda: browser.title.startswith("Error: "))


def test_without_script_everything_works(browser: Chrome, place: Place) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(f"{place.url}/apps/quiet/integrations/amplitude/new")
        press_plainly(browser, "button[value='none:every']")
        until(browser, lambda: chosen(browser) == 0)
        press_plainly(browser, "button[value='all:device']")
        until(browser, lambda: chosen(browser) == 2)
        press_plainly(browser, f"input[value='{place.amplitude.endpoint}']")
        browser.find_element(By.ID, "api_key").send_keys(KEY)
        press_plainly(browser, "button[value='test']")
        sees(browser, "✓ Amplitude takes this key")
        browser.find_element(By.ID, "api_key").send_keys(KEY)
        press_plainly(browser, "button.main")
        sees(browser, "Integration added")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def press_plainly(browser: Chrome, selector: str) -> None:
    """Presses without a script; the browser brings it into view by itself."""
    browser.find_element(By.CSS_SELECTOR, selector).send_keys(Keys.SPACE)


def test_when_the_pipeline_is_gone_the_page_says_so_and_keeps_its_numbers(browser: Chrome, place: Place) -> None:
    place.add("fit", "main")
    browser.get(f"{place.url}/apps/fit/integrations")
    before = text(browser, "#live")
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        browser.execute_script("document.dispatchEvent(new Event('control-center:refresh'))")
        until(browser, lambda: "Cannot reach the pipeline since" in text(browser, "#freshness"))
        assert text(browser, "#live") == before
    finally:
        online = {**offline, "offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", online)
    browser.execute_script("document.dispatchEvent(new Event('control-center:refresh'))")
    until(browser, lambda: text(browser, "#freshness").startswith("Updated"))


@pytest.mark.parametrize("with_script", [True, False])
def test_a_session_that_ends_while_somebody_types_loses_nothing_but_keys(
    browser: Chrome, place: Place, with_script: bool
) -> None:
    name, password = f"ana-{with_script}", "correct horse battery"
    options = Options(sign_in="password", endpoints=(place.amplitude.endpoint,))
    with Operations(place.settings) as operations, served(place.settings, options) as url:
        operations.people.add(name, "editor", password)
        browser.get(url)
        browser.delete_all_cookies()  # a browser shows a cookie at every port of a machine
        browser.get(f"{url}/apps/late/integrations/amplitude/new")
        sign_in(browser, name, password)
        browser.find_element(By.ID, "exclude").send_keys("email")
        browser.find_element(By.ID, "api_key").send_keys(KEY)
        operations.people.sign_out((browser.get_cookie("nami-amp") or {})["value"])
        if with_script:
            press(browser, "button[value='test']")
            sees(browser, "Your session has ended. Sign in in another tab")
            assert browser.find_element(By.ID, "api_key").get_attribute("value") == KEY
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not with_script})
        try:
            press_plainly(browser, "button.main")
            sees(browser, "Your session has ended. What you typed comes back")
            assert not [said for said in problems_without(browser, with_script) if "401" not in said]
            sign_in(browser, name, password)
            sees(browser, "You are signed in")
            assert KEY not in browser.page_source
            assert not problems_without(browser, with_script)
            press_plainly(browser, "main form button")
            sees(browser, "Add an Amplitude integration")
            assert browser.find_element(By.ID, "exclude").get_attribute("value") == "email"
            assert browser.find_element(By.ID, "api_key").get_attribute("value") == ""
        finally:
            browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        assert operations.integrations_of("late") == []


def sign_in(browser: Chrome, name: str, password: str) -> None:
    """Fills in the form in which people sign in."""
    browser.find_element(By.ID, "name").send_keys(name)
    browser.find_element(By.ID, "password").send_keys(password, Keys.ENTER)
    until(browser, lambda: not browser.find_elements(By.ID, "password"))


def problems_without(browser: Chrome, with_script: bool) -> list[str]:
    """What is wrong with the page, where scripts can look for it."""
    return problems(browser) if with_script else []


def test_nobody_else_can_frame_a_page_or_send_a_form(browser: Chrome, place: Place) -> None:
    place.add("fit", "main")
    switch = f"{place.url}/apps/fit/integrations/main/switch"
    page = f"<form method=post action='{switch}'><input name=to value=off><button>x</button></form>"
    browser.get("data:text/html," + page)
    press(browser, "button")
    until(browser, lambda: "Refused" in browser.page_source)
    with Operations(place.settings) as operations:
        assert operations.integrations(["fit/main"])[0].enabled
    browser.get(f"data:text/html,<iframe src='{switch}'></iframe>")
    browser.switch_to.frame(0)
    assert "Control Center" not in browser.page_source
    browser.switch_to.default_content()
