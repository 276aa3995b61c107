"""What the state store says, read past the pipeline's own code, by a connection of our own after every commit."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# One row for each integration: what was captured, what ended, and what is pending wherever it stands. Integrations here
# begin with the beginning, so every selected event of a segment counts.
_CONSERVED = """
SELECT
    i.id,
    i.app_id || '/' || i.name,
    i.prepared_through,
    coalesce((SELECT sum(events) FROM integration_counts c WHERE c.integration_id = i.id AND c.state = 'captured'), 0),
    coalesce((SELECT sum(events) FROM integration_counts c WHERE c.integration_id = i.id AND c.state <> 'captured'), 0),
    coalesce((SELECT min(events) FROM integration_counts c WHERE c.integration_id = i.id), 0),
    coalesce((
        SELECT sum(l.rows - l.next_row) FROM lanes l JOIN outboxes o ON o.id = l.outbox_id
        WHERE o.integration_id = i.id AND o.done_at IS NULL
    ), 0),
    (
        SELECT count(*) FROM exceptions e JOIN lanes l ON l.id = e.lane_id
        WHERE e.integration_id = i.id AND e.lane_row >= l.next_row
    ),
    (SELECT count(*) FROM exceptions e WHERE e.integration_id = i.id AND e.state IN ('held', 'waiting')),
    (SELECT count(*) FROM exceptions e WHERE e.integration_id = i.id AND e.state = 'dead'),
    coalesce((SELECT sum(events) FROM integration_counts c WHERE c.integration_id = i.id AND c.state = 'dead'), 0),
    (SELECT count(*) FROM lanes l WHERE l.next_row > l.rows OR l.next_row < 0)
FROM integrations i ORDER BY i.id
"""

# Counts by hour and type beside those of all time; what backfills deliver is not counted by hour.
_BY_HOUR = """
WITH hours AS (
    SELECT integration_id, sum(captured) AS captured, sum(delivered) AS delivered, sum(skipped) AS skipped,
        sum(dead) AS dead, min(captured - delivered - skipped - dead) AS least_left,
        min(captured) AS least, min(min(delivered, skipped, dead)) AS least_ended
    FROM hourly_counts GROUP BY integration_id
), counted AS (
    SELECT i.id, i.app_id || '/' || i.name AS name, i.backfill_of,
        sum(CASE c.state WHEN 'captured' THEN c.events END) AS captured,
        sum(CASE c.state WHEN 'delivered' THEN c.events END) AS delivered,
        sum(CASE c.state WHEN 'skipped' THEN c.events END) AS skipped,
        sum(CASE c.state WHEN 'dead' THEN c.events END) AS dead
    FROM integrations i LEFT JOIN integration_counts c ON c.integration_id = i.id GROUP BY i.id
)
SELECT name, c.captured, h.captured, c.delivered, h.delivered, c.skipped, h.skipped, c.dead, h.dead, least_left, least,
    least_ended
FROM counted c LEFT JOIN hours h ON h.integration_id = c.id
WHERE CASE WHEN c.backfill_of IS NOT NULL THEN h.captured IS NOT NULL ELSE
    coalesce(c.captured, 0) <> coalesce(h.captured, 0) OR coalesce(c.delivered, 0) <> coalesce(h.delivered, 0)
    OR coalesce(c.skipped, 0) <> coalesce(h.skipped, 0) OR coalesce(c.dead, 0) <> coalesce(h.dead, 0)
    OR least_left < 0 OR least < 0 OR least_ended < 0 END
"""

_NAMED = """
SELECT file FROM segments
UNION SELECT file FROM captured_ids
UNION SELECT snapshot_file FROM segment_apps WHERE snapshot_file IS NOT NULL
UNION SELECT file FROM outboxes WHERE done_at IS NULL
UNION SELECT receipts_file FROM outboxes WHERE receipts_file IS NOT NULL
"""


class Ledger:
    """Reads a SQLite store.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)

    def holder(self, integration: str) -> str | None:
        """Whose the lease of an integration is, by the integration's name."""
        row = self._connection.execute(
            "SELECT l.owner FROM leases l JOIN integrations i ON l.name = 'integration:' || i.id WHERE i.name = ?",
            (integration,),
        ).fetchone()
        return None if row is None else str(row[0])

    def wrong(self) -> list[str]:
        """What is not conserved: captured is not what ended and what is pending, or something is below zero.

        Dead letters are counted twice over, as events and as rows that say why.
        """
        found = []
        for row in self._connection.execute(_CONSERVED):
            _, name, _, captured, ended, least, in_lanes, ahead, waiting, dead, dead_counted, past_the_end = row
            pending = in_lanes - ahead + waiting
            if captured != ended + pending or pending < 0 or least < 0:
                found.append(f"{name}: {captured} captured, {ended} ended, {pending} pending, {least} at least")
            if dead != dead_counted or past_the_end:
                found.append(
                    f"{name}: {dead} dead letters, {dead_counted} counted; {past_the_end} lanes past their end"
                )
        found += [f"by hour (all time, hours, …): {row}" for row in self._connection.execute(_BY_HOUR)]
        return found

    def named_files(self) -> set[str]:
        """The files that a row names and somebody may read."""
        return {name for (name,) in self._connection.execute(_NAMED)}

    def prepared(self) -> dict[int, int]:
        """By integration, the segment up to which it has outboxes."""
        return dict(self._connection.execute("SELECT id, prepared_through FROM integrations").fetchall())

    def snapshotted(self) -> set[int]:
        """The segments whose snapshots, and logins, have been read."""
        rows = self._connection.execute("SELECT segment_id FROM segment_apps WHERE snapshot_file IS NOT NULL")
        return {segment_id for (segment_id,) in rows}

    def segments(self) -> list[tuple[int, str]]:
        """(segment, its file), in the order of capture."""
        return self._connection.execute("SELECT id, file FROM segments ORDER BY id").fetchall()

    def outcomes(self) -> Counter[str]:
        """How requests ended, by the first word."""
        rows: Sequence[tuple[str, int]] = self._connection.execute(
            "SELECT outcome, count(*) FROM requests GROUP BY outcome"
        ).fetchall()
        counts: Counter[str] = Counter()
        for outcome, requests in rows:
            counts[outcome.split(":")[0].split(" ")[0]] += requests
        return counts

    def exceptions(self) -> Counter[str]:
        """Events that left their lane, by what became of them."""
        rows = self._connection.execute("SELECT state || ' ' || reason, count(*) FROM exceptions GROUP BY 1").fetchall()
        return Counter(dict(rows))

    def held_for(self, reason: str) -> set[str]:
        """The ids of events that wait to be sent again for a reason."""
        wanted = "SELECT event_id FROM exceptions WHERE state = 'held' AND reason = ?"
        return {event_id for (event_id,) in self._connection.execute(wanted, (reason,))}

    def close(self) -> None:
        """Lets the file go."""
        self._connection.close()
