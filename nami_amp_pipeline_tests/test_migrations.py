"""Migrations: an older store is taken over whole, by itself only where that is safe; a newer one is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from nami_amp_pipeline.errors import Misconfigured, StoreUnavailable
from nami_amp_pipeline.state import Store, Transaction, migrate, tables
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline_tests.support.command_line import invoke, nami_amp, one_line
from nami_amp_pipeline_tests.support.old_stores import at_work, later, make_first_version, opened
from nami_amp_pipeline_tests.support.postgres import Postgres

pytestmark = pytest.mark.slow_cases

__all__ = ["later"]

REPOSITORY = Path(__file__).parents[1]


def fill(store: Store, metadata: sa.MetaData) -> None:
    """Two rows in each table; those of ``b`` refer to those of ``a``."""
    with store.begin() as tx:
        for table in metadata.sorted_tables:
            if table.name in (tables.schema_version.name, migrate.VERSION_TABLE):
                continue
            for number in (1, 2):
                values: dict[str, Any] = {}
                for column in table.columns:
                    if column.name == "id":
                        continue  # the database numbers them
                    if isinstance(column.type, sa.Text | sa.String):
                        values[column.name] = f"{column.name}-{number} \N{SNOWMAN}"
                    elif isinstance(column.type, sa.Boolean):
                        values[column.name] = number == 1
                    else:
                        values[column.name] = number
                for key in table.foreign_keys:
                    values[key.parent.name] = f"app_id-{number} \N{SNOWMAN}" if key.column.name == "app_id" else number
                tx.execute(sa.insert(table).values(**values))


def contents(store: Store, metadata: sa.MetaData) -> dict[str, list[dict[str, Any]]]:
    with store.begin() as tx:
        return {
            table.name: sorted((dict(row) for row in tx.execute(sa.select(table)).mappings()), key=repr)
            for table in metadata.sorted_tables
        }


def reflected(store: Store) -> sa.MetaData:
    metadata = sa.MetaData()
    metadata.reflect(store.engine)
    return metadata


def described(tx: Transaction) -> dict[str, Any]:
    """All that the database knows of our tables, whatever the order it was made in."""
    if tx.dialect.name == "sqlite":
        found: dict[str, Any] = {}
        for name, text in tx.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all():
            if name == "sqlite_sequence":
                continue
            columns = sorted(tuple(row)[1:] for row in tx.exec_driver_sql(f"PRAGMA table_xinfo({name})").all())
            keys = sorted(tuple(row)[2:] for row in tx.exec_driver_sql(f"PRAGMA foreign_key_list({name})").all())
            indexes = sorted(
                (
                    row[1] if row[3] == "c" else row[3],
                    row[2],
                    tuple(part[2] for part in tx.exec_driver_sql(f"PRAGMA index_info({row[1]})").all()),
                )
                for row in tx.exec_driver_sql(f"PRAGMA index_list({name})").all()
            )
            found[name] = (columns, keys, indexes, "AUTOINCREMENT" in text, "WITHOUT ROWID" in text)
        return found
    return {
        "columns": set(
            tx.exec_driver_sql(
                "SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name, is_identity "
                "FROM information_schema.columns WHERE table_schema = current_schema()"
            ).all()
        ),
        "constraints": set(
            tx.exec_driver_sql(
                "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
                "WHERE connamespace = current_schema()::regnamespace"
            ).all()
        ),
        "indexes": set(
            tx.exec_driver_sql("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()").all()
        ),
    }


@pytest.mark.slow
def test_migrating_from_the_first_version_leads_to_the_tables_of_this_program(
    state_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make_first_version(state_url)
    is_sqlite = state_url.startswith("sqlite")
    other = f"sqlite:///{tmp_path}/fresh.db" if is_sqlite else request.getfixturevalue("postgres").fresh_database()
    with opened(state_url) as old, opened(other) as fresh:
        create_or_upgrade(old)
        create_or_upgrade(fresh)
        with old.begin() as tx, fresh.begin() as wanted:
            assert described(tx) == described(wanted)
            options = {"compare_server_default": True, "version_table": migrate.VERSION_TABLE}
            assert compare_metadata(MigrationContext.configure(tx, opts=options), tables.metadata) == []
        for store in (old, fresh):
            with store.begin() as tx:
                assert MigrationContext.configure(
                    tx, opts={"version_table": migrate.VERSION_TABLE}
                ).get_current_heads() == (migrate.revision_of(tables.SCHEMA_VERSION),)
            assert store.schema_version() == tables.SCHEMA_VERSION


def test_the_first_revision_is_what_was_there_before_there_were_revisions(
    state_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make_first_version(state_url)
    is_sqlite = state_url.startswith("sqlite")
    other = f"sqlite:///{tmp_path}/other.db" if is_sqlite else request.getfixturevalue("postgres").fresh_database()
    with opened(state_url) as old, opened(other) as revised:
        with revised.begin() as tx:
            command.upgrade(migrate.alembic_config(tx), "0001")
        assert revised.schema_version() == 1
        with revised.begin() as tx:
            tx.exec_driver_sql(f"DROP TABLE {migrate.VERSION_TABLE}")
        with old.begin() as wanted, revised.begin() as tx:
            assert described(tx) == described(wanted)


def test_a_store_of_the_first_version_is_taken_over_without_loss(state_url: str) -> None:
    make_first_version(state_url)
    with opened(state_url) as store:
        first = reflected(store)
        fill(store, first)
        before = contents(store, first)
        assert all(len(rows) == 2 for name, rows in before.items() if name != "nami_amp_schema")
        create_or_upgrade(store)
        users = first.tables["user_property_snapshots"]
        gone = columns_of(first, users.name) - columns_of(reflected(store), users.name)
        kept = sa.MetaData()
        for table in first.sorted_tables:  # what is left of the first version's columns
            columns = [
                sa.Column(one.name, one.type) for one in table.columns if table is not users or one.name not in gone
            ]
            sa.Table(table.name, kept, *columns)
        after = contents(store, kept)
        assert after.pop("nami_amp_schema") == [{"version": tables.SCHEMA_VERSION}]
        del before["nami_amp_schema"]
        for row in before["user_property_snapshots"]:
            for name in gone:
                del row[name]
        assert after == before
        with store.begin() as tx:
            numbered = tx.execute(
                sa.insert(tables.segments).values(file="f", rows=1, captured_at=1, run_id="r")
            ).inserted_primary_key
        assert numbered is not None


@pytest.mark.parametrize("begin_with", ["nothing", "the first version"])
@pytest.mark.slow
def test_several_that_start_at_once_all_succeed(state_url: str, begin_with: str) -> None:
    if begin_with == "the first version":
        make_first_version(state_url)
    script = (
        "import sys; from nami_amp_pipeline.state import Store, migrate\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"store = Store({state_url!r}, lambda: 0.0); migrate.create_or_upgrade(store); print(store.schema_version())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=60) for process in processes]
    assert ended == [(f"{tables.SCHEMA_VERSION}\n", "")] * 4


def test_an_older_program_leaves_a_newer_store_alone(state_url: str, tmp_path: Path) -> None:
    with opened(state_url) as store:
        create_or_upgrade(store)
        with store.begin() as tx:
            tx.execute(sa.update(tables.schema_version).values(version=tables.SCHEMA_VERSION + 1))
            before = described(tx)
        for arguments in (["status"], ["integrations", "list"], ["migrate"]):
            refused = invoke(tmp_path, *arguments, settings={"NAMI_AMP_STATE_URL": state_url})
            assert refused.exit_code == 2
            assert f"schema version {tables.SCHEMA_VERSION + 1}" in one_line(refused.stderr)
        with store.begin() as tx:
            assert described(tx) == before


def columns_of(metadata: sa.MetaData, table: str) -> set[str]:
    return {column.name for column in metadata.tables[table].columns}


@pytest.mark.slow
def test_what_is_not_safe_waits_for_the_command_and_then_loses_nothing(
    state_url: str, tmp_path: Path, later: Any
) -> None:
    settings = {"NAMI_AMP_STATE_URL": state_url}
    with opened(state_url) as store:
        create_or_upgrade(store)
        fill(store, tables.metadata)
        before = contents(store, reflected(store))
        version = later(safe=False)
        at_work(store, True)
        before = contents(store, reflected(store))
        refused = invoke(tmp_path, "apps", "list", settings=settings)
        assert refused.exit_code == 2
        assert "nami-amp migrate" in one_line(refused.stderr)
        assert contents(store, reflected(store)) == before
        done = invoke(tmp_path, "migrate", "--json", settings=settings)
        assert (done.exit_code, json.loads(done.stdout)) == (0, {"before": version - 1, "now": version})
        after = contents(store, reflected(store))
        for row in after["integrations"]:
            row["last_error"] = row.pop("newest_error")
        for name in ("nami_amp_schema", migrate.VERSION_TABLE):
            del before[name], after[name]
        # On SQLite 'integrations' was built anew, and nearly everything refers to it.
        assert {name: sorted(rows, key=repr) for name, rows in after.items()}.keys() == before.keys()
        for name, rows in before.items():
            assert sorted(map(sorted, map(dict.items, after[name]))) == sorted(map(sorted, map(dict.items, rows)))
        assert invoke(tmp_path, "apps", "list", settings=settings).exit_code == 0
        again = invoke(tmp_path, "migrate", settings=settings)
        assert again.stdout == f"The state store is up to date: schema version {version}.\n"


def test_a_revision_that_fails_changes_nothing(state_url: str, later: Any) -> None:
    with opened(state_url) as store:
        create_or_upgrade(store)
        fill(store, tables.metadata)
        with store.begin() as tx:
            before, rows = described(tx), contents(store, tables.metadata) if not store.is_sqlite else None
        later(safe=True, more='raise RuntimeError("half way")')
        with pytest.raises(RuntimeError, match="half way"):
            create_or_upgrade(store)
        with store.begin() as tx:
            assert described(tx) == before
        if rows is not None:
            assert contents(store, tables.metadata) == rows
        with store.begin() as tx:
            enforced = tx.exec_driver_sql("PRAGMA foreign_keys").scalar() if store.is_sqlite else 1
        assert enforced == 1


def test_rows_that_would_refer_to_nothing_are_no_migration(tmp_path: Path, later: Any) -> None:
    with opened(f"sqlite:///{tmp_path}/state.db") as store:
        create_or_upgrade(store)
        fill(store, tables.metadata)
        version = later(safe=True, more='op.execute("DELETE FROM integrations")')
        with pytest.raises(StoreUnavailable, match="broken references"):
            create_or_upgrade(store)
        assert store.schema_version() == version - 1


def test_every_revision_says_what_it_does_and_whether_it_is_safe(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/state.db") as store, store.begin() as tx:
        scripts = list(ScriptDirectory.from_config(migrate.alembic_config(tx)).walk_revisions())
    assert [script.revision for script in scripts] == [
        migrate.revision_of(version) for version in range(tables.SCHEMA_VERSION, 0, -1)
    ]
    for script in scripts:
        assert isinstance(script.module.safe, bool)
        assert script.doc


def test_a_store_whose_tables_are_of_no_version_is_not_touched(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/state.db") as store:
        create_or_upgrade(store)
        with store.begin() as tx:
            tx.execute(sa.delete(tables.schema_version))
        with pytest.raises(StoreUnavailable, match="have no schema version"):
            create_or_upgrade(store)


def test_a_role_that_may_not_make_tables_is_told_so(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.fresh_database()
    with opened(url) as store, store.begin() as tx:
        tx.exec_driver_sql("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        tx.exec_driver_sql("DROP ROLE IF EXISTS nami_reader")
        tx.exec_driver_sql("CREATE ROLE nami_reader LOGIN PASSWORD 'pass-word-of-the-role'")
        tx.exec_driver_sql("GRANT USAGE ON SCHEMA public TO nami_reader")
    as_reader = sa.make_url(url).set(username="nami_reader", password="pass-word-of-the-role")
    refused = invoke(
        tmp_path, "status", settings={"NAMI_AMP_STATE_URL": as_reader.render_as_string(hide_password=False)}
    )
    assert refused.exit_code == 1
    assert "permission denied" in one_line(refused.stderr)
    assert "pass-word" not in refused.output


@pytest.mark.slow
def test_a_store_that_is_up_to_date_is_opened_without_alembic_and_without_waiting(tmp_path: Path) -> None:
    assert nami_amp(tmp_path, "status").returncode == 0
    script = (
        "import sys; from nami_amp_pipeline.cli import cli\n"
        "try: cli.main(['status'])\n"
        "finally: print([name for name in sys.modules if name.partition('.')[0] in ('alembic', 'mako', 'dagster')])"
    )
    with opened(f"sqlite:///{tmp_path}/.nami-amp/state.db") as store, store.begin(), opened(store.url) as other:
        create_or_upgrade(other)  # a writer is at work, and nobody waits
    looked = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert looked.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_revisions_and_statements_are_in_the_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
         "--wheel-dir", tmp_path, REPOSITORY],
        check=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        packed = set(files.namelist())
    for folder, inside in (
        (migrate.SCRIPTS, "nami_amp_pipeline/state/migrations"),
        (REPOSITORY / "sql", "nami_amp_pipeline/sql"),
    ):
        wanted = {f"{inside}/{path.relative_to(folder)}" for path in folder.rglob("*.*") if path.suffix != ".pyc"}
        assert wanted
        assert wanted <= packed


@pytest.mark.slow
def test_only_the_command_runs_what_is_not_safe_beside_others(tmp_path: Path, later: Any) -> None:
    with opened(f"sqlite:///{tmp_path}/state.db") as store:
        create_or_upgrade(store)
        version = later(safe=False)
        at_work(store, True)
        with pytest.raises(Misconfigured, match="make a backup"):
            create_or_upgrade(store)
        assert migrate.migrate(store, beside_others=True) == (version - 1, version)
        create_or_upgrade(store)


def test_what_is_not_safe_runs_by_itself_while_nobody_is_at_work(state_url: str, later: Any) -> None:
    with opened(state_url) as store, opened(state_url) as ended:
        create_or_upgrade(store)
        own = store.acquire(["app:radio"])["app:radio"]  # whoever opens the store may hold some already
        version = later(safe=False)
        at_work(ended, True)
        with pytest.raises(Misconfigured, match="another process is using the store"):
            create_or_upgrade(store)
        assert store.schema_version() == version - 1
        at_work(ended, False)
        create_or_upgrade(store)
        assert store.schema_version() == version
    assert own.fence


def test_a_process_that_ended_with_its_leases_is_not_at_work(state_url: str, later: Any) -> None:
    script = (
        "import os, time; from nami_amp_pipeline.state import Store\n"
        f"store = Store({state_url!r}, time.time); print(len(store.acquire(['app:a']))); os._exit(9)"
    )
    with opened(state_url) as store:
        create_or_upgrade(store)
        version = later(safe=False)
        killed = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False, timeout=60)
        assert (killed.returncode, killed.stdout) == (9, b"1\n")
        create_or_upgrade(store)
        assert store.schema_version() == version


def test_nobody_begins_to_work_while_what_is_not_safe_runs(state_url: str, later: Any, tmp_path: Path) -> None:
    with opened(state_url) as store, opened(state_url) as other:
        create_or_upgrade(store)
        taken = tmp_path / "taken"
        later(
            safe=False,
            more=f"""import pathlib, time
    at = pathlib.Path({str(tmp_path / "begun")!r}); at.touch(); time.sleep(0.5)
    op.execute("CREATE TABLE seen (early INTEGER)")
    op.execute(f"INSERT INTO seen VALUES ({{int(pathlib.Path({str(taken)!r}).exists())}})")""",
        )

        def begin() -> None:
            while not (tmp_path / "begun").exists():
                time.sleep(0.01)
            other.acquire(["app:radio"])
            taken.touch()

        worker = threading.Thread(target=begin)
        worker.start()
        create_or_upgrade(store)
        worker.join()
        with store.begin() as tx:
            assert tx.exec_driver_sql("SELECT early FROM seen").scalar() == 0
        assert taken.exists()


BEFORE = {
    "nothing": {},
    "all": {
        "external_id": "x", "external_id_date": 1, "external_id_event": "e1", "as_of_date": 5, "as_of_event": "e5",
        "namiml_active_entitlements": '["a","b \\"c\\" \\u0000"]', "namiml_active_skus": "[]",
        "has_active_entitlement": True, "entitlements_date": 2, "entitlements_event": "e2",
        "namiml_device_ids": '["d"]', "namiml_device_platforms": '["\N{SNOWMAN}"]',
        "devices_date": 3, "devices_event": "e3",
        "former_subscriber": True, "namiml_in_grace_period": False, "namiml_in_trial_period": None,
        "namiml_in_intro_offer_period": True, "journey_date": 4, "journey_event": "e4",
    },
    "empty groups": {
        "namiml_active_entitlements": "[]", "namiml_active_skus": "[]", "has_active_entitlement": False,
        "entitlements_date": 2, "entitlements_event": "e2", "journey_date": 4, "journey_event": "e4",
    },
}  # fmt: skip
AFTER = {
    "nothing": (None, None, None),
    "all": (
        '{"namiml_active_entitlements":["a","b \\"c\\" \\u0000"],"namiml_active_skus":[],'
        '"has_active_entitlement":true}',
        '{"namiml_device_ids":["d"],"namiml_device_platforms":["\N{SNOWMAN}"]}',
        '{"former_subscriber":true,"namiml_in_grace_period":false,"namiml_in_intro_offer_period":true}',
    ),
    "empty groups": (
        '{"namiml_active_entitlements":[],"namiml_active_skus":[],"has_active_entitlement":false}', None, "{}",
    ),
}  # fmt: skip


def test_the_current_snapshots_of_an_older_store_become_groups(state_url: str) -> None:
    make_first_version(state_url)
    with opened(state_url) as store:
        before = reflected(store).tables["user_property_snapshots"]
        with store.begin() as tx:
            for user, values in BEFORE.items():
                tx.execute(sa.insert(before).values(app_id="radio", user_id=user, **values))
        create_or_upgrade(store)
        table = tables.user_property_snapshots
        with store.begin() as tx:
            rows = tx.execute(sa.select(table)).mappings().all()
        found = {row["user_id"]: row for row in rows}
        assert {user: (row["entitlements"], row["devices"], row["journey"]) for user, row in found.items()} == AFTER
        for user, values in BEFORE.items():
            for name in values.keys() & {column.name for column in table.columns}:
                assert found[user][name] == values[name]
