"""Deliveries: of every window, hour and type the numbers add up, agree with status, and open as many rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.dead_letters import Filter
from nami_amp_pipeline.operations.deliveries import WINDOWS, Tally
from nami_amp_pipeline.operations.event_rows import OUTCOMES
from nami_amp_pipeline.state import hourly_counts, tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.harness import START, Answering, Pipeline

HOUR = timedelta(hours=1)
RENEWED, CANCELLED = "user.subscription.renewed", "user.subscription.cancelled"


def row(number: int, hours: float, kind: str = RENEWED, external: str | None = "ext") -> dict[str, Any]:
    at = START + hours * HOUR
    ids = [] if external is None else [{"key": "external_id", "type": "string", "value": f"{external}{number % 7}"}]
    return {
        "id": f"e{number}", "app_id": "radio", "event_type": kind, "user_id": f"user{number % 7}{external}",
        "created_date": at, "ingested_at": at, "payload": orjson.dumps({"external_ids": ids}).decode(),
    }  # fmt: skip


pytestmark = pytest.mark.slow_cases


@pytest.fixture
def made(tmp_path: Path, state_url: str) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_STATE_URL": state_url})
    yield pipeline
    pipeline.close()


def agree(made: Pipeline, integration: Integration) -> Tally:
    """What the numbers of 30 days are, after a look at everything that must be the same."""
    operations = Operations.over(made.context)
    whole = operations.deliveries(integration.key, "30d")
    numbers = made.status(integration)
    total = whole.total
    assert (total.captured, total.delivered) == (numbers.captured, numbers.delivered)
    assert (total.skipped, total.dead_letters) == (sum(numbers.skipped.values()), sum(numbers.dead_letters.values()))
    assert total.waiting == numbers.pending
    for parts in (whole.bars, whole.types):
        summed = Counter[str]()
        for part in parts:
            assert min(part.tally.to_json().values()) >= 0, part
            summed.update(part.tally.to_json())
        assert {name: summed[name] for name in OUTCOMES} == total.to_json()
    for window in WINDOWS:
        here = operations.deliveries(integration.key, window)
        assert len(here.bars) <= 100
        for outcome in OUTCOMES:
            assert len(rows_of(operations, integration, outcome, window)) == here.total.to_json()[outcome], (
                window,
                outcome,
            )
    return total


def rows_of(operations: Operations, integration: Integration, outcome: str, window: str, **more: Any) -> list[str]:
    """The ids of all pages, of three rows each."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        rows, after = operations.event_rows(integration.key, outcome, window, after=after, limit=3, **more)
        assert len(rows) <= 3
        assert outcome == "captured" or {event.outcome for event in rows} <= {outcome}
        found += [event.event_id for event in rows]
    assert len(found) == len(set(found))
    return found


@pytest.mark.slow
def test_every_window_hour_and_type_adds_up_and_opens_its_rows(made: Pipeline) -> None:
    main = made.add("radio", events=["user.subscription.*"])
    made.insert([row(n, n % 5, (RENEWED, CANCELLED)[n % 2], None if n % 3 == 0 else "ext") for n in range(20)])
    made.tick()
    made.clock.set(START + 30 * HOUR)
    made.wires[main.id] = Answering(
        [HttpAnswer(400, b'{"code":400,"error":"x","events_with_invalid_fields":{"time":[0]}}')]
    )
    made.insert([row(n, 29.5) for n in range(100, 104)])
    made.tick()
    total = agree(made, main)
    assert total.dead_letters == 1
    assert total.skipped == 7
    assert total.captured == 24
    day = Operations.over(made.context).deliveries(main.key, "24h")
    assert day.total.captured == 4, "what is older than the window is not in it"
    assert {entry.event_type: entry.tally.captured for entry in day.types if entry.tally.captured} == {RENEWED: 4}
    operations = Operations.over(made.context)
    (cause,) = operations.causes(Filter(apps=["radio"]))
    assert (cause.integration, cause.events, cause.sendable, cause.old) == (main.key, 1, 1, 0)
    assert cause.named == {"time is invalid": 1}
    assert operations.totals([main], "30d") == {main.key: total}
    audience = operations.audience(main.key, "namiml_former_subscriber", "false")
    assert audience.here == sum(audience.places.values())
    assert {state.nami_user for state in operations.user_states("radio", ["user1ext"])} == {"user1ext"}
    assert operations.backfills.listed(app_id="radio", before=9, limit=2) == []


@pytest.mark.parametrize(("anonymous", "places"), [("skip", "no_external_id"), ("nami_user_id", "sent")])
def test_an_audience_counts_who_never_logged_in_as_they_are_sent(made: Pipeline, anonymous: str, places: str) -> None:
    main = made.add("radio", anonymous=anonymous)
    journey = {"external_ids": [], "customer_journey_state": {"former_subscriber": False}}
    made.insert([row(1, 0, RENEWED, None) | {"payload": orjson.dumps(journey).decode()}])
    made.tick()
    found = Operations.over(made.context).audience(main.key, "namiml_former_subscriber", "false")
    assert {place for place, users in found.places.items() if users} == {places}


@pytest.mark.slow
def test_what_is_captured_and_not_prepared_waits(made: Pipeline) -> None:
    main = made.add("radio")
    made.insert([row(1, 0)])
    made.tick()
    Operations.over(made.context).disable(main.key)
    made.insert([row(n, 1) for n in range(2, 9)])
    made.clock.set(START + 2 * HOUR)
    made.tick()
    # An integration that is off has no capture of its own: another one of the app makes it.
    made.add("radio", "other")
    made.tick()
    assert agree(made, main).waiting == 7


@pytest.mark.slow
def test_a_retried_dead_letter_waits_in_its_own_hour(made: Pipeline) -> None:
    main = made.add("radio")
    made.wires[main.id] = Answering(
        [HttpAnswer(400, b'{"code":400,"error":"x","events_with_invalid_fields":{"time":[0]}}')]
    )
    made.insert([row(n, 0) for n in range(3)])
    made.tick()
    assert agree(made, main).dead_letters == 1
    made.clock.set(START + 5 * HOUR)
    operations = Operations.over(made.context)
    assert operations.retry(Filter()).retried == 1
    assert agree(made, main).waiting == 1
    made.tick()
    total = agree(made, main)
    assert (total.captured, total.delivered) == (3, 3)
    assert operations.deliveries(main.key, "1h").total.captured == 0, "it counts in the hour in which it was captured"


@pytest.mark.slow
def test_who_waited_for_a_login_counts_in_the_hour_of_the_login(made: Pipeline) -> None:
    main = made.add("radio", anonymous="wait_for_login")
    lonely = {**row(1, 0, external=None), "user_id": "ann"}
    made.insert([lonely])
    made.tick()
    assert agree(made, main).waiting == 1
    made.clock.set(START + 50 * HOUR)
    made.insert([{**row(2, 49), "user_id": "ann"}])
    made.tick()
    total = agree(made, main)
    assert (total.captured, total.delivered, total.waiting) == (2, 2, 0)
    assert Operations.over(made.context).deliveries(main.key, "24h").total.delivered == 2


def test_who_never_logs_in_is_skipped_in_its_hour(tmp_path: Path) -> None:
    made = Pipeline(tmp_path, {"NAMI_AMP_HOLD_DAYS": "2"})
    main = made.add("radio", anonymous="wait_for_login")
    made.insert([{**row(1, 0, external=None), "user_id": "ann"}])
    made.tick()
    made.clock.set(START + 60 * HOUR)
    made.tick()
    total = Operations.over(made.context).deliveries(main.key, "30d").total
    assert (total.captured, total.skipped, total.waiting) == (1, 1, 0)
    made.close()


def forget_hours(made: Pipeline) -> None:
    """Makes the store one of an older version, just after its migration."""
    with made.context.store.begin() as tx:
        for table in (tables.outboxes, tables.exceptions):
            tx.execute(sa.update(table).values(hour=None))
        tx.execute(sa.delete(tables.hourly_counts))
        tx.execute(sa.update(tables.integrations).values(counted_since=made.context.now()))


@pytest.mark.slow
def test_what_is_older_than_the_counts_is_counted_by_the_next_micro_batches(made: Pipeline) -> None:
    main = made.add("radio", anonymous="wait_for_login", events=["user.subscription.*"])
    invalid = HttpAnswer(400, b'{"code":400,"error":"x","events_with_invalid_fields":{"time":[0]}}')
    for hour in range(0, 12, 3):
        made.wires[main.id] = Answering([invalid])
        made.insert([row(hour * 10 + n, hour, (RENEWED, CANCELLED)[n % 2]) for n in range(5)])
        made.insert([{**row(hour * 10 + 9, hour, external=None), "user_id": f"lonely{hour}"}])
        made.clock.set(START + hour * HOUR + HOUR / 2)
        made.tick()
    before = agree(made, main)
    whole = Operations.over(made.context).deliveries(main.key, "30d").to_json()
    forget_hours(made)
    assert Operations.over(made.context).deliveries(main.key, "30d").total == Tally()
    made.tick()
    assert agree(made, main) == before
    assert Operations.over(made.context).deliveries(main.key, "30d").to_json() == whole
    Operations.over(made.context).retry(Filter())
    made.insert([{**row(200, 13), "user_id": "lonely0"}])
    made.clock.set(START + 14 * HOUR)
    made.wires[main.id] = Answering([])
    made.tick()
    after = agree(made, main)
    assert (after.dead_letters, after.waiting) == (0, 3)


@pytest.mark.slow
def test_events_from_before_the_counts_are_left_out_and_the_answer_says_so(made: Pipeline) -> None:
    main = made.add("radio")
    made.insert([row(n, 0) for n in range(3)])
    made.wires[main.id] = Answering(
        [HttpAnswer(400, b'{"code":400,"error":"x","events_with_invalid_fields":{"time":[0]}}')]
    )
    made.tick()
    forget_hours(made)
    made.clock.set(START + 2 * HOUR)
    operations = Operations.over(made.context)
    before = operations.deliveries(main.key, "24h")
    assert before.total == Tally()
    assert before.counted_since is not None
    operations.retry(Filter())
    assert operations.deliveries(main.key, "24h").total == Tally(captured=1), "sent again, it counts from now on"
    made.tick()
    assert agree(made, main) == Tally(captured=3, delivered=3), "and the others are counted by a micro-batch"


def test_a_page_that_does_not_exist_is_a_mistake_in_one_line(made: Pipeline) -> None:
    main = made.add("radio")
    operations = Operations.over(made.context)
    for wrong in ("x", "1.2", "9.9.9.9", "1.-1.0", "1.1." + "9" * 40):
        with pytest.raises(Misconfigured, match="names no page"):
            operations.event_rows(main.key, "captured", after=wrong)
    with pytest.raises(Misconfigured, match="no window"):
        operations.deliveries(main.key, "2y")
    with pytest.raises(Misconfigured, match="no outcome"):
        operations.event_rows(main.key, "lost")
    with pytest.raises(Misconfigured, match="names no page"):
        operations.request_rows(main.key, after="1.x")


@pytest.mark.slow
def test_requests_come_newest_first_and_page_by_page(made: Pipeline) -> None:
    main = made.add("radio")
    for hour in range(7):
        made.clock.set(START + hour * HOUR)
        made.insert([row(hour, hour - 0.5)])
        made.tick()
    operations = Operations.over(made.context)
    found = []
    after: str | None = ""
    while after is not None:
        rows, after = operations.request_rows(main.key, after=after, limit=2)
        found += rows
    assert len(found) == 7
    assert [entry.sent_at for entry in found] == sorted((entry.sent_at for entry in found), reverse=True)
    assert operations.request_rows(main.key, only_failed=True) == ([], None)


@pytest.mark.parametrize(
    ("events", "types", "shares"),
    [
        (10, {"a": 1, "b": 1}, {"a": 5, "b": 5}),
        (7, {"a": 1, "b": 2, "c": 4}, {"a": 1, "b": 2, "c": 4}),
        (3, {}, {"": 3}),
        (0, {"a": 5}, {"a": 0}),
    ],
)
def test_events_of_unknown_types_are_spread_and_their_sum_is_exact(
    events: int, types: dict[str, int], shares: dict[str, int]
) -> None:
    assert hourly_counts.spread(events, types) == shares
