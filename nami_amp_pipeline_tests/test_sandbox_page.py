"""The sandbox's page in a real browser: what arrived, each user's properties, faults to switch; hostile text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from nami_amp_pipeline.sandbox import Sandbox, SandboxServer

pytestmark = pytest.mark.slow_cases

KEY = "0123456789abcdef-page"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox()) as running:
        post(running, "ada", namiml_active_skus=["premium_monthly"], note=HOSTILE)
        post(running, "bo", namiml_in_trial_period=True)
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,1400",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def post(server: SandboxServer, user_id: str, **properties: Any) -> int:
    event = {
        "event_type": "user.subscription.purchased",
        "user_id": user_id,
        "time": 1_788_000_000_000,
        "insert_id": f"id-{user_id}-{len(properties)}",
        "user_properties": properties,
    }
    body = {"api_key": KEY, "events": [event], "options": {"min_id_length": 1}}
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


def until(browser: webdriver.Chrome, condition: Any) -> None:
    WebDriverWait(browser, 10).until(lambda _: condition())


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


def test_a_fault_is_added_and_removed_by_hand(browser: webdriver.Chrome, server: SandboxServer) -> None:
    opened(browser, server)
    browser.find_element(By.CSS_SELECTOR, "#fault-kind option[value='503']").click()
    browser.find_element(By.CSS_SELECTOR, "#fault-form button[type=submit]").click()
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#rules button"))
    assert post(server, "cleo") == 503
    click(browser, "#rules button")
    until(browser, lambda: not browser.find_elements(By.CSS_SELECTOR, "#rules button"))
    assert post(server, "cleo") == 200
