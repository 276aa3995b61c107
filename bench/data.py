"""Sample warehouses of any size, made once and kept in ``bench/.cache``.

:func:`sample_warehouse` is what :mod:`nami_amp_pipeline.sample` makes, row by row. For millions more,
:func:`multiplied` lays copies of such a sample one behind the other: in copy *k* four digits of every UUID in every
column and payload are *k*, so that each copy is of other users with other devices, logins and events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from nami_amp_pipeline import contract, sample
from nami_amp_pipeline.storage.duckdb_engine import sql

CACHE: Final = Path(__file__).parent / ".cache"

APPS: Final = ("radio-nami", "fit-nami")

BASE_ROWS: Final = 200_000
"""Rows of the sample that :func:`multiplied` copies; of about 20,000 users."""

_UUID = '"([0-9a-f]{4})[0-9a-f]{4}(-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")'
_LOGIN = '("key":"external_id","type":"(?:sha256|numeric)","value":")[^"]{4}'
MARKED: Final = f"""regexp_replace(
    regexp_replace(payload, '{_UUID}', concat('"\\1', chr(1), '\\2'), 'g'), '{_LOGIN}', concat('\\1', chr(1))
)"""
"""SQL: a payload with a mark, which no JSON has, for each four digits that tell a copy's people from another's."""

_COLUMNS = "id, app_id, event_type, user_id, created_date, ingested_at, payload"


def sample_warehouse(rows: int) -> Path:
    """A DuckDB file with so many sample events of two apps in the table ``nami_events``."""

    def fill(connection: duckdb.DuckDBPyConnection) -> None:
        for batch in sample.generate(max(1, rows // 10), rows=rows, apps=APPS):
            connection.register("sample", pa.Table.from_batches([batch]))
            connection.execute(f"INSERT INTO nami_events SELECT {_COLUMNS} FROM sample")

    return derived(f"sample-{rows}", fill)


def multiplied(rows: int, *, base_rows: int = BASE_ROWS) -> Path:
    """The same with as many copies of a smaller sample as it takes."""
    base = sample_warehouse(base_rows)

    def fill(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"ATTACH '{base}' AS base (READ_ONLY)")
        connection.execute(f"CREATE TEMP TABLE marked AS SELECT * REPLACE ({MARKED} AS payload) FROM base.nami_events")
        connection.execute("DETACH base")
        for copy, first in enumerate(range(0, rows, base_rows)):
            connection.execute(insert_copy("marked", f"{copy:04x}", limit=min(base_rows, rows - first)))

    return derived(f"multiplied-{rows}-of-{base_rows}", fill)


def derived(name: str, fill: Callable[[duckdb.DuckDBPyConnection], None]) -> Path:
    """A DuckDB file with the table ``nami_events``, filled where it is not there yet."""
    path = _cached(name)
    if not path.exists():
        aside = path.with_suffix(".part")
        aside.unlink(missing_ok=True)
        try:
            with duckdb.connect(str(aside)) as connection:
                connection.execute("SET preserve_insertion_order = false")  # millions of copies take half the time
                new_table(connection)
                fill(connection)
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
    return path


def insert_copy(
    source: str, digits: str, *, people: str | None = None, where: str = "true", limit: int | None = None
) -> str:
    """SQL that adds a copy of the rows of ``source`` to ``nami_events``.

    Args:
        source: a table with its columns, in which ``payload`` is :data:`MARKED`.
        digits: four hexadecimal digits that stand in each event's id.
        people: the same for users and for what their payloads hold, where that is another; may be spliced SQL.
        where: which rows.
        limit: how many at most.
    """
    return f"""
        INSERT INTO nami_events SELECT
            id[:4] || '{digits}' || id[9:],
            app_id,
            event_type,
            user_id[:4] || '{people or digits}' || user_id[9:],
            created_date,
            ingested_at,
            replace(payload, chr(1), '{people or digits}')
        FROM (SELECT * FROM {source} WHERE {where} {"" if limit is None else f"LIMIT {limit}"})
    """


def selected(connection: duckdb.DuckDBPyConnection, source: str, expression: str) -> object:
    """An aggregate over the events that an integration with all event types is to deliver, each once."""
    types = ", ".join(f"'{name}'" for name in contract.event_type_names())
    ((value,),) = connection.execute(
        f"SELECT {expression} FROM (SELECT DISTINCT id AS insert_id FROM {source} WHERE event_type IN ({types}))"
    ).fetchall()
    return value


def expected(path: Path, expression: str) -> object:
    """The same of a DuckDB file."""
    with duckdb.connect(str(path), read_only=True) as connection:
        return selected(connection, "nami_events", expression)


def new_table(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes the table ``nami_events``."""
    connection.execute(sql("nami_events"))


def _cached(name: str) -> Path:
    """Where a file of this name is, made from the sample as it is now."""
    CACHE.mkdir(exist_ok=True)
    found = hashlib.sha256()
    for path in sorted(Path(sample.__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return CACHE / f"{name}-{found.hexdigest()[:12]}.duckdb"
