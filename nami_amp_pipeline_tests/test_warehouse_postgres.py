"""PostgreSQL as the warehouse: what is read and how, late commits, rights, secrets, and errors in one line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pytest

from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.operations.backlog import due
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.state.unreadable import unreadable
from nami_amp_pipeline.storage.duckdb_engine import compute, sql
from nami_amp_pipeline.warehouse import Finding, adbc_reading, open_warehouse
from nami_amp_pipeline.warehouse.adbc_session import Session
from nami_amp_pipeline.warehouse.base import COLUMNS, Places
from nami_amp_pipeline_tests.support.command_line import add, invoke, one_line
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.tls import certificate, tls_before
from nami_amp_pipeline_tests.support.warehouses import PostgresEvents

PASSWORD = "hunter2"
SECOND = 1_000_000
DAY = 86_400 * SECOND
FIRST = int(datetime(2026, 9, 1, tzinfo=UTC).timestamp()) * SECOND


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh_database()


@pytest.fixture
def scene(url: str, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline over an empty warehouse, with one integration."""
    one = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": url})
    one.add("app", user_id_kind="nami_user_id", events=["all"])
    yield one
    one.close()


def events(scene: Pipeline) -> PostgresEvents:
    assert scene.postgres is not None
    return scene.postgres


def row(number: int, ingested_at: datetime = START, **more: Any) -> dict[str, Any]:
    return {
        "id": f"e{number}",
        "app_id": "app",
        "event_type": "user.subscription.renewed",
        "user_id": f"u{number}",
        "created_date": START,
        "ingested_at": ingested_at,
        "payload": json.dumps({"n": number}),
        **more,
    }


def sent(scene: Pipeline) -> list[str]:
    """The ids that Amplitude was sent, in order of their numbers."""
    ids = [event["insert_id"] for wire in scene.wires.values() for event in wire.events]
    return sorted(ids, key=lambda event_id: int(event_id.lstrip("e")))


@dataclass
class Asked:
    """The queries of a reading."""

    keys: list[str]
    rows: list[str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What is asked of the database from now on."""
    found = Asked([], [])
    stream = Session.stream

    def noting(self: Session, queries: list[str], schema: Any, **more: Any) -> Any:
        if "row_count" not in schema.names:  # those that only count
            (found.keys if "part" in schema.names else found.rows).extend(queries)
        return stream(self, queries, schema, **more)

    monkeypatch.setattr(Session, "stream", noting)
    return found


def settings_of(url: str, home: Path, **more: str) -> Settings:
    return Settings.load({"NAMI_AMP_HOME": str(home), "NAMI_AMP_WAREHOUSE_URL": url, **more}, home / "no.env")


def read(settings: Settings, positions: dict[str, int | None], known: str = "false") -> list[tuple[Any, ...]]:
    """Reads as a capture does; ``known`` is a condition over the keys that are not wanted."""
    with compute(settings) as connection, open_warehouse(settings).open(connection, positions) as source:
        connection.execute(f"CREATE TEMP TABLE fresh AS SELECT rid FROM {source.keys} WHERE NOT ({known})")
        return connection.execute(
            f"SELECT id, app_id, ingested_at, payload FROM {source.rows()} SEMI JOIN fresh USING (rid) ORDER BY ALL"
        ).fetchall()


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text", '{"b": 1.50, "a": null, "b": 2}'),
        ("varchar(100)", '{"b": 1.50, "a": null, "b": 2}'),
        ("json", '{"b": 1.50, "a": null, "b": 2}'),
        ("jsonb", '{"a": null, "b": 2}'),
    ],
)
@pytest.mark.slow
def test_payloads_may_be_text_or_json(url: str, tmp_path: Path, kind: str, expected: str) -> None:
    PostgresEvents(url, payload=kind).insert([row(1, payload='{"b": 1.50, "a": null, "b": 2}')])
    assert [found[3] for found in read(settings_of(url, tmp_path), {"app": None})] == [expected]


def test_each_app_is_read_from_its_own_position(url: str, tmp_path: Path) -> None:
    table = PostgresEvents(url)
    for app in ("old", "new", "other", "o'dd"):
        table.run("ALTER TABLE nami_events ALTER user_id DROP NOT NULL")
        table.insert([row(n, START + timedelta(days=n), app_id=app, user_id=None) for n in range(5)])
    found = read(settings_of(url, tmp_path), {"old": None, "new": FIRST + 3 * DAY, "o'dd": FIRST + 4 * DAY})
    assert [(app, id_) for id_, app, _, _ in sorted(found, key=lambda one: (one[1], one[0]))] == [
        ("new", "e3"), ("new", "e4"), ("o'dd", "e4"),
        ("old", "e0"), ("old", "e1"), ("old", "e2"), ("old", "e3"), ("old", "e4"),
    ]  # fmt: skip


def test_any_names_of_very_many_apps(url: str, tmp_path: Path) -> None:
    table = PostgresEvents(url)
    odd = ["o'dd", 'qu"ote', "back\\slash", "a,b", "{brace}", "NULL", " ", "%s", "ü", "\\'"]
    for number, app in enumerate([*odd, "not asked for"]):
        table.insert([row(number, app_id=app)])
    apps = [*odd, *(f"app-{number}" for number in range(300))]
    found = read(settings_of(url, tmp_path), dict.fromkeys(apps))
    assert sorted(app for _, app, _, _ in found) == sorted(odd)


def test_payloads_of_known_rows_are_not_read_again(url: str, tmp_path: Path, asked: Asked) -> None:
    table = PostgresEvents(url)
    table.fill(3 * adbc_reading.GAP_ROWS + 1_000)
    first, last = 500, 3 * adbc_reading.GAP_ROWS + 600
    fresh = f"epoch_us(ingested_at) IN ({FIRST + first * SECOND}, {FIRST + last * SECOND})"
    found = read(settings_of(url, tmp_path), {"app": FIRST}, known=f"NOT {fresh}")
    assert [one[0] for one in found] == [f"app-{first}", f"app-{last}"]
    assert len(asked.rows) == 2
    assert [len(table.run(query)) for query in asked.rows] == [1, 1]


def test_the_same_row_loaded_twice_is_read_once_and_whole(url: str, tmp_path: Path) -> None:
    table = PostgresEvents(url)
    count = 2_500  # more than are asked for at a time
    rows = [row(n, START + timedelta(seconds=n)) for n in range(count)]
    table.insert(rows)
    table.insert([{**one, "payload": '{"again": true}', "user_id": "again"} for one in rows])
    table.insert([row(count)])
    settings = settings_of(url, tmp_path)
    with compute(settings) as connection, open_warehouse(settings).open(connection, {"app": None}) as source:
        connection.execute(f"CREATE TEMP TABLE fresh AS SELECT min(rid) AS rid FROM {source.keys} GROUP BY id")
        found = connection.execute(f"SELECT id, user_id, payload FROM {source.rows()}").fetchall()
    assert sorted(one[0] for one in found) == sorted(f"e{n}" for n in range(count + 1))
    assert all((user == "again") == ("again" in payload) for _, user, payload in found)


@pytest.mark.slow
def test_times_beyond_all_reason_stop_nothing(scene: Pipeline) -> None:
    events(scene).insert([row(1, created_date="infinity"), row(2, ingested_at="infinity"), row(3)])  # type: ignore[arg-type]
    scene.tick()
    assert sent(scene) == ["e3"]
    assert [(one.reason, one.rows) for one in unreadable(scene.context.store)] == [("bad_ingested_at", 1)]


def test_a_view_will_do(url: str, tmp_path: Path) -> None:
    table = PostgresEvents(url)
    table.insert([row(1), row(1)])
    table.run("CREATE SCHEMA marts")
    table.run("CREATE VIEW marts.events AS SELECT * FROM nami_events")
    settings = settings_of(url, tmp_path, NAMI_AMP_WAREHOUSE_SCHEMA="marts", NAMI_AMP_WAREHOUSE_TABLE="events")
    assert [one[0] for one in read(settings, {"app": None}, known="rid > 1")] == ["e1"]
    assert [finding.level for finding in open_warehouse(settings).check()] == ["ok", "ok", "ok"]


def test_a_partitioned_table_will_do(url: str, tmp_path: Path, asked: Asked) -> None:
    table = PostgresEvents(url, create=False)
    plain = (
        sql("nami_events_postgres").partition("CREATE INDEX")[0].replace(");", ") PARTITION BY RANGE (ingested_at);")
    )
    table.run(plain)
    for day in (1, 2, 3):
        table.run(
            f"CREATE TABLE day{day} PARTITION OF nami_events FOR VALUES FROM ('2026-09-0{day} UTC') "
            f"TO ('2026-09-0{day + 1} UTC')"
        )
    settings = settings_of(url, tmp_path)
    assert open_warehouse(settings).check()[-1].level == "warning"
    table.run("CREATE INDEX ON nami_events (app_id, ingested_at)")
    assert open_warehouse(settings).check()[-1].level == "ok"
    table.insert([row(n, START + timedelta(hours=n)) for n in range(72)])
    found = read(settings, {"app": FIRST + 2 * DAY})
    assert len(found) == 24
    assert "day1" not in plans(table, asked.keys + asked.rows)


@pytest.mark.slow
def test_what_waits_and_where_an_event_is(scene: Pipeline) -> None:
    events(scene).insert([row(1), row(2, START + timedelta(seconds=5)), row(3, app_id="off")])
    assert [(one.what, one.since) for one in due(scene.context)] == [("rows of app in the warehouse", FIRST)]
    scene.tick()
    assert due(scene.context) == []
    events(scene).insert([row(2, START + timedelta(seconds=9), user_id="it's \\' her")])
    found = trace(scene.context, "e2")
    assert [one["user_id"] for one in found.warehouse] == ["u2", "it's \\' her"]
    assert found.integrations[0]["state"] == "delivered"
    assert trace(scene.context, "'; DROP TABLE nami_events; --").warehouse == []


# -- cost --------------------------------------------------------------------------------------------------------------


def plans(table: PostgresEvents, queries: list[str]) -> str:
    return "\n".join(line for query in queries for (line,) in table.run(f"EXPLAIN {query}"))


@pytest.mark.slow
def test_a_tick_reads_by_the_index(url: str, tmp_path: Path, asked: Asked) -> None:
    table = PostgresEvents(url)
    for app in ("app", "other"):
        table.fill(100_000, app=app)
    table.run("ANALYZE nami_events")
    position = FIRST + 99_000 * SECOND
    found = read(
        settings_of(url, tmp_path), {"app": position, "other": position + 1}, known="ingested_at < '2026-01-01'"
    )
    assert len(found) == 2_002
    assert len(asked.keys) == len(asked.rows) == 1  # apps that are about as far are asked for together
    for queries in (asked.keys, asked.rows):
        plan = plans(table, queries)
        assert "nami_events_app_id_ingested_at" in plan, plan
        assert "Seq Scan" not in plan, plan
    table.run("DROP INDEX nami_events_app_id_ingested_at")
    assert "Seq Scan" in plans(table, asked.keys)


@pytest.mark.slow
def test_an_event_of_a_large_table_is_looked_for_by_the_index_there_is(
    url: str, tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = PostgresEvents(url)
    for app in ("app", "other"):
        table.fill(100_000, app=app)
    table.insert([row(7, START + timedelta(days=9), id="app-7"), row(8, START + timedelta(days=9), app_id="other")])
    table.run("ANALYZE nami_events")
    settings = settings_of(url, tmp_path)
    places = Places([("app", FIRST + 7 * SECOND), ("app", FIRST + 9 * DAY)], {"app": FIRST + 8 * DAY, "new": FIRST})

    def find(event_id: str, places: Places | None = places) -> tuple[list[int], bool]:
        asked.rows.clear()
        with compute(settings) as connection:
            found = open_warehouse(settings).find(connection, event_id, places)
        return [(one.ingested_at - FIRST) // SECOND for one in found.rows], found.is_whole

    assert find("app-7") == ([7, 9 * 86_400], True)  # it is not large
    monkeypatch.setattr("nami_amp_pipeline.warehouse.postgres._LONG", 1_000)
    assert find("app-7") == ([7, 9 * 86_400], False)  # each row once, though one is in two places
    assert len(asked.rows) == 3
    plan = plans(table, asked.rows)
    assert "nami_events_app_id_ingested_at" in plan, plan
    assert "Seq Scan" not in plan, plan
    assert find("app-8") == ([], False)  # in none of the places
    assert find("app-8", Places([], {})) == ([], False)
    assert find("app-8", None) == ([8], True)
    assert "Seq Scan" in plans(table, asked.rows)
    table.run("CREATE VIEW seen AS SELECT * FROM nami_events")
    settings = settings_of(url, tmp_path, NAMI_AMP_WAREHOUSE_TABLE="seen")
    assert find("app-8") == ([], False)
    table.run("CREATE INDEX ON nami_events (id)")
    assert find("app-8") == ([8], True)
    assert "Seq Scan" not in plans(table, asked.rows)


@pytest.mark.slow
def test_trace_says_where_it_did_not_look(scene: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nami_amp_pipeline.warehouse.postgres._LONG", -1.0)
    events(scene).insert([row(1)])
    scene.clock.set(START + timedelta(days=1))
    scene.tick()
    scene.clock.set(START + timedelta(days=30))
    new = START + timedelta(days=30)
    events(scene).insert([row(1, START + timedelta(hours=-1), user_id="before"), row(1, new, user_id="again")])
    events(scene).insert([row(2, new), row(3, new, app_id="unknown")])
    assert [one["user_id"] for one in trace(scene.context, "e1").warehouse] == ["u1", "again"]
    assert [one["state"] for one in trace(scene.context, "e2").integrations] == ["not_captured"]
    assert not trace(scene.context, "e3").is_known
    assert trace(scene.context, "e3", whole_table=True).is_known
    found = trace(scene.context, "e1", whole_table=True)
    assert [one["user_id"] for one in found.warehouse] == ["before", "u1", "again"]
    assert found.warehouse_is_whole

    home = {"NAMI_AMP_WAREHOUSE_URL": scene.settings.warehouse_url, "NAMI_AMP_HOME": str(scene.settings.home)}
    bounded, whole = (
        invoke(scene.settings.home, "trace", "e1", "--full", *more, settings=home) for more in ((), ("--whole-table",))
    )
    assert bounded.exit_code == whole.exit_code == 0
    assert "--whole-table" in bounded.stdout
    assert "--whole-table" not in whole.stdout
    unknown = invoke(scene.settings.home, "trace", "e3", settings=home)
    assert unknown.exit_code == 1
    assert "--whole-table reads all of the warehouse" in unknown.output


def test_a_missing_index_is_said_once_a_run_with_the_statement(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = PostgresEvents(url, index=False)
    scene = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": url}, table)
    scene.add("app", user_id_kind="nami_user_id")
    scene.add("another", user_id_kind="nami_user_id")
    with caplog.at_level(logging.WARNING):
        for number, app in enumerate(("app", "another")):
            table.insert([row(number, app_id=app)])
            stages.capture_apps(scene.context, [app])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    *_, finding = scene.context.warehouse.check()
    assert finding.level == "warning"
    assert finding.fix is not None
    assert said == [f"{finding.message}; run: {finding.fix}"]
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(finding.fix)
    connection.close()
    assert [one.level for one in scene.context.warehouse.check()] == ["ok", "ok", "ok"]
    table.run("DROP INDEX nami_events_app_id_ingested_at_idx")
    table.run("CREATE INDEX ON nami_events (ingested_at, app_id)")
    assert scene.context.warehouse.check()[-1].level == "ok"
    scene.close()


@pytest.mark.slow
def test_the_driver_is_loaded_by_those_only_who_read(url: str, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom nami_amp_pipeline.cli import cli\n"
        "try:\n    cli.main(['status'])\nexcept SystemExit as end: assert not end.code, end.code\n"
        "sys.exit(any(name.startswith('adbc') for name in sys.modules))"
    )
    environ = {"NAMI_AMP_HOME": str(tmp_path), "NAMI_AMP_WAREHOUSE_URL": url}
    done = subprocess.run([sys.executable, "-c", program], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- late commits ------------------------------------------------------------------------------------------------------


@pytest.mark.contract("1.2")
@pytest.mark.slow
def test_rows_that_commit_five_minutes_late_are_delivered_once(scene: Pipeline) -> None:
    table = events(scene)
    late = psycopg2.connect(table.url)
    with late.cursor() as cursor:
        cursor.execute("SELECT now()")
        ((began,),) = cursor.fetchall()
        # now() is when the transaction began, however late it commits.
        cursor.execute(
            "INSERT INTO nami_events (id, app_id, event_type, user_id, created_date, payload) "
            "VALUES ('e0', 'app', 'user.subscription.renewed', 'u0', now(), '{}')"
        )

    def minutes_on(minutes: float, number: int) -> None:
        moment = began + timedelta(minutes=minutes)
        scene.clock.set(moment)
        table.insert([row(number, moment)])
        scene.tick()

    minutes_on(0.1, 1)
    minutes_on(2.5, 2)
    assert sent(scene) == ["e1", "e2"]
    scene.clock.set(began + timedelta(minutes=5))
    late.commit()
    late.close()
    scene.tick()
    assert sent(scene) == ["e0", "e1", "e2"]
    for number, minutes in enumerate((7.5, 10, 12.5, 15, 20, 25), start=3):
        minutes_on(minutes, number)
    assert sent(scene) == [f"e{number}" for number in range(9)]


@pytest.mark.contract("1.2")
@pytest.mark.slow
def test_after_a_quiet_hour_a_late_row_may_be_far_behind(scene: Pipeline) -> None:
    table = events(scene)
    table.insert([row(1, START)])
    scene.clock.set(START)
    scene.tick()
    for minutes in (15, 30, 45, 60):
        scene.clock.set(START + timedelta(minutes=minutes))
        scene.tick()
    with table.transaction() as cursor:  # begun after half an hour, and still open when the next row becomes visible
        table.insert([row(0, START + timedelta(minutes=30))], cursor)
        table.insert([row(2, START + timedelta(minutes=61))])
        scene.clock.set(START + timedelta(minutes=61))
        scene.tick()
        assert sent(scene) == ["e1", "e2"]
        scene.clock.set(START + timedelta(minutes=66))
    scene.tick()
    assert sent(scene) == ["e0", "e1", "e2"]


@pytest.mark.slow
def test_what_commits_after_the_window_is_not_waited_for(scene: Pipeline) -> None:
    table = events(scene)
    for number, minutes in enumerate((0, 5, 10, 15, 20, 25, 30, 35)):
        moment = START + timedelta(minutes=minutes)
        scene.clock.set(moment)
        table.insert([row(number, moment)])
        scene.tick()
    table.insert([row(100, START + timedelta(minutes=1))])
    scene.tick()
    assert "e100" not in sent(scene)
    table.insert([row(101, START + timedelta(minutes=34))])
    scene.tick()
    assert "e101" in sent(scene)


@pytest.mark.slow
def test_a_row_from_next_year_hides_none_of_this_year(tmp_path: Path, warehouse_url: str) -> None:
    scene = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": warehouse_url})
    scene.add("app", user_id_kind="nami_user_id", events=["all"])
    scene.insert([row(0, START + timedelta(days=365))])
    for number, minutes in enumerate((0, 11, 22, 33), start=1):
        scene.clock.set(START + timedelta(minutes=minutes))
        scene.tick()
        scene.insert([row(number, START + timedelta(minutes=minutes))])
    scene.tick()
    assert sent(scene) == [f"e{number}" for number in range(5)]
    scene.close()


def test_a_reading_sees_one_moment(url: str, tmp_path: Path) -> None:
    table = PostgresEvents(url)
    table.insert([row(1), row(2)])
    settings = settings_of(url, tmp_path)
    with compute(settings) as connection, open_warehouse(settings).open(connection, {"app": None}) as source:
        table.insert([row(1), row(3)])
        table.run("DELETE FROM nami_events WHERE id = 'e2'")
        connection.execute(f"CREATE TEMP TABLE fresh AS SELECT rid FROM {source.keys}")
        assert sorted(connection.execute(f"SELECT id FROM {source.rows()}").fetchall()) == [("e1",), ("e2",)]


# -- rights and secrets ------------------------------------------------------------------------------------------------


def role_of(url: str, name: str, *rights: str) -> str:
    """The address for a new role that has these rights and no others."""
    table = PostgresEvents(url)
    role = f"{name}_{table.run('SELECT current_database()')[0][0]}"
    table.run(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    for right in rights:
        table.run(f"GRANT {right} TO {role}")
    head, _, rest = url.partition("://")
    return f"{head}://{role}:{PASSWORD}@{rest.partition('@')[2]}"


@pytest.mark.parametrize("right", ["SELECT ON nami_events", f"SELECT ({', '.join(COLUMNS)}) ON nami_events"])
@pytest.mark.contract("1.1")
@pytest.mark.slow
def test_select_is_all_that_is_needed(url: str, tmp_path: Path, right: str) -> None:
    mine = role_of(url, "reader", right)
    table = PostgresEvents(url)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        PostgresEvents(mine, create=False).run("DELETE FROM nami_events")
    scene = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": mine}, table)
    scene.add("app", user_id_kind="nami_user_id", events=["all"])
    table.insert([row(1), row(2)])
    scene.tick()
    assert sent(scene) == ["e1", "e2"]
    assert [one.level for one in scene.context.warehouse.check()] == ["ok", "ok", "ok"]
    assert trace(scene.context, "e1").warehouse
    scene.close()


@pytest.mark.contract("1.1")
def test_it_could_not_write_if_it_wanted_to(url: str, tmp_path: Path) -> None:
    from adbc_driver_manager import Error

    from nami_amp_pipeline.warehouse.postgres import PostgresWarehouse

    PostgresEvents(url)
    warehouse = PostgresWarehouse(settings_of(url, tmp_path))
    with warehouse.connect() as db:
        session = Session(db)
        warehouse.begin(session)
        with pytest.raises(Error, match="read-only transaction"):
            session.execute("DELETE FROM nami_events")


@pytest.fixture
def with_passwords(postgres: Postgres) -> Iterator[None]:
    """The server asks roles whose name begins so for their password."""
    if postgres.hba_file is None:
        pytest.skip("not our own server")
    before = postgres.hba_file.read_text()
    postgres.hba_file.write_text("local all /^guarded scram-sha-256\n" + before)
    PostgresEvents(postgres.url, create=False).run("SELECT pg_reload_conf()")
    yield
    postgres.hba_file.write_text(before)
    PostgresEvents(postgres.url, create=False).run("SELECT pg_reload_conf()")


@pytest.mark.usefixtures("with_passwords")
def test_a_password_may_come_from_a_file(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = role_of(url, "guarded", "SELECT ON nami_events")
    PostgresEvents(url).insert([row(1)])
    without = mine.replace(f":{PASSWORD}@", "@")
    file = tmp_path / "pgpass"
    file.write_text(f"*:*:*:*:{PASSWORD}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    (finding,) = open_warehouse(settings_of(without, tmp_path)).check()
    assert "no password supplied" in finding.message
    assert len(read(settings_of(mine, tmp_path), {"app": None})) == 1
    monkeypatch.setenv("PGPASSFILE", str(file))
    assert len(read(settings_of(without, tmp_path), {"app": None})) == 1


@pytest.mark.usefixtures("with_passwords")
def test_a_wrong_password_is_said_in_a_line_without_it(url: str, tmp_path: Path) -> None:
    mine = role_of(url, "guarded", "SELECT ON nami_events").replace(PASSWORD, f"{PASSWORD}%40wrong")
    found = said(settings_of(mine, tmp_path))
    assert "cannot connect to PostgreSQL database" in found
    assert "password authentication failed" in found
    assert PASSWORD not in found
    assert "wrong" not in found


@pytest.mark.slow
def test_a_run_that_cannot_connect_says_so_and_its_password_nowhere(tmp_path: Path) -> None:
    add(tmp_path, "http://127.0.0.1:9/2/httpapi")
    address = {"NAMI_AMP_WAREHOUSE_URL": f"postgresql://u:{PASSWORD}@127.0.0.1:1/x"}
    done = invoke(tmp_path, "run", "--json", settings=address)
    assert done.exit_code == 1
    assert "cannot connect to PostgreSQL database x on 127.0.0.1:1" in one_line(done.stderr)
    assert "cannot connect" in json.loads(done.stdout)["integrations"][0]["error"]
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(b"cannot connect to PostgreSQL" in text for text in written) > 0  # Dagster's history has the line
    for text in (*written, done.stdout.encode(), done.stderr.encode()):
        assert PASSWORD.encode() not in text


def test_load_fills_no_other_database(tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_text("")
    address = {"NAMI_AMP_WAREHOUSE_URL": f"postgresql://u:{PASSWORD}@127.0.0.1:1/x"}
    done = invoke(tmp_path, "load", "events.ndjson", "--app", "app", settings=address)
    assert done.exit_code == 2
    assert "COPY" in one_line(done.stderr)


def test_tls_is_as_the_address_says(url: str, tmp_path: Path) -> None:
    folder = url.partition("host=")[2]
    if not folder.startswith("/"):
        pytest.skip("not our own server")
    PostgresEvents(url).insert([row(1)])
    database = url.partition("?")[0].rpartition("/")[2]
    with tls_before(f"{folder}/.s.PGSQL.5432", certificate(tmp_path, "good")) as port:
        address = f"postgresql://postgres@localhost:{port}/{database}?sslmode="
        trusted = f"{address}verify-full&sslrootcert={tmp_path / 'good.pem'}"
        assert len(read(settings_of(trusted, tmp_path), {"app": None})) == 1
        other = certificate(tmp_path, "other")
        found = said(settings_of(f"{address}verify-full&sslrootcert={other}", tmp_path))
        assert "certificate verify failed" in found
        assert "cannot connect to" in said(settings_of(f"{address}disable", tmp_path))


def said(settings: Settings) -> str:
    """What a reading that cannot be says: one line, the same as the check's."""
    with pytest.raises(WarehouseUnavailable) as caught:
        read(settings, {"app": None})
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    finding = open_warehouse(settings).check()[-1]
    assert (finding.level, finding.message) == ("error", message)
    return message


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://u:{PASSWORD}@127.0.0.1:1/x",
        f"postgresql://127.0.0.1:1,127.0.0.1:2/x?user=u&password={PASSWORD}&connect_timeout=1",
        f"postgresql://u:{PASSWORD}@no.such.host.invalid/x",
        f"postgresql://u:{PASSWORD}@127.0.0.1:1/x?sslmode=verify-full&sslrootcert=/none",
        f"postgresql://u:{PASSWORD}@127.0.0.1:1/x?nonsense=1",
    ],
)
def test_a_password_is_not_to_be_seen(address: str, tmp_path: Path) -> None:
    settings = settings_of(address, tmp_path)
    warehouse = open_warehouse(settings)
    seen = [repr(settings), repr(warehouse), str(warehouse), warehouse.name, said(settings), str(warehouse.check())]
    assert not [text for text in seen if PASSWORD in text]
    assert "x on" in warehouse.name


@pytest.mark.parametrize("password", ["a/hunter2", "hunter2@b", "hunter2?", "x:hunter2/y", "a#hunter2"])
def test_a_password_of_odd_letters_is_taken_and_not_to_be_seen(password: str, tmp_path: Path) -> None:
    settings = settings_of(f"postgresql://user:{password}@127.0.0.1:1/database", tmp_path)
    warehouse = open_warehouse(settings)
    seen = [repr(settings), repr(warehouse), warehouse.name, said(settings), str(warehouse.check())]
    assert not [text for text in seen if "hunter2" in text]
    assert "database on 127.0.0.1" in warehouse.name


@pytest.mark.parametrize(
    "address", ["user:%zzhunter2@host", "user:hunter2@host:port", "user:hunter2@[host", "hunter2#"]
)
def test_an_address_that_cannot_be_parsed_is_not_shown(address: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as caught:
        open_warehouse(settings_of(f"postgresql://{address}/database", tmp_path))
    assert "NAMI_AMP_WAREHOUSE_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_database_that_is_not_there(url: str, tmp_path: Path) -> None:
    found = said(settings_of(url.replace("/test_", "/no_test_"), tmp_path))
    assert "does not exist" in found


def test_a_missing_table(url: str, tmp_path: Path) -> None:
    assert "there is no table nami_events in PostgreSQL database" in said(settings_of(url, tmp_path))
    assert "there is no table dbt.nami_events" in said(settings_of(url, tmp_path, NAMI_AMP_WAREHOUSE_SCHEMA="dbt"))


def test_a_missing_right(url: str, tmp_path: Path) -> None:
    mine = role_of(url, "nobody")
    assert "GRANT SELECT ON" in said(settings_of(mine, tmp_path))
    table = PostgresEvents(url)
    table.run("CREATE SCHEMA hidden")
    table.run("CREATE TABLE hidden.nami_events AS TABLE nami_events")
    assert "USAGE" in said(settings_of(mine, tmp_path, NAMI_AMP_WAREHOUSE_SCHEMA="hidden"))
    table.run(f"GRANT SELECT (id, app_id) ON nami_events TO {mine.partition('//')[2].partition(':')[0]}")
    assert "GRANT SELECT ON" in said(settings_of(mine, tmp_path))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("ALTER ingested_at TYPE timestamp", "ingested_at of table nami_events is timestamp without time zone"),
        ("ALTER id TYPE varchar(40)", ""),
        ("ALTER payload TYPE bytea USING NULL", "payload of table nami_events is bytea"),
        ("RENAME user_id TO person", "has no column user_id"),
    ],
)
def test_columns_of_another_type(url: str, tmp_path: Path, change: str, expected: str) -> None:
    PostgresEvents(url).run(f"ALTER TABLE nami_events {change}")
    if expected:
        assert expected in said(settings_of(url, tmp_path))
    else:
        assert read(settings_of(url, tmp_path), {"app": None}) == []


def test_a_statement_timeout(url: str, tmp_path: Path) -> None:
    table = PostgresEvents(url)
    table.run("ALTER TABLE nami_events RENAME TO slow")
    table.run("CREATE VIEW nami_events AS SELECT slow.* FROM slow, pg_sleep(5)")
    table.run("INSERT INTO slow SELECT 'e', 'app', 't', 'u', now(), now(), '{}'")
    with pytest.raises(WarehouseUnavailable) as caught:
        read(settings_of(f"{url}&options=-c%20statement_timeout%3D300", tmp_path), {"app": None})
    found = str(caught.value)
    assert "statement_timeout" in found
    assert "\n" not in found


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server that may be restarted: after a crash, one with all the databases of these tests is back in minutes."""
    server = Postgres()
    if server.hba_file is None:
        pytest.skip("not our own server")
    yield server
    server.stop()


@pytest.mark.slow
def test_a_restart_in_mid_read_captures_nothing_and_the_next_tick_all(
    own_server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 25_000
    scene = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": own_server.fresh_database()})
    scene.add("app", user_id_kind="nami_user_id", events=["all"])
    events(scene).fill(rows, bytes_each=1_500)
    fetch = Session._batches
    restarts = iter(["immediate", "fast"])

    def broken(self: Session, queries: Any, schema: Any, *more: Any) -> Iterator[Any]:
        for number, batch in enumerate(fetch(self, queries, schema, *more)):
            if number == 1 and "payload" in schema.names and (mode := next(restarts, None)):
                own_server.restart(mode)
            yield batch

    monkeypatch.setattr(Session, "_batches", broken)
    for _ in range(2):
        with pytest.raises(WarehouseUnavailable, match="the next run reads the same rows again") as caught:
            stages.capture_apps(scene.context)
        assert "\n" not in str(caught.value)
        assert not list(scene.settings.data_dir.rglob("*.part"))
    captured = stages.capture_apps(scene.context)["app"]
    assert captured.rows == rows
    scene.close()


def test_what_duckdb_has_to_say_of_itself_is_not_taken_for_the_warehouse(url: str, tmp_path: Path) -> None:
    PostgresEvents(url).insert([row(1)])
    settings = settings_of(url, tmp_path)
    with (
        pytest.raises(duckdb.CatalogException),
        compute(settings) as connection,
        open_warehouse(settings).open(connection, {"app": None}),
    ):
        connection.execute("FROM there_is_no_such_table")


@pytest.mark.slow
def test_findings_are_for_people(url: str, tmp_path: Path) -> None:
    PostgresEvents(url)
    connected, *_ = open_warehouse(settings_of(url, tmp_path)).check()
    assert connected == Finding("connection", "ok", connected.message)
    assert "PostgreSQL database test_" in connected.message
