"""Parquet files as the events table: each reading sees the files that there were when it began."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import ClassVar, Final

import duckdb

from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.storage.bucket import SCHEMES
from nami_amp_pipeline.warehouse.base import COLUMNS, check_columns, one_line
from nami_amp_pipeline.warehouse.duckdb_file import DuckDBWarehouse, EventsTable, as_texts, runs_of

_ROWS: Final = 1 << 40
"""The number of a row is that of its file times this, and its number in the file. No file has as many rows."""


class ParquetFiles(DuckDBWarehouse):
    """Files that DuckDB reads; a subclass says which.

    Files may be added, and files with the same rows may take the place of others; a row is known again by its id.

    Attributes:
        options: of DuckDB's ``read_parquet``.
    """

    options: ClassVar[str] = "union_by_name = true, hive_types_autocast = false"
    """Columns go by their names, and a folder ``app_id=007`` is no number."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The table as people call it."""

    @abstractmethod
    def files(self) -> Sequence[str]:
        """The files that count now, as DuckDB opens them.

        Raises:
            WarehouseUnavailable: it is not known which do.
        """

    @contextmanager
    def table_of(self, connection: duckdb.DuckDBPyConnection) -> Iterator[EventsTable]:
        """The files as a table."""
        files = self.files()
        if not files:
            nothing = ", ".join(
                f"NULL::{'TIMESTAMPTZ' if kind == 'time' else 'VARCHAR'} AS {column}"
                for column, kind in COLUMNS.items()
            )
            relation = f"(SELECT {nothing} WHERE false)"
            yield EventsTable(relation, f"(SELECT *, 0::BIGINT AS rid FROM {relation})")  # noqa: S608
            return
        with _reachable(connection, files[0]):
            yield from self._table_of_files(connection, files)

    def _table_of_files(self, connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> Iterator[EventsTable]:
        everything = self._read(files)
        types = {name: kind for name, kind, *_ in self.asked(connection, f"DESCRIBE FROM {everything}")}
        check_columns(types, self.name)
        selected = as_texts(types)

        def few(numbers: Sequence[int]) -> str:
            parts = []
            for number, some in groupby(numbers, lambda rid: rid // _ROWS):
                file = self._read([files[number]])
                for first, last in runs_of([rid % _ROWS for rid in some]):
                    parts.append(
                        f"SELECT {selected}, {number * _ROWS} + file_row_number AS rid FROM {file} "  # noqa: S608
                        f"WHERE file_row_number BETWEEN {first} AND {last}"
                    )
            return f"({' UNION ALL BY NAME '.join(parts)})"

        rows = f"(SELECT {selected}, file_index::BIGINT * {_ROWS} + file_row_number AS rid FROM {everything})"  # noqa: S608
        try:
            yield EventsTable(f"(SELECT {selected} FROM {everything})", rows, few)  # noqa: S608
        except duckdb.InvalidInputException as error:  # such as a file that is none
            raise WarehouseUnavailable(f"cannot read {self.name}: {one_line(error)}") from None

    def _read(self, files: Sequence[str]) -> str:
        listed = ", ".join("'" + path.replace("'", "''") + "'" for path in files)
        return f"read_parquet([{listed}], {self.options})"


@contextmanager
def _reachable(connection: duckdb.DuckDBPyConnection, file: str) -> Iterator[None]:
    """Lets a connection open files such as this one for the length of the block: those on a disk it can by itself."""
    scheme, is_address, _ = file.partition("://")
    if not is_address or scheme not in SCHEMES:
        yield
        return
    from nami_amp_pipeline.warehouse.bucket_files import BucketFiles

    connection.register_filesystem(BucketFiles(scheme))
    try:
        yield
    finally:
        with suppress(duckdb.Error):  # must not hide the original error
            connection.unregister_filesystem(scheme)
