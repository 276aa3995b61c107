"""The interface of a warehouse: the keys of its rows, then the wanted rows, as relations for DuckDB."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from nami_amp_pipeline import contract
from nami_amp_pipeline.errors import WarehouseUnavailable

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Kind = Literal["text", "time", "json"]

COLUMNS: Mapping[str, Kind] = {
    "id": "text",
    "app_id": "text",
    "event_type": "text",
    "user_id": "text",
    "created_date": "time",
    "ingested_at": "time",
    "payload": "json",
}
"""The columns of the events table, and what each holds."""

_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
DUCKDB_TYPES: Mapping[Kind, tuple[str, ...]] = {
    "text": ("VARCHAR", "UUID", "ENUM", *_INTEGERS),
    "time": ("TIMESTAMP WITH TIME ZONE",),
    "json": ("VARCHAR", "JSON"),
}
"""The types that a column of each kind may have, as DuckDB names them; whatever is no text is read as one."""


_NEAR_MICROSECONDS = 600 * 1_000_000
"""Apps whose positions are as near as that are asked for together."""


class Unplaced(NamedTuple):
    """Rows of one app whose position in the reading is unknown, so that they cannot be captured.

    Attributes:
        app_id: empty where they name no app.
        reason: one of :data:`~nami_amp_pipeline.contract.UNREADABLE`.
        rows: how many there are.
        example: names one of them.
    """

    app_id: str
    reason: str
    rows: int
    example: str

    @property
    def finding(self) -> Finding:
        """As a finding for the doctor."""
        return Finding(
            "rows",
            "warning",
            contract.unreadable_text(*self),
            "load them again with correct values, and declare the columns NOT NULL",
        )


@dataclass(frozen=True)
class Source:
    """The events table while it is open.

    Attributes:
        keys: what to put behind ``FROM`` for the keys of rows: ``app_id``, ``id`` (null where a row has none),
            ``ingested_at`` and ``rid``, a number of the row. Rows of other apps and from before their app's position
            may be left out; those that are ``unplaced`` are; no others.
        head: the newest ``ingested_at`` that was seen, in microseconds since the epoch; None if there was no row.
        rows: called when the table ``fresh`` has each ``rid`` that is wanted; gives what to put behind ``FROM`` for
            whole rows: :data:`COLUMNS` and ``rid``. It has every ``rid`` of ``fresh`` once and may have others. It can
            be read once; to read again, for the same or others, it is called again. A ``created_date`` that is
            infinite or not of the years 1 to 9999 may come as any other such.
        few: called with some of the ``rid`` of ``fresh``, not many; gives the same as ``rows`` for these, read so that
            hardly any other row is in memory. It may have a ``rid`` several times. Rows that were to come from an
            earlier call need not come any more.
        users: what to put behind ``FROM`` for ``rid``, ``app_id`` and ``user_id`` of all rows, or of a sample of them,
            read without their other columns; None where that would be to read the rows once more. It can be read as
            often as one likes. Of a sample, a long ``user_id`` may be only its beginning.
        order: what to put behind ``ORDER BY`` for an order of ``fresh`` in which neighbours are quickly read together.
        warnings: what a person should know, one line each.
        unplaced: the rows that cannot be read, by app and reason.
        broke: whether a reading that ended with an error did so because the warehouse failed, not because of a row.
        is_heavy: whether ``rows`` ended with an error because they are so large that they have to be read by ``few``.
        users_of: of about so many rows one is in ``users``; 1 if all are.
    """

    keys: str
    head: int | None
    rows: Callable[[], str]
    few: Callable[[Sequence[int]], str]
    users: str | None = None
    order: str = "ingested_at, rid"
    warnings: Sequence[str] = ()
    unplaced: Sequence[Unplaced] = ()
    broke: Callable[[], bool] = lambda: False
    is_heavy: Callable[[], bool] = lambda: False
    users_of: int = 1


class EventRow(NamedTuple):
    """A row of the events table without its payload; times in microseconds since the epoch."""

    app_id: str
    event_type: str
    user_id: str
    created_date: int
    ingested_at: int


@dataclass(frozen=True)
class Places:
    """Where the rows of an event may be, as far as the pipeline knows; times in microseconds since the epoch.

    Attributes:
        captured: app id and ``ingested_at`` of rows that were captured.
        unread: app id to the ``ingested_at`` from which on rows may not have been read yet.
    """

    captured: Sequence[tuple[str, int]]
    unread: Mapping[str, int]


@dataclass(frozen=True)
class Lookup:
    """The rows found for an event id.

    Attributes:
        rows: by ``ingested_at``.
        is_whole: whether all rows were searched; if that would take long, only the likely places are.
    """

    rows: Sequence[EventRow]
    is_whole: bool = True


@dataclass(frozen=True)
class Finding:
    """A finding of a check of the warehouse.

    Attributes:
        subject: the checked part, such as ``connection``, ``columns`` or ``index``.
        level: ``error`` if nothing can be read, ``warning`` if it works badly.
        message: one line for a person.
        fix: the advice, such as a statement to run; or None.
    """

    subject: str
    level: Literal["ok", "warning", "error"]
    message: str
    fix: str | None = None


class Warehouse(Protocol):
    """A place with an events table."""

    @property
    def name(self) -> str:
        """The table as people call it, without any credentials."""

    def open(
        self, connection: duckdb.DuckDBPyConnection, positions: Mapping[str, int | None]
    ) -> AbstractContextManager[Source]:
        """Makes the table readable from ``connection`` for the length of the block.

        Args:
            connection: where the relations can be used.
            positions: app id to the ``ingested_at`` that is to be read from, in microseconds since the epoch; None is
                the beginning.

        Raises:
            WarehouseUnavailable: it cannot be reached, is missing, has other columns, or broke off within the block.
        """

    def oldest(self, connection: duckdb.DuckDBPyConnection, app_ids: Sequence[str], after: int) -> dict[str, int]:
        """The oldest ``ingested_at`` after a time, by app that has one; times in microseconds since the epoch.

        Raises:
            WarehouseUnavailable: as :meth:`open`.
        """

    def unread(
        self, connection: duckdb.DuckDBPyConnection, positions: Mapping[str, int | None]
    ) -> dict[str, tuple[int, int]]:
        """How many rows come after a position, and the oldest ``ingested_at`` of them, by app that has any.

        Args:
            connection: where the answer may be read into.
            positions: app id to the ``ingested_at`` after which rows count, in microseconds since the epoch; None is
                the beginning.

        Raises:
            WarehouseUnavailable: as :meth:`open`.
        """

    def app_ids(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """Apps that have rows; of a large table perhaps not all of them.

        Raises:
            WarehouseUnavailable: as :meth:`open`.
        """

    def find(self, connection: duckdb.DuckDBPyConnection, event_id: str, places: Places | None = None) -> Lookup:
        """The rows of one event id.

        Args:
            connection: where the answer may be read into.
            event_id: the id.
            places: where to look if looking everywhere would take long; None looks everywhere all the same.

        Raises:
            WarehouseUnavailable: as :meth:`open`.
        """

    def check(self) -> list[Finding]:
        """Checks everything that reading needs; returns findings instead of raising."""


@runtime_checkable
class Answering(Protocol):
    """A warehouse that enrichments can ask for other tables; whether it is one is left to a warehouse."""

    def query(self, sql: str, seconds: float) -> pa.Table:
        """The answer of a query; nothing is written.

        Args:
            sql: a query in the words of this warehouse.
            seconds: how long it may take.

        Raises:
            WarehouseUnavailable: it cannot be answered.
        """


def by_position(positions: Mapping[str, int | None]) -> dict[int | None, list[str]]:
    """The apps that share a position, to be asked for together."""
    together: dict[int | None, list[str]] = {}
    for app_id, position in positions.items():
        together.setdefault(position, []).append(app_id)
    return together


def together(positions: Mapping[str, int | None]) -> list[tuple[int | None, list[str]]]:
    """Apps to be asked for together, with the position of the one that is behind."""
    parts: list[tuple[int | None, list[str]]] = []
    for app_id, position in sorted(positions.items(), key=lambda item: (item[1] is not None, item[1] or 0, item[0])):
        if parts:
            first, together = parts[-1]
            near = position is not None and first is not None and position - first <= _NEAR_MICROSECONDS
            if near or position is first:
                together.append(app_id)
                continue
        parts.append((position, [app_id]))
    return parts


def check_columns(found: Mapping[str, str], table: str, types: Mapping[Kind, tuple[str, ...]] = DUCKDB_TYPES) -> None:
    """Compares the columns of a table with those of the contract.

    Args:
        found: column name to type.
        table: its name, for the message.
        types: what each kind of column may be here.

    Raises:
        WarehouseUnavailable: one is missing or of another type.
    """
    for column, kind in COLUMNS.items():
        if column not in found:
            raise WarehouseUnavailable(f"table {table} has no column {column}; sql/nami_events.sql shows what it needs")
        if found[column].partition("(")[0] not in types[kind]:
            raise WarehouseUnavailable(
                f"column {column} of table {table} is {found[column]}, it must be {' or '.join(types[kind])}"
            )


def one_line(error: Exception) -> str:
    """A driver's message, in one line."""
    return " ".join(str(error).split())[:300]
