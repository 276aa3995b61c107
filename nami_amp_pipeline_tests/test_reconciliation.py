"""Reconciliation finds exactly what Amplitude does not hold as it was sent, and repair brings back what is missing."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nami_amp_pipeline.amplitude import fingerprints
from nami_amp_pipeline.amplitude.exported import HOUR
from nami_amp_pipeline.backfill.turns import run_backfill
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.contract import Enrichment
from nami_amp_pipeline.delivery.receipts import RECEIPT_SCHEMA
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.backfills import NewBackfill, NewIdentify
from nami_amp_pipeline.operations.frames import Frames
from nami_amp_pipeline.operations.reconciliation import reconciled
from nami_amp_pipeline.reconciliation import repair
from nami_amp_pipeline.retention import retain
from nami_amp_pipeline.sandbox import Fault
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline_tests.support.enrichments import declare, event
from nami_amp_pipeline_tests.support.held_by_amplitude import NOON, Held, held_by_amplitude


class KilledHereError(BaseException):
    """The process ends here."""


@pytest.mark.slow
@pytest.mark.contract("8.1", "8.4", "8.5")
def test_20_removed_5_altered_and_3_doubled_of_10000_among_10000_of_somebody_else(tmp_path: Path) -> None:
    with held_by_amplitude(tmp_path) as world:
        world.load(1_800)
        world.add()
        world.tick()
        world.write_others(10_000)
        ours = world.held()
        assert len(ours) >= 10_000
        ids = [event["insert_id"] for event in ours]
        step = len(ids) // 28
        chosen = ids[::step][:28]
        removed, altered, doubled = chosen[:20], chosen[20:25], chosen[25:]
        world.damage("lost_after_200", removed)
        world.damage("cut_property", altered, property_name="namiml_event_category", characters=2)
        world.damage("stored_twice", doubled)
        world.later(hours=4)
        found = world.reconcile()
        assert {event.event_id for event in found.of("missing")} == set(removed)
        assert {event.event_id for event in found.of("altered")} == set(altered)
        assert {event.columns for event in found.of("altered")} == {("event_properties",)}
        assert {event.event_id for event in found.of("twice")} == set(doubled)
        assert found.counts["others"] == 10_000
        assert (found.delivered, found.held) == (len(ids), len(ids) - 20)
        assert found.counts["undelivered"] == 0
        field = found.of("altered")[0].fields[0]
        assert (field.field, field.held) == ("namiml_event_category", str(field.sent)[:2])

        world.later(days=12)
        found = world.reconcile()
        assert len(found.of("missing")) == 20
        assert found.is_complete
        assert world.repair(found).events == 20
        assert world.repair(found).events == 0
        world.tick()
        held = [event["insert_id"] for event in world.held()]
        assert sorted(held) == sorted([*ids, *doubled])
        world.later(hours=5)
        again = world.reconcile()
        assert (again.counts["missing"], again.delivered) == (0, len(ids) - 20)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Held]:
    """A few hundred events that were delivered, and four hours later."""
    with held_by_amplitude(tmp_path, environ={"NAMI_AMP_RUN_RETRY_SECONDS": "0.001"}) as made:
        made.load(40)
        made.add()
        yield made


def ids(world: Held) -> list[str]:
    return [event["insert_id"] for event in world.held()]


@pytest.mark.contract("8.1", "8.2")
@pytest.mark.slow
def test_a_day_is_a_line_in_words_and_hours_that_are_not_whole_are_left_out(world: Held) -> None:
    world.tick()
    total = len(ids(world))
    world.later(hours=3, minutes=30)  # the hour of the delivery closed 2 hours and 50 minutes ago
    found = world.reconcile()
    assert (found.delivered, found.hours[-1]) == (0, from_datetime(NOON) // HOUR * HOUR - HOUR)
    assert "12:00 to 16:00: not over for 3 hours" in found.in_a_line
    assert not found.is_complete
    found = world.reconcile(now_too=True)
    assert found.delivered == total
    world.later(minutes=10)
    found = world.reconcile()
    assert (found.delivered, found.held) == (total, total)
    world.later(days=1)
    found = world.reconcile()
    assert found.in_a_line == f"2026-12-01: Amplitude holds {total:,} of {total:,}"
    assert found.is_complete


@pytest.mark.contract("8.2", "8.4")
@pytest.mark.slow
def test_what_the_export_cannot_hold_yet_is_not_missing(world: Held) -> None:
    world.tick()
    total, lost = len(ids(world)), ids(world)[0]
    world.damage("lost_after_200", [lost])
    world.later(minutes=30)
    found = world.reconcile(now_too=True)
    left_out = "left out: 13:00 to 24:00: still to come"
    assert found.in_a_line == (f"2026-12-01: the export has 0 of {total:,}, {total:,} not yet exported ({left_out})")
    assert (found.is_clean, found.is_complete, found.differences) == (True, False, [])
    assert world.repair(found).events == 0
    world.later(hours=2, minutes=30)  # exported by now, but that is not sure
    found = world.reconcile(now_too=True)
    assert (found.held, found.counts["not_yet_exported"], found.counts["missing"]) == (total - 1, 1, 0)
    world.later(hours=9)  # 00:20: all hours of the day are over, and the last three not whole
    found = world.reconcile(now_too=True)
    assert (len(found.hours), found.is_complete) == (24, False)
    (day,) = reconciled(world.pipe.context, "radio/main")
    assert (day.hours, day.complete_at) == (24, None), "so it is compared again"
    assert [event.event_id for event in found.of("missing")] == [lost]
    world.later(hours=4)
    assert world.reconcile().is_complete


@pytest.mark.contract("8.1")
@pytest.mark.parametrize("ahead", [2.0, -2.0])
@pytest.mark.slow
def test_an_event_at_midnight_is_held_on_the_other_day_and_not_missing(tmp_path: Path, ahead: float) -> None:
    at = datetime(2026, 12, 1, 23, 59, 59, tzinfo=UTC) if ahead > 0 else datetime(2026, 12, 2, tzinfo=UTC)
    with held_by_amplitude(tmp_path, open_at=at, ahead=ahead) as world:
        world.load(20)
        world.add()
        world.tick()
        total = len(ids(world))
        world.later(days=2)
        days = {day: world.reconcile(datetime(2026, 12, day, tzinfo=UTC)) for day in (1, 2)}
        own, other = (1, 2) if ahead > 0 else (2, 1)
        assert (days[own].held, days[own].delivered, days[own].is_clean) == (total, total, True)
        assert (days[other].delivered, days[other].counts["others"], days[other].is_clean) == (0, 0, True)


@pytest.mark.contract("8.1")
@pytest.mark.slow
def test_a_repeat_is_held_under_the_hour_in_which_no_answer_came(world: Held) -> None:
    world.sandbox.faults.add(Fault("stored_then_500"))
    world.tick()
    total = len(ids(world))
    assert world.pipe.status(world.integration).delivered == 0
    world.sandbox.faults.remove()
    world.later(days=2)
    world.tick()
    assert world.pipe.status(world.integration).delivered == total
    world.later(days=1)
    found = world.reconcile(NOON + timedelta(days=2))
    assert (found.held, found.delivered, found.is_clean) == (total, total, True)
    first = world.reconcile()
    assert (first.delivered, first.counts["others"], first.is_clean) == (0, 0, True)


@pytest.mark.contract("8.4")
@pytest.mark.slow
def test_dead_letters_that_amplitude_holds_all_the_same_are_said(world: Held) -> None:
    world.sandbox.faults.add(Fault("stored_then_500"))
    world.tick()
    total = len(ids(world))
    world.later(days=8)
    world.tick()
    dead = world.pipe.status(world.integration).dead_letters
    assert dead == {"outcome_unknown": dead["outcome_unknown"]}
    found = world.reconcile()
    assert found.counts["undelivered"] == dead["outcome_unknown"] > 0
    assert found.counts["others"] == 0
    assert found.is_clean
    assert total >= dead["outcome_unknown"]


@pytest.mark.contract("8.3")
@pytest.mark.parametrize(
    "column", ["event_type", "user_id", "time", "device_id", "event_properties", "user_properties"]
)
@pytest.mark.slow
def test_what_is_altered_is_said_by_column(world: Held, column: str, tmp_path: Path) -> None:
    world.tick()
    total = len(ids(world))
    world.later(hours=5)
    changed: list[str] = []

    def change(record: dict[str, Any]) -> None:
        is_device = record["event_type"].startswith("device.")
        if (
            len(changed) >= 3
            or (column == "device_id" and not is_device)
            or (column == "user_properties" and is_device)
        ):
            return
        changed.append(record["$insert_id"])
        if column == "time":
            record["client_event_time"] = "2026-11-30 00:00:00.000000"
        elif column == "event_properties":
            record[column] = {**record[column], "namiml_event_category": "other"}
        elif column == "user_properties":
            record[column] = {**record[column], "namiml_former_subscriber": "yes"}
        else:
            record[column] = "somebody-else"

    found = world.reconcile(source=world.exported(tmp_path / "exports", change))
    assert sorted(event.event_id for event in found.of("altered")) == sorted(changed)
    assert len(changed) == 3
    assert {event.columns for event in found.of("altered")} == {(column,)}
    assert found.columns == {column: 3}
    assert found.held == total
    (day,) = reconciled(world.pipe.context, "radio/main")
    assert {sample.column for sample in day.samples} == {column}


@pytest.mark.contract("8.3")
@pytest.mark.slow
def test_another_spelling_and_what_is_held_besides_are_no_difference(world: Held, tmp_path: Path) -> None:
    world.tick()
    total = len(ids(world))
    world.later(hours=5)

    def respell(record: dict[str, Any]) -> None:
        record["event_properties"] = {
            **{name: _respelled(value) for name, value in reversed(record["event_properties"].items())},
            "enriched by somebody": [1, 2],
            "[Amplitude] Added": "x",
        }
        record["user_properties"] = {"sdk": {"nested": True}, **record["user_properties"], "plan": "gold"}

    found = world.reconcile(source=world.exported(tmp_path / "exports", respell))
    assert (found.counts["identical"], found.is_clean) == (total, True)


def _respelled(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@pytest.mark.contract("8.3")
@pytest.mark.slow
def test_revenue_is_compared_where_an_export_has_it(world: Held, tmp_path: Path) -> None:
    world.tick()
    sales = {event["insert_id"]: event for event in world.held() if "price" in event}
    assert len(sales) > 3
    world.later(hours=5)
    wrong = sorted(sales)[:2]

    def show(record: dict[str, Any]) -> None:
        sale = sales.get(record["$insert_id"])
        if sale is not None:
            names = [name for name in ("price", "quantity", "productId", "revenueType", "currency") if name in sale]
            added = {f"${name}": sale[name] for name in names}
            if record["$insert_id"] in wrong:
                added["$price"] = 0.01
            record["event_properties"] = {**record["event_properties"], **added}

    found = world.reconcile(source=world.exported(tmp_path / "exports", show))
    assert {event.event_id for event in found.of("altered")} == set(wrong)
    assert found.columns == {"revenue": 2}
    assert found.of("altered")[0].fields[0].held == 0.01


@pytest.mark.contract("8.1")
@pytest.mark.parametrize("older", ["no columns", "another kind"])
@pytest.mark.slow
def test_receipts_of_older_versions_are_compared_by_presence_only(world: Held, tmp_path: Path, older: str) -> None:
    world.tick()
    total = len(ids(world))
    for path in (world.pipe.settings.data_dir / "receipts").glob("*.parquet"):
        table = pq.read_table(path)
        assert table.column_names == [*RECEIPT_SCHEMA.names, *fingerprints.schema().names]
        if older == "no columns":
            table = table.select(RECEIPT_SCHEMA.names).replace_schema_metadata(None)
        else:
            table = table.replace_schema_metadata({fingerprints.KIND: b"0:0"})
        pq.write_table(table, path)
    lost = ids(world)[3]
    world.damage("lost_after_200", [lost])
    world.later(hours=5)

    def change(record: dict[str, Any]) -> None:
        record["user_id"] = "somebody-else"

    found = world.reconcile(source=world.exported(tmp_path / "exports", change))
    assert (found.counts["altered"], found.counts["identical"]) == (0, total - 1)
    assert [event.event_id for event in found.of("missing")] == [lost]


@pytest.mark.contract("8.1")
@pytest.mark.slow
def test_an_hour_without_an_exported_file_is_not_taken_for_an_empty_one(world: Held, tmp_path: Path) -> None:
    world.tick()
    total = len(ids(world))
    world.later(days=1)
    folder = world.exported(tmp_path / "exports")
    found = world.reconcile(source=folder)
    assert (found.hours, found.held) == ([from_datetime(NOON) // HOUR * HOUR], total)
    assert "no exported file of them" in found.in_a_line
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("_12#", "_5#")))
        (folder / "187520_2026-12-01_13#0.json.gz").write_bytes(gzip.compress(b""))
    assert world.reconcile(source=folder).counts["missing"] == 0


@pytest.mark.contract("8.1")
@pytest.mark.slow
def test_what_an_outbox_under_way_has_delivered_counts(world: Held) -> None:
    world.sandbox.faults.add(Fault("throttle_user", user_id=world.some_user()))
    world.tick()
    delivered = world.pipe.status(world.integration).delivered
    assert delivered > 0
    assert world.pipe.status(world.integration).pending > 0
    world.later(hours=5)
    found = world.reconcile()
    assert (found.delivered, found.held, found.is_clean) == (delivered, delivered, True)


@pytest.mark.contract("8.5")
@pytest.mark.slow
def test_a_repair_is_once_also_if_it_is_killed_between_any_two_steps(
    world: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "_AT_ONCE", 2)
    world.tick()
    before = ids(world)
    lost = sorted(before)[::7][:9]
    world.damage("lost_after_200", lost)
    world.later(days=10)
    found = world.reconcile()
    counted = world.pipe.status(world.integration)
    for step in range(1, 30):
        passed: list[str] = []

        def kill(name: str, passed: list[str] = passed, step: int = step) -> None:
            passed.append(name)
            if len(passed) >= step:
                raise KilledHereError(name)

        world.pipe.context.step = kill
        try:
            world.repair(found)
            break
        except KilledHereError:
            continue
    else:
        pytest.fail("it never ends")
    world.pipe.context.step = lambda _name: None
    now = world.pipe.status(world.integration)
    assert (now.delivered, now.pending, now.captured) == (counted.delivered - 9, 9, counted.captured)
    assert now.pending_by == {"held": 9}
    assert now.lag_seconds < 60, "it waits since the repair"
    world.tick()
    assert sorted(ids(world)) == sorted(before)
    assert world.pipe.status(world.integration).delivered == counted.delivered
    assert world.repair(found).events == 0
    world.later(hours=5)
    assert world.reconcile().is_clean
    again = world.reconcile(NOON + timedelta(days=10))
    assert (again.delivered, again.held) == (9, 9)
    (day,) = [day for day in reconciled(world.pipe.context, "radio/main") if day.day == found.day]
    assert day.is_clean


@pytest.mark.contract("8.5")
@pytest.mark.slow
def test_what_was_sent_again_and_is_not_in_an_export_yet_is_not_sent_a_third_time(world: Held) -> None:
    world.tick()
    lost = ids(world)[:2]
    world.damage("lost_after_200", lost)
    world.later(hours=8)
    found = world.reconcile()
    assert world.repair(found).events == 2
    world.tick()
    again = world.reconcile()
    assert again.counts["missing"] == 0
    assert world.repair(found).refused == {repair.ALREADY: 2}


@pytest.mark.contract("8.5")
@pytest.mark.slow
def test_what_is_past_its_retention_cannot_be_sent_again_and_that_is_said(world: Held) -> None:
    world.tick()
    world.damage("lost_after_200", ids(world)[:2])
    world.later(days=1)
    found = world.reconcile()
    for path in (world.pipe.settings.data_dir / "segments").iterdir():
        path.unlink()
    done = world.repair(found)
    assert (done.events, done.refused) == (0, {repair.GONE: 2})


@pytest.mark.slow
def test_notebooks_have_it_by_day_and_class_and_retention_removes_it(world: Held) -> None:
    world.tick()
    lost = ids(world)[:2]
    world.damage("lost_after_200", lost)
    world.later(days=1)
    found = world.reconcile()
    with Frames(world.pipe.settings) as frames:
        rows = {(row["class"], row["column"]): row for row in frames.reconciled().to_arrow().to_pylist()}
    assert rows["missing", None]["events"] == 2
    assert rows["held", None]["events"] == found.held
    assert (rows["delivered", None]["day"], rows["delivered", None]["hours"]) == (date(2026, 12, 1), 24)
    retain(world.pipe.context)
    assert len(reconciled(world.pipe.context, "radio/main")) == 1
    world.later(days=92)
    retain(world.pipe.context)
    assert reconciled(world.pipe.context, "radio/main") == []


@pytest.mark.contract("8.6", "2.5")
def test_without_a_secret_key_it_says_what_it_would_give(tmp_path: Path) -> None:
    with held_by_amplitude(tmp_path) as world:
        world.add(secret_key=None)
        with pytest.raises(Misconfigured, match=r"has no secret key\. With it, .*--secret-key-env VAR"):
            world.reconcile()


def test_a_wrong_secret_key_is_said(tmp_path: Path) -> None:
    with held_by_amplitude(tmp_path) as world:
        world.add(secret_key=Secret("another-secret-key-0123456789"))
        world.later(days=1)
        with pytest.raises(Misconfigured, match="secret key of the same project"):
            world.reconcile()


_REPAIR = """
import os, signal, sys
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.reconciliation import Reconciliation
from nami_amp_pipeline.reconciliation import repair
from nami_amp_pipeline.settings import Settings
now, kill_at, day = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
repair._AT_ONCE = 2
context = Context.open(Settings.load(), clock=lambda: now)
passed = []
def step(name):
    passed.append(name)
    if len(passed) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
context.step = step
work = Reconciliation(context, "radio/main")
days = list(work.compare(day, day))
print(work.repair(days).events)
"""


@pytest.mark.slow
@pytest.mark.contract("8.5", "5.1.2")
def test_a_repair_that_is_killed_the_hard_way_is_begun_again(world: Held) -> None:
    world.tick()
    before = ids(world)
    lost = sorted(before)[::5][:7]
    world.damage("lost_after_200", lost)
    world.later(days=9)
    environ = {"PATH": os.environ["PATH"], "NAMI_AMP_HOME": str(world.pipe.settings.home)}
    ends = []
    for kill_at in (1, 2, 3, 4, 0):
        world.later(minutes=10)  # the lease of what was killed has run out
        arguments = [str(world.pipe.clock.now), str(kill_at), str(from_datetime(NOON))]
        done = subprocess.run(
            [sys.executable, "-c", _REPAIR, *arguments],
            env={**environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        ends.append(done.returncode)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert ends == [-signal.SIGKILL] * 4 + [0]
    world.tick()
    assert sorted(ids(world)) == sorted(before)
    assert world.pipe.status(world.integration).delivered == len(before)
    world.later(hours=5)
    assert world.reconcile().is_clean


@pytest.mark.contract("8.1")
@pytest.mark.slow
def test_what_a_backfill_delivered_is_compared_too(tmp_path: Path) -> None:
    with held_by_amplitude(tmp_path) as world:
        world.load(40)
        world.add(start_from=NOON + timedelta(days=1))
        world.tick()
        assert ids(world) == []
        over = Window(from_datetime(NOON - timedelta(days=800)), from_datetime(NOON))
        made = backfills.create(world.pipe.context, NewBackfill("radio/main", over))
        run_backfill(world.pipe.context, made.id)
        total = len(ids(world))
        assert total > 0
        world.later(hours=4)
        found = world.reconcile()
        assert (found.delivered, found.held, found.counts["undelivered"]) == (total, total, 0)


@pytest.mark.contract("7.3.6")
@pytest.mark.parametrize("export_identify", [False, True])
@pytest.mark.slow
def test_identifies_are_neither_missing_nor_of_other_writers(tmp_path: Path, export_identify: bool) -> None:
    """Whether an export has them is not documented; the app's SDK sends some too."""
    with held_by_amplitude(tmp_path, export_identify=export_identify) as world:
        world.load(20)
        world.add()
        world.tick()
        world.write_others(3)
        events = len(world.held())
        sent = backfills.create(world.pipe.context, NewIdentify("radio/main"))
        assert run_backfill(world.pipe.context, sent.id).state == "done"
        assert len(world.held()) > events > 0
        world.later(hours=5)
        found = world.reconcile()
        assert (found.delivered, found.held) == (events, events)
        assert found.counts["others"] == 3
        assert not found.differences


@pytest.mark.contract("8.4", "8.5")
@pytest.mark.slow
def test_what_enrichments_gave_is_compared_and_sent_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of the event it comes again as it was kept, whatever the function gives by now; of now it is left out."""
    given = {"size": 1, "now": 10}
    as_of = Enrichment(
        {"shop_size": "number"}, lambda batch, _: {"shop_size": [given["size"]] * batch.num_rows}, timing="as_of"
    )
    current = Enrichment({"shop_now": "number"}, lambda batch, _: {"shop_now": [given["now"]] * batch.num_rows})
    declare(monkeypatch, as_of, current)
    with held_by_amplitude(tmp_path, environ={"NAMI_AMP_RUN_RETRY_SECONDS": "0.001"}) as world:
        moments = {"old": NOON - timedelta(minutes=9), "other": NOON - timedelta(minutes=8), "cut": NOON}
        world.pipe.insert([event(name, name, at, app="radio") for name, at in moments.items()])
        world.add()
        world.tick()
        given |= {"size": 2, "now": 20}
        world.later(minutes=5)
        at = NOON + timedelta(minutes=5)
        world.pipe.insert([event("newer", "old", at, app="radio")])
        world.tick()
        world.later(hours=4)
        whole = world.reconcile()
        assert (whole.held, whole.counts["altered"], whole.counts["missing"]) == (4, 0, 0)
        spelled = world.exported(tmp_path / "spelled", _respell)
        assert world.reconcile(source=spelled).of("altered") == [], "what has become history was sent with it"
        world.damage("lost_after_200", ["old", "other"])
        altered = world.exported(tmp_path / "altered", lambda record: _shrink(record, "cut"))
        (found,) = world.reconcile(source=altered).of("altered")
        assert (found.event_id, found.columns) == ("cut", ("user_properties",))
        assert [(field.field, field.sent, field.held) for field in found.fields] == [("shop_size", 1, 0)]

        assert world.repair(world.reconcile()).events == 2
        given |= {"size": 3, "now": 30}
        world.tick()
        held = {record["insert_id"]: record for record in world.held()}
        properties = {name: record["user_properties"] for name, record in held.items()}
        assert properties["old"] == {"shop_size": 1}, "newer state was sent meanwhile, so that of now is left out"
        assert held["old"]["$skip_user_properties_sync"] is True
        assert properties["other"] == {"shop_now": 10, "shop_size": 1}
        world.later(hours=4)
        again = world.reconcile()
        assert (again.held, again.counts["altered"], again.counts["missing"]) == (4, 0, 0)


def _respell(record: dict[str, Any]) -> None:
    record["user_properties"] = {name: float(value) for name, value in record["user_properties"].items()}


def _shrink(record: dict[str, Any], insert_id: str) -> None:
    if record.get("$insert_id") == insert_id:
        record["user_properties"]["shop_size"] = 0
