"""The Control Center's reading pages: what they say is what the command line says, and everything is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from starlette.testclient import TestClient

from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.control_center.chart import stacked
from nami_amp_pipeline.control_center.payloads import MOST_CHARACTERS, payload
from nami_amp_pipeline.control_center.site import Site
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.errors import StoreUnavailable
from nami_amp_pipeline.operations import backfill_status, backfills
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.backfill_status import unattended
from nami_amp_pipeline.operations.dead_letters import Filter
from nami_amp_pipeline.operations.deliveries import Bar, Tally
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.command_line import invoke
from nami_amp_pipeline_tests.support.control_center import SAME_ORIGIN
from nami_amp_pipeline_tests.support.harness import START, Answering, Pipeline

RENEWED = "user.subscription.renewed"
SCRIPT = '<script>alert("1")</script>'
NASTY = f"{SCRIPT}'\"&\u202e<img src=x onerror=alert(1)>{{{{7*7}}}}"
INVALID = HttpAnswer(400, b'{"code":400,"error":"<b>bold</b>","events_with_invalid_fields":{"time":[0]}}')


def event(
    number: int, hours: float = 0, user: str = "ann", external: str | None = "ext-ann", **more: Any
) -> dict[str, Any]:
    at = START + timedelta(hours=hours)
    ids = [] if external is None else [{"key": "external_id", "type": "string", "value": external}]
    body = {
        "external_ids": ids, "active_entitlements": [{"entitlement_ref_id": "premium", "sku_ref_id": "sku"}],
        "customer_journey_state": {"in_trial_period": True}, "note": NASTY, **more,
    }  # fmt: skip
    return {
        "id": f"e{number}", "app_id": "radio", "event_type": RENEWED, "user_id": user, "created_date": at,
        "ingested_at": at, "payload": orjson.dumps(body).decode(),
    }  # fmt: skip


class Place:
    """A pipeline with pages over it."""

    def __init__(self, home: Path) -> None:
        self.made = Pipeline(home)
        app = create_app(self.made.settings, clock=self.made.clock)
        self.pages = TestClient(app, base_url="http://localhost", headers=SAME_ORIGIN, raise_server_exceptions=False)

    def get(self, path: str, status: int = 200) -> str:
        """A page, whatever is in it escaped."""
        answer = self.pages.get(path)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[:3000]}"
        text = answer.text
        assert SCRIPT not in text
        assert "<img src=x" not in text
        assert "<b>bold</b>" not in text
        assert "49" not in re.findall(r"x onerror=alert\(1\)&gt;(\d+)", text)
        assert not re.search(r'\sstyle="|\son\w+="|<script(?! src="/static/)', text), "the strict policy allows none"
        return text

    def post(self, path: str, **form: str) -> Any:
        return self.pages.post(path, data=form)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.made.close()


@pytest.fixture
def filled(place: Place) -> tuple[Place, Integration]:
    """One refused, one skipped, three delivered events, each with a payload that attacks."""
    made = place.made
    main = made.add("radio")
    made.wires[main.id] = Answering([INVALID])
    made.insert([event(1), event(2, user="bob", external=None), event(3), event(4), event(5)])
    made.tick()
    made.clock.set(START + timedelta(hours=2))
    return place, main


def text_of(page: str) -> str:
    """What a person reads."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.mark.slow
def test_the_numbers_of_deliveries_are_those_of_the_command_line(filled: tuple[Place, Integration]) -> None:
    place, main = filled
    json = Operations.over(place.made.context).deliveries(main.key, "24h").to_json()
    assert json["captured"] == 5
    assert (json["delivered"], json["skipped"], json["dead_letters"], json["waiting"]) == (3, 1, 1, 0)
    page = place.get("/apps/radio/deliveries/main")
    assert "5 Captured = 3 Delivered + 1 Skipped + 1 Refused + 0 Waiting" in text_of(page)
    rows = re.findall(r"<tr><th scope=\"row\" class=\"nowrap\">.*?</tr>", page, re.DOTALL)
    assert len(rows) == len(json["hours"]) == 25
    sums = [sum(int(row[n]) for row in (re.findall(r'class="num">([\d,]+)', r) for r in rows)) for n in range(5)]
    assert sums == [5, 3, 1, 1, 0]
    assert page.count("<desc") == 1
    for outcome in ("captured", "delivered", "skipped", "dead_letters"):
        listed = place.get(f"/apps/radio/deliveries/main/events?outcome={outcome}&window=24h")
        assert listed.count('<th scope="row" class="mono">') == json[outcome]
    csv = place.pages.get("/apps/radio/deliveries/main/hours.csv")
    assert csv.headers["content-disposition"].startswith("attachment")
    assert [line.split(",")[2:] for line in csv.text.splitlines() if ",5," in line] == [["5", "3", "1", "1", "0"]]


@pytest.mark.slow
def test_the_command_line_says_the_same(filled: tuple[Place, Integration], tmp_path: Path) -> None:
    place, main = filled
    settings = {"NAMI_AMP_HOME": str(tmp_path)}
    commands = Operations.over(place.made.context)

    def said(*arguments: str) -> Any:
        done = invoke(tmp_path, *arguments, "--json", settings=settings)
        assert done.exit_code == 0, done.output
        return orjson.loads(done.stdout)

    causes = said("dead-letters", "causes", "--integration", main.key)["causes"]
    page = text_of(place.get("/apps/radio/refused"))
    assert [(cause["events"], cause["named"]) for cause in causes] == [(1, {"time is invalid": 1})]
    assert f"{causes[0]['events']} main Amplitude refused the event for what it holds time is invalid: 1" in page
    audience = said("audience", main.key, "namiml_active_entitlements", "premium", "--users", "no_external_id")
    page = text_of(
        place.get("/apps/radio/reconciliation/main/audience?property=namiml_active_entitlements&value=premium")
    )
    assert f"{audience['here']} users have namiml_active_entitlements" in page
    assert f"{audience['places']['sent']} user : Amplitude was sent their newest state" in page
    assert audience["users"] == [{"nami_user": "bob", "external_id": None, "as_of": "2026-09-01T00:00:00Z"}]
    requests = said("deliveries", main.key, "--requests", "--limit", "1")
    assert len(requests["requests"]) == 1
    assert said("deliveries", main.key, "--requests", "--after", requests["after"])["after"] is None
    # The commands look at this machine's clock, and the events are of another year.
    assert said("deliveries", main.key)["captured"] == 0
    assert said("deliveries", main.key, "--events", "skipped") == {"events": [], "after": None}
    assert commands.deliveries(main.key).total.captured == 5
    table = invoke(tmp_path, "deliveries", main.key, "--window", "7d", settings=settings)
    assert table.stdout.splitlines()[0].split("\t") == [
        "Events", "Captured", "Delivered", "Skipped", "Dead letters", "Waiting",
    ]  # fmt: skip
    for wrong in (("deliveries", main.key, "--window", "2y"), ("audience", main.key, "nothing", "1")):
        assert invoke(tmp_path, *wrong, settings=settings).exit_code == 2


@pytest.mark.slow
def test_each_window_is_an_address_and_no_other(filled: tuple[Place, Integration]) -> None:
    place, _ = filled
    for window, bars in (("1h", 2), ("24h", 25), ("7d", 85), ("30d", 91)):
        assert place.get(f"/apps/radio/deliveries/main?window={window}").count("<g><title>") == bars
    place.get("/apps/radio/deliveries/main?window=2y", 404)
    place.get("/apps/radio/deliveries/main/events?outcome=lost", 404)
    place.get("/apps/radio/deliveries/main/events?after=x", 400)
    place.get("/apps/radio/deliveries/other", 404)


@pytest.mark.slow
def test_several_integrations_are_in_one_table_and_one_has_its_own_page(filled: tuple[Place, Integration]) -> None:
    place, _ = filled
    assert place.pages.get("/apps/radio/deliveries").url.path == "/apps/radio/deliveries/main"
    place.made.add("radio", "other")
    assert "other" in place.get("/apps/radio/deliveries")
    assert place.pages.get("/apps/radio/deliveries?integration=other").url.path == "/apps/radio/deliveries/other"
    assert "5 Captured = 0 Delivered + 0 Skipped + 0 Refused + 5 Waiting" in text_of(
        place.get("/apps/radio/deliveries/other")
    )
    place.made.add("tv")
    assert "Nothing sent yet" in place.get("/apps/tv/deliveries/main")


@pytest.mark.slow
def test_requests_have_their_answers(filled: tuple[Place, Integration]) -> None:
    place, _ = filled
    page = place.get("/apps/radio/deliveries/main/requests")
    assert page.count('<td class="nowrap">') == 2
    failed = place.get("/apps/radio/deliveries/main/requests?only=failed")
    assert failed.count('<td class="nowrap">') == 1
    assert "events_with_invalid_fields" in failed


@pytest.mark.slow
def test_a_refused_event_shows_the_field_of_this_event_marked(filled: tuple[Place, Integration]) -> None:
    place, main = filled
    (letter,), _ = Operations.over(place.made.context).dead_letters(Filter(integrations=[main.key]))
    page = place.get("/apps/radio/refused")
    assert "time is invalid: 1" in text_of(page)
    shown = place.get(f"/apps/radio/refused/{letter.id}")
    (marked,) = re.findall(r'<mark class="wrong">(.*?)</mark>', shown, re.DOTALL)
    assert f'"time": {int(START.timestamp() * 1000)}' in html.unescape(marked)
    file = place.pages.get(f"/apps/radio/refused/{letter.id}/body.json")
    assert file.headers["content-type"] == "application/json"
    assert file.headers["content-disposition"] == f'attachment; filename="refused-{letter.id}-body.json"'
    assert orjson.loads(file.content)["insert_id"] == letter.event_id
    place.get(f"/apps/radio/refused/{letter.id}/payload.json", 404)
    place.get(f"/apps/other/refused/{letter.id}", 404)
    place.get("/apps/radio/refused/999999", 404)


@pytest.mark.slow
def test_send_again_counts_first_and_asks_for_old_ones_by_themselves(filled: tuple[Place, Integration]) -> None:
    place, main = filled
    place.made.clock.set(START + timedelta(days=8))
    question = place.get("/apps/radio/refused/again?reason=rejected")
    assert "more than 7 days ago" in text_of(question)
    answer = place.post("/apps/radio/refused/again", reason="rejected")
    assert "Sent again with the next run: 0" in answer.text
    assert place.made.status(main).pending == 0
    answer = place.post("/apps/radio/refused/again", reason="rejected", old="1")
    assert "Sent again with the next run: 1" in answer.text
    place.made.tick()
    assert place.made.status(main).delivered == 4
    assert "Nothing was refused" in place.get("/apps/radio/refused")


@pytest.mark.slow
def test_send_again_by_window(filled: tuple[Place, Integration]) -> None:
    place, main = filled
    before = (START - timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    now = (START + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    answer = place.post("/apps/radio/refused/again", until=before)
    assert "Sent again with the next run: 0" in answer.text
    assert "Send 1 refused event again?" in place.get(f"/apps/radio/refused/again?since={before}&until={now}")
    answer = place.post("/apps/radio/refused/again", since=before, until=now)
    assert "Sent again with the next run: 1" in answer.text
    assert place.made.status(main).pending == 1


@pytest.mark.slow
def test_dismissed_ones_are_kept_apart_and_come_back(filled: tuple[Place, Integration]) -> None:
    place, _ = filled
    assert "Dismissed: 1" in place.post("/apps/radio/refused/dismiss", reason="rejected").text
    assert "Nothing was refused that nobody has dismissed" in place.get("/apps/radio/refused")
    assert "time is invalid" in place.get("/apps/radio/refused?dismissed=yes")
    assert "Back on the list: 1" in place.post("/apps/radio/refused/dismiss", dismissed="yes").text
    assert "time is invalid" in place.get("/apps/radio/refused")


@pytest.mark.slow
def test_a_wrong_filter_is_told_beside_its_field(filled: tuple[Place, Integration]) -> None:
    place, _ = filled
    page = place.get("/apps/radio/refused?since=soon", 400)
    assert "Error:" in page
    assert 'aria-describedby="since-error"' in page
    assert "None with this filter" in place.get("/apps/radio/refused?reason=silenced")
    place.get("/apps/radio/refused?integration=nobody", 404)


@pytest.mark.slow
def test_a_trace_begins_with_the_verdict(filled: tuple[Place, Integration]) -> None:
    place, main = filled
    (letter,), _ = Operations.over(place.made.context).dead_letters(Filter(integrations=[main.key]))
    page = place.get(f"/apps/radio/trace?q={letter.event_id}")
    assert "refused main" in text_of(page)
    assert "namiml_active_entitlements" in page
    delivered = next(row for row in ("e1", "e3", "e4", "e5") if row != letter.event_id)
    page = place.get(f"/apps/radio/trace?q={delivered}")
    assert "arrived main" in text_of(page)
    json = Operations.over(place.made.context).look_up(delivered, app_id="radio").to_json()
    assert json["verdicts"][0]["verdict"] == "arrived"
    file = place.pages.get(f"/apps/radio/trace/all.json?q={delivered}")
    assert orjson.loads(file.content) == json
    person = text_of(place.get("/apps/radio/trace?q=ext-ann"))
    assert "External ID ext-ann" in person
    assert "namiml_in_trial_period true" in person
    assert "main: these were sent, or wait for the next run." in person
    (state,) = Operations.over(place.made.context).user_states("radio", ["ann"])
    assert state.to_json()["properties"]["namiml_active_entitlements"] == ["premium"]
    assert "no properties of this user were sent yet" in text_of(place.get("/apps/radio/trace?q=bob"))
    assert "No event or user nobody" in place.get("/apps/radio/trace?q=nobody")
    assert "No event or user" in place.get(f"/apps/other/trace?q={delivered}"), "another app's event is not shown"
    assert "Write an event's id" in html.unescape(place.get("/apps/radio/trace"))
    place.get(f"/apps/radio/trace?q={quote(NASTY)}")


@pytest.mark.slow
def test_who_waits_why_and_until_when_page_by_page(place: Place) -> None:
    made = place.made
    main = made.add("radio", anonymous="wait_for_login")
    made.insert([event(n, n / 100, user=f"u{n:03}{SCRIPT}", external=None) for n in range(60)])
    made.tick()
    operations = Operations.over(made.context)
    page = place.get("/apps/radio/deliveries/main/waiting")
    assert "60 events wait" in text_of(page)
    names: list[str] = []
    path: str | None = "/apps/radio/deliveries/main/waiting"
    while path is not None:
        page = place.get(path)
        names += re.findall(r"q=(u\d{3})", page)
        found = re.search(r'href="([^"]*after=[^"]*)"', page)
        path = html.unescape(found[1]) if found else None
    assert names == [(user.nami_user or "")[:4] for user in operations.pending([main.key])]
    assert len(names) == 60
    place.get("/apps/radio/deliveries/main/waiting?after=x", 404)
    made.clock.set(START + timedelta(hours=2))
    listed = place.get("/apps/radio/deliveries/main/events?outcome=waiting")
    assert "the user has no External ID yet" in listed


@pytest.mark.slow
def test_nothing_waits_where_nothing_waits(filled: tuple[Place, Integration]) -> None:
    place, _ = filled
    assert "Nothing waits" in place.get("/apps/radio/deliveries/main/waiting")


@pytest.mark.slow
def test_a_backfill_from_the_page_is_planned_run_paused_and_cancelled(filled: tuple[Place, Integration]) -> None:
    place, main = filled
    context = place.made.context
    day = {"from": START.isoformat(), "to": (START + timedelta(days=1)).isoformat()}
    answer = place.post("/apps/radio/backfills/new", integration="main", by="created_date", **day)
    assert "starts the dry run within a minute" in answer.text
    number = int(answer.url.path.rpartition("/")[2])
    assert [found.id for found in unattended(context)] == [number], "the sensor takes it"
    backfills.plan_asked(context, number)
    assert unattended(context) == []
    page = text_of(place.get(f"/apps/radio/backfills/{number}"))
    plan = Operations.over(context).backfills.show(number).backfill.plan or {}
    assert f"Events to send {sum(plan['by_type'].values())} of" in page
    assert "Run this plan" in page
    assert "within a minute" in place.post(f"/apps/radio/backfills/{number}/run").text
    assert [found.id for found in unattended(context)] == [number]
    assert Operations.over(context).backfills.show(number).backfill.state == "running"
    assert "Paused" in place.post(f"/apps/radio/backfills/{number}/pause").text
    assert unattended(context) == [], "what a person paused is left alone"
    assert "Cancelled" in place.post(f"/apps/radio/backfills/{number}/cancel").text
    assert Operations.over(context).backfills.show(number).backfill.state == "cancelled"
    assert str(number) in place.get("/apps/radio/backfills")
    place.get(f"/apps/other/backfills/{number}", 404)
    place.get("/apps/radio/backfills/999", 404)
    place.get(f"/apps/radio/backfills/{number}/explode", 404)
    del main


@pytest.mark.slow
def test_a_backfill_at_work_says_how_fast_and_how_long(
    filled: tuple[Place, Integration], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = filled
    day = {"from": START.isoformat(), "to": (START + timedelta(days=1)).isoformat()}
    answer = place.post("/apps/radio/backfills/new", integration="main", by="created_date", **day)
    number = int(answer.url.path.rpartition("/")[2])
    planned = Operations.over(place.made.context).backfills.show(number)
    started = planned.backfill.created_at
    running = replace(planned.backfill, state="running", events=1_000, started_at=started)
    status = replace(planned, backfill=running, is_at_work=True, looked_at=400)
    assert status.pace(started + 60_000_000) == pytest.approx((400 / 60, 90.0))
    monkeypatch.setattr(Site, "now", lambda self: started + 120_000_000)
    monkeypatch.setattr(backfill_status, "show", lambda context, asked: status)
    page = text_of(place.get(f"/apps/radio/backfills/{number}"))
    assert "200 events a minute since it started; about 3 minutes left" in page
    for nothing in (replace(status, is_at_work=False), replace(status, looked_at=0)):
        assert nothing.pace(started + 60_000_000) is None
    assert status.pace(started) is None
    assert replace(status, backfill=replace(running, state="paused")).pace(started + 60_000_000) is None


@pytest.mark.slow
def test_a_window_that_is_none_comes_back_with_what_was_typed(filled: tuple[Place, Integration]) -> None:
    place, _ = filled
    for form, said in (
        ({"from": "soon", "to": "now"}, "From 'soon' is not a time"),
        ({"from": "2026-09-01", "to": "later"}, "To 'later' is not a time"),
        ({"from": "", "to": ""}, "Enter the first instant of the window"),
        ({"from": "2026-09-01", "to": "2026-09-02", "events": "x.y"}, "x.y"),
    ):
        answer = place.post("/apps/radio/backfills/new", integration="main", by="created_date", **form)
        assert answer.status_code == 400
        assert said in html.unescape(answer.text)
        assert html.escape(form["from"]) in answer.text
        assert "Error:" in answer.text


@pytest.mark.slow
def test_an_audience_here_and_sent(filled: tuple[Place, Integration]) -> None:
    place, main = filled
    found = Operations.over(place.made.context).audience(main.key, "namiml_active_entitlements", "premium")
    assert found.here == 2
    assert found.places == {"sent": 1, "waiting": 0, "no_external_id": 1, "not_sent": 0}
    page = place.get(
        "/apps/radio/reconciliation/main/audience?property=namiml_active_entitlements&value=premium&place=no_external_id"
    )
    assert "2 users have namiml_active_entitlements with premium" in text_of(page)
    assert "bob" in page
    flags = place.get("/apps/radio/reconciliation/main/audience?property=namiml_in_trial_period&value=true")
    assert "2 users have" in text_of(flags)
    assert "is true or false" in place.get(
        "/apps/radio/reconciliation/main/audience?property=namiml_in_trial_period&value=yes", 400
    )
    place.get("/apps/radio/reconciliation/main/audience?property=nothing&value=1", 400)


@pytest.mark.slow
def test_reconciliation_says_what_a_secret_key_would_give(filled: tuple[Place, Integration]) -> None:
    place, _ = filled
    page = place.get("/apps/radio/reconciliation/main")
    assert "Add the Secret Key to compare with what Amplitude stored" in page
    place.get("/apps/radio/reconciliation/main/days/2026-09-01", 404)
    place.get("/apps/radio/reconciliation/main/days/x", 404)


@pytest.mark.slow
def test_a_compared_day_in_words_by_class_and_column(filled: tuple[Place, Integration]) -> None:
    place, main = filled
    day = int(START.timestamp()) * 1_000_000 // 86_400_000_000 * 86_400_000_000
    same = {"integration_id": main.id, "day": day}
    with place.made.context.store.begin() as tx:
        tx.execute(
            tables.reconciled_days.insert().values(
                **same, at=day, source=NASTY, hours=24, complete_at=day, delivered=3, held=2, repaired=1,
                said=f"2026-09-01: Amplitude holds 2 of 3, 1 missing {SCRIPT}", run_id="r",
            )
        )  # fmt: skip
        tx.execute(
            tables.reconciled_classes.insert(),
            [{**same, "class": "missing", "column": "", "events": 1},
             {**same, "class": "altered", "column": "", "events": 1},
             {**same, "class": "altered", "column": "time", "events": 1}],
        )  # fmt: skip
        tx.execute(
            tables.reconciled_samples.insert().values(
                **{"class": "altered"}, **same, event_id="e3", column="time", field="time", sent="1", held=f'"{SCRIPT}"'
            )
        )
    assert "Amplitude holds 2 of 3, 1 missing" in place.get("/apps/radio/reconciliation/main")
    page = text_of(place.get("/apps/radio/reconciliation/main/days/2026-09-01"))
    assert "Missing: delivered, and not held 1" in page
    assert "time 1" in page
    (json,) = Operations.over(place.made.context).reconciled(main.key)
    assert json.classes == {"missing": 1, "altered": 1}


@pytest.mark.slow
def test_a_store_that_cannot_be_read_shows_words_and_no_zeros(
    filled: tuple[Place, Integration], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = filled

    def broken(*_args: object, **_more: object) -> None:
        raise StoreUnavailable("state store /x: it is locked by another process; the next run tries again")

    monkeypatch.setattr(Operations, "integrations_of", broken)
    for path in ("deliveries", "refused", "trace?q=e1", "backfills", "reconciliation"):
        answer = place.pages.get(f"/apps/radio/{path}")
        assert answer.status_code == 503, path
        assert "locked by another process" in answer.text
        assert not re.search(r">\s*0\s*<", answer.text)


def test_a_long_payload_is_cut_and_marks_stay() -> None:
    text = orjson.dumps({"a": 1, "b": "x" * 50_000, "c": 2}).decode()
    shown = payload(text, ["a.deep"])
    assert shown is not None
    assert shown.is_cut
    assert sum(len(line.text) for line in shown.lines) <= MOST_CHARACTERS
    assert [line.is_marked for line in shown.lines] == [False, True, False]
    whole = payload('{"a":1}')
    assert whole is not None
    assert not whole.is_cut
    assert "".join(line.text for line in whole.lines) == '{\n  "a": 1\n}'
    broken = payload("{not json <b>")
    assert broken is not None
    assert broken.lines[0].text == "{not json <b>"
    assert payload(None) is None


def test_bars_are_as_high_as_their_events() -> None:
    hour = 3_600_000_000
    chart = stacked([Bar(0, hour, Tally(4, 2, 1, 1)), Bar(hour, 2 * hour, Tally(2, 0, 0, 0))])
    heights = [sum(rect.height for rect in column.rects) for column in chart.columns]
    assert heights == [160, 80]
    assert [rect.kind for rect in chart.columns[0].rects] == ["delivered", "skipped", "dead_letters"]
    assert [rect.kind for rect in chart.columns[1].rects] == ["waiting"]
