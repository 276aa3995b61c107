"""Two segments at a time: in one engine, in order, and alone where two do not fit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import OutOfMemory
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import prepare, snapshots
from nami_amp_pipeline.stages.pipeline import capture_apps, prepare_integrations, snapshot_apps
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline.storage import parallel as workers
from nami_amp_pipeline.storage.duckdb_engine import Engine, engine
from nami_amp_pipeline_tests.support.scene import scene


def test_connections_of_an_engine_see_nothing_of_each_other_and_share_its_memory(tmp_path: Path) -> None:
    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path)}).replace(duckdb_memory="100MB", duckdb_threads=4)
    with engine(settings, share=2) as shared, shared.connection() as one, shared.connection() as other:
        one.execute("CREATE TEMP TABLE bodies AS SELECT 1 AS number")
        other.execute("CREATE TEMP TABLE bodies AS SELECT 2 AS number")
        assert [each.execute("FROM bodies").fetchall() for each in (one, other)] == [[(1,)], [(2,)]]
        assert [_setting(each, "TimeZone") for each in (one, other)] == ["UTC", "UTC"]
        assert {_setting(each, "memory_limit") for each in (one, other)} == {"47.6 MiB"}
        threads = []
        for at_once in (2, 1, 5):
            shared.divide(at_once)
            threads.append(_setting(one, "threads"))
        assert threads == ["3", "4", "1"], "those who wait for their own queries work on them too"


def test_the_next_one_is_made_while_one_is_used_and_the_first_and_last_have_all_threads() -> None:
    said: list[str] = []
    made = threading.Event()

    @contextmanager
    def make(item: int) -> Iterator[int]:
        said.append(f"make {item}")
        if item == 1:
            made.set()
        yield item * 10
        said.append(f"end {item}")

    def use(item: int, thing: int) -> None:
        assert thing == item * 10
        if item == 0:
            assert made.wait(10), "the next one is made meanwhile"
        said.append(f"use {item}")

    workers.with_next_ahead(make, use, range(3), lambda at_once: said.append(f"divide {at_once}"))
    assert [one for one in said if one.startswith("use")] == ["use 0", "use 1", "use 2"]
    assert said[:3] == ["divide 1", "make 0", "divide 2"]
    assert said[-3:] == ["divide 1", "use 2", "end 2"]
    said.clear()
    workers.with_next_ahead(make, use, [], lambda at_once: said.append(f"divide {at_once}"))
    assert said == ["divide 1"]


def test_what_was_made_ahead_is_closed_when_one_fails() -> None:
    ended: list[int] = []

    @contextmanager
    def make(item: int) -> Iterator[int]:
        try:
            yield item
        finally:
            ended.append(item)

    def use(_item: int, _thing: int) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        workers.with_next_ahead(make, use, range(5), lambda _at_once: None)
    assert sorted(ended) == [0, 1]


def test_of_several_at_once_the_first_error_is_raised_and_the_rest_is_left() -> None:
    begun: list[int] = []
    divided: list[int] = []

    def act(item: int) -> None:
        begun.append(item)
        time.sleep(0.02)
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        workers.in_parallel(act, range(100), divided.append)
    assert len(begun) < 100
    assert divided == [2]
    workers.in_parallel(begun.append, [1], divided.append)
    assert divided == [2, 1], "what is alone has all threads"


@pytest.mark.parametrize(("module", "step"), [(snapshots, "_one"), (prepare, "begin_segment")])
@pytest.mark.slow
def test_segments_that_do_not_fit_beside_each_other_are_done_one_at_a_time(
    module: Any, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = getattr(module, step)
    tight: list[bool] = []

    def measured(context: Context, *arguments: Any, **options: Any) -> Any:
        beside = threading.current_thread() is not threading.main_thread()
        tight.append(beside)
        if beside and len(tight) > 1:
            raise OutOfMemory("the compute engine ran out of memory")
        return real(context, *arguments, **options)

    caplog.set_level("INFO", logger="nami_amp_pipeline")
    monkeypatch.setattr(module, step, measured)
    with scene(tmp_path) as here:
        rows = here.load()
        here.add("radio")
        here.add("fit")
        context = here.context
        context.settings = here.settings.replace(segment_rows=rows // 4, duckdb_threads=2)
        captured = capture_apps(context)
        snapshotted = snapshot_apps(context)
        prepared = prepare_integrations(context, all_integrations(context.store))
        assert not snapshot_apps(context), "nothing is left"
        assert not prepare_integrations(context, all_integrations(context.store))
    assert True in tight
    assert False in tight
    assert "one segment at a time" in caplog.text
    types = [item for one in captured.values() for item in one.types.items()]
    users = sum(events for name, events in types if name.startswith("user."))
    selected = sum(events for name, events in types if name in contract.event_type_names())
    assert not any(one.malformed for one in captured.values())
    assert sum(one.events for one in snapshotted.values()) == users
    assert sum(one.captured for one in prepared.values()) == selected


def _setting(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    ((value,),) = connection.execute("SELECT current_setting(?)::VARCHAR", [name]).fetchall()
    return str(value)


def test_an_engine_of_one_thread_is_never_divided(tmp_path: Path) -> None:
    class Deaf:
        def execute(self, statement: str) -> None:
            raise AssertionError(statement)

    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path)}).replace(duckdb_threads=1)
    Engine(Deaf(), settings).divide(2)  # type: ignore[arg-type]
