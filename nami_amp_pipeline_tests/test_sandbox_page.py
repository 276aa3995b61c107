"""The sandbox's page in a real browser: what arrived, search, users' properties, scenes and faults; hostile text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from nami_amp_pipeline.sandbox import Fault, Project, Sandbox, SandboxServer
from nami_amp_pipeline_tests.support.browser import until

pytestmark = pytest.mark.slow_cases

KEY = "0123456789abcdef-page"
PROJECTS = {KEY: Project(name="radio/main"), "a-key-that-sends-nothing": Project(name="quiet")}
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox(projects=PROJECTS, any_key=True)) as running:
        post(running, "ada", namiml_active_skus=["premium_monthly"], note=HOSTILE)
        post(running, "bo", namiml_in_trial_period=True)
        yield running


def post(server: SandboxServer, user_id: str, *, key: str = KEY, **properties: Any) -> int:
    event = {
        "event_type": "user.subscription.purchased",
        "user_id": user_id,
        "time": 1_788_000_000_000,
        "insert_id": f"id-{user_id}-{len(properties)}",
        "user_properties": properties,
    }
    body = {"api_key": key, "events": [event], "options": {"min_id_length": 1}}
    return requests.post(server.endpoint, json=body, timeout=10).status_code


def opened(browser: webdriver.Chrome, server: SandboxServer) -> webdriver.Chrome:
    browser.get(server.url)
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#events > li"))
    return browser


def click(browser: webdriver.Chrome, selector: str) -> None:
    """Clicks on what the page paints anew now and then, and which may be gone between being found and being clicked."""

    def clicked() -> bool:
        browser.find_element(By.CSS_SELECTOR, selector).click()
        return True

    passing = (NoSuchElementException, StaleElementReferenceException)
    WebDriverWait(browser, 10, ignored_exceptions=passing).until(lambda _: clicked())


def text(browser: webdriver.Chrome, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def test_events_open_to_the_json_as_it_came(browser: webdriver.Chrome, server: SandboxServer) -> None:
    opened(browser, server)
    assert "user.subscription.purchased" in text(browser, "#totals")
    for summary in browser.find_elements(By.CSS_SELECTOR, "#events summary"):
        summary.click()
    until(browser, lambda: "id-ada-2" in text(browser, "#events"))
    assert HOSTILE.replace('"', '\\"') in text(browser, "#events")
    assert browser.title != "owned"
    assert KEY not in browser.page_source


def test_a_user_is_found_with_the_properties_that_amplitude_holds(
    browser: webdriver.Chrome, server: SandboxServer
) -> None:
    opened(browser, server)
    until(browser, lambda: "ada" in text(browser, "#users") and "bo" in text(browser, "#users"))
    browser.find_element(By.ID, "user-search").send_keys("ad")
    until(browser, lambda: "bo" not in text(browser, "#users").split())
    assert "premium_monthly" in str(browser.find_element(By.ID, "users").get_attribute("textContent"))


@pytest.mark.slow
def test_a_fault_is_added_and_removed_by_hand(browser: webdriver.Chrome, server: SandboxServer) -> None:
    opened(browser, server)
    browser.find_element(By.CSS_SELECTOR, "#fault-kind option[value='503']").click()
    browser.find_element(By.CSS_SELECTOR, "#fault-form button[type=submit]").click()
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#rules button"))
    assert post(server, "cleo") == 503
    click(browser, "#rules button")
    until(browser, lambda: not browser.find_elements(By.CSS_SELECTOR, "#rules button"))
    assert post(server, "cleo") == 200


def test_projects_are_listed_by_name_with_the_end_of_their_key(
    browser: webdriver.Chrome, server: SandboxServer
) -> None:
    post(server, "dan", key="zzzz-another-key-of-nobody")
    opened(browser, server)
    until(browser, lambda: "…body" in text(browser, "#totals"))
    rows = browser.find_elements(By.CSS_SELECTOR, "#totals th")
    assert [row.text.splitlines()[0] for row in rows][-1] == "radio/main"
    assert rows[-1].text.splitlines()[1] == "key …page"
    assert "events" in rows[-1].text.splitlines()[2]
    assert rows[-2].text.splitlines() == ["quiet", "key …hing", "0 events"]


@pytest.mark.slow
def test_an_event_is_found_with_its_user_and_its_requests(browser: webdriver.Chrome, server: SandboxServer) -> None:
    opened(browser, server)
    browser.find_element(By.ID, "search-id").send_keys("id-ada-2")
    click(browser, "#search-form button[type=submit]")
    until(browser, lambda: "Requests that carried it (1)" in text(browser, "#found"))
    for summary in browser.find_elements(By.CSS_SELECTOR, "#found summary"):
        summary.click()
    shown = text(browser, "#found")
    assert "Events (1)" in shown
    assert "events_ingested" in shown
    assert "premium_monthly" in shown
    assert HOSTILE.replace('"', '\\"') in shown
    assert browser.title != "owned"
    assert browser.current_url.endswith("/?q=id-ada-2")
    assert KEY not in browser.page_source
    click(browser, "#search-clear")
    until(browser, lambda: not browser.find_element(By.ID, "found").is_displayed())


def test_a_search_can_be_linked_to_and_hostile_ids_are_text(browser: webdriver.Chrome, server: SandboxServer) -> None:
    post(server, HOSTILE)
    browser.get(f"{server.url}/?q={quote(HOSTILE)}")
    until(browser, lambda: "Events (1)" in text(browser, "#found"))
    assert HOSTILE in text(browser, "#found")
    assert browser.find_elements(By.CSS_SELECTOR, "img") == []
    assert browser.title != "owned"


@pytest.mark.slow
def test_a_browser_without_scripts_searches_too(browser: webdriver.Chrome, server: SandboxServer) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(server.url)
        assert "Without JavaScript this page can search." in text(browser, "noscript")
        shown = [card.text for card in browser.find_elements(By.CSS_SELECTOR, "main > *") if card.is_displayed()]
        assert shown == ["Find an event, user or device\nFind"], "what only scripts would fill is not there"
        browser.find_element(By.ID, "search-id").send_keys("id-ada-2\n")
        until(browser, lambda: browser.current_url.endswith("/?q=id-ada-2"))
        assert "Events (1)" in text(browser, "#found")
        browser.find_element(By.CSS_SELECTOR, "#found summary").click()
        assert "premium_monthly" in text(browser, "#found pre")
        browser.find_element(By.ID, "search-clear").click()
        until(browser, lambda: not browser.find_element(By.ID, "found").is_displayed())
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.slow
def test_what_was_lost_is_found_and_said_to_be(browser: webdriver.Chrome, server: SandboxServer) -> None:
    server.sandbox.faults.add(Fault("lost_after_200", user_id="eve"))
    assert post(server, "eve") == 200
    server.sandbox.faults.remove()
    browser.get(f"{server.url}/?q=eve")
    until(browser, lambda: "lost after its 200" in text(browser, "#found"))


@pytest.mark.slow
def test_a_scene_is_started_and_stopped_by_its_button(browser: webdriver.Chrome, server: SandboxServer) -> None:
    opened(browser, server)
    until(browser, lambda: text(browser, "#scene-outage") == "Start")
    click(browser, "#scene-outage")
    until(browser, lambda: text(browser, "#scenes-on") == "Outage")
    assert post(server, "fay") == 503
    until(browser, lambda: "happened 1×" in text(browser, "#scenes"))
    click(browser, "#scene-outage")
    until(browser, lambda: text(browser, "#scenes-on") == "none")
    assert post(server, "fay") == 200


@pytest.mark.slow
def test_a_scene_takes_a_value_and_says_what_it_cannot_take(browser: webdriver.Chrome, server: SandboxServer) -> None:
    opened(browser, server)
    until(browser, lambda: browser.find_elements(By.ID, "value-lost-after-200"))
    browser.find_element(By.ID, "value-lost-after-200").send_keys("many")
    click(browser, "#scene-lost-after-200")
    until(browser, lambda: "'many' is not a number" in text(browser, "#scene-error"))
    browser.find_element(By.ID, "value-throttled-user").send_keys("gus")
    click(browser, "#scene-throttled-user")
    until(browser, lambda: text(browser, "#scenes-on") == "Throttled user")
    assert (post(server, "gus"), post(server, "hal")) == (429, 200)
    click(browser, "#scenes-stop")
    until(browser, lambda: text(browser, "#scenes-on") == "none")


@pytest.mark.slow
def test_stored_events_are_damaged_by_hand(browser: webdriver.Chrome, server: SandboxServer) -> None:
    post(server, "ivy", x="a long text")
    opened(browser, server)
    browser.find_element(By.CSS_SELECTOR, "#fault-kind option[value='cut_property']").click()
    for field, value in (("fault-user", "ivy"), ("fault-property", "x"), ("fault-characters", "6")):
        browser.find_element(By.ID, field).send_keys(value)
    click(browser, "#fault-held")
    until(browser, lambda: "1 stored events" in text(browser, "#fault-done"))
    found = requests.get(f"{server.url}/sandbox/search?q=ivy", timeout=5).json()
    assert found["events"][0]["event"]["user_properties"] == {"x": "a long"}


@pytest.mark.slow
def test_the_delay_of_exports_is_set_by_hand(browser: webdriver.Chrome, server: SandboxServer) -> None:
    opened(browser, server)
    until(browser, lambda: browser.find_element(By.ID, "export-delay").get_attribute("value") == "2")
    field = browser.find_element(By.ID, "export-delay")
    field.clear()
    field.send_keys("0\t")
    until(browser, lambda: server.sandbox.options.export_delay_hours == 0)
