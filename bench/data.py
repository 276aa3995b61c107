"""Sample warehouses of any size, made once and kept in ``bench/.cache``.

:func:`sample_warehouse` is what :mod:`nami_amp_pipeline.sample` makes, row by row. For millions more,
:func:`multiplied` lays copies of such a sample one behind the other: in copy *k* four digits of every UUID in every
column and payload are *k*, so that each copy is of other users with other devices, logins and events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from nami_amp_pipeline import contract, sample
from nami_amp_pipeline.compute import sql

CACHE: Final = Path(__file__).parent / ".cache"

APPS: Final = ("radio-nami", "fit-nami")

BASE_ROWS: Final = 200_000
"""Rows of the sample that :func:`multiplied` copies; of about 20,000 users."""

_COLUMNS = "id, app_id, event_type, user_id, created_date, ingested_at, payload"


def sample_warehouse(rows: int) -> Path:
    """A DuckDB file with so many sample events of two apps in the table ``nami_events``."""
    path = _cached(f"sample-{rows}")
    if not path.exists():
        with _making(path) as connection:
            for batch in sample.generate(max(1, rows // 10), rows=rows, apps=APPS):
                connection.register("sample", pa.Table.from_batches([batch]))
                connection.execute(f"INSERT INTO nami_events SELECT {_COLUMNS} FROM sample")
        _made(path)
    return path


def multiplied(rows: int, *, base_rows: int = BASE_ROWS) -> Path:
    """The same with as many copies of a smaller sample as it takes."""
    base = sample_warehouse(base_rows)
    path = _cached(f"multiplied-{rows}-of-{base_rows}")
    if not path.exists():
        with _making(path) as connection:
            connection.execute(f"ATTACH '{base}' AS base (READ_ONLY)")
            for copy, first in enumerate(range(0, rows, base_rows)):
                connection.execute(insert_copy("base.nami_events", copy, limit=min(base_rows, rows - first)))
            connection.execute("DETACH base")
        _made(path)
    return path


def insert_copy(source: str, copy: int, *, where: str = "true", limit: int = 2**62) -> str:
    """SQL that adds copy number ``copy`` of the rows of ``source`` to ``nami_events``, a month after the one before."""
    digits = f"{copy:04x}"
    return f"""
        INSERT INTO nami_events SELECT
            id[:4] || '{digits}' || id[9:],
            app_id,
            event_type,
            user_id[:4] || '{digits}' || user_id[9:],
            created_date,
            ingested_at,
            regexp_replace(
                payload,
                '"([0-9a-f]{{4}})[0-9a-f]{{4}}(-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{12}}")',
                '"\\1{digits}\\2',
                'g'
            )
        FROM (SELECT * FROM {source} WHERE {where} LIMIT {limit})
    """


def selected(connection: duckdb.DuckDBPyConnection, source: str, expression: str) -> object:
    """An aggregate over the events that an integration with all event types is to deliver, each once."""
    types = ", ".join(f"'{name}'" for name in contract.EVENT_TYPES)
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


def digest(folders: Sequence[Path]) -> str:
    """Changes when anything in these folders' Python or SQL files does."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.sql")]):
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _cached(name: str) -> Path:
    CACHE.mkdir(exist_ok=True)
    return CACHE / f"{name}-{digest([Path(sample.__file__).parent])}.duckdb"


def _making(path: Path) -> duckdb.DuckDBPyConnection:
    aside = path.with_suffix(".part")
    aside.unlink(missing_ok=True)
    connection = duckdb.connect(str(aside))
    connection.execute("SET preserve_insertion_order = true")
    new_table(connection)
    return connection


def _made(path: Path) -> None:
    path.with_suffix(".part").rename(path)
