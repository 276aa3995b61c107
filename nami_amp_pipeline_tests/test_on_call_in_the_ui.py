"""At night, with trouble of every kind: each question is answered on Dagster's pages within two clicks.

``NAMI_AMP_TEST_PICTURES=docs/images`` keeps the pictures that the documentation shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import duckdb
import pytest
from selenium.webdriver.common.by import By

from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.sandbox.faults import Fault
from nami_amp_pipeline_tests.support.dagster_pages import DagsterPages, dagster_pages
from nami_amp_pipeline_tests.support.scene import BAD_KEY, WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

OUTAGE_KEY = "outage-0123456789abcdef0123456"
THROTTLED_KEY = "throttled-0123456789abcdef0123"
REJECTED_KEY = "rejects-0123456789abcdef012345"
REJECTED = 31


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
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DagsterPages, str]]:
    """Pages where it is dark, and the last run, which failed."""
    folder = tmp_path_factory.mktemp("night")
    with scene(folder / "home", run_retry_seconds="0") as stage:
        trouble(stage)
        for _ in range(2):
            assert not run_micro_batch(stage.settings).ok
        (folder / "home" / "warehouse.duckdb").rename(folder / "away.duckdb")  # and then no warehouse
        last = run_micro_batch(stage.settings)
        assert not last.ok
        with dagster_pages(folder, folder / "home") as pages:
            yield pages, last.run_id


@pytest.fixture
def pages(night: tuple[DagsterPages, str]) -> DagsterPages:
    return night[0]


def test_the_report_says_who_needs_a_person(pages: DagsterPages) -> None:
    pages.open("/assets/delivery_report")
    pages.until("4 of 5 integrations need you", "fit|main", "tv|main", "radio|main", "news|main")
    pages.picture("delivery-report")
    shown = pages.text()
    assert "and the warehouse cannot be read" in shown
    assert re.search(r"cannot be read since 20\S+Z: .*there is no DuckDB file", shown)
    assert "nami-amp doctor" in shown
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
    pages: DagsterPages, partition: str, name: str, says: tuple[str, ...]
) -> None:
    pages.open("/assets/delivery_report")
    pages.click(By.LINK_TEXT, partition)
    shown = pages.until(*says, "since", "pending", "what_to_do", "did_it_arrive", "nami-amp trace EVENT_ID")
    pages.picture(name)
    assert "``" not in shown  # no mark of reStructuredText


def test_a_failed_run_says_its_lines_and_shows_no_stack(night: tuple[DagsterPages, str]) -> None:
    pages, failed_run = night
    query = (
        "query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events { ... on ExecutionStepFailureEvent "
        "{ error { message stack errorChain { error { message } } } failureMetadata { metadataEntries { label } } } } "
        "} } }"
    )
    events = pages.ask(query, id=failed_run)["logsForRun"]["events"]
    (failure,) = [event["error"] for event in events if event.get("error")]
    assert failure["message"].startswith("Not everything was delivered; what could be, was.\nnami_events: ")
    assert (failure["stack"], failure["errorChain"]) == ([], [])
    pages.open(f"/runs/{failed_run}")
    pages.until("STEP_FAILURE", "Not everything was delivered")
    more = "//*[text()='View full message']"
    row = f"(//*[text()='STEP_FAILURE']/ancestor::*[.{more}])[last()]"
    pages.click(By.XPATH, f"{row}{more}")
    shown = pages.until("Copy error", "there is no DuckDB file", "Not over since earlier runs")
    pages.picture("failed-run")
    assert 'File "' not in shown
    assert "Traceback" not in shown
    assert "dagster/_core" not in shown


@pytest.mark.parametrize(
    ("asked", "tag", "says"),
    [
        (
            f"rejected-{REJECTED - 1}",
            "1 rejected",
            ("1 rejected", "news/main", "rejected 20", "nami-amp dead-letters show"),
        ),
        ("no-such-event", "not known", ("no event or user no-such-event", "the warehouse cannot be asked")),
    ],
)
def test_did_it_arrive_is_two_clicks_from_a_partition(
    pages: DagsterPages, asked: str, tag: str, says: tuple[str, ...]
) -> None:
    pages.open("/assets/amplitude_deliveries?view=events&partition=news%7Cmain")
    pages.click(By.LINK_TEXT, "Ask here")
    pages.click(By.CLASS_NAME, "CodeMirror-line", has='event_or_user: ""')
    pages.type_at_the_end(asked, before=1)
    pages.until(f'event_or_user: "{asked}"')
    run_id = pages.launch()
    pages.until("RUN_SUCCESS", *says)
    if asked.startswith("rejected"):
        pages.picture("trace")
    query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { tags { key value } } } }"
    tags = {given["key"]: given["value"] for given in pages.ask(query, id=run_id)["runOrError"]["tags"]}
    assert tags["nami/verdict"] == tag


def test_partitions_in_trouble_are_counted_as_failed(pages: DagsterPages) -> None:
    pages.open("/assets/amplitude_deliveries?view=partitions")
    shown = pages.until("5 Partitions Selected", "Failed (3)")
    pages.picture("partitions")
    assert "Missing (0)" in shown
