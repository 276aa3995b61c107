"""The comparison of one day of one integration, hour by hour, by when the events were uploaded to Amplitude."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import duckdb
import sqlalchemy as sa

from nami_amp_pipeline.amplitude.exported import HOUR, ExportSource
from nami_amp_pipeline.amplitude.exported.held import add_held, create_tables
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.reconciliation.sent import channels_of, load_sent
from nami_amp_pipeline.reconciliation.verify import Altered, verify
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.storage.duckdb_engine import compute

DAY: Final = 24 * HOUR

COMPLETE_AFTER: Final = 3 * HOUR
"""How long after its end an hour is whole in an export; Amplitude says two hours."""

MOST_SAMPLES: Final = 100
"""Altered events of a day whose values are kept side by side."""

CLASSES: Final = ("identical", "altered", "missing", "not_yet_exported", "twice", "undelivered", "others")
"""``not_yet_exported`` are delivered and not in the export, in an hour that exports do not have whole yet: nobody knows
whether Amplitude holds them. ``twice`` counts events that are identical or altered too. ``undelivered`` are held
although no answer said so: their outcome was unknown, or they are dead letters. ``others`` are events of other writers.
"""


@dataclass(frozen=True)
class Difference:
    """An event that Amplitude does not hold as it was sent.

    Attributes:
        kind: altered, missing, twice or undelivered.
        event_id: its insert id.
        columns: what was altered.
        delivered_at: when its delivery was answered, in µs since the epoch; None of undelivered ones.
        segment_id: where its row is.
        is_open: whether its outbox is still being delivered.
        fields: of some altered ones, what is held otherwise.
    """

    kind: str
    event_id: str
    columns: tuple[str, ...] = ()
    delivered_at: int | None = None
    segment_id: int | None = None
    is_open: bool = False
    fields: tuple[Altered, ...] = ()


@dataclass
class Day:
    """The result of a comparison.

    Attributes:
        day: its first µs since the epoch.
        counts: by class.
        columns: of altered events, how many by column.
        differences: every event that is altered, missing, held twice or undelivered.
        hours: the hours that were compared.
        early: those of them that exports do not have whole yet.
        left_out: why other hours were not: reason to hours.
    """

    day: int
    counts: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    hours: list[int] = field(default_factory=list)
    early: list[int] = field(default_factory=list)
    left_out: dict[str, list[int]] = field(default_factory=dict)

    @property
    def date(self) -> str:
        """As people write it."""
        return f"{datetime.fromtimestamp(self.day / 1e6, UTC):%Y-%m-%d}"

    @property
    def delivered(self) -> int:
        """Events whose delivery was answered in the compared hours."""
        return self.held + self.counts["missing"] + self.counts["not_yet_exported"]

    @property
    def held(self) -> int:
        """How many of them Amplitude holds."""
        return self.counts["identical"] + self.counts["altered"]

    @property
    def is_complete(self) -> bool:
        """Whether all hours were compared, with exports that have them whole."""
        return len(self.hours) == 24 and not self.early

    @property
    def is_clean(self) -> bool:
        """Whether Amplitude holds everything as it was sent, once."""
        return not any(self.counts[name] for name in ("altered", "missing", "twice"))

    def of(self, kind: str) -> list[Difference]:
        """The differences of a class."""
        return [difference for difference in self.differences if difference.kind == kind]

    @property
    def in_a_line(self) -> str:
        """The result in words."""
        if not self.hours:
            return f"{self.date}: nothing was compared{self._left_out}"
        # What the export lacks so far, Amplitude may well hold.
        who = "the export has" if self.counts["not_yet_exported"] else "Amplitude holds"
        words = [f"{who} {self.held:,} of {self.delivered:,}"]
        if self.counts["missing"]:
            words.append(f"{self.counts['missing']:,} missing")
        if self.counts["not_yet_exported"]:
            words.append(f"{self.counts['not_yet_exported']:,} not yet exported")
        if self.counts["altered"]:
            columns = ", ".join(f"{name} {events:,}" for name, events in self.columns.most_common())
            words.append(f"{self.counts['altered']:,} altered ({columns})")
        if self.counts["twice"]:
            words.append(f"{self.counts['twice']:,} held twice")
        if self.counts["undelivered"]:
            words.append(f"{self.counts['undelivered']:,} held without an answer that said so")
        if self.counts["others"]:
            words.append(f"{self.counts['others']:,} of other writers")
        return f"{self.date}: {', '.join(words)}{self._left_out}"

    @property
    def _left_out(self) -> str:
        parts = [f"{_listed(hours)}: {why}" for why, hours in self.left_out.items()]
        return f" (left out: {'; '.join(parts)})" if parts else ""


def reconcile_day(
    context: Context, integration: Integration, source: ExportSource, day: int, *, now_too: bool = False
) -> Day:
    """Compares one day.

    Args:
        context: the process at work.
        integration: whose events.
        source: what Amplitude holds.
        day: its first µs since the epoch.
        now_too: also hours that are not whole in exports yet.

    Raises:
        Misconfigured, Blocked: the source, the store or a file cannot be read.
    """
    found = Day(day)
    now = context.now()
    for hour in range(day, day + DAY, HOUR):
        is_whole = hour + HOUR + COMPLETE_AFTER <= now
        if is_whole or (now_too and hour <= now):
            found.hours.append(hour)
            if not is_whole:
                found.early.append(hour)
        else:
            why = "not over for 3 hours, so not whole in exports yet" if hour <= now else "still to come"
            found.left_out.setdefault(why, []).append(hour)
    if not found.hours:
        return found
    # An event may be held in the hour beside the one in which its answer came.
    first, end = found.hours[0] - HOUR, found.hours[-1] + 2 * HOUR
    with compute(context.settings) as connection:
        connection.execute("SET preserve_insertion_order = false")
        create_tables(connection)
        load_sent(context, connection, integration, first, end)
        _fill_known(connection, integration)
        read = _read(connection, source, [hour for hour in range(first, end, HOUR) if hour <= now])
        unknown = [hour for hour in found.hours if hour not in read]
        if unknown:
            found.left_out["no exported file of them"] = unknown
            found.hours = [hour for hour in found.hours if hour in read]
            found.early = [hour for hour in found.early if hour in read]
        _choose(connection, found)
        more = _hours_of_earlier_attempts(context, connection, integration) - read
        _read(connection, source, sorted(more))
        _conclude(connection, found, verify(context, connection, integration, MOST_SAMPLES))
    return found


def _fill_known(connection: duckdb.DuckDBPyConnection, integration: Integration) -> None:
    names = list(integration.rename.items())
    connection.execute("CREATE TEMP TABLE renamed (event_type VARCHAR, name VARCHAR)")
    if names:
        connection.executemany("INSERT INTO renamed VALUES (?, ?)", names)
    connection.execute(
        """
        INSERT INTO known
        SELECT number, id, identity, coalesce(r.name, event_type), floor(created_date / 1000)::BIGINT,
            fingerprint_head, fingerprint_event_properties, fingerprint_revenue, fingerprint_user_properties
        FROM sent LEFT JOIN renamed r USING (event_type)
        """
    )


def _read(connection: duckdb.DuckDBPyConnection, source: ExportSource, hours: list[int]) -> set[int]:
    """Reads some hours; returns those that are known to their end."""
    read: set[int] = set()
    for run in _runs(hours):
        read |= _read_run(connection, source, run)
    return read


def _read_run(connection: duckdb.DuckDBPyConnection, source: ExportSource, hours: list[int]) -> set[int]:
    read: set[int] = set()
    for chunk in source.read(hours):
        try:
            read |= chunk.hours | set(add_held(connection, chunk.files, hours[0], hours[-1] + HOUR))
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise Blocked(f"an export of {source.called} is damaged: {str(error).splitlines()[0][:200]}") from None
    return read


def _choose(connection: duckdb.DuckDBPyConnection, found: Day) -> None:
    """Creates the table ``chosen``, the events that were delivered in the compared hours, and tables of the hours."""
    for name, hours in (("compared", found.hours), ("early", found.early)):
        connection.execute(f"CREATE TEMP TABLE {name} (hour BIGINT)")
        if hours:
            connection.executemany(f"INSERT INTO {name} VALUES (?)", [(hour,) for hour in hours])  # noqa: S608
    connection.execute(
        "CREATE TEMP TABLE chosen AS SELECT * FROM sent "
        "WHERE delivered_at // 3600000000 * 3600000000 IN (FROM compared)"
    )


def _hours_of_earlier_attempts(
    context: Context, connection: duckdb.DuckDBPyConnection, integration: Integration
) -> set[int]:
    """The hours in which what seems to be missing may have been stored: by a request before the one that was answered.

    Amplitude keeps the first of repeats, so the event is held under the time of the first that reached it. A process
    that was killed recorded nothing of its request, so any hour since the event's outbox was there may be that.
    """
    missing = "FROM chosen c WHERE c.number NOT IN (SELECT number FROM held)"
    rows = connection.execute(
        f"SELECT DISTINCT c.request_id, c.first_sent_at {missing} AND c.request_id IS NOT NULL"
    ).fetchall()
    requests = tables.requests
    firsts = {first_sent_at // HOUR * HOUR for _, first_sent_at in rows if first_sent_at is not None}
    hours = firsts | {hour + HOUR for hour in firsts if hour + HOUR <= context.now()}
    spans = connection.execute(
        f"SELECT DISTINCT prepared_at // {HOUR}, delivered_at // {HOUR} {missing} AND prepared_at IS NOT NULL"
    ).fetchall()
    for first, last in spans:
        hours |= {hour * HOUR for hour in range(first, last)}
    with context.store.reading() as tx:
        for start in range(0, len(rows), 500):
            ids = [request_id for request_id, _ in rows[start : start + 500]]
            lanes = sa.select(requests.c.lane_id).where(requests.c.id.in_(ids), requests.c.lane_id.is_not(None))
            times = tx.execute(
                sa.select(requests.c.sent_at, requests.c.answered_at).where(
                    requests.c.integration_id.in_(channels_of(context, integration)),
                    requests.c.lane_id.in_(lanes),
                    requests.c.outcome != "delivered",
                )
            ).all()
            for sent_at, answered_at in times:
                hours |= set(range(sent_at // HOUR * HOUR, answered_at + 1, HOUR))
    return hours


def _conclude(connection: duckdb.DuckDBPyConnection, found: Day, fields: Mapping[int, Sequence[Altered]]) -> None:
    connection.execute(
        """
        CREATE TEMP TABLE pairs AS
        SELECT number, count(DISTINCT coalesce(uuid, '')) AS copies, arg_min(h, (len(differs), uploaded_at)) AS held,
            -- A copy that is identical is enough.
            min(len(differs)) AS least
        FROM held h GROUP BY number;
        CREATE TEMP TABLE ended AS
        SELECT s.number, s.id, s.delivered_at, s.segment_id, coalesce(s.is_open, false) AS is_open, p.copies, p.held,
            CASE WHEN s.state <> 'delivered' THEN 'undelivered'
                WHEN p.number IS NULL AND s.delivered_at // 3600000000 * 3600000000 IN (FROM early)
                    THEN 'not_yet_exported'
                WHEN p.number IS NULL THEN 'missing'
                WHEN p.least > 0 THEN 'altered' ELSE 'identical' END AS class
        FROM sent s LEFT JOIN pairs p USING (number)
        WHERE s.number IN (SELECT number FROM chosen)
            OR (s.state <> 'delivered' AND p.held.uploaded_at // 3600000000 * 3600000000 IN (FROM compared));
        """
    )
    found.counts.update(dict(connection.execute("SELECT class, count(*) FROM ended GROUP BY ALL").fetchall()))
    ((found.counts["twice"],),) = connection.execute(
        "SELECT count(*) FROM ended WHERE copies > 1 AND class <> 'undelivered'"
    ).fetchall()
    ((found.counts["others"],),) = connection.execute(
        "SELECT coalesce(sum(events), 0)::BIGINT FROM strangers WHERE hour IN (FROM compared)"
    ).fetchall()
    columns = (
        "SELECT name, count(*) FROM (SELECT unnest(held.differs) AS name FROM ended WHERE class = 'altered') "
        "GROUP BY ALL ORDER BY ALL"
    )
    found.columns.update(dict(connection.execute(columns).fetchall()))
    for kind, where in (
        ("missing", "class = 'missing'"),
        ("altered", "class = 'altered'"),
        ("twice", "copies > 1 AND class <> 'undelivered'"),
        ("undelivered", "class = 'undelivered'"),
    ):
        rows = connection.execute(
            f"SELECT number, id, delivered_at, segment_id, is_open, held.differs FROM ended WHERE {where} "  # noqa: S608
            "ORDER BY delivered_at, id"
        ).fetchall()
        for number, event_id, delivered_at, segment_id, is_open, differs in rows:
            is_altered = kind == "altered"
            found.differences.append(
                Difference(
                    kind,
                    event_id,
                    tuple(differs) if is_altered else (),
                    delivered_at,
                    segment_id,
                    is_open,
                    tuple(fields.get(number, ())) if is_altered else (),
                )
            )


def _listed(hours: list[int]) -> str:
    """Hours as people read them: runs of them from one to another."""
    return ", ".join(f"{_clock(run[0])} to {_clock(run[-1] + HOUR, is_end=True)}" for run in _runs(hours))


def _runs(hours: list[int]) -> list[list[int]]:
    """Sorted hours in runs without a gap."""
    runs: list[list[int]] = []
    for hour in hours:
        if runs and hour == runs[-1][-1] + HOUR:
            runs[-1].append(hour)
        else:
            runs.append([hour])
    return runs


def _clock(moment: int, *, is_end: bool = False) -> str:
    """The time of a day; its end is 24:00, not the beginning of the next."""
    return "24:00" if is_end and moment % DAY == 0 else f"{datetime.fromtimestamp(moment / 1e6, UTC):%H:%M}"
