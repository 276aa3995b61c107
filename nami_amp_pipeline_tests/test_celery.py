"""Runs on Celery's workers: shards go to different ones, and one that dies is replaced by the other. Real processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import redis

from nami_amp_pipeline.contract import event_type_names
from nami_amp_pipeline.operations.shards import Shard
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.storage.duckdb_engine import literal
from nami_amp_pipeline_tests.support.everything import Everything
from nami_amp_pipeline_tests.support.machines import WORKERS, redis_command, worker_command
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import GOOD_KEY, WARNINGS
from nami_amp_pipeline_tests.support.service import Service, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

APPS = ("app-0", "app-1", "app-2", "app-3")


@pytest.mark.contract("5.1.1", "5.1.2")
def test_a_worker_that_dies_is_replaced_by_another(tmp_path: Path, postgres: Postgres) -> None:
    assert {Shard(1, 2).has(app) for app in APPS} == {True, False}
    sandbox = Sandbox(options=Options(throttle=False, latency_ms=400))
    port = free_port()
    broker = f"redis://127.0.0.1:{port}/0"
    with SandboxServer(sandbox) as server:
        running = Service.prepare(
            tmp_path, postgres, NAMI_AMP_SHARDS="2", NAMI_AMP_TICK_MINUTES="1", NAMI_AMP_SENSOR_SECONDS="5",
            NAMI_AMP_EARLY_TICK_SECONDS="5", NAMI_AMP_BATCH_EVENTS="5", NAMI_AMP_MAX_LANES="2",
            NAMI_AMP_HTTP_TIMEOUT_SECONDS="5", NAMI_AMP_LEASE_SECONDS="12", CELERY_BROKER_URL=broker,
        )  # fmt: skip
        running.environ["DAGSTER_HOME"] = str(running.folder / "deploy" / "celery")
        try:
            running.start("redis", redis_command(tmp_path, port))
            running.migrate()
            for name, at in (("code-server", running.code_port), ("webserver", int(running.url.rpartition(":")[2]))):
                running.start(name)
                wait_for(lambda at=at: running.answers(at), lambda of=name: running.log(of))  # type: ignore[misc]
            for name in WORKERS:
                running.start(name, worker_command(name))
            every = Everything(running, sandbox, server.endpoint)
            for number, app in enumerate(APPS):
                every.load(app, 120, seed=number)
                every.add(app, GOOD_KEY[:-1] + str(number))
            running.start("daemon")
            _one_dies(every)
            both = {"1/2", "2/2"}
            wait_for(lambda: {run["tags"].get("nami/shard") for run in every.runs("SUCCESS")} == both, every.logs)
            wait_for(lambda: not every.pending(), every.logs)
            known = ", ".join(map(literal, event_type_names()))  # the sample has others too
            ((loaded,),) = every.events.run(f"SELECT count(DISTINCT id) FROM nami_events WHERE event_type IN ({known})")
            assert sandbox.audit.accepted == loaded
            assert GOOD_KEY[:-1].encode() not in b"".join(_everything_in(broker))
            assert GOOD_KEY[:-1] not in "".join(running.log(name) for name in WORKERS)
            every.context.store.close()
        finally:
            running.close()
    assert sandbox.audit.accepted_more_than_once.count == 0
    assert sandbox.audit.order_violations.count == 0
    assert sandbox.audit.concurrent_same_user.count == 0


@pytest.mark.contract("5.1.1")
def test_redis_still_knows_after_it_was_killed_what_it_was_told(tmp_path: Path) -> None:
    """Else a run that waits for a worker is lost, and Dagster takes those at work for dead."""
    port = free_port()
    with redis.Redis(port=port) as asked:
        for number in range(2):
            process = subprocess.Popen(redis_command(tmp_path, port), stdout=subprocess.DEVNULL)
            try:
                wait_for(lambda: _answers(asked))
                if number:
                    assert asked.lrange("dagster", 0, -1) == [b"a run"]
                else:
                    asked.lpush("dagster", "a run")
            finally:
                process.kill()
                process.wait()


def _answers(asked: redis.Redis) -> bool:
    try:
        return bool(asked.ping())
    except redis.ConnectionError:
        return False


def _one_dies(every: Everything) -> None:
    """Kills a worker, with the run that it carries out, once requests of both shards have arrived."""
    wait_for(lambda: len(every.runs("STARTED")) == 2 and every.sandbox.audit.accepted > 20, every.logs)
    every.service.kill(WORKERS[0])
    # Celery goes on calling it alive; the pipeline's own sensor knows better.
    wait_for(lambda: every.runs("FAILURE"), every.logs)


def _everything_in(broker: str) -> list[bytes]:
    """Each value that the broker holds."""
    with redis.Redis.from_url(broker) as asked:
        found: list[bytes] = []
        for key in asked.scan_iter():
            kind = asked.type(key)
            if kind == b"string":
                found.append(asked.get(key) or b"")
            elif kind == b"list":
                found += asked.lrange(key, 0, -1)
            elif kind == b"hash":
                found += asked.hvals(key)
        return found
