"""DuckDB as the compute engine: a bounded connection, the SQL files, and Arrow in and out."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from nami_amp_pipeline.contract import CATEGORIES
from nami_amp_pipeline.errors import Blocked, OutOfMemory

if TYPE_CHECKING:
    from nami_amp_pipeline.settings import Settings

SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""What counts as surrounding space of an id: all that Unicode calls so."""


def _of_categories(names: Iterable[str]) -> str:
    return " OR ".join(f"starts_with(event_type, '{name}.')" for name in names) or "false"


_CARRIES = f"""
CREATE TEMP MACRO carries_state(event_type) AS
    ({_of_categories(name for name, category in CATEGORIES.items() if category.carries_state)});
CREATE TEMP MACRO carries_device(event_type) AS
    ({_of_categories(name for name, category in CATEGORIES.items() if category.carries_device)});
"""
"""What an event tells of, by its type."""

_STRIPPED = """
CREATE TEMP MACRO stripped(text) AS CASE
    WHEN ascii(text) BETWEEN 33 AND 126 AND ascii(right(text, 1)) BETWEEN 33 AND 126 THEN text
    ELSE trim(text, getvariable('spaces'))
END;
"""
"""A text without surrounding space; what begins and ends visibly has none, which is seen 20 times faster."""


Config = dict[str, str | bool | int | float | list[str]]


def open_engine(config: Config) -> duckdb.DuckDBPyConnection:
    """An empty in-memory DuckDB; a simulation replaces this with something cheaper to open."""
    return duckdb.connect(":memory:", config=config)


class Engine:
    """An in-memory DuckDB that spills into the data folder; one for many segments, because opening it is slow.

    Its connections see nothing of each other. They share its memory and its threads.

    Args:
        instance: the DuckDB.
        settings: for its threads, and where it spills.
    """

    def __init__(self, instance: duckdb.DuckDBPyConnection, settings: Settings) -> None:
        self._instance = instance
        self._threads = settings.duckdb_threads or os.cpu_count() or 1
        self._folder = settings.data_dir

    def divide(self, workers: int) -> None:
        """Sets how many connections are used at once, each in a thread of its own.

        Args:
            workers: how many of them; DuckDB's other threads help them all. Call this while no query runs.
        """
        if self._threads > 1:
            self._instance.execute(f"SET threads = {max(1, self._threads - workers + 1)}")

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection with temporary tables, views and macros of its own.

        Raises:
            OutOfMemory: memory and disk do not suffice.
            Blocked: the data folder cannot be read or written.
        """
        with self._instance.cursor() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET VARIABLE spaces = ?", [SPACES])
            connection.execute(_STRIPPED + _CARRIES)
            try:
                yield connection
            except duckdb.OutOfMemoryException as error:
                raise OutOfMemory(
                    f"the compute engine ran out of memory or disk ({str(error).splitlines()[0]}): raise "
                    "NAMI_AMP_DUCKDB_MEMORY, lower NAMI_AMP_SEGMENT_ROWS, or free disk space"
                ) from None
            except duckdb.IOException as error:
                raise Blocked(
                    f"the compute engine cannot read or write in {self._folder}: {str(error).splitlines()[0][:200]}"
                ) from None


@contextmanager
def engine(settings: Settings, *, share: int = 1) -> Iterator[Engine]:
    """A fresh engine.

    Args:
        settings: memory and threads.
        share: its share of the memory: 2 for a half, 3 for a third, ….
    """
    config: Config = {
        "memory_limit": _part(settings.duckdb_memory, share),
        "threads": settings.duckdb_threads or os.cpu_count() or 1,
        "temp_directory": str(settings.data_dir / "spill"),
        "autoinstall_known_extensions": False,
        "preserve_insertion_order": False,
    }
    with open_engine(config) as instance:
        yield Engine(instance, settings)


@contextmanager
def compute(settings: Settings, *, share: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
    """The only connection of a fresh engine; see :func:`engine` and :meth:`Engine.connection`."""
    with engine(settings, share=share) as own, own.connection() as connection:
        yield connection


def _part(memory: str, share: int) -> str:
    number = memory.rstrip("GMiB")
    return f"{int(number) * 1_000 // share}{memory[len(number) :].replace('M', 'K').replace('G', 'M')}"


@cache
def sql(name: str) -> str:
    """The text of ``sql/<name>.sql``, from the wheel or the repository."""
    beside = Path(__file__).parents[1] / "sql"
    folder = beside if beside.is_dir() else Path(__file__).parents[2] / "sql"
    return (folder / f"{name}.sql").read_text("utf-8")


def execute(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Runs every statement of an SQL file."""
    connection.execute(sql(name))


def table(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The whole result of a query that is known to be small."""
    return connection.sql(query).to_arrow_table()


def stream(connection: duckdb.DuckDBPyConnection, query: str, rows: int) -> Generator[pa.RecordBatch]:
    """The answer of a query in batches; until it is closed, the connection is not free for another one.

    Args:
        connection: where the query is run.
        query: it.
        rows: of a batch, which ends at so many; each is in memory as a whole.

    Raises:
        duckdb.OutOfMemoryException, duckdb.IOException, duckdb.DataError: as the query would; of an error after the
            first rows, Arrow passes on a text only.
    """
    with connection.sql(query).to_arrow_reader(rows) as reader:
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                said = str(error)
                kinds = {"Out of Memory": duckdb.OutOfMemoryException, "IO Error": duckdb.IOException}
                kind = next((kind for words, kind in kinds.items() if said.startswith(words)), duckdb.DataError)
                raise kind(said) from None
            yield batch


@contextmanager
def more_memory(connection: duckdb.DuckDBPyConnection, times: int) -> Iterator[None]:
    """Allows an engine to reserve more memory for the length of the block.

    Args:
        connection: one of the engine's.
        times: how many times as much.
    """
    ((limit,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    number, unit = limit.split()
    connection.execute(f"SET memory_limit = '{float(number) * times:.1f} {unit}'")
    try:
        yield
    finally:
        with suppress(duckdb.Error):  # what is still reserved counts
            connection.execute(f"SET memory_limit = '{limit}'")


def files(paths: list[Path]) -> str:
    """A list of files as a DuckDB literal."""
    return "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths) + "]"


def read_files(paths: Sequence[Path], schema: pa.Schema, *options: str) -> str:
    """The rows of Parquet files as an SQL relation; older and current layouts can be mixed.

    Args:
        paths: files of one kind, in any mixture of layouts; may be empty.
        schema: the columns of the current layout. Missing columns are null; extra columns are kept.
        *options: of ``read_parquet`` that add a column: ``file_row_number``, ``filename``.
    """
    nothing = ", ".join(f'NULL::{_sql_type(column.type)} AS "{column.name}"' for column in schema)
    added = {"file_row_number": "BIGINT", "filename": "VARCHAR"}
    nothing += "".join(f", NULL::{added[option]} AS {option}" for option in options)
    if not paths:
        return f"(SELECT {nothing} WHERE false)"
    # Reading all layouts first takes 0.1 ms per file; a single file has only one layout.
    chosen = "".join(f", {option}=true" for option in (*options, *(["union_by_name"] if len(paths) > 1 else [])))
    return f"(SELECT {nothing} WHERE false UNION ALL BY NAME FROM read_parquet({files(list(paths))}{chosen}))"  # noqa: S608


def _sql_type(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return f"{_sql_type(type_.value_type)}[]"
    names = {
        pa.string(): "VARCHAR",
        pa.bool_(): "BOOLEAN",
        pa.int32(): "INTEGER",
        pa.int64(): "BIGINT",
        pa.uint32(): "UINTEGER",
        pa.uint64(): "UBIGINT",
        pa.float64(): "DOUBLE",
        pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
    }
    return names[type_]


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
