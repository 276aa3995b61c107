"""What an enrichment's function may give, how it asks the warehouse, and how it is declared."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import Enrichment, extended
from nami_amp_pipeline.defs.component import NamiAmplitude
from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.settings.extensions import declare as declare_named
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.stages.enrich_values import NotUnderstood, columns_of
from nami_amp_pipeline.testing import EnrichmentSuite
from nami_amp_pipeline.warehouse import open_warehouse
from nami_amp_pipeline.warehouse.asked import Asked
from nami_amp_pipeline_tests.support.enrichments import declare, event, looked_up, ltv
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.test_declaration_suites import Point

LTV = {"user_ltv": pa.table({"user_id": ["ann", "o'brien"], "ltv": [12.5, 3.0]})}


class TestCurrent(EnrichmentSuite):
    declared = ltv()
    tables = LTV
    examples = (("ann", {}, {"ltv": 12.5}), ("o'brien", {}, {"ltv": 3}), ("ben", {}, {}))


class TestAsOfThatWaits(EnrichmentSuite):
    declared = Enrichment(
        {"shop_size": "number", "shop_words": "texts", "shop_is_long": "flag", "shop_first": "text"},
        lambda batch, _: pd.DataFrame(
            {
                "shop_size": batch["payload"].str.len(),
                "shop_words": [["b", "a", None, "b"]] * len(batch),
                "shop_is_long": batch["payload"].str.len() > 20,
                "shop_first": batch["user_id"].str[0],
            }
        ),
        timing="as_of",
        on_failure="wait",
        batch="pandas",
        with_payload=True,
    )
    examples = (
        ("ann", {}, {"shop_size": 2, "shop_words": ["a", "b"], "shop_is_long": False, "shop_first": "a"}),
        (
            "ben",
            {"text": "x" * 30},
            {"shop_size": 42, "shop_words": ["a", "b"], "shop_is_long": True, "shop_first": "b"},
        ),
    )


def test_a_suite_notices_an_answer_in_another_order() -> None:
    class Sorted(EnrichmentSuite):
        declared = ltv(lambda batch, context: {"ltv": sorted(looked_up(batch, context)["ltv"])})
        tables = LTV
        examples = (("ann", {}, {"ltv": 12.5}), ("o'brien", {}, {"ltv": 3}))

    suite = Sorted()
    suite.setup_method()
    try:
        with pytest.raises(AssertionError):
            suite.test_each_example_is_sent_as_it_says()
    finally:
        suite.teardown_method()


KINDS = Enrichment({"one": "number", "two": "texts"}, lambda batch, context: None)
B = [["x"], None]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ({"one": [1, None], "two": B}, [1.0, None]),
        ({"one": np.array([1.5, np.nan]), "two": B}, [1.5, None]),
        ({"one": pd.Series([1, 2], index=[7, 3]), "two": pd.Series(B)}, [1.0, 2.0]),
        (pd.DataFrame({"two": B, "one": pd.array([1, None], "Int64")}), [1.0, None]),
        (pa.table({"one": pa.array([2**60, 1]), "two": pa.array(B, pa.large_list(pa.large_string()))}), [2.0**60, 1.0]),
        (pa.RecordBatch.from_pydict({"one": pa.nulls(2), "two": pa.nulls(2)}), [None, None]),
        ({"one": pa.chunked_array([[1], [2]]), "two": B}, [1.0, 2.0]),
        (pa.table({"one": pa.array([1, 2]).cast(pa.decimal128(24, 2)), "two": B}), [1.0, 2.0]),
    ],
)
def test_answers_that_are_understood(answer: Any, wanted: list[float | None]) -> None:
    found = columns_of(KINDS, answer, 2)
    assert found["one"].to_pylist() == wanted
    assert found.schema.types == [pa.float64(), pa.list_(pa.string())]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "it gave NoneType, which is no table"),
        ([1, 2], "it gave list, which is no table"),
        ({"one": [1, 2]}, "what it gave lacks two"),
        ({"one": [1, 2], "two": B, "three": B}, "what it gave has three, which is not declared"),
        ({"one": [1, 2], "three": B}, "what it gave lacks two and has three, which is not declared"),
        ({"one": [1], "two": B}, "one has 1 values for 2 events"),
        ({"one": ["1", "2"], "two": B}, "one is of type string, and not a number"),
        ({"one": [True, False], "two": B}, "one is of type bool, and not a number"),
        ({"one": [1, "x"], "two": B}, "one is no column: ArrowInvalid: "),
        ({"one": 7, "two": B}, "one is no column: "),
        ({"one": [1, 2], "two": ["x", "y"]}, "two is of type string, and not an array of texts"),
        ({"one": [1, 2], "two": [[1], [2]]}, "two is of type list<item: int64>, and not an array of texts"),
        (pa.table([[1, 2], [1, 2]], names=["one", "one"]), "what it gave has a column twice"),
    ],
)
def test_answers_that_are_not(answer: Any, said: str) -> None:
    with pytest.raises(NotUnderstood) as error:
        columns_of(KINDS, answer, 2)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


class Echo:
    """A warehouse that answers with what it is asked."""

    name = "an echo"

    def query(self, sql: str, seconds: float) -> pa.Table:
        return pa.table({"sql": [sql], "seconds": [seconds]})


def test_lists_are_written_as_sql_whatever_they_hold() -> None:
    asked = Asked(Echo(), 5, 0)  # type: ignore[arg-type]

    def said(sql: str, **lists: Any) -> Any:
        return asked.query(sql, **lists)["sql"][0].as_py()

    assert said("x IN $a AND y IN $b", a=["o'b", "o'b", None, "\0z"], b=[]) == "x IN ('o''b', 'z') AND y IN (NULL)"
    assert said("$a", a=pa.chunked_array([[1, None], [2]])) == "(1, 2)"
    assert said("$a", a=np.array([1.5, np.nan])) == "(1.5)"
    assert said("$a $1 $$ '$b'", a=pd.Series([True])) == "(true) $1 $$ '$b'"
    assert said("$a", a=[datetime(2026, 1, 2, tzinfo=UTC)]) == "(TIMESTAMP WITH TIME ZONE '2026-01-02T00:00:00+00:00')"
    with pytest.raises(TypeError, match="of type bytes"):
        said("$a", a=[b"x"])


def test_a_warehouse_that_cannot_be_asked_says_so() -> None:
    class Old:
        name = "the old one"

    with pytest.raises(WarehouseUnavailable, match="the old one cannot be asked"):
        Asked(Old(), 5, 0).query("SELECT 1")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_duckdb_file_is_asked_without_being_written(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    try:
        warehouse = open_warehouse(pipeline.settings)
        assert warehouse.query("SELECT count(*) AS n FROM nami_events", 5)["n"].to_pylist() == [0]  # type: ignore[attr-defined]
        for sql, said in (
            ("SELECT * FROM nowhere", "nowhere does not exist"),
            ("CREATE TABLE x (i INTEGER)", "read-only"),
            ("SELECT count(*) FROM range(100000000000)", "Interrupted"),
        ):
            with pytest.raises(WarehouseUnavailable, match=said):
                warehouse.query(sql, 0.5).num_rows  # type: ignore[attr-defined]  # noqa: B018
        with duckdb.connect(str(pipeline.warehouse)) as free:
            assert free.execute("SELECT 1").fetchall()
    finally:
        pipeline.close()


def test_a_folder_of_parquet_files_is_asked_by_paths_below_it(tmp_path: Path) -> None:
    (tmp_path / "lake" / "_ltv").mkdir(parents=True)
    pq.write_table(LTV["user_ltv"], tmp_path / "lake" / "_ltv" / "a.parquet")
    warehouse = open_warehouse(Settings(home=tmp_path, warehouse_url=f"parquet://{tmp_path / 'lake'}"))
    found = warehouse.query("SELECT ltv FROM '_ltv/*.parquet' WHERE user_id IN ('ann')", 5)  # type: ignore[attr-defined]
    assert found["ltv"].to_pylist() == [12.5]
    assert warehouse.query("FROM nami_events", 5).num_rows == 0  # type: ignore[attr-defined]


@pytest.mark.slow
def test_postgresql_is_asked_without_being_written(tmp_path: Path, postgres: Postgres) -> None:
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": postgres.fresh_database()})
    try:
        warehouse = pipeline.context.warehouse
        assert warehouse.query("SELECT 1::int8 AS n", 5)["n"].to_pylist() == [1]  # type: ignore[attr-defined]
        for sql, said in (
            ("SELECT * FROM nowhere", "nowhere"),
            ("CREATE TABLE x (i INTEGER)", "read-only"),
            ("SELECT pg_sleep(9)::text", "statement_timeout"),
        ):
            with pytest.raises(WarehouseUnavailable, match=said):
                warehouse.query(sql, 0.5)  # type: ignore[attr-defined]
    finally:
        pipeline.close()


@pytest.mark.slow
def test_functions_are_called_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_SEGMENT_ROWS": "20", "NAMI_AMP_DUCKDB_THREADS": "2"})
    inside, most, calls = threading.Semaphore(1), [], []

    def function(batch: pa.Table, _context: Any) -> Any:
        most.append(inside.acquire(blocking=False))
        calls.append(batch.num_rows)
        threading.Event().wait(0.02)
        inside.release()
        return {"ltv": [1] * batch.num_rows}

    try:
        declare(monkeypatch, ltv(function))
        pipeline.add("app", user_id_kind="nami_user_id", start_from=None)
        pipeline.insert([event(str(n), f"u{n}", START - timedelta(hours=1)) for n in range(100)])
        stages.capture_apps(pipeline.context)
        stages.snapshot_apps(pipeline.context)
    finally:
        pipeline.close()
    assert sum(calls) == 100
    assert len(calls) > 2
    assert all(most)


@pytest.mark.parametrize(
    "wrong",
    [
        {"properties": {}},
        {"properties": {"A": "number"}},
        {"properties": {"shop_a": "date"}},
        {"function": None},
        {"timing": "now"},
        {"on_failure": "stop"},
        {"batch": "polars"},
        {"timeout_seconds": 0},
    ],
)
def test_a_declaration_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no"):
        Enrichment(**{"properties": {"shop_a": "number"}, "function": looked_up, **wrong})


def test_entry_points_add_enrichments_and_their_properties() -> None:
    good, twice = ltv(), Enrichment({"namiml_active_skus": "texts"}, looked_up)
    names = [prop.name for prop in contract.PROPERTIES]
    text = Enrichment({"ltv_text": "text"}, looked_up)
    given: Any = [Point("a", good), Point("b", twice), Point("c", good), Point("d", 7), Point("e", text)]
    found, said = extended((), given, Enrichment, names)
    assert found == (good,)
    assert said == [
        "their.module:b declares namiml_active_skus, which there is",
        "their.module:c declares ltv, which there is",
        "their.module:d is no Enrichment",
        "their.module:e declares ltv_text, which cannot be beside ltv",
    ]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("shop_of_this_test")
    module.LTV = ltv()  # type: ignore[attr-defined]
    module.OURS = Enrichment({"namiml_active_skus": "texts"}, looked_up)  # type: ignore[attr-defined]
    module.NOTHING = 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop_of_this_test", module)
    declare(monkeypatch)
    return module


def test_a_component_names_enrichments(shop: ModuleType) -> None:
    component = NamiAmplitude(enrichments=["shop_of_this_test:LTV"])
    component.definitions()
    NamiAmplitude(enrichments=["shop_of_this_test:LTV"], asset_key_prefix=["crm"]).definitions()
    assert contract.ENRICHMENTS == (shop.LTV,)
    assert contract.PROPERTIES[-1].name == "ltv"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shop_of_this_test:NONE", "cannot be loaded: AttributeError"),
        ("no_such_module_x:LTV", "cannot be loaded: ModuleNotFoundError"),
        ("shop_of_this_test", "cannot be loaded"),
        ("shop_of_this_test:NOTHING", "is no enrichment, and no destination"),
        ("shop_of_this_test:OURS", "cannot be used: it declares namiml_active_skus, which there is"),
    ],
)
def test_what_a_component_names_wrongly_is_told_in_one_line(shop: ModuleType, name: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        declare_named([name])
