"""A home that an older version left in the middle of everything is opened, migrated and finished exactly."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlalchemy as sa
from alembic import command

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.state import Store, migrate, tables
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support import reference
from nami_amp_pipeline_tests.support.current_snapshots import current_snapshots
from nami_amp_pipeline_tests.support.harness import START, Pipeline

HOMES = Path(__file__).with_name("homes")
SETTINGS = {"NAMI_AMP_BATCH_EVENTS": "10", "NAMI_AMP_MAX_LANES": "3"}
LATER = START + timedelta(hours=1)


def texts_of(body: str) -> list[str]:
    """The events of a request, each as it was written."""
    content, decoder = body[body.index('"events":[') + len('"events":[') :], json.JSONDecoder()
    found = []
    while content[0] == "{":
        _, end = decoder.raw_decode(content)
        found.append(content[:end])
        content = content[end:].removeprefix(",")
    return found


@pytest.fixture(params=[path.name.removesuffix(".tar.gz") for path in sorted(HOMES.glob("*.tar.gz"))])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    """A home, and the requests that Amplitude accepted from it."""
    with tarfile.open(HOMES / f"{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    accepted = json.loads((HOMES / f"{request.param}.json").read_text("utf-8"))
    return tmp_path / "home", [one["body"] for one in accepted]


def move_to_postgres(home: Path, url: str) -> None:
    """Has the contents of a home's SQLite store in a PostgreSQL, at the same version."""
    old, new = Store(f"sqlite:///{home / 'state.db'}", lambda: 0.0), Store(url, lambda: 0.0)
    metadata = sa.MetaData()
    metadata.reflect(old.engine)
    with old.begin() as source, new.begin() as target:
        command.upgrade(migrate.alembic_config(target), migrate.revision_of(old.schema_version()))
        for table in metadata.sorted_tables:
            if table.name in (tables.schema_version.name, migrate.VERSION_TABLE):
                continue
            if rows := [dict(row) for row in source.execute(sa.select(table)).mappings()]:
                target.execute(sa.insert(table), rows)
            if "id" in table.columns:
                target.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), "
                    f"greatest(1, (SELECT max(id) FROM {table.name})))"
                )
    old.close()
    new.close()
    (home / "state.db").unlink()


@pytest.fixture
def opened(home: tuple[Path, list[str]], state_url: str) -> Iterator[tuple[Pipeline, list[str]]]:
    """The home with today's code, its store of either kind; an hour later."""
    folder, accepted = home
    if state_url.startswith("postgresql"):
        move_to_postgres(folder, state_url)
    else:
        shutil.move(folder / "state.db", state_url.removeprefix("sqlite:///"))
    pipeline = Pipeline(folder, {**SETTINGS, "NAMI_AMP_STATE_URL": state_url}, open_at=LATER)
    yield pipeline, accepted
    pipeline.close()


def unknown(context: Context) -> set[tuple[int, str]]:
    """Integration and id of the events whose outcome the killed processes did not record."""
    boxes, lanes = tables.outboxes, tables.lanes
    with context.store.begin() as tx:
        rows = tx.execute(
            sa.select(lanes, boxes.c.file, boxes.c.integration_id)
            .join(boxes, boxes.c.id == lanes.c.outbox_id)
            .where(lanes.c.unknown_since.is_not(None))
        ).all()
    found = set()
    for lane in rows:
        ids = context.folder.open_ipc(lane.file).get_batch(lane.batch)["id"].to_pylist()
        found |= {(lane.integration_id, ident) for ident in ids[lane.next_row : lane.attempt_end]}
    return found


@pytest.mark.slow_cases
@pytest.mark.slow
def test_it_is_finished_exactly(opened: tuple[Pipeline, list[str]]) -> None:
    pipeline, accepted = opened
    assert pipeline.context.store.schema_version() == tables.SCHEMA_VERSION
    integrations = {one.key: one for one in all_integrations(pipeline.context.store)}
    assert integrations.keys() == {"app/main", "app/login", "other/device"}
    by_key = {pipeline.context.cipher.decrypt(one.api_key).reveal(): one.id for one in integrations.values()}
    before = [(by_key[json.loads(body)["api_key"]], text) for body in accepted for text in texts_of(body)]
    maybe = unknown(pipeline.context)
    assert maybe, "a request was under way"
    for _ in range(3):
        pipeline.tick()
        pipeline.clock.sleep(300)
    after = [
        (number, text)
        for number, wire in pipeline.wires.items()
        for body in wire.bodies
        for text in texts_of(body.decode())
    ]
    first: dict[tuple[int, str], str] = {}
    again = set()
    for number, text in before + after:
        event = (number, json.loads(text)["insert_id"])
        if event in first:
            assert first[event] == text, "what is sent again is the same bytes"
            again.add(event)
        first.setdefault(event, text)
    assert again == maybe & {(number, json.loads(text)["insert_id"]) for number, text in before}
    assert again
    rows = warehouse_rows(pipeline)
    check_order(rows, list(first))
    check_counts(pipeline, {(number, ident) for number, ident in first}, rows)
    plain = reference.run([[row for row in rows if row["app_id"] == "app"]], reference.Settings())
    assert current_snapshots(pipeline.context.store) == {user: one.properties for user, one in plain.current.items()}, (
        "the current snapshots are those of all that was ever read"
    )
    traced = trace(pipeline.context, "app-0008")
    assert traced.captures[0]["snapshot"] is not None
    assert {one["state"] for one in traced.integrations} <= {"delivered", "skipped", "waiting_for_login"}


def warehouse_rows(pipeline: Pipeline) -> list[dict[str, Any]]:
    with duckdb.connect(str(pipeline.warehouse)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows: list[dict[str, Any]] = (
            connection.sql("FROM nami_events ORDER BY ingested_at").to_arrow_table().to_pylist()
        )
    return rows


def check_order(rows: list[dict[str, Any]], sent: list[tuple[int, str]]) -> None:
    """Each user's events of one tick came in order; and of an integration no user's were sent in two orders."""
    place: dict[str, tuple[datetime, str]] = {row["id"]: (row["created_date"], row["id"]) for row in rows}
    batch = {row["id"]: row["ingested_at"] for row in rows}
    user = {row["id"]: row["user_id"] for row in rows}
    lives: dict[tuple[int, str, datetime], list[tuple[datetime, str]]] = defaultdict(list)
    for number, ident in sent:
        if number != 2:  # events that waited for a login join those of the tick that tells it
            lives[number, user[ident], batch[ident]].append(place[ident])
    assert all(life == sorted(life) for life in lives.values())
    assert max(map(len, lives.values())) > 1


def check_counts(pipeline: Pipeline, sent: set[tuple[int, str]], rows: list[dict[str, Any]]) -> None:
    """captured = delivered + skipped + dead letters + pending; and what is delivered is what was sent."""
    for one in all_integrations(pipeline.context.store):
        numbers = pipeline.status(one)
        selected = {row["id"] for row in rows if row["app_id"] == one.app_id and "unknown" not in row["event_type"]}
        dead, skipped = sum(numbers.dead_letters.values()), sum(numbers.skipped.values())
        assert numbers.captured == len(selected)
        assert numbers.captured == numbers.delivered + skipped + dead + numbers.pending
        assert numbers.delivered == len([ident for number, ident in sent if number == one.id])
        assert dead
        assert numbers.pending == 0 or one.anonymous == "wait_for_login"
        assert (numbers.pending > 0) == (one.anonymous == "wait_for_login")


def test_it_is_left_alone_while_the_older_version_is_at_work(home: tuple[Path, list[str]]) -> None:
    folder, _ = home
    with sqlite3.connect(folder / "state.db") as store:
        store.execute("UPDATE leases SET owner = 'another machine' || owner WHERE expires_at > 0")
    store.close()
    at_work = START + timedelta(minutes=11)  # the leases of the processes that were killed, on another machine
    with pytest.raises(Misconfigured, match="another process is using the store"):
        Pipeline(folder, SETTINGS, open_at=at_work)
    Pipeline(folder, SETTINGS, open_at=LATER).close()
