"""Ticks of 10,000 new events over one million and over ten million rows that have been handled before.

``python -m bench.history --small 20000 --large 60000 --users 20000 --news 1000 --repeats 2``

The history is real in what a tick could look at: its rows are in the warehouse; the pipeline's own first two stages
captured them (at an hour that lies further back than the late-commit window) and computed their snapshots, so that
segments, ids and a million users' states are where they would be. Only its posting is left out: the integration
is moved past it, and what was sent of each user is noted, by the function that notes it in a run.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from bench.checks import CHECKSUM
from bench.data import BASE_ROWS, MARKED, derived, insert_copy, sample_warehouse, selected
from bench.part import alone, say, spread, table
from bench.receiver import Receiver
from bench.scene import STAGES, Home, delivered_all, room, summary
from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.sample.stream import START
from nami_amp_pipeline.stages.pipeline import capture_apps, snapshot_apps
from nami_amp_pipeline.state import integrations as state
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.users import move_sent

TITLE = "Ten million rows of history"
GOAL = 1.2
AGE = timedelta(days=400)
"""How much older the history is than the sample it is copied from: nobody's clock makes a new event older."""

SEGMENT_ROWS = 100_000
"""Rows of the segments that the history is in: fewer than a backlog makes at a time, for ticks made it."""

FIRST_NEWS = 0x8000
"""Copies from this number on are new events."""

_KNOWN = "SELECT DISTINCT user_id FROM {} WHERE starts_with(event_type, 'user.')"
"""Users of whom there is a state; the others would only be rows."""

LATE = 100
"""New events of a tick, of 10,000, that were created in the midst of the history."""


def measure(
    *,
    small: int = 1_000_000,
    large: int = 10_000_000,
    users: int = 1_000_000,
    news: int = 10_000,
    repeats: int = 4,
    base: int = BASE_ROWS,
) -> dict[str, Any]:
    """Ticks over the smaller history, then over the larger.

    Args:
        small: rows of history, at least one a user.
        large: rows of history of as many users.
        users: about how many.
        news: new events of a tick.
        repeats: ticks, after a first one that is not counted.
        base: rows of the sample that all is copied from.
    """
    with Receiver() as receiver:
        histories = [_over(rows, users, news, repeats, base, receiver) for rows in (small, large)]
    seconds = [one["seconds"]["median"] for one in histories]
    runs = [one["run_seconds"]["median"] for one in histories]
    return {
        "news": news,
        "late": news * LATE // 10_000,
        "histories": histories,
        "ratio": seconds[1] / seconds[0],
        "ratio_of_run": runs[1] / runs[0],
    }


def _over(rows: int, users: int, news: int, repeats: int, base: int, receiver: Receiver) -> dict[str, Any]:
    warehouse = _warehouse(rows, users, base)
    say(f"{rows:,} rows of history are in the warehouse")
    ticks = []
    try:
        with room("history") as folder:
            home = Home(folder, f"duckdb:///{warehouse}")
            home.integrate(receiver.url)
            people = _captured(home)
            os.sync()  # what the history wrote is no part of a tick
            say(f"they are captured: {people:,} users")
            for number in range(repeats + 1):
                ids = _load_news(warehouse, number, news, users, base)
                tick = delivered_all(home, receiver, ids)
                say(f"tick {number}: {tick.took.seconds:.2f} s, from the first stage on {tick.run_seconds:.2f} s")
                if number:
                    ticks.append(tick.to_json())
    finally:
        _drop_news(warehouse)
    return {
        "rows": rows,
        "users": people,
        "ticks": ticks,
        "seconds": summary([one["seconds"] for one in ticks]),
        "run_seconds": summary([one["run_seconds"] for one in ticks]),
    }


def _shape(users: int, base: int) -> tuple[Path, int, int]:
    """The sample, how many copies of it there are, and how many of its people are copied."""
    source = sample_warehouse(base)
    with duckdb.connect(str(source), read_only=True) as connection:
        ((most,),) = connection.execute(f"SELECT count(*) FROM ({_KNOWN.format('nami_events')})").fetchall()
    copies = -(-users // int(most))
    return source, copies, users // copies


def _people(connection: duckdb.DuckDBPyConnection, source: Path, each: int) -> int:
    """Makes the table ``people``: the lives that are copied, ``number`` counting each one's events; how many rows."""
    connection.execute(f"ATTACH '{source}' AS base (READ_ONLY)")
    connection.execute(
        f"""
        CREATE TEMP TABLE people AS
        SELECT *, row_number() OVER (
            PARTITION BY app_id, user_id ORDER BY NOT starts_with(event_type, 'user.'), created_date, id
        ) AS number
        FROM (
            SELECT DISTINCT ON (id) * REPLACE (
                {MARKED} AS payload,
                created_date - INTERVAL '{AGE.days} days' AS created_date,
                ingested_at - INTERVAL '{AGE.days} days' AS ingested_at
            )
            FROM base.nami_events
            SEMI JOIN (SELECT user_id FROM ({_KNOWN.format("base.nami_events")}) ORDER BY user_id LIMIT {each})
                USING (user_id)
        )
        """
    )
    connection.execute("DETACH base")
    ((rows,),) = connection.execute("SELECT count(*) FROM people").fetchall()
    return int(rows)


def _warehouse(rows: int, users: int, base: int) -> Path:
    """Copies of a sample until there are so many users, then more events of the same, until there are so many rows."""
    source, copies, each = _shape(users, base)

    def fill(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("PRAGMA force_compression = 'zstd'")  # by itself DuckDB takes twice as long to choose
        lives = _people(connection, source, each)
        left, copy = rows, 0
        while left > 0:
            # First one event of each person, so that the smallest history has as many people as the largest.
            where, many = ("number = 1", each) if copy < copies else ("number > 1", lives - each)
            if copy >= 2 * copies:
                where, many = "true", lives
            connection.execute(
                insert_copy("people", f"{copy:04x}", people=f"{copy % copies:04x}", where=where, limit=left)
            )
            left -= many
            copy += 1

    path = derived(f"history-{rows}-of-{users}-from-{base}", fill)
    _drop_news(path)  # of a measurement that was broken off
    return path


def _captured(home: Home) -> int:
    """Lets the pipeline capture the history as of hours ago; returns how many users it found."""
    settings = home.settings.replace(segment_rows=SEGMENT_ROWS)
    ago = Context.open(settings, clock=lambda: time.time() - 3 * 3600)
    capture_apps(ago)
    snapshot_apps(ago)
    ago.store.close()
    later = Context.open(settings, clock=lambda: time.time() - 3600)
    capture_apps(later)  # finds nothing, and learns that what is there is there for good
    integrations = state.all_integrations(later.store)
    users = tables.user_property_snapshots
    people = 0
    with later.store.begin() as tx:
        newest = tx.execute(sa.select(sa.func.max(tables.segments.c.id))).scalar()
        tx.execute(sa.update(tables.integrations).values(prepared_through=newest))
        for one in integrations:
            known = tx.execute(
                sa.select(users.c.external_id, users.c.user_id, users.c.as_of_date, users.c.as_of_event).where(
                    users.c.app_id == one.app_id
                )
            ).all()
            people += len(known)
            sent = {
                (row.external_id or row.user_id): (row.as_of_date, row.as_of_event)
                for row in known
                if row.as_of_date is not None
            }
            rows = [
                {"integration_id": one.id, "user_id": user, "as_of_date": date, "as_of_event": event}
                for user, (date, event) in sorted(sent.items())
            ]
            move_sent(later.store, tx, pa.Table.from_pylist(rows))
    later.store.close()
    return people


def _load_news(warehouse: Path, number: int, news: int, users: int, base: int) -> object:
    """New events of people who are in the history; returns the checksum of their ids."""
    source, copies, each = _shape(users, base)
    types = ", ".join(f"'{name}'" for name in contract.event_type_names())
    digits = f"{FIRST_NEWS + number:04x}"
    with duckdb.connect(str(warehouse)) as connection:
        _people(connection, source, each)
        connection.execute(
            f"""
            CREATE TEMP TABLE news AS
            SELECT
                * REPLACE (
                    CASE WHEN row_number() OVER () <= {news * LATE // 10_000} THEN created_date + INTERVAL '1 hour'
                        ELSE now() END AS created_date,
                    now() AS ingested_at
                ),
                format('{{:04x}}', hash(id) % {copies}) AS person
            FROM (
                SELECT * FROM people WHERE event_type IN ({types}) ORDER BY hash(id || '{digits}'), id LIMIT {news}
            )
            """
        )
        connection.execute(insert_copy("news", digits, people="' || person || '"))
        return selected(connection, f"(SELECT * FROM nami_events WHERE id[5:8] = '{digits}')", CHECKSUM)


def _drop_news(warehouse: Path) -> None:
    with duckdb.connect(str(warehouse)) as connection:
        connection.execute("DELETE FROM nami_events WHERE ingested_at > ?", [START - AGE * 3 / 4])


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    small, large = result["histories"]
    return [
        (f"ticks of {result['news']:,} new events over {small['rows'] / 1e6:g} M and {large['rows'] / 1e6:g} M rows of "
         "history: ratio", f"≤ {GOAL}", f"{result['ratio']:.2f} ({result['ratio_of_run']:.2f} without process start)",
         max(result["ratio"], result["ratio_of_run"]) <= GOAL)
    ]  # fmt: skip


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    head = [
        "rows of history",
        "users",
        "seconds",
        "without process start",
        *(f"`{asset}`" for asset in STAGES.values()),
    ]
    rows = [
        [
            f"{one['rows']:,}",
            f"{one['users']:,}",
            spread(one["seconds"], ".2f"),
            spread(one["run_seconds"], ".2f"),
            *(f"{median(tick['stages'].get(asset, 0.0) for tick in one['ticks']):.2f}" for asset in STAGES.values()),
        ]
        for one in result["histories"]
    ]
    return (
        f"Ticks of {result['news']:,} new events of people who have a history, {result['late']} of them days late. The "
        "history is in the warehouse and was captured by the pipeline's own stages, hours before by its clock, in "
        f"segments of {SEGMENT_ROWS:,} rows: captured ids and users' states are where a tick looks for them. It was "
        "not posted; what was sent of each user is noted as a run would.\n\n" + table(head, rows)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
