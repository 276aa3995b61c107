"""The conformance suite of warehouses, which ships, on all that we ship."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nami_amp_pipeline.storage.duckdb_engine import sql
from nami_amp_pipeline.testing import WarehouseSuite
from nami_amp_pipeline.testing.warehouse import rows_of
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.warehouses import PostgresEvents


class TestDuckDB(WarehouseSuite):
    def address(self, folder: Path) -> str:
        with duckdb.connect(str(folder / "w.duckdb")) as connection:
            connection.execute(sql("nami_events"))
        return f"duckdb:///{folder}/w.duckdb"

    def load(self, address: str, rows: pa.Table) -> None:
        with duckdb.connect(address.removeprefix("duckdb:///")) as connection:
            connection.register("new_rows", rows)
            connection.execute("INSERT INTO nami_events BY NAME FROM new_rows")

    def missing(self, folder: Path) -> str:
        return f"duckdb:///{folder}/none.duckdb"


class TestParquet(WarehouseSuite):
    _numbers = count()

    def address(self, folder: Path) -> str:
        (folder / "lake" / "day=1").mkdir(parents=True)
        return f"parquet://{folder}/lake"

    def load(self, address: str, rows: pa.Table) -> None:
        pq.write_table(rows, f"{address.removeprefix('parquet://')}/day=1/{next(self._numbers):06}.parquet")

    def missing(self, folder: Path) -> str:
        return f"parquet://{folder}/none"


@pytest.mark.slow
class TestPostgres(WarehouseSuite):
    @pytest.fixture(autouse=True)
    def _server(self, postgres: Postgres) -> None:
        """Makes the real set-up wait for it."""

    def setup_method(self) -> None:
        """Waits for the server, which only a fixture can give."""

    @pytest.fixture(autouse=True)
    def _set_up(self, postgres: Postgres, _server: None) -> None:
        self._postgres = postgres
        super().setup_method()

    def address(self, folder: Path) -> str:
        url = self._postgres.fresh_database()
        PostgresEvents(url)
        return url

    def load(self, address: str, rows: pa.Table) -> None:
        given: list[dict[str, Any]] = [dict(each) for each in rows_of(rows)]
        PostgresEvents(address, create=False).insert(given)

    def missing(self, folder: Path) -> str:
        return "postgresql://nobody:hush@127.0.0.1:9/none?connect_timeout=1"
