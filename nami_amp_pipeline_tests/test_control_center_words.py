"""The words of the pages: who has no terminal reads nothing of segments, outboxes and dead letters."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import orjson
import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from nami_amp_pipeline.control_center import words
from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.control_center.pages import PAGES
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.operations import backfills, reasons
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.operations.dead_letters import Filter
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.support.control_center import SAME_ORIGIN
from nami_amp_pipeline_tests.support.harness import START, Answering, Pipeline
from nami_amp_pipeline_tests.support.markup import faults

UNWANTED = re.compile(r"segment|outbox|dead.?letter|rejected|micro.?batch|\bqueued\b", re.IGNORECASE)
INVALID = HttpAnswer(400, b'{"code":400,"error":"bad","events_with_invalid_fields":{"time":[0]}}')
DAY = f"{START:%Y-%m-%d}"


def event(number: int, *, external: str | None = "ann", payload: str | None = None) -> dict[str, object]:
    at = START + timedelta(minutes=number)
    ids = [] if external is None else [{"key": "external_id", "type": "string", "value": external}]
    return {
        "id": f"e{number}", "app_id": "radio", "event_type": "user.subscription.renewed", "user_id": f"u-{external}",
        "created_date": at, "ingested_at": at,
        "payload": orjson.dumps({"external_ids": ids}).decode() if payload is None else payload,
    }  # fmt: skip


def fill(made: Pipeline) -> None:
    """Refused, skipped, delivered and waiting events, one sent again, a backfill, a comparison, an integration off."""
    main = made.add("radio", secret_key=Secret("5" * 32))
    ana = Operations.over(made.context, by="Ana")
    made.insert([event(1), event(2, external=None), event(3), event(4, payload="[no object]"), event(5, external="bo")])
    made.wires[main.id] = Answering([INVALID])
    made.clock.set(START + timedelta(hours=1))
    made.tick()
    window = Window(int(START.timestamp() * 1e6), int((START + timedelta(days=1)).timestamp() * 1e6), "created_date")
    backfills.dry_run(made.context, NewBackfill(main.key, window), by="Ana")
    ana.retry(Filter(reasons=["rejected"]))
    made.wires[main.id] = Answering([INVALID])
    made.tick()
    ana.ask_comparison(main.key, made.context.now())
    made.add("radio", "other", anonymous="wait_for_login")
    made.add("radio", "quiet", enabled=False)
    made.insert([event(90, external="cy")])
    made.clock.set(START + timedelta(hours=2))
    day = window.since // 86_400_000_000 * 86_400_000_000
    with made.context.store.begin() as tx:
        tx.execute(
            tables.reconciled_days.insert().values(
                integration_id=main.id, day=day, at=day, source="x", hours=24, complete_at=day, delivered=2, held=2,
                repaired=0, said="Amplitude holds 2 of 2", run_id="r",
            )
        )  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    made = Pipeline(tmp_path_factory.mktemp("words"))
    fill(made)
    app = create_app(made.settings, clock=made.clock)
    yield TestClient(app, base_url="http://localhost", headers=SAME_ORIGIN, raise_server_exceptions=False)
    made.close()


PLACES = {
    "app": ("radio",), "integration": ("main", "other", "quiet"), "number": ("1",), "day": (DAY,),
    "act": ("run", "pause", "cancel"), "destination": ("amplitude", "http"),
}  # fmt: skip
QUERIES = {
    "delivery-events": [f"outcome={name}" for name in ("captured", "delivered", "skipped", "dead_letters", "waiting")],
    "trace": ["", *(f"q={asked}" for asked in ("e1", "e2", "e3", "e4", "e90", "nobody", "u-ann", "u-None", "ann"))],
    "refused": ["", "reason=rejected", "dismissed=all", "since=x"],
    "send-again": ["reason=rejected"],
    "dismiss": ["reason=rejected"],
    "preview": ["", "tab=skipped", "tab=refused", "show=1"],
    "audience": ["property=namiml_former_subscriber&value=false", "property=x"],
    "history": ["", "kind=people"],
}


def addresses() -> list[str]:
    """At least one address of every page that is no file."""
    found = []
    for route in (route for module in PAGES for route in module.routes if "GET" in (route.methods or ())):
        assert isinstance(route, Route)
        if route.path.endswith((".csv", ".json")) or "download" in route.name:
            continue
        paths = [route.path]
        for name in re.findall(r"{(\w+)", route.path):
            paths = [re.sub(rf"{{{name}(:\w+)?}}", value, path) for path in paths for value in PLACES[name]]
        found += [f"{path}?{query}" for path in paths for query in QUERIES.get(route.name, [""])]
    return [*found, "/nowhere", "/apps/empty/deliveries", "/apps/empty/refused", "/apps/empty/backfills"]


def said_by(page: str) -> str:
    """What a person reads, without payloads."""
    page = re.sub(r"<pre.*?</pre>", " ", page, flags=re.DOTALL)
    titles = " ".join(re.findall(r'(?:aria-label|title|placeholder|alt)="([^"]*)"', page))
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page) + titles).split())


@pytest.mark.parametrize("address", addresses())
def test_no_page_says_a_word_of_the_workshop(pages: TestClient, address: str) -> None:
    answer = pages.get(address)
    assert answer.status_code < 500, answer.text[:2000]
    said = said_by(answer.text)
    found = UNWANTED.search(said)
    assert found is None, said[max(0, found.start() - 100) : found.end() + 100]
    if answer.headers["content-type"].startswith("text/html"):
        assert faults(answer.text) == []


@pytest.mark.parametrize(
    "page",
    [
        "<table><tr>text<td>1</td></tr></table>",
        '<a href="x" href="y">b</a>',
        "<p><b>1</p></b>",
        "<p>",
        '<a x}}="">b</a>',
    ],
)
def test_bad_markup_is_seen(page: str) -> None:
    assert faults(page)
    assert faults("<!doctype html><p>a<br>b <svg><rect/></svg></p>") == []


def test_the_test_sees_the_words_where_they_are_said(pages: TestClient) -> None:
    assert "Amplitude refused the event for what it holds" in said_by(pages.get("/apps/radio/refused").text)
    assert "1 refused again" in said_by(pages.get("/apps/radio/refused").text)
    assert UNWANTED.search(said_by("<p>a dead letter</p>"))
    assert UNWANTED.search(said_by('<p title="an outbox">x</p>'))


def test_every_reason_is_said_in_plain_words() -> None:
    for code in reasons.REASONS:
        assert not UNWANTED.search(words.means(code)), code


def test_pages_of_those_who_are_not_signed_in_say_none_either(tmp_path: Path) -> None:
    app = create_app(Pipeline(tmp_path).settings, Options(sign_in="password"))
    pages = TestClient(app, base_url="http://localhost", headers=SAME_ORIGIN)
    form = pages.post("/apps/radio/integrations/amplitude/new", data={"name": "growth"})
    for text in (pages.get("/sign-in").text, form.text):
        assert not UNWANTED.search(said_by(text))
