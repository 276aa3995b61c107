"""A clock that is set back by a day between two ticks: nothing stops, and nothing is lost or sent twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline.alerts import Watch, watch
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.state.integrations import Integration, halt, set_enabled
from nami_amp_pipeline.state.store import Store
from nami_amp_pipeline_tests.simulation.scripted_answers import OK, Bench, event
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.webhook import Webhook

DAY = 86_400.0
LOG = logging.getLogger("nami_amp_pipeline.alerts")


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def pipeline(request: pytest.FixtureRequest, tmp_path: Path, webhook: Webhook) -> Iterator[Pipeline]:
    environ = {"NAMI_AMP_ALERT_WEBHOOK_URL": webhook.url}
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        environ["NAMI_AMP_STATE_URL"] = server.fresh_database()
        environ["NAMI_AMP_WAREHOUSE_URL"] = server.fresh_database()
    made = Pipeline(tmp_path / "home", environ)
    yield made
    made.close()


class Day:
    """A pipeline whose clock may be wrong; the loader's is right.

    Args:
        pipeline: it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.minutes = 0
        self.loaded = 0

    def pass_by(self, minutes: int) -> None:
        """Time passes, whatever the pipeline's clock says it is."""
        self.minutes += minutes
        self.pipeline.clock.now += 60 * minutes

    def load(self, rows: int = 7, **more: Any) -> None:
        """Rows of three users arrive, one of them late, one of them again."""
        made = []
        for number in range(self.loaded, self.loaded + rows):
            moment = START + timedelta(minutes=self.minutes, milliseconds=number)
            made.append(
                {
                    "id": f"e{number}", "app_id": "app", "event_type": "user.subscription.renewed",
                    "user_id": f"u{number % 3}", "created_date": moment, "ingested_at": moment,
                    "payload": json.dumps({"devices": [{"id": f"d{number}"}]}), **more,
                }
            )  # fmt: skip
        made[-1]["ingested_at"] -= timedelta(minutes=5)
        self.pipeline.insert([*made, made[0]])
        self.loaded += rows

    def look(self) -> Watch:
        return watch(self.pipeline.context, LOG)

    def is_delivered(self, integration: Integration) -> None:
        """Everything that was loaded arrived once, in order, and nothing is late."""
        status = self.pipeline.status(integration)
        assert (status.captured, status.delivered, status.pending) == (self.loaded, self.loaded, 0)
        assert status.lag_seconds == 0
        sent = self.pipeline.sent(integration)
        assert sorted(one["insert_id"] for one in sent) == sorted(f"e{number}" for number in range(self.loaded))
        for user in range(3):
            times = [one["time"] for one in sent if one["user_id"] == f"u{user}"]
            assert times == sorted(times)


@pytest.mark.slow
@pytest.mark.parametrize("is_righted", [True, False])
def test_ticks_go_on_while_the_clock_is_a_day_behind(pipeline: Pipeline, webhook: Webhook, is_righted: bool) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    day = Day(pipeline)
    for _ in range(3):
        day.pass_by(20)
        day.load()
        pipeline.tick()
    day.is_delivered(integration)
    pipeline.clock.now -= DAY
    for _ in range(3):
        day.load()
        pipeline.tick()
        day.is_delivered(integration)
        assert day.look() == Watch()
        pipeline.tick()  # a quiet one
        day.pass_by(20)
    if is_righted:
        pipeline.clock.now += DAY
    else:
        day.pass_by(26 * 60)  # past the moment at which it was set back
    for _ in range(3):
        day.load()
        pipeline.tick()
        day.is_delivered(integration)
        day.pass_by(20)
    assert day.look() == Watch()
    assert webhook.messages == []


def test_a_lease_of_a_process_that_died_ends_in_time(pipeline: Pipeline) -> None:
    """It was on another machine, so nobody can see that it ended."""
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    other = Store(pipeline.settings.state_url, pipeline.clock, 60.0, "other:boot:|1|1|abc|60")
    assert len(other.acquire(["app:app", f"integration:{integration.id}", "alerts"])) == 3
    other.close()
    pipeline.clock.now -= DAY
    day = Day(pipeline)
    day.load()
    pipeline.tick()  # now it is known that these leases are too long
    assert day.look().trouble == "another process is sending alerts at the moment"
    pipeline.clock.now += 61
    pipeline.tick()
    day.is_delivered(integration)
    assert day.look() == Watch()


@pytest.mark.slow
def test_alerts_are_told_and_end_while_the_clock_is_a_day_behind(pipeline: Pipeline, webhook: Webhook) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    day = Day(pipeline)
    with pipeline.context.store.begin() as tx:
        halt(tx, integration.id, "invalid_api_key", pipeline.context.now())
    day.look()
    pipeline.clock.now -= DAY
    day.load()
    pipeline.tick()
    assert [alert.subject for alert in day.look().open] == ["app/main"]
    set_enabled(pipeline.context.store, "app/main", enabled=True)
    pipeline.tick()
    day.is_delivered(integration)
    assert [alert.subject for alert in day.look().ended] == ["app/main"]
    assert [message[0] for message in webhook.messages] == ["🔴", "✅"]


@pytest.mark.slow
def test_a_warehouse_that_went_away_before_is_told_at_the_second_look(tmp_path: Path, webhook: Webhook) -> None:
    made = Pipeline(tmp_path / "home", {"NAMI_AMP_ALERT_WEBHOOK_URL": webhook.url})
    made.add("app")
    day = Day(made)
    day.load()
    made.tick()
    made.warehouse.rename(tmp_path / "away")
    assert len(day.look().new) == 1
    assert webhook.messages == []
    made.clock.now -= DAY
    day.look()
    assert len(webhook.messages) == 1
    made.close()


def test_pauses_and_back_off_noted_before_keep_nobody_waiting_for_a_day(tmp_path: Path) -> None:
    bench = Bench(tmp_path, integrations=2, run_retry_seconds=5.0)
    bench.prepare([event(number, f"user{number % 2}") for number in range(10)])
    first = HttpAnswer(429, b'{"throttled_users":{"user0":31}}')
    whole = HttpAnswer(429, b"", {"retry-after": "600"})
    bench.answer = lambda posted: whole if ":9001/" in posted.url else first if "e0" in posted.ids else OK
    bench.deliver()
    assert [bench.status(number).pending for number in (0, 1)] == [5, 10]
    bench.answer = lambda _posted: OK
    bench.time.error = -DAY
    bench.time.true += 601
    bench.deliver()
    assert [bench.status(number).pending for number in (0, 1)] == [0, 0]
    assert [bench.status(number).delivered for number in (0, 1)] == [10, 10]
