"""What an events table may be made of: views, other types of columns, partitions, policies, names that need quotes."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from nami_amp_pipeline.operations import doctor
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.storage.duckdb_engine import compute
from nami_amp_pipeline.warehouse import Finding, open_warehouse, schemes
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.warehouses import PostgresEvents
from nami_amp_pipeline_tests.test_warehouse_postgres import role_of

pytestmark = pytest.mark.slow_cases

UUIDS = [f"00000000-0000-4000-8000-{number:012d}" for number in range(4)]
COLUMNS = (
    "id text, app_id text, event_type text, user_id text, "
    "created_date timestamptz, ingested_at timestamptz, payload text"
)


def values(id_: str, app: str, user: str, minutes: float = 0) -> str:
    at = (START + timedelta(minutes=minutes)).isoformat()
    return f"('{id_}', '{app}', 'user.subscription.renewed', '{user}', '{at}', '{at}', '{json.dumps({'n': 1})}')"


def ids(scene: Pipeline) -> list[str]:
    return sorted(event["insert_id"] for wire in scene.wires.values() for event in wire.events)


def scene_over(tmp_path: Path, ddl: str, **environ: str) -> Pipeline:
    scene = Pipeline(tmp_path, environ)
    with duckdb.connect(str(scene.warehouse)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("DROP TABLE nami_events")
        connection.execute(ddl)
    scene.add("app", user_id_kind="nami_user_id")
    return scene


VIEWS = {
    "table": "CREATE TABLE raw ({columns}); CREATE VIEW nami_events AS FROM raw",
    "casts": "CREATE TABLE raw (id uuid, app_id text, event_type text, user_id bigint, created_date text, "
    "ingested_at text, payload json); CREATE VIEW nami_events AS SELECT id::VARCHAR AS id, app_id, event_type, "
    "user_id::VARCHAR AS user_id, created_date::TIMESTAMPTZ AS created_date, ingested_at::TIMESTAMPTZ AS ingested_at, "
    "payload FROM raw",
    "union": "CREATE TABLE raw ({columns}); CREATE TABLE old AS FROM raw; "
    "CREATE VIEW nami_events AS FROM raw UNION ALL BY NAME FROM old",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_of_a_duckdb_file(kind: str, tmp_path: Path) -> None:
    scene = scene_over(tmp_path, VIEWS[kind].format(columns=COLUMNS))
    for number, minutes in enumerate((0, 1, 30, 61)):
        with duckdb.connect(str(scene.warehouse)) as connection:
            row = values(UUIDS[number], "app", "7", minutes)
            connection.execute(f"INSERT INTO raw VALUES {row}, {row}, {values(UUIDS[0], 'app', '7', minutes)}")
        for _ in range(2):
            scene.clock.set(START + timedelta(minutes=minutes + 1))
            scene.tick()
            assert ids(scene) == UUIDS[: number + 1]
    assert trace(scene.context, UUIDS[1])
    scene.close()


@pytest.mark.slow
def test_a_view_over_parquet_files(tmp_path: Path) -> None:
    folder = tmp_path / "lake"
    folder.mkdir()

    def write(name: str, *rows: str) -> None:
        with duckdb.connect() as connection:
            connection.execute(f"CREATE TABLE t ({COLUMNS}); INSERT INTO t VALUES {', '.join(rows)}")
            connection.execute(f"COPY t TO '{folder / name}' (FORMAT parquet)")

    write("1.parquet", values("a", "app", "u"), values("b", "app", "u"))
    scene = scene_over(tmp_path / "home", f"CREATE VIEW nami_events AS FROM read_parquet('{folder}/*.parquet')")
    scene.tick()
    write("2.parquet", values("c", "app", "u", 1), values("a", "app", "u", 1))
    scene.clock.set(START + timedelta(minutes=2))
    scene.tick()
    assert ids(scene) == ["a", "b", "c"]
    for file in folder.iterdir():
        file.unlink()
    ((finding),) = doctor.check_warehouse(scene.settings)
    assert finding.level == "error"
    assert "cannot read" in finding.message
    scene.close()


def test_uuid_enum_and_number_columns_of_a_duckdb_file(tmp_path: Path) -> None:
    scene = scene_over(
        tmp_path,
        "CREATE TYPE kind AS ENUM ('user.subscription.renewed', 'other'); CREATE TYPE apps AS ENUM ('app', 'b'); "
        "CREATE TABLE nami_events (id uuid, app_id apps, event_type kind, user_id bigint, created_date timestamptz, "
        f"ingested_at timestamptz, payload json, rid text, problem text); "
        f"INSERT INTO nami_events (id, app_id, event_type, user_id, created_date, ingested_at, payload) "
        f"VALUES {values(UUIDS[0], 'app', '42')}, {values(UUIDS[1], 'b', '42')}",
    )
    scene.tick()
    ((event),) = [event for wire in scene.wires.values() for event in wire.events]
    assert (event["insert_id"], event["user_id"]) == (UUIDS[0], "42")
    assert trace(scene.context, UUIDS[0])
    assert trace(scene.context, "no uuid at all") is not None
    scene.close()


@pytest.mark.parametrize("names", [("raw-events", "nami events"), ('a"b', "select"), ("", "Événements")])
def test_names_that_need_quotes(names: tuple[str, str], tmp_path: Path, warehouse_url: str) -> None:
    schema, table = names
    quoted = '"' + table.replace('"', '""') + '"'
    if schema:
        quoted = '"' + schema.replace('"', '""') + '".' + quoted
    scene = Pipeline(
        tmp_path,
        {
            "NAMI_AMP_WAREHOUSE_URL": warehouse_url,
            "NAMI_AMP_WAREHOUSE_SCHEMA": schema,
            "NAMI_AMP_WAREHOUSE_TABLE": table,
        },
    )
    statements = [f"CREATE SCHEMA {quoted.rpartition(chr(46))[0]}"] if schema else []
    statements += [f"CREATE TABLE {quoted} ({COLUMNS})", f"INSERT INTO {quoted} VALUES {values('e1', 'app', 'u')}"]
    for statement in statements:
        if scene.postgres is not None:
            scene.postgres.run(statement)
        else:
            with duckdb.connect(str(scene.warehouse)) as connection:
                connection.execute(statement)
    scene.add("app", user_id_kind="nami_user_id")
    scene.tick()
    assert ids(scene) == ["e1"]
    assert all(finding.level != "error" for finding in doctor.check_warehouse(scene.settings))
    scene.close()


TYPES = {
    "uuid": ("id uuid, app_id text, event_type text, user_id uuid", UUIDS[0], "app", UUIDS[1]),
    "enum and bigint": ("id text, app_id apps, event_type kind, user_id bigint", "e", "app", "42"),
    "char": ("id char(36), app_id char(8), event_type char(40), user_id char(10)", "e", "app", "u"),
    "citext": ("id citext, app_id citext, event_type citext, user_id citext", "e", "app", "u"),
    "domains": ("id outer_id, app_id outer_text, event_type text, user_id outer_text", UUIDS[0], "app", "u"),
    "numbers": ("id bigint, app_id integer, event_type varchar(50), user_id numeric", "17", "12", "5"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_columns_of_postgresql_may_be_of_other_types(kind: str, postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.fresh_database()
    table = PostgresEvents(url, create=False)
    columns, event_id, app, user = TYPES[kind]
    try:
        table.run("CREATE EXTENSION IF NOT EXISTS citext")
    except Exception:  # noqa: BLE001 - a server without its contributions
        if kind == "citext":
            pytest.skip("the server has no citext")
    for statement in (
        "CREATE TYPE apps AS ENUM ('app', 'other')",
        "CREATE TYPE kind AS ENUM ('user.subscription.renewed')",
        "CREATE DOMAIN inner_id AS uuid",
        "CREATE DOMAIN outer_id AS inner_id CHECK (value IS NOT NULL)",
        "CREATE DOMAIN inner_text AS text",
        "CREATE DOMAIN outer_text AS inner_text",
        "CREATE DOMAIN moment AS timestamptz",
        f"CREATE TABLE nami_events ({columns}, created_date moment, ingested_at timestamptz, payload jsonb)",
        "CREATE INDEX ON nami_events (app_id, ingested_at)",
        f"INSERT INTO nami_events VALUES {values(event_id, app, user)}, {values(event_id, app, user)}",
    ):
        table.run(statement)
    scene = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": url}, table)
    scene.add(app, user_id_kind="nami_user_id")
    scene.add("no-such-app", user_id_kind="nami_user_id")  # which an enum, a uuid or a number cannot be compared with
    scene.tick()
    scene.tick()
    ((event),) = [event for wire in scene.wires.values() for event in wire.events]
    assert (event["insert_id"], event["user_id"]) == (event_id, user)
    assert trace(scene.context, event_id)
    assert trace(scene.context, "neither uuid nor number") is not None
    warehouse = open_warehouse(scene.settings)
    with compute(scene.settings) as connection:
        assert warehouse.oldest(connection, [app, "no-such-app"], 0) == {app: int(START.timestamp()) * 1_000_000}
    condition = warehouse.among("app_id", [app, "no-such-app"])  # type: ignore[attr-defined]
    plan = table.run(
        "SET enable_seqscan = off; "
        f"EXPLAIN SELECT id FROM nami_events WHERE {condition} AND ingested_at >= '2026-01-01'"
    )
    assert "Index Cond: " in str(plan)
    assert "app_id" in str(plan).partition("Index Cond: ")[2]
    assert [finding.level for finding in doctor.check_warehouse(scene.settings)] == ["ok"] * 3
    scene.close()


@pytest.mark.slow
def test_policies_that_hide_rows_are_said(postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = postgres.fresh_database()
    table = PostgresEvents(url)
    reading = role_of(url, "hidden_from", "SELECT ON nami_events")
    role = reading.partition("://")[2].partition(":")[0]
    table.run("ALTER TABLE nami_events ENABLE ROW LEVEL SECURITY")
    table.run(f"INSERT INTO nami_events VALUES {values('e1', 'app', 'u')}")
    scene = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": reading}, table)
    scene.add("app", user_id_kind="nami_user_id")
    scene.tick()
    assert ids(scene) == []
    assert len([line for line in caplog.messages if "row level security" in line]) == 1
    assert [one.level for one in doctor.check_warehouse(scene.settings) if "row security" in one.subject] == ["warning"]
    table.run(f"CREATE POLICY all_rows ON nami_events FOR SELECT TO {role} USING (true)")
    scene.tick()
    assert ids(scene) == ["e1"]
    assert not [one for one in doctor.check_warehouse(scene.settings) if "row security" in one.subject]
    table.run("CREATE POLICY not_all ON nami_events AS RESTRICTIVE FOR SELECT USING (app_id <> 'secret')")
    assert [one.level for one in doctor.check_warehouse(scene.settings) if "row security" in one.subject] == ["warning"]
    scene.close()


def test_indexes_of_partitions_only(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.fresh_database()
    table = PostgresEvents(url, create=False)
    table.run(f"CREATE TABLE nami_events ({COLUMNS}) PARTITION BY RANGE (ingested_at)")
    table.run("CREATE TABLE y26 PARTITION OF nami_events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')")
    table.run("CREATE TABLE rest PARTITION OF nami_events DEFAULT PARTITION BY RANGE (ingested_at)")
    table.run("CREATE TABLE rest_rest PARTITION OF rest DEFAULT")
    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path), "NAMI_AMP_WAREHOUSE_URL": url}, tmp_path / "no.env")

    def index() -> Finding:
        ((found),) = [one for one in doctor.check_warehouse(settings) if one.subject == "warehouse index"]
        return found

    assert index().level == "warning"
    table.run("CREATE INDEX ON y26 (app_id, ingested_at)")
    found = index()
    assert found.level == "warning"
    table.run("CREATE INDEX ON rest_rest (app_id, ingested_at)")
    assert index().level == "ok"
    table.run("DROP INDEX rest_rest_app_id_ingested_at_idx")
    assert found.fix is not None
    table.run(found.fix)  # as it is proposed
    assert index().level == "ok"


@pytest.mark.slow
def test_postgres_is_a_scheme_too(postgres: Postgres, tmp_path: Path) -> None:
    assert {"duckdb", "postgresql", "postgres"} <= set(schemes())
    url, store = (postgres.fresh_database().replace("postgresql://", "postgres://", 1) for _ in range(2))
    scene = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": url, "NAMI_AMP_STATE_URL": store})
    assert scene.postgres is not None
    scene.add("app", user_id_kind="nami_user_id")
    scene.postgres.run(f"INSERT INTO nami_events VALUES {values('e1', 'app', 'u')}")
    scene.tick()
    assert ids(scene) == ["e1"]
    scene.close()
