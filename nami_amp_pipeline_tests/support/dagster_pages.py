"""Dagster's own pages of a home, in a real webserver and a real Chromium, and what a person does on them.

``NAMI_AMP_TEST_PICTURES=docs/images`` keeps the pictures that the documentation shows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from nami_amp_pipeline_tests.support.service import free_port, wait_for

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 120.0
"""A machine that is busy takes its time; nothing here waits for longer than it must."""

AT_ONCE = """\
telemetry: {enabled: false}
nux: {enabled: false}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
"""
"""Runs that a person launches start at once, where otherwise the daemon starts them."""

_PASSING = (StaleElementReferenceException, ElementClickInterceptedException, ElementNotInteractableException)


@dataclass
class DagsterPages:
    """Dagster's pages, and the browser that looks at them.

    Attributes:
        url: of the pages.
        browser: at the pages.
    """

    url: str
    browser: webdriver.Chrome

    def open(self, path: str) -> None:
        """Goes to a page, such as ``/assets/amplitude_deliveries``."""
        self.browser.get(f"{self.url}{path}")

    def text(self) -> str:
        """All that the page says."""
        return self.browser.find_element(By.TAG_NAME, "body").text

    def until(self, *said: str) -> str:
        """Waits until the page says all of this; returns all that it says."""

        def says(_browser: object) -> bool:
            shown = self.text()
            return all(part in shown for part in said)

        try:
            WebDriverWait(self.browser, PATIENCE_SECONDS, 0.25, ignored_exceptions=_PASSING).until(says)
        except Exception:
            sys.stderr.write(f"{self.browser.current_url}\n{self.text()}\n")
            raise
        return self.text()

    def click(self, by: str, what: str, has: str = "") -> None:
        """Clicks on the first of these, once it is there and has this text; the pages replace what they show."""

        def clicked(browser: webdriver.Chrome) -> bool:
            found = [element for element in browser.find_elements(by, what) if has in element.text]
            if not found:
                return False
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found[0])
            found[0].click()
            return True

        try:
            WebDriverWait(self.browser, PATIENCE_SECONDS, ignored_exceptions=_PASSING).until(clicked)
        except Exception:
            sys.stderr.write(f"no {what} at {self.browser.current_url}\n{self.text()}\n")
            raise

    def press(self, button: str) -> None:
        """Clicks on a button, once it can be clicked on."""
        self.click(By.XPATH, f"//button[not(@disabled)][.//text()='{button}']")

    def write_config(self, text: str) -> None:
        """Puts this into the editor of a launchpad, in place of what is there, and waits until the pages took it."""
        self.click(By.CLASS_NAME, "CodeMirror")
        # Typed text would be indented, and completed.
        self.browser.execute_script("document.querySelector('.CodeMirror').CodeMirror.setValue(arguments[0])", text)

    def type_at_the_end(self, text: str, before: int = 0) -> None:
        """Types at the end of the line where the cursor is, or so many characters before."""
        ActionChains(self.browser).send_keys(Keys.END, *[Keys.ARROW_LEFT] * before, text).perform()

    def launch(self) -> str:
        """Presses *Launch Run*, and waits for the page of the run; returns the run's id."""
        self.press("Launch Run")
        WebDriverWait(self.browser, PATIENCE_SECONDS).until(lambda browser: "/runs/" in browser.current_url)
        return self.browser.current_url.rpartition("/")[2][:36]

    def ask(self, query: str, **variables: Any) -> Any:
        """What Dagster answers to the pages."""
        asked = {"query": query, "variables": variables}
        answer = requests.post(f"{self.url}/graphql", json=asked, timeout=PATIENCE_SECONDS).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def picture(self, name: str) -> None:
        """Keeps what is to be seen, where somebody wants it."""
        folder = os.environ.get("NAMI_AMP_TEST_PICTURES")
        if folder:
            time.sleep(2)
            self.browser.save_screenshot(f"{folder}/{name}.png")


@contextmanager
def dagster_pages(folder: Path, home: Path) -> Iterator[DagsterPages]:
    """The pages of a home, without a daemon; webserver and browser end with the block.

    Args:
        folder: for the webserver's log.
        home: with a history of Dagster's.
    """
    (home / "dagster" / "dagster.yaml").write_text(AT_ONCE)
    port = free_port()
    environ = {
        **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        "HOME": str(folder), "PYTHONPATH": str(ROOT), "NAMI_AMP_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
    }  # fmt: skip
    log = folder / "webserver.log"
    with log.open("wb") as out:
        served = subprocess.Popen(
            [BIN / "dagster-webserver", "-m", "nami_amp_pipeline.definitions", "-h", "127.0.0.1", "-p", str(port)],
            cwd=folder, env=environ, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: b"Serving" in log.read_bytes(), log.read_text)
        with looking_at(f"http://127.0.0.1:{port}") as pages:
            yield pages
    finally:
        os.killpg(served.pid, signal.SIGINT)
        try:
            served.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(served.pid, signal.SIGKILL)
            served.wait(10)


@contextmanager
def looking_at(url: str) -> Iterator[DagsterPages]:
    """A browser at the pages of a Dagster that runs; it ends with the block."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,1100"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    try:
        yield DagsterPages(url, browser)
    finally:
        browser.quit()
