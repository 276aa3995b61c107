"""A person sends a window again from Dagster's own pages, and follows it there to its end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import duckdb
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from nami_amp_pipeline.contract import select_events
from nami_amp_pipeline.operations.backfill_status import listed
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.sandbox.faults import Fault
from nami_amp_pipeline_tests.support.dagster_pages import DagsterPages, looking_at
from nami_amp_pipeline_tests.support.development import up
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene
from nami_amp_pipeline_tests.support.service import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

ASSET_JOB = "__ASSET_JOB"
APPS = ("fit", "radio")
NEW_EVENTS = 3
WINDOW = 'from: "2020-01-01"\n{indent}to: "2026-12-01"\n'
OF_THE_ASSET = "ops:\n  amplitude_deliveries:\n    config:\n      " + WINDOW.format(indent=" " * 6)
AT_WORK = ("events done", " a second, about ", " s left")
"""How many of all, how fast, and for how long still."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Integrations that start now, with events from before, and a few that live delivery has sent."""
    with scene(tmp_path_factory.mktemp("window") / "home") as made:
        made.load(users=200, apps=APPS)
        for app in APPS:
            made.add(app, start_from=int(time.time() * 1e6))
        with duckdb.connect(str(made.home / "warehouse.duckdb")) as connection:
            connection.execute(
                "INSERT INTO nami_events BY NAME SELECT * REPLACE (id || '-new' AS id, now() AS ingested_at, now() AS "
                "created_date) FROM nami_events WHERE event_type = 'user.subscription.renewed' QUALIFY row_number() "
                "OVER (PARTITION BY app_id) <= ?",
                [NEW_EVENTS],
            )
        assert run_micro_batch(made.settings).ok
        yield made


@pytest.fixture(scope="module")
def pages(stage: Scene) -> Iterator[DagsterPages]:
    few = {"NAMI_AMP_BATCH_EVENTS": "20", "NAMI_AMP_MAX_LANES": "2"}
    with up(stage.home.parent, stage.home, **few) as dev, looking_at(dev.url) as made:
        yield made


@pytest.fixture
def slow(stage: Scene) -> Iterator[Fault]:
    """Amplitude takes its time, until somebody has seen what the pages say meanwhile."""
    fault = Fault("slow", seconds=1)
    stage.sandbox.faults.add(fault)
    yield fault
    stage.sandbox.faults.remove(fault.id)


def sendable(stage: Scene, app: str) -> int:
    """How many events of an app are in the warehouse, of a type that is sent; some rows are there twice."""
    types = [event_type.name for event_type in select_events(["all"])]
    with duckdb.connect(str(stage.home / "warehouse.duckdb"), read_only=True) as connection:
        counted = connection.execute(
            "SELECT count(DISTINCT id) FROM nami_events WHERE app_id = ? AND event_type IN ?", [app, types]
        )
        return int(counted.fetchall()[0][0])


def launched(pages: DagsterPages, job: str, before: set[str]) -> str:
    """Waits for a run of a job beside these; returns its id."""
    (run_id,) = wait_for(lambda: runs_of(pages, job) - before)
    return run_id


def runs_of(pages: DagsterPages, job: str) -> set[str]:
    """The runs of a job."""
    query = "query($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs { results { runId } } } }"
    return {found["runId"] for found in pages.ask(query, job=job)["runsOrError"]["results"]}


def follow(pages: DagsterPages, run_id: str, slow: Fault, picture: str = "") -> None:
    """Looks at the page of a run until it says how far it is, and then until it is done."""
    pages.open(f"/runs/{run_id}")
    shown = pages.until(*AT_WORK)
    assert re.search(r"backfill \d+: \d+ of [\d,]+ events done, \d+ a second, about \d+ s left", shown)
    if picture:
        pages.picture(picture)
    slow.enabled = False
    pages.until("RUN_SUCCESS")


def open_dialog(pages: DagsterPages) -> None:
    """The dialog of the button *Materialize…*."""
    pages.open("/assets/amplitude_deliveries")
    pages.press("Materialize…")
    pages.until("Launch runs to materialize amplitude_deliveries", "Partition selection")


def give_window(pages: DagsterPages) -> None:
    """Puts the window into the config of that dialog."""
    pages.click(By.XPATH, "//*[text()='Config']")
    pages.press("Add config")
    pages.until("Config Editor", "No errors")
    pages.write_config(OF_THE_ASSET)
    pages.until("No errors")
    pages.press("Save config")
    pages.until("Config saved", "2020-01-01")


def test_a_partition_is_sent_again_from_the_dialog_of_its_asset(pages: DagsterPages, stage: Scene, slow: Fault) -> None:
    before = runs_of(pages, ASSET_JOB)
    open_dialog(pages)
    pages.click(By.XPATH, "//*[text()='Select a partition or create one']")
    pages.click(By.XPATH, "//label[contains(., 'fit|main')] | //*[text()='fit|main']")
    pages.browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    give_window(pages)
    pages.press("Launch 1 run")
    follow(pages, launched(pages, ASSET_JOB, before), slow, "backfill-run")
    status = listed(stage.context, limit=1)[0]
    assert (status.backfill.state, status.delivered) == ("done", sendable(stage, "fit"))
    pages.open("/assets/amplitude_deliveries?view=events&partition=fit%7Cmain")
    pages.until(
        "Partition fit|main materialized",
        f"backfill {status.backfill.id}",
        "2020-01-01T00:00:00Z to 2026-12-01T00:00:00Z",
    )
    pages.until(f"delivered\n{status.delivered}", f"new {status.delivered - NEW_EVENTS}", f"repeat {NEW_EVENTS}")
    pages.picture("backfill-partition")


def test_several_partitions_are_a_backfill_of_dagsters(pages: DagsterPages, stage: Scene) -> None:
    before = runs_of(pages, ASSET_JOB)
    open_dialog(pages)
    pages.press("All")
    pages.until("2 partitions")
    give_window(pages)
    pages.picture("backfill-dialog")
    pages.press("Launch backfill")
    pages.open(f"/runs/{launched(pages, ASSET_JOB, before)}")
    pages.until("RUN_SUCCESS")
    assert [status.backfill.state for status in listed(stage.context, limit=2)] == ["done", "done"]
    assert stage.sandbox.audit.accepted == sum(sendable(stage, app) for app in APPS)


def test_the_job_sends_a_window_from_its_launchpad(pages: DagsterPages, stage: Scene, slow: Fault) -> None:
    pages.open("/locations/nami_amp_pipeline/jobs/backfill/playground")
    pages.until("integration?: String", "No errors")
    pages.write_config(f"integration: radio/main\n{WINDOW.format(indent='')}")
    pages.until("integration: radio/main", "No errors")
    follow(pages, pages.launch(), slow)
    status = listed(stage.context, limit=1)[0]
    assert (status.backfill.state, status.delivered) == ("done", sendable(stage, "radio"))
    pages.until("STEP_OUTPUT")
