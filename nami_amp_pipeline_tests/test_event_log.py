"""Events that are written to Dagster's history together are there as if each had been written alone."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import DagsterEventType, EventRecordsFilter

from nami_amp_pipeline.dagster_support import event_log
from nami_amp_pipeline.dagster_support.event_log import written_together
from nami_amp_pipeline.dagster_support.failed_partitions import Failed, count_as_failed
from nami_amp_pipeline_tests.support.postgres import Postgres

PARTITIONS = [f"acme|{number}" for number in range(7)]
BLOCKS: dict[str, Callable[[dg.DagsterInstance], AbstractContextManager[None]]] = {
    "together": written_together,
    "alone": lambda _: nullcontext(),
}


class Broken(Exception):
    """What an op ends with."""


@dg.op(config_schema={"block": str, "breaks": bool})
def log(context: dg.OpExecutionContext) -> None:
    with BLOCKS[context.op_config["block"]](context.instance):
        for partition in PARTITIONS:
            metadata: dict[str, Any] = {"rows": 3, "of": partition}
            tags = {"dagster/data_version": f"v-{partition}"}
            context.log_event(dg.AssetMaterialization("one", partition=partition, metadata=metadata, tags=tags))
        context.log.info("between them")
        for asset in ("one", "two"):
            context.log_event(dg.AssetMaterialization(asset, partition="last"))
            context.log_event(dg.AssetObservation(asset, partition="acme|1", metadata={"state": "halted"}))
        check = dg.AssetCheckEvaluation(asset_key=dg.AssetKey("one"), check_name="lag", passed=True, partition="acme|1")
        context.log_event(cast("dg.AssetMaterialization", check))
        if context.op_config["breaks"]:
            raise Broken
        run = Failed(context.run_id, context.job_name, "")
        count_as_failed(context.instance, "one", dict.fromkeys(PARTITIONS, "stands still"), run, "log")


@dg.job(executor_def=dg.in_process_executor)
def logging() -> None:
    log()


@pytest.fixture(params=["sqlite", "postgresql"])
def instance(request: pytest.FixtureRequest) -> Iterator[dg.DagsterInstance]:
    overrides: dict[str, Any] = {}
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        overrides["storage"] = {"postgres": {"postgres_url": server.fresh_database()}}
    with dg.instance_for_test(overrides=overrides) as made:
        yield made


def run(instance: dg.DagsterInstance, block: str, *, breaks: bool = False) -> str:
    config = {"ops": {"log": {"config": {"block": block, "breaks": breaks}}}}
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    return logging.execute_in_process(
        instance=instance, run_config={**config, **quiet}, raise_on_error=not breaks
    ).run_id


def what_is_there(instance: dg.DagsterInstance, run_id: str) -> list[tuple[Any, ...]]:
    """The run's page: the log of the run, then every asset event of it, and what the assets say was last."""
    entries = [record.event_log_entry for record in instance.get_records_for_run(run_id).records]
    found: list[tuple[Any, ...]] = [
        (entry.message, entry.dagster_event and (entry.dagster_event.event_type_value, entry.dagster_event.partition))
        for entry in entries
        if entry.dagster_event is None or entry.dagster_event.asset_key or entry.dagster_event.event_type_value == ""
    ]
    storage = instance.event_log_storage
    for kind in event_log._TOGETHER:
        for name in ("one", "two"):
            records = storage.get_event_records(EventRecordsFilter(kind, asset_key=dg.AssetKey(name)), ascending=True)
            found += [
                (kind.value, name, record.partition_key, str(record.event_log_entry.dagster_event))
                for record in records
                if record.run_id == run_id
            ]
            mine = [record.storage_id for record in records if record.run_id == run_id]
            key = dg.AssetKey(name)
            found.append((name, [storage.get_event_tags_for_asset(key, filter_event_id=number) for number in mine]))
            latest = storage.get_latest_storage_id_by_partition(dg.AssetKey(name), kind)
            found.append((name, kind.value, sorted(latest), sorted(latest, key=lambda key: latest[key])))
    for record in storage.get_asset_records([dg.AssetKey("one"), dg.AssetKey("two")]):
        entry = record.asset_entry
        found.append((str(entry.asset_key), entry.last_run_id == run_id, str(entry.last_materialization)))
    checks = storage.get_asset_check_execution_history(dg.AssetCheckKey(dg.AssetKey("one"), "lag"), 10)
    found.append((len([check for check in checks if check.run_id == run_id]),))
    return list(_plain(found, run_id))


def _plain(found: list[tuple[Any, ...]], run_id: str) -> tuple[Any, ...]:
    """Without what differs from run to run."""
    text = repr(found).replace(run_id, "RUN")
    return tuple(re.sub(r"timestamp=[0-9.]+|storage_id=\d+|pid=\d+|0x[0-9a-f]+", "", text).split("), ("))


@pytest.mark.slow
def test_they_are_there_as_if_each_had_been_written_alone(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "AT_ONCE", 3)
    alone, together = (what_is_there(instance, run(instance, block)) for block in ("alone", "together"))
    assert [line for line in together if line not in alone] == []
    assert together == alone
    assert "between them" in str(together)


@pytest.mark.slow
def test_what_is_held_is_written_also_when_the_block_breaks(instance: dg.DagsterInstance) -> None:
    run_id = run(instance, "together", breaks=True)
    filters = EventRecordsFilter(DagsterEventType.ASSET_OBSERVATION, asset_key=dg.AssetKey("two"))
    assert [record.run_id for record in instance.event_log_storage.get_event_records(filters)] == [run_id]
    assert run(instance, "alone"), "the storage writes as ever afterwards"
    assert "store_event" not in vars(instance.event_log_storage)


@pytest.mark.slow
def test_a_thousand_events_take_few_transactions() -> None:
    commits: list[object] = []
    with dg.instance_for_test() as instance:
        run_id = run(instance, "alone")  # so that the history has its tables
        event = instance.get_records_for_run(run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION).records[0]

        def commit(connection: object) -> None:
            commits.append(connection)

        sa.event.listen(sa.Engine, "commit", commit)
        try:
            with written_together(instance):
                for _ in range(1_000):
                    instance.event_log_storage.store_event(event.event_log_entry)
        finally:
            sa.event.remove(sa.Engine, "commit", commit)
        stored = instance.get_records_for_run(run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION, limit=2_000)
    assert len(stored.records) > 1_000
    assert len(commits) <= 3 * 1_000 / event_log.AT_ONCE, "each batch takes two, and opening a file one more"


def test_the_asset_page_takes_no_two_of_them_for_one(instance: dg.DagsterInstance) -> None:
    run_id = run(instance, "together")
    for kind in (DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_OBSERVATION):
        of_asset = EventRecordsFilter(kind, asset_key=dg.AssetKey("one"))
        records = instance.event_log_storage.get_event_records(of_asset, limit=100, ascending=True)
        dates = [int(record.timestamp * 1000) for record in records if record.run_id == run_id]
        assert dates == sorted(set(dates))
        assert dates
