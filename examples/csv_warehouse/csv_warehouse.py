from contextlib import contextmanager

from nami_amp_pipeline.warehouse.base import COLUMNS
from nami_amp_pipeline.warehouse.duckdb_file import DuckDBWarehouse, EventsTable

TYPES = {column: "TIMESTAMPTZ" if kind == "time" else "VARCHAR" for column, kind in COLUMNS.items()}


class CsvWarehouse(DuckDBWarehouse):
    name = "the CSV files"

    @contextmanager
    def table_of(self, connection):
        folder = self.url.removeprefix("csv://").replace("'", "''")
        options = f"""columns = {TYPES}, header = true, quote = '"', escape = '"'"""
        yield EventsTable(f"read_csv('{folder}/*.csv', {options})", rows=None)
