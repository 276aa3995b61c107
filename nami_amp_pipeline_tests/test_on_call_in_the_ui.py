"""At night, with trouble of every kind: each question is answered on Dagster's pages within two clicks.

``NAMI_AMP_TEST_PICTURES=docs/images`` keeps the pictures that the documentation shows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.sandbox.faults import Fault
from nami_amp_pipeline_tests.support.scene import BAD_KEY, WARNINGS, Scene, scene
from nami_amp_pipeline_tests.support.service import free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
OUTAGE_KEY = "outage-0123456789abcdef0123456"
THROTTLED_KEY = "throttled-0123456789abcdef0123"
REJECTED_KEY = "rejects-0123456789abcdef012345"
REJECTED = 31


@dataclass
class Night:
    """Where it is dark.

    Attributes:
        url: of the pages.
        browser: at the pages.
    """

    url: str
    browser: webdriver.Chrome

    def text(self) -> str:
        """All that the page says."""
        return self.browser.find_element(By.TAG_NAME, "body").text

    def until(self, *said: str) -> str:
        """Waits until the page says all of this."""

        def says(_browser: object) -> bool:
            try:
                shown = self.text()
            except StaleElementReferenceException:
                return False
            return all(part in shown for part in said)

        try:
            WebDriverWait(self.browser, 20).until(says)
        except Exception:
            sys.stderr.write(f"{self.browser.current_url}\n{self.text()}\n")
            raise
        return self.text()

    def click(self, link: str) -> None:
        """Clicks on a link with this text."""
        WebDriverWait(self.browser, 20).until(lambda browser: browser.find_elements(By.LINK_TEXT, link))
        (found, *_) = self.browser.find_elements(By.LINK_TEXT, link)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def picture(self, name: str) -> None:
        """Keeps what is to be seen, where somebody wants it."""
        folder = os.environ.get("NAMI_AMP_TEST_PICTURES")
        if folder:
            time.sleep(2)
            self.browser.save_screenshot(f"{folder}/{name}.png")


def trouble(stage: Scene) -> None:
    """A wrong key, an outage, a throttled user and rejected events, each at an integration of its own."""
    stage.load(apps=("fit", "tv", "radio", "news", "calm"), users=40)
    with duckdb.connect(str(stage.home / "warehouse.duckdb")) as connection:
        connection.execute(
            "INSERT INTO nami_events BY NAME SELECT event.* REPLACE ('rejected-' || number AS id) FROM (SELECT * FROM "
            "nami_events WHERE app_id = 'news' AND event_type = 'user.subscription.renewed' LIMIT 1) AS event, "
            "range(?) AS numbers(number)",
            [REJECTED],
        )
    stage.add("fit", key=BAD_KEY)
    stage.add("tv", key=OUTAGE_KEY)
    stage.add("radio", key=THROTTLED_KEY)
    stage.add("news", key=REJECTED_KEY)
    stage.add("calm")
    stage.sandbox.faults.add(
        Fault("503", api_key=OUTAGE_KEY),
        Fault("throttle_user", share=0.05, seed=3, api_key=THROTTLED_KEY),
        Fault("poison", text='"rejected-', indexes="all"),
    )


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    with scene(folder / "home", run_retry_seconds="0") as stage:
        trouble(stage)
        for _ in range(2):
            assert not run_micro_batch(stage.settings).ok
        port = free_port()
        environ = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(folder), "PYTHONPATH": str(ROOT), "NAMI_AMP_HOME": str(folder / "home"),
            "DAGSTER_HOME": str(folder / "home" / "dagster"),
        }  # fmt: skip
        log = folder / "webserver.log"
        with log.open("wb") as out:
            served = subprocess.Popen(
                [BIN / "dagster-webserver", "-m", "nami_amp_pipeline.definitions", "-h", "127.0.0.1", "-p", str(port)],
                cwd=folder, env=environ, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,1100"):
            options.add_argument(argument)
        try:
            wait_for(lambda: b"Serving" in log.read_bytes(), log.read_text)
            browser = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
            try:
                yield Night(f"http://127.0.0.1:{port}", browser)
            finally:
                browser.quit()
        finally:
            os.killpg(served.pid, signal.SIGINT)
            try:
                served.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(served.pid, signal.SIGKILL)


def test_the_report_says_who_needs_a_person(night: Night) -> None:
    night.browser.get(f"{night.url}/assets/delivery_report")
    night.until("4 of 5 integrations need you", "fit|main", "tv|main", "radio|main", "news|main")
    night.picture("delivery-report")
    shown = night.text()
    assert "calm|main" not in shown  # of what is well only the counts are shown
    assert "halted since" in shown
    assert "nami-amp integrations enable fit/main" in shown


@pytest.mark.parametrize(
    ("partition", "name", "says"),
    [
        (
            "fit|main",
            "partition-halted",
            ("halted", "Amplitude does not know the API key", "integrations enable fit/main"),
        ),
        ("tv|main", "partition-outage", ("unreachable", "next_try")),
        ("radio|main", "partition-throttled", ("throttled", "whose_events_wait", "next_try")),
        ("news|main", "partition-rejected", (f"{REJECTED} rejected", "dead-letters retry --integration news/main")),
    ],
)
def test_each_question_is_answered_two_clicks_from_the_assets(
    night: Night, partition: str, name: str, says: tuple[str, ...]
) -> None:
    night.browser.get(f"{night.url}/assets/delivery_report")
    night.click(partition)
    shown = night.until(*says, "since", "pending", "what_to_do", "did_it_arrive", "nami-amp trace EVENT_ID")
    night.picture(name)
    assert "``" not in shown  # no mark of reStructuredText


def test_partitions_in_trouble_are_counted_as_failed(night: Night) -> None:
    night.browser.get(f"{night.url}/assets/amplitude_deliveries?view=partitions")
    shown = night.until("5 Partitions Selected", "Failed (3)")
    night.picture("partitions")
    assert "Missing (0)" in shown
