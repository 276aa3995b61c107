"""Enrichments: what a function gives is kept and sent, never to history if it is of now, and never stops other apps."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.backfill.turns import Work, run_backfill
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.contract import Enrichment, Property
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.audience import audience
from nami_amp_pipeline.operations.backfill_status import show
from nami_amp_pipeline.operations.backfills import NewBackfill, NewIdentify
from nami_amp_pipeline.operations.current_snapshots import current_snapshots
from nami_amp_pipeline.operations.preview import preview
from nami_amp_pipeline.operations.property_shares import property_shares
from nami_amp_pipeline.operations.standing import standings
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.stages import history
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.stages.facts import describe_snapshotted
from nami_amp_pipeline.stages.history import flagged
from nami_amp_pipeline.stages.previews import snapshot_preview
from nami_amp_pipeline.stages.snapshot_sql import snapshot_sql
from nami_amp_pipeline.stages.table import CAPTURE, PREPARE, SNAPSHOTS
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.enrichments import declare, event, ltv, set_ltv
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.test_control_center_reading import Place

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SKIP = "$skip_user_properties_sync"


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, {"NAMI_AMP_RUN_RETRY_SECONDS": "0"})
    yield made
    made.close()


@pytest.fixture
def one(pipeline: Pipeline) -> Integration:
    return pipeline.add("app", user_id_kind="nami_user_id", start_from=None)


def sent(pipeline: Pipeline, one: Integration) -> dict[str, dict[str, Any]]:
    return {found["insert_id"]: found for found in pipeline.sent(one)}


def fails(_batch: Any, _context: Any) -> Any:
    raise KeyError("no such column")


@pytest.mark.contract("3.8", "3.9")
def test_what_it_gives_is_in_everything(pipeline: Pipeline, one: Integration, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, ltv())
    set_ltv(pipeline, ann=12.5, ben=3)
    pipeline.insert([event(user, user, START - HOUR, devices=[{"id": "d"}]) for user in ("ann", "ben", "cid")])
    pipeline.tick()
    found = {ident: body["user_properties"] for ident, body in sent(pipeline, one).items()}
    assert {ident: properties.get("ltv") for ident, properties in found.items()} == {"ann": 12.5, "ben": 3, "cid": None}
    assert list(found["ann"]) == ["namiml_device_ids", "namiml_device_platforms", "ltv"]
    current = {row["user_id"]: row["ltv"] for row in current_snapshots(pipeline.settings, "app").to_pylist()}
    assert current == {"ann": 12.5, "ben": 3, "cid": None}
    capture = trace(pipeline.context, "ann").captures[0]
    assert capture["snapshot"]["ltv"] == 12.5
    (file,) = (pipeline.context.folder.root / "snapshots").glob("*.parquet")
    assert {row["user_id"]: row["ltv"] for row in snapshot_preview(file, "app")} == current
    assert audience(pipeline.context, one, "ltv", "12.5").here == 1
    (share,) = [share for share in property_shares(pipeline.context, "app").properties if share.property.name == "ltv"]
    assert {(value.value, value.users) for value in share.values} == {("12.5", 1), ("3.0", 1)}
    assert "| `ltv` | `an enrichment` | number | what the user has paid |" in contract.properties_table()


@pytest.mark.contract("3.9")
@pytest.mark.slow
def test_what_it_gave_is_kept_whatever_it_would_give_now(
    pipeline: Pipeline, one: Integration, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, ltv())
    set_ltv(pipeline, ann=1)
    pipeline.insert([event("a", "ann", START - HOUR)])
    stages.capture_apps(pipeline.context)
    stages.snapshot_apps(pipeline.context)
    set_ltv(pipeline, ann=2)
    (shown,) = preview(pipeline.context, one.key, 5)
    assert '"ltv":1}' in shown
    declare(monkeypatch)  # not even declared any more
    pipeline.tick()
    assert sent(pipeline, one)["a"]["user_properties"]["ltv"] == 1


@pytest.mark.contract("3.10")
@pytest.mark.slow
def test_history_goes_without_current_values_and_has_those_as_of_it(
    pipeline: Pipeline, one: Integration, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_event = Enrichment(
        {"hour": "number"}, lambda batch, _: {"hour": [at.hour for at in batch["created_date"].to_pylist()]},
        timing="as_of",
    )  # fmt: skip
    texts: dict[str, Any] = {"a": 'ü "quoted"', "b": '},"user_properties":{"ltv":1}'}
    declare(monkeypatch, of_event, ltv(lambda batch, _: {"ltv": [7] * batch.num_rows}))
    pipeline.insert([event("new", "ann", START - HOUR)])
    pipeline.tick()
    pipeline.clock.sleep(60)
    pipeline.insert([event("old", "ann", START - 3 * HOUR, START, note=texts), event("next", "ann", START, **texts)])
    pipeline.insert([event("odd", "ann", START - 4 * HOUR, START, **texts)])
    pipeline.tick()
    found = sent(pipeline, one)
    assert {ident for ident, body in found.items() if SKIP in body} == {"old", "odd"}
    properties = {ident: body["user_properties"] for ident, body in found.items()}
    hour = (START - HOUR).hour
    assert properties == {
        "new": {"hour": hour, "ltv": 7}, "next": {"hour": START.hour, "ltv": 7},
        "old": {"hour": (START - 3 * HOUR).hour}, "odd": {"hour": (START - 4 * HOUR).hour},
    }  # fmt: skip
    assert {name: found["odd"]["event_properties"][name] for name in texts} == texts
    (row,) = current_snapshots(pipeline.settings, "app").to_pylist()
    assert (row["hour"], row["ltv"]) == (START.hour, 7), "what comes late moves nothing back"


@pytest.mark.contract("3.10", "7.1.1")
@pytest.mark.slow
def test_a_backfill_asks_again_and_goes_by_the_same_rule(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a user who was sent nothing the value is given; of one who was sent newer state it is not."""
    declare(monkeypatch, ltv())
    set_ltv(pipeline, ann=1, ben=2)
    pipeline.insert([event("a-old", "ann", START - 9 * DAY), event("b-old", "ben", START - 9 * DAY)])
    pipeline.insert([event("a-new", "ann", START - HOUR)])
    one = pipeline.add("app", user_id_kind="nami_user_id", start_from=START - DAY)
    pipeline.tick()
    window = Window(from_datetime(START - 10 * DAY), from_datetime(START - 8 * DAY), "created_date")
    shown = preview(pipeline.context, one.key, 9, window)
    made = backfills.create(pipeline.context, NewBackfill(one.key, window))
    wire = Agreeing()
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    found = {body["insert_id"]: body for body in wire.events}
    assert found["b-old"]["user_properties"] == {"ltv": 2}
    assert found["a-old"]["user_properties"] == {}
    assert SKIP in found["a-old"]
    assert sum('"ltv"' in text for text in shown) == 1


@pytest.mark.contract("3.10")
@pytest.mark.slow
def test_an_event_that_waited_for_its_login_goes_by_the_rule_when_it_is_released(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body is kept while it waits: without the value if its user was sent newer state meanwhile."""
    values = iter([1, 2, 3])
    declare(monkeypatch, ltv(lambda batch, _: {"ltv": [next(values)] * batch.num_rows}))
    one = pipeline.add("app", anonymous="wait_for_login", start_from=None)
    login = [{"key": "external_id", "value": "x1"}]
    pipeline.insert([event("a", "ann", START - 3 * HOUR, START), event("b", "ben", START - 3 * HOUR, START)])
    pipeline.tick()
    pipeline.clock.sleep(60)
    # Another user of Nami is the same one of Amplitude, and has newer state.
    pipeline.insert([event("c", "cid", START - HOUR, START + timedelta(minutes=1), external_ids=login)])
    pipeline.tick()
    pipeline.clock.sleep(60)
    late = [event("a2", "ann", START - 4 * HOUR, START + timedelta(minutes=2), external_ids=login)]
    late += [
        event("b2", "ben", START, START + timedelta(minutes=2), external_ids=[{"key": "external_id", "value": "x2"}])
    ]
    pipeline.insert(late)
    pipeline.tick()
    found = {ident: body["user_properties"].get("ltv") for ident, body in sent(pipeline, one).items()}
    assert found == {"c": 2, "a": None, "a2": None, "b": 1, "b2": 3}


@pytest.mark.contract("3.10", "5.1.5")
def test_what_becomes_history_later_loses_current_values_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, ltv(), Enrichment({"kept": "text"}, fails, timing="as_of"))
    head = ',{"event_type":"x","user_id":"u","time":1,"insert_id":"a","event_properties":{"ltv":1,"t":"\\"ltv\\":2"}'
    assert flagged(f'{head},"user_properties":{{"kept":"ü\\n","ltv":7}}}}') == (
        f'{head},"user_properties":{{"kept":"ü\\n"}}}}'.replace(',"time"', f',"{SKIP}":true,"time"')
    )
    for rest in ("", ',"user_properties":{}', ',"user_properties":{"kept":"x"}'):
        assert flagged(f"{head}{rest}}}") == f"{head}{rest}}}".replace(',"time"', f',"{SKIP}":true,"time"')


@pytest.mark.contract("3.11")
def test_a_backfill_waits_for_what_events_must_not_go_without(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pipeline.add("app", user_id_kind="nami_user_id", start_from=START - DAY)
    pipeline.insert([event("a", "ann", START - 9 * DAY)])
    window = Window(from_datetime(START - 10 * DAY), from_datetime(START - 8 * DAY), "created_date")
    made = backfills.create(pipeline.context, NewBackfill(one.key, window))
    wire = Agreeing()
    declare(monkeypatch, ltv(fails, on_failure="wait"))
    with pytest.raises(Blocked, match=r"ltv: it raised KeyError: 'no such column'; its events wait"):
        run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    assert show(pipeline.context, made.id).backfill.state == "running"
    declare(monkeypatch, ltv(lambda batch, _: {"ltv": [1] * batch.num_rows}, on_failure="wait"))
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    assert [body["user_properties"]["ltv"] for body in wire.events] == [1]


@pytest.mark.slow
def test_an_identify_sends_what_was_kept(pipeline: Pipeline, one: Integration, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, ltv())
    set_ltv(pipeline, ann=1.5)
    pipeline.insert([event("a", "ann", START - DAY), event("b", "ben", START - DAY, devices=[{"id": "d"}])])
    pipeline.tick()
    set_ltv(pipeline, ann=9)
    made = backfills.create(pipeline.context, NewIdentify(one.key))
    wire = Agreeing()
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    found = {body["user_id"]: body["user_properties"]["$set"] for body in wire.events}
    assert found == {"ann": {"ltv": 1.5}, "ben": {"namiml_device_ids": ["d"], "namiml_device_platforms": []}}


@pytest.mark.contract("3.11", "5.3.4")
@pytest.mark.slow
def test_an_app_waits_and_the_others_go_on(
    pipeline: Pipeline, one: Integration, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those whose events are in the same segment; it is said in one line, and over once the function works."""
    other = pipeline.add("other", user_id_kind="nami_user_id", start_from=None)
    calls = []

    def some(batch: pa.Table, context: Any) -> Any:
        calls.append(batch["app_id"].unique().to_pylist())
        if "app" in batch["app_id"].to_pylist():
            return fails(batch, context)
        return {"ltv": [1] * batch.num_rows}

    declare(monkeypatch, ltv(some, on_failure="wait"))
    pipeline.insert([event(f"{app}{n}", f"u{n}", START - HOUR, app=app) for app in ("app", "other") for n in range(5)])
    batch = MicroBatch.begin(pipeline.context)
    for stage in (CAPTURE, SNAPSHOTS, PREPARE):
        batch.run(stage)
    why = "ltv: it raised KeyError: 'no such column'; its events wait until it works, as on_failure says"
    assert [(asset, partition, str(error)) for asset, partition, error in batch.noted()] == [
        ("user_property_snapshots", "app", f"app: {why}")
    ]
    assert batch.problems() == [f"user_property_snapshots: app: {why}"]
    pipeline.deliver(other)
    assert len(pipeline.sent(other)) == 5
    assert pipeline.sent(one) == []
    (standing,) = [found for found in standings(pipeline.context) if found.integration == one.key]
    assert standing.why == f"app: {why}"
    assert len(calls) == 4, calls  # all, each alone, and the others without the one that waits
    declare(monkeypatch, ltv(lambda batch, _: {"ltv": [2] * batch.num_rows}, on_failure="wait"))
    pipeline.clock.sleep(60)
    pipeline.tick()
    assert [body["user_properties"]["ltv"] for body in pipeline.sent(one)] == [2] * 5
    assert len(pipeline.sent(other)) == 5
    assert "Traceback" not in caplog.text


@pytest.mark.contract("3.11")
def test_events_that_go_without_are_counted_and_said(
    pipeline: Pipeline, one: Integration, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Enrichment({"tier": "text"}, lambda batch, _: {"tier": ["gold"] * batch.num_rows})
    declare(monkeypatch, ltv(fails), ours)
    pipeline.insert([event(f"a{n}", "ann", START - n * HOUR) for n in range(1, 4)])
    stages.capture_apps(pipeline.context)
    with caplog.at_level(logging.WARNING):
        done = stages.snapshot_apps(pipeline.context)
    assert dict(done["app"].without) == {"ltv": 3}
    assert "app: events go without ltv: it raised KeyError: 'no such column'" in caplog.text
    facts = describe_snapshotted(pipeline.context, ["app"], done)["app"]
    assert facts["events_without"].numbers == {"ltv": 3}  # type: ignore[union-attr]
    with pipeline.context.store.reading() as tx:
        assert tx.execute(sa.select(tables.segment_apps.c.events_without)).scalar() == '{"ltv":3}'
    pipeline.tick()
    assert [body["user_properties"] for body in pipeline.sent(one)] == [{"tier": "gold"}] * 3
    (row,) = current_snapshots(pipeline.settings, "app").to_pylist()
    assert (row["ltv"], row["tier"]) == (None, "gold")


def test_one_that_takes_too_long_is_left_alone_for_the_rest_of_the_run(
    pipeline: Pipeline, one: Integration, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def slow(_batch: Any, _context: Any) -> Any:
        calls.append(1)
        time.sleep(2)

    declare(monkeypatch, ltv(slow, timeout_seconds=0.2))
    monkeypatch.setattr("nami_amp_pipeline.stages.enrich.BATCH_EVENTS", 1)
    pipeline.insert([event(f"a{n}", "ann", START - n * HOUR) for n in range(1, 4)])
    stages.capture_apps(pipeline.context)
    began = time.monotonic()
    done = stages.snapshot_apps(pipeline.context)
    assert time.monotonic() - began < 2
    assert len(calls) == 1
    assert dict(done["app"].without) == {"ltv": 3}


def test_it_is_asked_once_about_a_batch_of_events_with_their_columns(
    pipeline: Pipeline, one: Integration, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def arrow(batch: pa.Table, context: Any) -> Any:
        seen.append((batch, context.now))
        return pa.table({"ltv": pa.array(range(batch.num_rows), pa.int32())})

    def pandas(batch: Any, _context: Any) -> Any:
        seen.append(batch)
        batch["shop_x"] = batch["payload"].str.len()
        return batch.sort_values("id")[["shop_x"]].sort_index()

    frame = Enrichment({"shop_x": "number"}, pandas, batch="pandas", with_payload=True, timing="as_of")
    declare(monkeypatch, ltv(arrow), frame)
    pipeline.insert(
        [
            event("a", "ann", START - 2 * HOUR, devices=[{"id": "d"}],
                  external_ids=[{"key": "external_id", "value": "x1"}]),
            event("b", "ann", START - HOUR),
            {**event("c", "ann", START), "event_type": "device.impression"},
        ]
    )  # fmt: skip
    pipeline.tick()
    (batch, now), given = seen
    assert batch.column_names == [
        "app_id", "id", "user_id", "external_id", "event_type", "created_date",
        *(prop.name for prop in contract.PROPERTIES if prop.group != contract.ENRICHED),
    ]  # fmt: skip
    assert batch["id"].to_pylist() == ["a", "b"]
    assert batch["external_id"].to_pylist() == ["x1", None]
    assert batch["namiml_device_ids"].to_pylist() == [["d"], ["d"]], "as of the event, not as the event has it"
    assert now == START
    assert list(given.columns[-2:]) == ["payload", "shop_x"]
    assert [body["user_properties"]["ltv"] for body in pipeline.sent(one) if "user_properties" in body] == [0, 1]


@pytest.mark.contract("2.10")
@pytest.mark.parametrize("how", ["exclude", "hashed"])
def test_it_can_be_hidden_by_name(pipeline: Pipeline, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, ltv(lambda batch, _: {"ltv": [12.5] * batch.num_rows}))
    hidden: dict[str, Any] = {how: ["ltv"]}
    one = pipeline.add("app", user_id_kind="nami_user_id", start_from=None, **hidden)
    pipeline.insert([event("a", "ann", START - HOUR)])
    pipeline.tick()
    value = sent(pipeline, one)["a"]["user_properties"].get("ltv")
    assert value is None if how == "exclude" else len(value) == 64


@pytest.mark.slow
def test_files_and_stores_from_before_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_url: str) -> None:
    """Segments, snapshots, waiting events and current snapshots without what is declared now."""
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_STATE_URL": state_url})
    try:
        one = pipeline.add("app", anonymous="wait_for_login", start_from=None)
        pipeline.insert([event("old", "ann", START - 2 * DAY, devices=[{"id": "d"}])])
        pipeline.tick()
        pipeline.clock.sleep(60)
        pipeline.insert([event("between", "ann", START - DAY, START)])
        stages.capture_apps(pipeline.context)
        stages.snapshot_apps(pipeline.context)
        (row,) = current_snapshots(pipeline.settings, "app").to_pylist()
        declare(monkeypatch, ltv(lambda batch, _: {"ltv": [1] * batch.num_rows}))
        (row,) = current_snapshots(pipeline.settings, "app").to_pylist()
        assert row["ltv"] is None
        pipeline.clock.sleep(60)
        login = [{"key": "external_id", "value": "x1"}]
        late = event("late", "ann", START - DAY - HOUR, START + timedelta(minutes=1))
        pipeline.insert([event("new", "ann", START, START + timedelta(minutes=1), external_ids=login), late])
        pipeline.tick()
        found = {ident: body["user_properties"] for ident, body in sent(pipeline, one).items()}
        state = {"namiml_device_ids": ["d"], "namiml_device_platforms": []}
        assert found == {"old": state, "between": state, "late": state, "new": {**state, "ltv": 1}}
        (row,) = current_snapshots(pipeline.settings, "app").to_pylist()
        assert row["ltv"] == 1
        files = sorted((pipeline.context.folder.root / "snapshots").glob("*.parquet"))
        assert sum("ltv" in pq.read_schema(path).names for path in files) == 1
        assert "ltv" not in trace(pipeline.context, "old").captures[0]["snapshot"]
    finally:
        pipeline.close()


@pytest.mark.slow
def test_a_warehouse_on_postgresql_answers(tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": postgres.fresh_database()})
    try:
        one = pipeline.add("app", user_id_kind="nami_user_id", start_from=None)
        assert pipeline.postgres is not None
        pipeline.postgres.run("CREATE TABLE user_ltv (user_id text, ltv float8)")
        pipeline.postgres.run("INSERT INTO user_ltv VALUES ('o''brien', 12.5), ('ben', NULL)")
        declare(monkeypatch, ltv())
        pipeline.insert([event(user, user, START - HOUR) for user in ("o'brien", "ben")])
        pipeline.tick()
        found = {ident: body["user_properties"] for ident, body in sent(pipeline, one).items()}
        assert found == {"o'brien": {"ltv": 12.5}, "ben": {}}
    finally:
        pipeline.close()


@pytest.mark.slow
def test_the_pages_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_sql = Property("shop_hour", "devices", kind="number", sql="hour(created_date)", means="the hour")
    declare(monkeypatch, ltv(), by_sql)
    place = Place(tmp_path)
    try:
        place.made.add("app", user_id_kind="nami_user_id", start_from=None)
        set_ltv(place.made, ann=12.5, ben=12.5)
        place.made.insert([event(user, user, START - HOUR, devices=[{"id": "d"}]) for user in ("ann", "ben")])
        place.made.tick()
        shown = place.get("/apps/app/trace?q=ann")
        assert re.search(r"ltv</th>.*?12.5</td><td>what the user has paid</td><td>an enrichment", shown)
        assert re.search(r"shop_hour</th>.*?</td><td>the hour</td><td>this event", shown)
        properties = place.get("/apps/app/properties")
        assert "What the user has paid. A number, from an enrichment." in properties
        assert "The hour. A number, from <code>hour(created_date)</code>." in properties
        assert "12.5</td>" in properties
        address = "/apps/app/reconciliation/main/audience?property=ltv&value="
        assert "2 users" in place.get(f"{address}12.5")
        assert "ltv is a number" in place.get(f"{address}much", status=400)
    finally:
        place.made.close()


def test_where_nothing_is_declared_stages_run_the_sql_that_they_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is called, joined or parsed for it."""
    declare(monkeypatch)
    assert history.macros()[-1] == "CREATE TEMP MACRO sent_rest(is_history, rest) AS rest"
    names = [path.stem for path in (Path(__file__).parents[1] / "sql").glob("*.sql")]
    for name in names:
        if name.startswith(("snapshots_", "identify_1")) and name not in ("snapshots_5_batch", "snapshots_5_enriched"):
            text = re.sub(r"--.*", "", snapshot_sql(name))
            for word in ("enriched", "enrichments", "tried", "TRY", "raised", "event_type,"):
                assert word not in text, name
    declare(monkeypatch, ltv(timing="as_of"))
    assert history.macros()[-1].endswith(" AS rest"), "what is as of its event stays with it"
