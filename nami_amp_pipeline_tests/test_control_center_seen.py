"""What people found misleading when they looked at the Control Center's pages, and what the pages say since."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import timedelta

import orjson
import pytest
from starlette.testclient import TestClient

from nami_amp_pipeline.control_center import words
from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.operations.integrations import IntegrationChange
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline_tests.support.control_center import SAME_ORIGIN
from nami_amp_pipeline_tests.support.harness import START, Answering, Pipeline

RENEWED, CANCELLED = "user.subscription.renewed", "user.subscription.cancelled"
APP = "/apps/radio"


def event(number: int, event_type: str = RENEWED, external: str | None = "ann") -> dict[str, object]:
    ids = [] if external is None else [{"key": "external_id", "type": "string", "value": external}]
    body = {"external_ids": ids, "devices": [{"id": "d", "platform": {"id": "p"}}]}
    return {
        "id": f"e{number}", "app_id": "radio", "event_type": event_type, "user_id": f"u-{external}",
        "created_date": START, "ingested_at": START, "payload": orjson.dumps(body).decode(),
    }  # fmt: skip


def fill(made: Pipeline) -> None:
    """One that needs somebody, one that does not send to Amplitude, one that is off, and events of two types."""
    main = made.add("radio", events=[RENEWED])
    crm = made.add(
        "radio", "crm", endpoint="https://crm.test/in", destination="http", allow_custom_endpoint=True,
        anonymous="wait_for_login",
    )  # fmt: skip
    made.insert([event(1), event(2), event(3), event(4, CANCELLED), event(5, external=None)])
    made.wires[main.id] = Answering([HttpAnswer(400, b'{"code":400,"events_with_invalid_fields":{"time":[0]}}')])
    made.clock.set(START + timedelta(hours=1))
    made.tick()
    window = Window(int(START.timestamp() * 1e6), int((START + timedelta(days=1)).timestamp() * 1e6), "created_date")
    backfills.dry_run(made.context, NewBackfill(crm.key, window))
    operations = Operations.over(made.context)
    operations.change(main.key, IntegrationChange(events=[RENEWED, CANCELLED]))
    made.add("radio", "quiet", enabled=False)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    made = Pipeline(tmp_path_factory.mktemp("seen"))
    fill(made)
    app = create_app(made.settings, clock=made.clock)
    yield TestClient(app, base_url="http://localhost", headers=SAME_ORIGIN, raise_server_exceptions=False)
    made.close()


def said(pages: TestClient, path: str) -> str:
    """What a person reads on a page."""
    answer = pages.get(APP + path)
    assert answer.status_code == 200, path
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def test_a_text_of_the_command_line_is_in_the_pages_words_and_times() -> None:
    text = "Halted: rejected; given up 2026-12-24T19:16:58.613944Z, or 2026-12-24T19:16:00Z"
    assert words.plain(text) == "stopped: refused; given up 24 Dec 2026, 19:16 UTC, or 24 Dec 2026, 19:16 UTC"


def test_the_row_says_who_of_them_needs_somebody(pages: TestClient) -> None:
    page = said(pages, "/integrations")
    assert "1 integration needs you" in page
    assert re.search(r"main Amplitude, Standard On Needs you .* See ", page)
    assert page.count("Needs you") == 1
    assert "crm HTTP endpoint, crm.test On" in page


def test_an_integrations_numbers_lead_to_what_is_behind_them(pages: TestClient) -> None:
    text = pages.get(f"{APP}/integrations/main").text
    for path in ("deliveries/main?window=30d", "deliveries/main/waiting", "refused?integration=main"):
        assert f'href="{APP}/{path}"' in text


def test_only_what_is_on_can_be_switched_off_instead(pages: TestClient) -> None:
    assert "To stop for a while" in said(pages, "/integrations/main/remove")
    assert "To stop for a while" not in said(pages, "/integrations/quiet/remove")


def test_nothing_is_said_of_amplitude_where_events_go_elsewhere(pages: TestClient) -> None:
    cannot = "The HTTP endpoint does not tell which events it holds"
    assert f"crm {cannot}" in said(pages, "/reconciliation")
    page = said(pages, "/reconciliation/crm")
    assert cannot in page
    assert "Secret Key" not in page
    assert "Amplitude" not in said(pages, "/backfills/1/run")
    page = said(pages, "/backfills/1")
    assert "the HTTP endpoint recognises the repeat" in page
    assert "Amplitude" not in page.replace("The Amplitude event", "")
    assert "Amplitude was sent" not in said(pages, "/trace?q=u-ann")


def test_what_a_property_means_has_no_marks_of_markdown(pages: TestClient) -> None:
    page = said(pages, "/trace?q=u-ann")
    assert "the app_platform_id of each of those devices" in page
    assert "`" not in page


def test_who_waits_for_a_login_is_given_up_at_a_time_for_people(pages: TestClient) -> None:
    assert "given up 1 Oct 2026, 01:00 UTC" in said(pages, "/deliveries/crm/waiting")


def test_an_event_of_a_type_that_was_chosen_later_is_not_told_to_be_too_old(pages: TestClient) -> None:
    assert "unknown main : no record of it is left, or its type was selected later" in said(pages, "/trace?q=e4")


@pytest.mark.parametrize(("chosen", "events"), [((RENEWED,), 4), ((RENEWED, CANCELLED), 5), ((), 0)])
def test_the_count_of_everything_tells_the_chosen_types_apart(
    pages: TestClient, chosen: tuple[str, ...], events: int
) -> None:
    form = {"act": "count", "name": "x", "endpoint": "us", "event": list(chosen), "quota": "1,000"}
    text = html.unescape(pages.post(f"{APP}/integrations/amplitude/new", data=form).text)
    assert "<strong>5 events</strong> of this app, of all types" in text
    assert f"About <strong>{events}</strong> are of the types that are chosen here" in text
    assert f"that is {events / 10:.2f} % of a month's quota" in text


def test_event_types_break_at_dots_and_underscores() -> None:
    assert words.parts("user.in_grace") == ["user.", "in_", "grace"]
    assert words.parts("..a") == ["..", "a"]
    assert words.parts(None) == words.parts("") == []
