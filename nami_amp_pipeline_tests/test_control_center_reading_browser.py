"""The Control Center's reading pages in a real browser, on hostile data: at both widths, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from selenium.webdriver import Chrome

from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.operations.dead_letters import Filter
from nami_amp_pipeline.operations.integrations import IntegrationChange
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.support.browser import look, look_as_usual, problems
from nami_amp_pipeline_tests.support.control_center import served
from nami_amp_pipeline_tests.support.harness import Answering, Pipeline

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
TYPES = ("user.subscription.renewed", "user.subscription.renewal_in_grace_period", "user.journey.trial.started")


def event(number: int, at: datetime) -> dict[str, Any]:
    user = f"user-{number % 9}-{HOSTILE}"
    ids = [] if number % 4 == 0 else [{"key": "external_id", "type": "string", "value": f"{user}-external"}]
    body = {"external_ids": ids, "active_entitlements": [{"entitlement_ref_id": HOSTILE}], "note": HOSTILE * 3}
    return {
        "id": f"event-{number}", "app_id": "fit", "event_type": TYPES[number % 3], "user_id": user, "created_date": at,
        "ingested_at": at, "payload": orjson.dumps(body).decode(),
    }  # fmt: skip


def compared(made: Pipeline, integration_id: int, day: int) -> None:
    """A day that was compared, with differences."""
    same = {"integration_id": integration_id, "day": day}
    classes = [("identical", "", 7), ("missing", "", 1), ("altered", "", 1), ("altered", "time", 1)]
    with made.context.store.begin() as tx:
        tx.execute(
            tables.reconciled_days.insert().values(
                **same, at=day, source=HOSTILE, hours=24, complete_at=day, delivered=8, held=7, repaired=1,
                said=f"Amplitude holds 7 of 8, 1 missing {HOSTILE}", run_id="r",
            )
        )  # fmt: skip
        tx.execute(
            tables.reconciled_classes.insert(),
            [{**same, "class": name, "column": column, "events": events} for name, column, events in classes],
        )
        tx.execute(
            tables.reconciled_samples.insert().values(
                **{"class": "altered"}, **same, event_id=HOSTILE, column="time", field="time", sent="1", held="2"
            )
        )


def failed_since(made: Pipeline, integration_id: int, at: int) -> None:
    """A request that nothing answered: an outage in the chart."""
    row = {"events": 1, "bytes": 1, "status": 0, "outcome": "timeout", "answer": HOSTILE, "run_id": "r"}
    with made.context.store.begin() as tx:
        tx.execute(tables.requests.insert().values(integration_id=integration_id, sent_at=at, answered_at=at, **row))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """The address of a Control Center over a day of events, and the paths of its reading pages."""
    now = datetime.now(UTC).replace(microsecond=0)
    made = Pipeline(tmp_path_factory.mktemp("reading"), open_at=now - timedelta(hours=30))
    main = made.add("fit", anonymous="wait_for_login")
    refused = {"code": 400, "error": HOSTILE, "events_with_invalid_fields": {"event_properties": [0]}}
    for hour in range(0, 30, 3):
        at = now - timedelta(hours=30 - hour)
        made.wires[main.id] = Answering([HttpAnswer(400, orjson.dumps(refused))] if hour % 6 else [])
        made.insert([event(hour * 10 + number, at) for number in range(8)])
        made.clock.set(at + timedelta(minutes=5))
        made.tick()
    made.clock.set(now)
    made.add("fit", "other")
    operations = Operations.over(made.context)
    (letter, *_), _ = operations.dead_letters(Filter())
    window = Window(int((now.timestamp() - 90_000) * 1e6), int(now.timestamp() * 1e6), "created_date")
    plan, _ = backfills.dry_run(made.context, NewBackfill(main.key, window), by=HOSTILE)
    operations.retry(Filter(ids=[str(letter.id)]))
    made.tick()
    (letter, *_), _ = operations.dead_letters(Filter())
    operations.disable(main.key)
    operations.change(main.key, IntegrationChange(secret_key=Secret("5" * 32)))
    operations.ask_comparison(main.key, made.context.now())
    failed_since(made, main.id, int(now.timestamp() * 1e6) - 20 * 3_600_000_000)
    compared(made, main.id, int(now.timestamp()) // 86_400 * 86_400_000_000)
    of = "/apps/fit/deliveries/main"
    paths = [
        "/apps/fit/deliveries", of, f"{of}?window=30d", f"{of}/events?outcome=captured", f"{of}/requests",
        f"{of}/waiting", "/apps/empty/deliveries", "/apps/fit/refused", "/apps/fit/refused?reason=silenced",
        f"/apps/fit/refused/{letter.id}", "/apps/fit/refused/again?reason=rejected",
        "/apps/fit/refused/dismiss?reason=rejected", "/apps/empty/refused", f"/apps/fit/trace?q={letter.event_id}",
        "/apps/fit/trace?q=user-1-nobody", "/apps/fit/trace", "/apps/fit/backfills", "/apps/fit/backfills/new",
        f"/apps/fit/backfills/{plan.id}", f"/apps/fit/backfills/{plan.id}/cancel", "/apps/empty/backfills",
        "/apps/fit/history", "/apps/fit/reconciliation", "/apps/fit/reconciliation/main",
        f"/apps/fit/reconciliation/main/days/{now:%Y-%m-%d}",
        "/apps/fit/reconciliation/main/audience?property=namiml_former_subscriber&value=false&place=no_external_id",
    ]  # fmt: skip
    with served(made.settings) as url:
        yield url, paths
    made.close()


@pytest.fixture(autouse=True)
def as_usual(browser: Chrome) -> Iterator[None]:
    browser.get("about:blank")
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    yield
    look_as_usual(browser)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_each_reading_page_is_for_everybody(
    browser: Chrome, pages: tuple[str, list[str]], width: int, scheme: str
) -> None:
    look(browser, width, scheme)
    url, paths = pages
    found = {}
    for path in paths:
        browser.get(url + path)
        assert "owned" not in browser.title
        if complaints := problems(browser):
            found[path] = complaints
    assert not found


def test_each_outcome_has_its_colour_in_small_charts_too(browser: Chrome, pages: tuple[str, list[str]]) -> None:
    browser.get(f"{pages[0]}/apps/fit/deliveries")
    colours = browser.execute_script(
        "return [...document.querySelectorAll('.spark rect')].map((each) => "
        "[each.getAttribute('class'), getComputedStyle(each).fill])"
    )
    by_class = dict(colours)
    assert len(by_class) > 1
    assert len(set(by_class.values())) == len(by_class)
