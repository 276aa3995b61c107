"""Which rows of a reading go into which segment: all rows of a user into one, and users who are neighbours together.

The store keeps users in the order of app and user id. A segment with a range of that order touches few pages of the
store, however many users there are already; and an app is in few segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import duckdb

from nami_amp_pipeline.storage.duckdb_engine import literal
from nami_amp_pipeline.storage.row_faults import may_be_a_rows
from nami_amp_pipeline.warehouse import Source

SAMPLED_ROWS: Final = 2_000
"""About so many rows of each segment decide where it ends, so that segments differ in size by a few percent."""

_FEWEST_ROWS: Final = 100
"""A sample that has fewer rows of each segment would make them differ too much."""

_BOUND_CHARACTERS: Final = 100

Bound = tuple[str, str]
"""The app and the user with which a segment begins; of a longer user id, its first characters."""


def create_buckets(connection: duckdb.DuckDBPyConnection, source: Source, segment_rows: int) -> None:
    """Creates the macro ``bucket_of(app, person)``: the number of a row's segment.

    Args:
        connection: has the table ``fresh`` and the view ``keys``.
        source: the events table.
        segment_rows: about how many rows a segment gets; one user's may be more.
    """
    ((rows,),) = connection.execute("SELECT count(*) FROM fresh").fetchall()
    many = max(1, -(-rows // segment_rows))
    bucket = "0" if many == 1 else _of_users(connection, source, rows, many) or _of_apps(connection, segment_rows)
    connection.execute(f"CREATE TEMP MACRO bucket_of(app, person) AS ({bucket})::INTEGER")


def _of_users(connection: duckdb.DuckDBPyConnection, source: Source, rows: int, many: int) -> str:
    """SQL of a row's segment, by a sample of the users; empty where these are not to be had, or too few."""
    if source.users is None:
        return ""
    every = max(1, rows // (many * SAMPLED_ROWS * source.users_of))
    try:
        found = connection.execute(
            "WITH sampled AS ("  # noqa: S608
            f"SELECT app_id, replace(coalesce(user_id, ''), chr(0), '')[:{_BOUND_CHARACTERS}] AS user_id "
            f"FROM {source.users} SEMI JOIN (FROM fresh WHERE hash(rid) % {every} = 0) USING (rid)"
            f"), placed AS (SELECT *, ntile({many}) OVER (ORDER BY app_id, user_id) AS part FROM sampled) "
            "SELECT DISTINCT app_id, user_id, (SELECT count(*) FROM sampled) FROM ("
            "SELECT part, unnest(min({'app_id': app_id, 'user_id': user_id})) FROM placed WHERE part > 1 GROUP BY part"
            ") ORDER BY ALL"
        ).fetchall()
    except duckdb.Error as error:
        if not may_be_a_rows(error):
            raise
        return ""  # whoever reads the rows finds it
    if source.users_of > 1 and (not found or found[0][2] < many * _FEWEST_ROWS):
        return ""
    bounds = [(app_id, user_id) for app_id, user_id, _ in found]
    return _between(bounds, [str(number) for number in range(len(bounds) + 1)])


def _of_apps(connection: duckdb.DuckDBPyConnection, segment_rows: int) -> str:
    """The same where only apps are known: a hash of the user spreads the rows of a large app over several segments."""
    sizes = connection.execute(
        "SELECT app_id, count(*) FROM keys SEMI JOIN fresh USING (rid) GROUP BY app_id ORDER BY app_id"
    ).fetchall()
    bounds: list[Bound] = []
    buckets: list[str] = []
    first, room = 0, 0
    for app_id, rows in sizes:
        if rows <= room:
            room -= rows
            continue
        if buckets:
            bounds.append((app_id, ""))
        parts = -(-rows // segment_rows)
        buckets.append(str(first) if parts == 1 else f"{first} + hash(person) % {parts}")
        first, room = first + parts, segment_rows - rows if parts == 1 else 0
    return _between(bounds, buckets)


def _between(bounds: Sequence[Bound], buckets: Sequence[str]) -> str:
    """SQL that takes as few comparisons of a row as can be.

    Args:
        bounds: in order.
        buckets: SQL for the rows before the first bound, and for those from each bound on.
    """
    if not bounds:
        return buckets[0]
    middle = len(bounds) // 2
    app, person = (literal(text) for text in bounds[middle])
    before, after = _between(bounds[:middle], buckets), _between(bounds[middle + 1 :], buckets[middle + 1 :])
    return f"CASE WHEN app < {app} OR (app = {app} AND person < {person}) THEN {before} ELSE {after} END"
