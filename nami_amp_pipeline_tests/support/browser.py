"""A real Chromium for the tests of pages: one for all of them, and what they ask of a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

AXE = Path(__file__).parents[1] / "vendor" / "axe-4.14.1.min.js"

_RUN_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"]}).then((found) => done(found.violations.map((violation) =>
  `${violation.id}: ${violation.help}: ${violation.nodes.slice(0, 3).map((node) => node.html.slice(0, 160))}`
)), (error) => done([String(error)]));
"""


def chromium(profile: Path) -> webdriver.Chrome:
    """Debian's Chromium without a window, with a profile of its own."""
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
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    return webdriver.Chrome(options, Service("/usr/bin/chromedriver"))


def look(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    """Sets the width of the page, and ``light`` or ``dark``."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 1_000, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


def look_as_usual(browser: webdriver.Chrome) -> None:
    """Takes back what :func:`look` set."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def problems(browser: webdriver.Chrome) -> list[str]:
    """What axe-core finds on the page, what is wider than the window, and what the browser complained of."""
    loaded(browser)
    browser.execute_script(AXE.read_text("utf-8"))
    found: list[str] = browser.execute_async_script(_RUN_AXE)
    found += [entry["message"] for entry in browser.get_log("browser")]  # type: ignore[no-untyped-call]
    return found + too_wide(browser)


def too_wide(browser: webdriver.Chrome) -> list[str]:
    """A sentence if one has to scroll sideways."""
    loaded(browser)
    width, shown = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    return [f"the page is {width} px wide in a window of {shown}"] if width > shown else []


def loaded(browser: webdriver.Chrome) -> None:
    """Waits for the style sheets: on a busy machine, ``get`` may return while the page is still without them."""
    until(browser, lambda: browser.execute_script("return document.readyState") == "complete")


def until(browser: webdriver.Chrome, condition: Callable[[], Any]) -> None:
    """Waits until something is so."""
    passing = (NoSuchElementException, StaleElementReferenceException)  # a page may be painted anew
    WebDriverWait(browser, 20, 0.1, ignored_exceptions=passing).until(lambda _: condition())
