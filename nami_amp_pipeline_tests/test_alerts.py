"""Each alert is told once, with what to do, to a real webhook and to the log; so is its end, and nothing gets lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.alerts import Alert, FailedRun, Kind, Watch, note_failed_run, open_failed_runs, watch
from nami_amp_pipeline.alerts import message as messages
from nami_amp_pipeline.alerts.alert_store import Entry, entries
from nami_amp_pipeline.alerts.conditions import duration
from nami_amp_pipeline.alerts.desk import open_alerts, over_by_now, send_test, silence_for, silenced
from nami_amp_pipeline.alerts.watch import LEASE
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import dead_letters
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.integrations import halt, set_enabled
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.webhook import SECRET, Webhook

LOG = logging.getLogger("nami_amp_pipeline.alerts")
DAGSTER = "https://dagster.example.com"
LOGIN = [{"key": "external_id", "type": "string", "value": "account-1"}]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as made:
        yield made


both_stores = pytest.mark.parametrize("pipeline", [None, "postgresql"], indirect=True, ids=["sqlite", "postgresql"])


def row(ident: str, minutes: float = 0, *, app_id: str = "fit", payload: str | None = None) -> dict[str, Any]:
    """A row of the warehouse, loaded so many minutes after the start."""
    moment = START + timedelta(minutes=minutes)
    return {
        "id": ident,
        "app_id": app_id,
        "event_type": "user.subscription.renewed",
        "user_id": "u",
        "created_date": moment,
        "ingested_at": moment,
        "payload": json.dumps({"external_ids": LOGIN}) if payload is None else payload,
    }


@pytest.fixture
def pipeline(tmp_path: Path, webhook: Webhook, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """Over SQLite, or PostgreSQL where a test says so."""
    address = request.getfixturevalue("postgres").fresh_database() if getattr(request, "param", None) else ""
    made = Pipeline(
        tmp_path / "home",
        {
            "NAMI_AMP_STATE_URL": address,
            "NAMI_AMP_ALERT_WEBHOOK_URL": webhook.url,
            "NAMI_AMP_DAGSTER_URL": DAGSTER + "/",
            "NAMI_AMP_ALERT_DEAD_LETTERS": "2",
            "NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "0",
        },
    )
    yield made
    made.close()


def look(pipeline: Pipeline, *succeeded: str) -> Watch:
    return watch(pipeline.context, LOG, succeeded_since=lambda _jobs: succeeded)


def halted(pipeline: Pipeline, integration_id: int, reason: str = "Amplitude says: invalid_api_key") -> None:
    with pipeline.context.store.begin() as tx:
        halt(tx, integration_id, reason, pipeline.context.now())


def move(pipeline: Pipeline, **by: float) -> None:
    pipeline.clock.now += timedelta(**by).total_seconds()


def test_all_is_well_and_nothing_is_told(pipeline: Pipeline, webhook: Webhook) -> None:
    pipeline.add("fit")
    pipeline.insert([row("1")])
    pipeline.tick()
    assert look(pipeline) == Watch()
    assert webhook.messages == []


@both_stores
@pytest.mark.slow
def test_halted_integration_is_told_once_and_so_is_its_recovery(
    pipeline: Pipeline, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    one = pipeline.add("fit")
    halted(pipeline, one.id)
    for _ in range(3):
        look(pipeline)
        move(pipeline, minutes=1)
    (said,) = webhook.messages
    assert "*Integration halted*" in said
    assert "*fit/main*: Amplitude says: invalid_api_key" in said
    assert "nami-amp integrations enable fit/main" in said
    assert f"<{DAGSTER}/assets/amplitude_deliveries?" in said
    set_enabled(pipeline.context.store, one.key, enabled=True)
    for _ in range(3):
        look(pipeline)
    assert len(webhook.messages) == 2
    assert "Over: Integration halted" in webhook.messages[1]
    assert "*fit/main*: after 3 min" in webhook.messages[1]
    assert entries(pipeline.context.store) == []
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2
    assert "nami-amp integrations enable fit/main" in logged[0]
    assert SECRET not in caplog.text


def test_another_halt_later_is_told_again(pipeline: Pipeline, webhook: Webhook) -> None:
    one = pipeline.add("fit")
    for _ in range(2):
        halted(pipeline, one.id)
        look(pipeline)
        set_enabled(pipeline.context.store, one.key, enabled=True)
        look(pipeline)
    assert [message[0] for message in webhook.messages] == ["🔴", "✅", "🔴", "✅"]


@pytest.mark.parametrize("status", [500, 302, 404])
def test_what_the_webhook_did_not_take_is_told_next_time_also_by_another_process(
    pipeline: Pipeline, webhook: Webhook, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    one = pipeline.add("fit")
    halted(pipeline, one.id)
    webhook.status = status
    done = look(pipeline)
    assert done.trouble == f"the alert webhook answered with status {status}"
    assert webhook.refused == 1
    webhook.status = 200
    restarted = Context.open(pipeline.settings, clock=pipeline.clock)
    try:
        assert watch(restarted, LOG).trouble is None
        assert watch(restarted, LOG).trouble is None
    finally:
        restarted.store.close()
    assert len(webhook.messages) == 1
    assert SECRET not in caplog.text


def test_what_came_and_went_while_the_webhook_was_away_is_told_whole(
    pipeline: Pipeline, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    one = pipeline.add("fit")
    halted(pipeline, one.id)
    webhook.status = 503
    look(pipeline)
    set_enabled(pipeline.context.store, one.key, enabled=True)
    look(pipeline)
    webhook.status = 200
    look(pipeline)
    look(pipeline)
    assert [message[0] for message in webhook.messages] == ["🔴", "✅"]
    assert "Integration halted: fit/main" in caplog.text  # the log had it at once


def test_a_process_that_ends_between_telling_and_noting_tells_it_again(pipeline: Pipeline, webhook: Webhook) -> None:
    one = pipeline.add("fit")
    halted(pipeline, one.id)

    def post_and_die(url: str, text: str) -> None:
        from nami_amp_pipeline.alerts.webhook import post

        post(url, text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(pipeline.context, LOG, post=post_and_die)
    look(pipeline)
    assert len(webhook.messages) == 2


@both_stores
def test_only_one_process_tells(pipeline: Pipeline, webhook: Webhook) -> None:
    one = pipeline.add("fit")
    halted(pipeline, one.id)
    other = Context.open(pipeline.settings, clock=pipeline.clock)
    try:
        (lease,) = other.store.acquire([LEASE]).values()
        assert "another process" in (look(pipeline).trouble or "")
        assert webhook.messages == []
        other.store.release([lease])
        look(pipeline)
    finally:
        other.store.close()
    assert len(webhook.messages) == 1


def test_unreachable_webhook_is_named_without_its_address(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Webhook() as gone:
        url = gone.url
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_ALERT_WEBHOOK_URL": url})
    one = pipeline.add("fit")
    halted(pipeline, one.id)
    assert look(pipeline).trouble == "the alert webhook cannot be reached: no_connection"
    pipeline.close()
    assert SECRET not in caplog.text
    assert SECRET not in repr(pipeline.settings)


def test_without_a_webhook_the_log_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(tmp_path)
    one = pipeline.add("fit")
    halted(pipeline, one.id)
    look(pipeline)
    look(pipeline)
    pipeline.close()
    assert len(caplog.records) == 1
    assert "Dagster's page: /assets/amplitude_deliveries" in caplog.text


@both_stores
@pytest.mark.slow
def test_dead_letters_are_an_alert_only_beyond_the_limit_within_the_window(
    pipeline: Pipeline, webhook: Webhook
) -> None:
    pipeline.add("fit")
    for number in range(4):
        pipeline.insert([row(str(number), 10 * number, payload="no JSON object")])
        pipeline.tick()
        look(pipeline)
        move(pipeline, minutes=10)
    (said,) = webhook.messages  # two are allowed, so the third told, and the fourth is no news
    assert "*fit/main*: 3 in the last 1 h: 3 malformed_payload" in said
    assert f"<{DAGSTER}/assets/amplitude_deliveries?view=events&partition=fit%7Cmain|" in said
    move(pipeline, minutes=50)
    look(pipeline)
    assert "Over: Dead letters growing" in webhook.messages[1]


def test_dismissed_dead_letters_are_no_alert(pipeline: Pipeline, webhook: Webhook) -> None:
    pipeline.add("fit")
    pipeline.insert([row(str(number), number, payload="no JSON object") for number in range(3)])
    pipeline.tick()
    look(pipeline)
    assert "Dead letters growing" in webhook.messages[0]
    assert dead_letters.dismiss(pipeline.context.store, dead_letters.Filter()) == 3
    look(pipeline)
    assert "Over: Dead letters growing" in webhook.messages[1]


def test_lag_is_an_alert_beyond_the_limit(pipeline: Pipeline, webhook: Webhook) -> None:
    from nami_amp_pipeline.stages import pipeline as stages

    one = pipeline.add("fit")
    pipeline.insert([row("1")])
    stages.capture_apps(pipeline.context)
    stages.snapshot_apps(pipeline.context)
    move(pipeline, minutes=59)
    look(pipeline)
    assert webhook.messages == []
    move(pipeline, minutes=3)
    look(pipeline)
    (said,) = webhook.messages
    assert "*fit/main*: 1 event pending, the oldest for 1 h" in said
    pipeline.tick()
    look(pipeline)
    assert "Over: Lag over the limit" in webhook.messages[1]
    assert pipeline.status(one).pending == 0


def test_halted_integration_is_not_told_as_late_too(pipeline: Pipeline, webhook: Webhook) -> None:
    from nami_amp_pipeline.stages import pipeline as stages

    one = pipeline.add("fit")
    pipeline.insert([row("1")])
    stages.capture_apps(pipeline.context)
    halted(pipeline, one.id)
    move(pipeline, hours=2)
    assert [alert.kind for alert in look(pipeline).open] == [Kind.INTEGRATION_HALTED]


@pytest.mark.slow
def test_rows_that_no_micro_batch_reads_are_an_alert_but_not_those_loaded_again(
    pipeline: Pipeline, webhook: Webhook
) -> None:
    pipeline.add("fit")
    pipeline.insert([row("1")])
    pipeline.tick()
    pipeline.insert([row("1", 5)])
    pipeline.tick()
    move(pipeline, hours=2)
    assert look(pipeline) == Watch()
    pipeline.insert([row("2", 6)])
    look(pipeline)
    assert "*fit*: rows that no micro-batch has read yet, the oldest for 1 h 54 min" in webhook.messages[0]
    pipeline.tick()
    look(pipeline)
    assert "Over: Rows wait in the warehouse" in webhook.messages[1]


@pytest.mark.slow
def test_silent_app_is_an_alert_and_others_are_not(pipeline: Pipeline, webhook: Webhook) -> None:
    pipeline.add("fit")
    pipeline.add("radio")
    pipeline.add("off", enabled=False)
    pipeline.insert([row("1")])
    pipeline.tick()
    move(pipeline, hours=23)
    look(pipeline)
    assert webhook.messages == []
    pipeline.insert([row("2", 23 * 60)])
    pipeline.tick()
    move(pipeline, hours=2)
    look(pipeline)
    (said,) = webhook.messages
    assert "*radio*: no event yet for 1 d 1 h" in said
    assert "*fit*" not in said
    assert "*off*" not in said


def test_what_cannot_be_looked_at_is_not_told_as_over(pipeline: Pipeline, webhook: Webhook) -> None:
    pipeline.add("fit")
    pipeline.insert([row("1")])
    move(pipeline, hours=2)
    look(pipeline)
    assert len(webhook.messages) == 1
    aside = pipeline.warehouse.rename(pipeline.warehouse.with_suffix(".aside"))
    look(pipeline)
    aside.rename(pipeline.warehouse)
    look(pipeline)
    assert len(webhook.messages) == 1


def test_many_of_a_kind_are_one_message(pipeline: Pipeline, webhook: Webhook) -> None:
    for number in range(25):
        halted(pipeline, pipeline.add(f"app-{number:02}").id)
    look(pipeline)
    (said,) = webhook.messages
    assert "*Integration halted* (25)" in said
    assert said.count("•") == messages.LISTED
    assert "… and 15 more" in said
    assert "enable APP/NAME" in said


def failed(number: int, *problems: str) -> FailedRun:
    return FailedRun("micro_batch", f"run-{number}", 1_000_000 * number, problems)


@both_stores
def test_failing_job_is_told_once_until_it_fails_for_something_else(pipeline: Pipeline, webhook: Webhook) -> None:
    store = pipeline.context.store
    assert note_failed_run(store, failed(1, "nami_events: there is no DuckDB file"))
    look(pipeline)
    assert note_failed_run(store, failed(2, "nami_events: it is locked")) is None
    look(pipeline)
    assert len(webhook.messages) == 1
    assert f"*micro_batch*: nami_events: there is no DuckDB file <{DAGSTER}/runs/run-1|" in webhook.messages[0]
    assert note_failed_run(store, failed(3, "nami_events: it is locked", "fit/main: invalid_api_key"))
    look(pipeline)
    assert len(webhook.messages) == 2
    assert "fit/main: invalid_api_key" in webhook.messages[1]
    assert open_failed_runs(store) == {"micro_batch": (3_000_000, frozenset({"fit/main", "nami_events"}))}
    look(pipeline, "micro_batch")
    look(pipeline)
    assert len(webhook.messages) == 3
    assert "Over: Run failed" in webhook.messages[2]
    assert note_failed_run(store, failed(4, "nami_events: it is locked"))
    look(pipeline)
    assert len(webhook.messages) == 4


def test_a_failure_that_was_noted_is_not_noted_again(pipeline: Pipeline, webhook: Webhook) -> None:
    store = pipeline.context.store
    assert note_failed_run(store, failed(2, "upload: boom"))
    assert note_failed_run(store, failed(2, "upload: boom")) is None
    assert note_failed_run(store, failed(1, "capture: older")) is None
    look(pipeline)
    assert len(webhook.messages) == 1


def test_failure_that_comes_before_the_recovery_was_told_goes_on(pipeline: Pipeline, webhook: Webhook) -> None:
    store = pipeline.context.store
    note_failed_run(store, failed(1, "upload: boom"))
    look(pipeline)
    webhook.status = 500
    look(pipeline, "micro_batch")
    note_failed_run(store, failed(2, "upload: boom"))
    webhook.status = 200
    look(pipeline)
    assert len(webhook.messages) == 1


def test_text_of_others_cannot_write_markup() -> None:
    wicked = Alert(Kind.RUN_FAILED, "job", "<!channel> & <https://evil.example|click>\nsecond line", "/runs/1")
    said = messages.alarm([Entry(wicked, 0, None, None)], "")
    assert "&lt;!channel&gt; &amp; &lt;https://evil.example|click&gt; second line" in said
    assert "\nsecond" not in said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_600, "1 h"), (3_725, "1 h 2 min"), (90_061, "1 d 1 h")],
)
def test_durations_read_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_each_kind_has_a_name_and_advice() -> None:
    assert all(kind.called and kind.advice.endswith(".") for kind in Kind)


def test_limits_can_be_switched_off(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_ALERT_LAG_SECONDS": "0", "NAMI_AMP_ALERT_NOTHING_INGESTED_SECONDS": "0"})
    pipeline.add("fit")
    pipeline.insert([row("1")])
    move(pipeline, days=3)
    assert look(pipeline) == Watch()
    pipeline.close()


def test_store_has_nothing_of_the_webhook(pipeline: Pipeline) -> None:
    halted(pipeline, pipeline.add("fit").id)
    look(pipeline)
    with pipeline.context.store.begin() as tx:
        for table in tables.metadata.sorted_tables:
            assert SECRET not in repr(tx.execute(sa.select(table)).all())


def test_webhook_must_be_an_address() -> None:
    from nami_amp_pipeline.errors import Misconfigured

    with pytest.raises(Misconfigured, match="NAMI_AMP_ALERT_WEBHOOK_URL") as error:
        Settings.load({"NAMI_AMP_ALERT_WEBHOOK_URL": f"ftp://{SECRET}"})
    assert SECRET not in str(error.value)


def test_a_silenced_alert_is_sent_to_nobody_until_the_silence_ends(pipeline: Pipeline, webhook: Webhook) -> None:
    integration = pipeline.add("fit")
    halted(pipeline, integration.id)
    said = silence_for(pipeline.context, "integration_halted", "fit/main", "4h")
    assert said.startswith("integration_halted fit/main is silenced for 4 h, until ")
    look(pipeline)
    assert webhook.messages == []
    (alert,) = open_alerts(pipeline.context)
    assert (alert.subject, alert.told) == ("fit/main", "silenced")
    assert [silence["subject"] for silence in silenced(pipeline.context)] == ["fit/main"]
    move(pipeline, hours=5)
    look(pipeline)
    assert "*Integration halted*" in webhook.messages[0]
    assert open_alerts(pipeline.context)[0].told == "yes"
    silence_for(pipeline.context, "integration_halted", "*", "1d")
    assert open_alerts(pipeline.context)[0].told == "silenced"
    silence_for(pipeline.context, "integration_halted", "*", "0")
    assert silenced(pipeline.context) == []
    for kind, length in (("integration_holted", "1d"), ("integration_halted", "soon")):
        with pytest.raises(Misconfigured):
            silence_for(pipeline.context, kind, "*", length)


def test_alerts_are_listed_as_they_stand_when_no_sensor_looks(pipeline: Pipeline, webhook: Webhook) -> None:
    integration = pipeline.add("fit")
    halted(pipeline, integration.id)
    assert [(alert.subject, alert.told) for alert in open_alerts(pipeline.context)] == [("fit/main", "not yet")]
    look(pipeline)
    assert [alert.told for alert in open_alerts(pipeline.context)] == ["yes"]
    assert over_by_now(pipeline.context) == frozenset()
    set_enabled(pipeline.context.store, integration.key, enabled=True)
    assert [alert.told for alert in open_alerts(pipeline.context)] == ["over"]
    assert over_by_now(pipeline.context) == {("integration_halted", "fit/main")}
    assert len(webhook.messages) == 1  # people are told by the sensor's next look
    look(pipeline)
    assert open_alerts(pipeline.context) == []
    assert len(webhook.messages) == 2


def test_retried_dead_letters_are_no_all_clear_before_they_are_posted(pipeline: Pipeline, webhook: Webhook) -> None:
    integration = pipeline.add("fit")
    names = ("event_type", "user_id", "identity", "run_id")
    with pipeline.context.store.begin() as tx:
        for number in range(3):  # two are allowed
            values = {"integration_id": integration.id, "state": "dead", "reason": "rejected", "created_date": 0}
            texts = {"event_id": str(number), **dict.fromkeys(names, "x")}
            tx.execute(sa.insert(tables.exceptions).values(**values, **texts, at=pipeline.context.now()))
    look(pipeline)
    with pipeline.context.store.begin() as tx:
        tx.execute(sa.update(tables.exceptions).values(state="held", reason="retried"))
    assert look(pipeline).ended == []
    with pipeline.context.store.begin() as tx:
        tx.execute(sa.delete(tables.exceptions))
    assert [alert.kind for alert in look(pipeline).ended] == [Kind.DEAD_LETTERS_GROWING]


def test_a_test_message_says_that_it_is_one(pipeline: Pipeline, webhook: Webhook) -> None:
    send_test(pipeline.settings)
    (said,) = webhook.messages
    assert "*Test of alerts*: nothing is wrong" in said
    with pytest.raises(Misconfigured):
        send_test(Settings())


@pytest.mark.parametrize("kind", ["backfill", "identify"])
def test_a_backfill_or_identify_that_failed_is_told_until_it_is_resumed(
    pipeline: Pipeline, webhook: Webhook, kind: Any
) -> None:
    integration = pipeline.add("fit")
    store = pipeline.context.store
    with store.begin() as tx:
        number = backfills.add(store, tx, integration, kind=kind, since=0, created_by="me")
        backfills.move(store, tx, number, "failed", error="segments/x.parquet is gone")
    look(pipeline)
    (text,) = webhook.messages
    assert f"{kind} 1: segments/x.parquet is gone" in text
    assert "backfills resume" in text
    with store.begin() as tx:
        backfills.move(store, tx, number, "running")
    assert [alert.kind for alert in look(pipeline).ended] == [Kind.BACKFILL_FAILED]
