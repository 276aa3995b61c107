"""The history of an app: halts, resumptions, backfills, events sent again, people; marks in the chart of deliveries."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from click.testing import Result
from starlette.testclient import TestClient

from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.operations.dead_letters import Filter
from nami_amp_pipeline.operations.integrations import IntegrationChange
from nami_amp_pipeline.retention import retain
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import resends, tables
from nami_amp_pipeline_tests.support.command_line import invoke
from nami_amp_pipeline_tests.support.control_center import SAME_ORIGIN
from nami_amp_pipeline_tests.support.harness import START, Answering, Pipeline

WRONG_KEY = HttpAnswer(400, orjson.dumps({"code": 400, "error": "Invalid API key: …"}))
INVALID = HttpAnswer(400, orjson.dumps({"code": 400, "error": "bad", "events_with_invalid_fields": {"time": [0]}}))


def event(number: int, minutes: float) -> dict[str, object]:
    at = START + timedelta(minutes=minutes)
    body = {"external_ids": [{"key": "external_id", "type": "string", "value": "ann"}]}
    return {
        "id": f"e{number}", "app_id": "radio", "event_type": "user.subscription.renewed", "user_id": "u",
        "created_date": at, "ingested_at": at, "payload": orjson.dumps(body).decode(),
    }  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path)
    yield pipeline
    pipeline.close()


@pytest.fixture
def ana(made: Pipeline) -> Operations:
    return Operations.over(made.context, by="Ana")


def pages_of(made: Pipeline) -> TestClient:
    app = create_app(made.settings, clock=made.clock)
    return TestClient(app, base_url="http://localhost", headers=SAME_ORIGIN, raise_server_exceptions=False)


def load(made: Pipeline, number: int, *answers: HttpAnswer) -> None:
    """An event, and a tick in which these are the first answers."""
    minutes = number * 10
    made.insert([event(number, minutes)])
    made.clock.set(START + timedelta(minutes=minutes + 6))
    (integration,) = Operations.over(made.context).integrations()
    made.wires[integration.id] = Answering(list(answers))
    made.tick()


def test_a_halt_and_its_end_are_in_the_history_and_in_the_chart(made: Pipeline, ana: Operations) -> None:
    made.add("radio")
    load(made, 1, WRONG_KEY)
    assert ana.integrations()[0].halted_reason
    made.clock.sleep(60)
    ana.enable("radio/main")
    rows, rest = ana.app_history("radio", kind="halts")
    assert rest is None
    assert [(row.by, row.said.partition(":")[0]) for row in rows] == [
        ("Ana", "Switched on again after it had stopped"),
        ("", "Stopped by itself"),
    ]
    marks = [(mark.kind, mark.what.partition(":")[0]) for mark in ana.deliveries("radio/main").marks]
    assert marks == [("change", "added"), ("halt", "stopped by itself"), ("halt", "on again by Ana")]
    text = pages_of(made).get("/apps/radio/deliveries/main").text
    assert 'class="mark halt"' in text
    assert "on again by Ana" in text


def test_enabling_what_did_not_halt_is_no_resumption(made: Pipeline, ana: Operations) -> None:
    made.add("radio")
    ana.disable("radio/main")
    ana.enable("radio/main")
    assert ana.app_history("radio", kind="halts")[0] == []


def failed(made: Pipeline, *minutes: int, outcome: str) -> None:
    """Requests that were not delivered, at these minutes."""
    with made.context.store.begin() as tx:
        for minute in minutes:
            at = int((START + timedelta(minutes=minute)).timestamp() * 1e6)
            tx.execute(
                tables.requests.insert().values(
                    integration_id=1,
                    events=1,
                    bytes=1,
                    status=0,
                    outcome=outcome,
                    sent_at=at,
                    answered_at=at,
                    run_id="r",
                )
            )


@pytest.mark.slow
def test_an_outage_is_a_mark_with_a_length(made: Pipeline, ana: Operations) -> None:
    made.add("radio")
    load(made, 1)
    failed(made, 18, 21, 24, outcome="http_503")
    made.clock.set(START + timedelta(minutes=30))
    (mark,) = [mark for mark in ana.deliveries("radio/main").marks if mark.kind == "outage"]
    assert mark.until is None
    assert mark.what == "outage: Amplitude's servers are in trouble (HTTP 503), for 12 minutes so far"
    load(made, 3)
    failed(made, 50, 53, outcome="timeout")
    failed(made, 52, outcome="http_429")  # an answer, although a refusal
    made.clock.set(START + timedelta(minutes=60))
    marks = [mark for mark in ana.deliveries("radio/main").marks if mark.kind == "outage"]
    assert [(mark.what.rpartition(", ")[2], mark.until is not None) for mark in marks] == [
        ("for 18 minutes", True),
        ("for 2 minutes", True),
        ("for 7 minutes so far", False),
    ]
    text = pages_of(made).get("/apps/radio/deliveries/main").text
    assert '<rect class="outage" x=' in text


@pytest.mark.slow
def test_a_backfill_and_its_result_are_in_the_history(made: Pipeline, ana: Operations) -> None:
    integration = made.add("radio")
    load(made, 1)
    window = Window(int(START.timestamp() * 1e6), int((START + timedelta(days=1)).timestamp() * 1e6), "created_date")
    backfills.dry_run(made.context, NewBackfill(integration.key, window), by="Ana")
    (row,), _ = ana.app_history("radio", kind="backfills")
    assert (row.by, row.integration, row.backfill) == ("Ana", "radio/main", 1)
    assert row.said.startswith("Backfill 1: counted, nothing was sent")
    assert '<a href="/apps/radio/backfills/1">' in pages_of(made).get("/apps/radio/history").text


@pytest.mark.slow
def test_events_sent_again_have_a_result(made: Pipeline, ana: Operations) -> None:
    integration = made.add("radio")
    load(made, 1, INVALID)
    load(made, 2, INVALID)
    load(made, 3, INVALID)
    ana.retry(Filter(reasons=["rejected"]))
    assert [found.result for found in ana.resent("radio", 0)] == ["3 waiting for the next run"]
    page = pages_of(made)
    assert "3 waiting for the next run" in page.get("/apps/radio/refused").text
    made.wires[integration.id] = Answering([INVALID])
    made.clock.sleep(600)
    made.tick()
    (first,) = ana.resent("radio", 0)
    assert (first.events, first.arrived, first.refused) == (3, 2, 1)
    assert "2 arrived, 1 refused again" in page.get("/apps/radio/refused").text
    made.clock.sleep(600)
    ana.retry(Filter())  # the one that was refused again: the result of the first does not change
    assert [found.result for found in ana.resent("radio", 0)] == [
        "1 waiting for the next run",
        "2 arrived, 1 rejected again",
    ]
    made.wires[integration.id] = Answering([])
    made.tick()
    assert [found.result for found in ana.resent("radio", 0)] == ["1 arrived", "2 arrived, 1 rejected again"]
    (_, row), _ = ana.app_history("radio", kind="resends")
    assert (row.by, row.said) == ("Ana", "3 dead letters sent again: 2 arrived, 1 rejected again")


def test_people_are_in_the_history_of_all_apps(made: Pipeline, ana: Operations) -> None:
    ana.people.add("bo", "viewer", "correct horse battery")
    made.clock.sleep(1)
    ana.people.set_role("bo", "editor")
    ana.people.set_role("bo", "editor")
    made.clock.sleep(1)
    token = ana.people.sign_in("bo", "correct horse battery", "127.0.0.1")
    made.clock.sleep(1)
    ana.people.sign_out(token)
    ana.people.sign_out(token)
    made.clock.sleep(1)
    ana.people.remove("bo")
    rows, _ = ana.app_history("radio", kind="people")
    assert [(row.by, row.said) for row in rows] == [
        ("Ana", "bo may not sign in any more"),
        ("bo", "Signed out"),
        ("bo", "Signed in"),
        ("Ana", "bo: viewer → editor"),
        ("Ana", "bo may sign in as viewer"),
    ]
    assert ana.app_history("radio")[0] == []
    made.clock.sleep(91 * 86_400)
    assert retain(made.context).removed["sign_ins"].rows == 2


@pytest.mark.slow
def test_the_list_goes_on_where_a_page_ended_over_all_its_tables(made: Pipeline, ana: Operations) -> None:
    made.add("radio")
    for number in range(5):
        load(made, number, WRONG_KEY)
        ana.enable("radio/main")
        ana.set_quota("radio", 1_000 + number)
        ana.change("radio/main", IntegrationChange(exclude=[f"field-{number}"]))
    whole = [row.place for row in ana.app_history("radio", limit=500)[0]]
    assert len(whole) == 21
    for limit in (1, 2, 7):
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            rows, after = ana.app_history("radio", after=after, limit=limit)
            found += [row.place for row in rows]
        assert found == whole


def test_the_command_line_says_the_same(made: Pipeline, ana: Operations) -> None:
    made.add("radio")
    load(made, 1, WRONG_KEY)
    ana.enable("radio/main")
    ana.set_quota("radio", 10_000_000)

    def run(*arguments: str) -> Result:
        return invoke(made.settings.home, "apps", *arguments, settings={"NAMI_AMP_HOME": str(made.settings.home)})

    assert "Stopped by itself" in run("history", "radio").output
    answer = orjson.loads(run("history", "radio", "--kind", "app", "--json").output)
    assert [row["said"] for row in answer["history"]] == ["Quota a month: none → 10,000,000"]
    assert "10,000,000" in run("list").output
    assert "has no quota" in run("quota", "radio", "none").output
    assert run("quota", "radio", "many").exit_code == 2


def test_outages_and_results_are_found_by_their_indexes(made: Pipeline, ana: Operations) -> None:
    made.add("radio")
    seen: list[tuple[str, Any]] = []
    engine = made.context.store.engine

    def before(_connection: object, _cursor: object, statement: str, values: Any, *_more: object) -> None:
        seen.append((statement, values))

    sa.event.listen(engine, "before_cursor_execute", before)
    ana.deliveries("radio/main")
    resends.of_app(made.context.store, "radio", 0)
    sa.event.remove(engine, "before_cursor_execute", before)
    ((failed_ones, values),) = [said for said in seen if "outcome != 'delivered'" in said[0]]
    with made.context.store.reading() as tx:
        (plan, *_) = [row[3] for row in tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {failed_ones}", values)]
        letters = "SELECT count(*) FROM exceptions WHERE resend_id IN (1, 2) AND state = 'dead'"
        (counted, *_) = [row[3] for row in tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {letters}")]
    assert "requests_failed" in plan
    assert "exceptions_by_resend" in counted
