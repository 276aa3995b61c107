"""What a warehouse has to offer: its newest row, and its rows as a relation for DuckDB."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import duckdb

from nami_amp_pipeline.errors import WarehouseUnavailable

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("VARCHAR",),
    "app_id": ("VARCHAR",),
    "event_type": ("VARCHAR",),
    "user_id": ("VARCHAR",),
    "created_date": ("TIMESTAMP WITH TIME ZONE",),
    "ingested_at": ("TIMESTAMP WITH TIME ZONE",),
    "payload": ("VARCHAR", "JSON"),
}
"""The columns of the events table with the types that each may have, as DuckDB names them."""


@dataclass(frozen=True)
class Source:
    """The events table while it is open.

    Attributes:
        relation: what to put behind ``FROM``; has :data:`COLUMNS` and ``rid``, a number of the row.
        head: the newest ``ingested_at`` in microseconds since the epoch; None in an empty table.
    """

    relation: str
    head: int | None


class Warehouse(Protocol):
    """A place with an events table."""

    @property
    def name(self) -> str:
        """The table as people call it, without any credentials."""

    def open(self, connection: duckdb.DuckDBPyConnection) -> AbstractContextManager[Source]:
        """Makes the table readable from ``connection`` for the length of the block.

        Raises:
            WarehouseUnavailable: it cannot be reached, is missing, or has other columns.
        """


def check_columns(found: Mapping[str, str], table: str) -> None:
    """Compares the columns of a table with those of the contract.

    Args:
        found: column name to DuckDB type.
        table: its name, for the message.

    Raises:
        WarehouseUnavailable: one is missing or of another type.
    """
    for column, types in COLUMNS.items():
        if column not in found:
            raise WarehouseUnavailable(f"table {table} has no column {column}; sql/nami_events.sql shows what it needs")
        if found[column] not in types:
            raise WarehouseUnavailable(
                f"column {column} of table {table} is {found[column]}, it must be {' or '.join(types)}"
            )
