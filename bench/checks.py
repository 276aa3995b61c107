"""Whether what a receiver got is what Amplitude takes, each event once, and each user's events in order."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import duckdb
import orjson
import pyarrow as pa

if TYPE_CHECKING:
    from bench.receiver import Request

CHECKSUM = "bit_xor(hash(insert_id))::VARCHAR"
"""Of distinct ids; the same expression over the warehouse says whether they are the same ids."""

_REPORT = f"""
WITH sent AS (
    SELECT project, person, time, request, requests.started, requests.answered,
        lag(time) OVER life AS time_before, lag(request) OVER life AS request_before,
        lag(requests.answered) OVER life AS answered_before
    FROM events JOIN requests USING (request)
    WINDOW life AS (PARTITION BY project, person ORDER BY request, position)
)
SELECT
    count(*) AS events,
    (SELECT count(DISTINCT insert_id) FROM events) AS distinct_ids,
    (SELECT {CHECKSUM} FROM (SELECT DISTINCT insert_id FROM events)) AS checksum,
    count(DISTINCT (project, person)) AS users,
    count(*) FILTER (time < time_before) AS out_of_order,
    count(*) FILTER (request <> request_before AND started < answered_before) AS overlapping
FROM sent
"""


def check(requests: Sequence[Request]) -> dict[str, Any]:
    """Reads every body.

    Returns:
        requests, events, distinct_ids, checksum (of the distinct ids), users; invalid: events without what Amplitude
        wants, and requests that are no JSON or beyond its limits; out_of_order: events older than the one that came
        before them of the same user; overlapping: events whose request came in while another with the same user was
        not answered; uncompressed_bytes: of the bodies; seconds: from the first request to the last answer.
    """
    chunks: list[pa.Table] = []
    invalid = 0
    uncompressed = 0
    for number, request in enumerate(requests):
        body = _inflated(request)
        uncompressed += len(body)
        try:
            parsed = orjson.loads(body)
            project, events = str(parsed["api_key"]), parsed["events"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            invalid += 1
            continue
        invalid += len(events) > 2_000 or len(body) > 1_000_000
        ids = [event.get("insert_id") for event in events]
        people = [event.get("user_id") or event.get("device_id") for event in events]
        times = [event.get("time") for event in events]
        invalid += sum(
            not (event_id and person and isinstance(time, int) and event.get("event_type"))
            for event_id, person, time, event in zip(ids, people, times, events, strict=True)
        )
        chunks.append(
            pa.table(
                {
                    "project": pa.array([project] * len(ids), pa.string()),
                    "insert_id": pa.array(ids, pa.string()),
                    "person": pa.array(people, pa.string()),
                    "time": pa.array(times, pa.int64()),
                    "request": pa.array([number] * len(ids), pa.int32()),
                    "position": pa.array(range(len(ids)), pa.int32()),
                }
            )
        )
    found: dict[str, Any] = {
        "requests": len(requests),
        "invalid": invalid,
        "uncompressed_bytes": uncompressed,
        "seconds": max(one.answered for one in requests) - min(one.started for one in requests) if requests else 0.0,
    }
    if not chunks:
        return found | {
            "events": 0,
            "distinct_ids": 0,
            "checksum": None,
            "users": 0,
            "out_of_order": 0,
            "overlapping": 0,
        }
    with duckdb.connect() as connection:
        connection.register("events", pa.concat_tables(chunks))
        connection.register(
            "requests",
            pa.table(
                {
                    "request": pa.array(range(len(requests)), pa.int32()),
                    "started": pa.array([request.started for request in requests], pa.float64()),
                    "answered": pa.array([request.answered for request in requests], pa.float64()),
                }
            ),
        )
        result = connection.execute(_REPORT)
        names = [column[0] for column in result.description or ()]
        (row,) = result.fetchall()
    return found | dict(zip(names, row, strict=True))


def _inflated(request: Request) -> Any:
    if request.packed:
        size, packed = request.body
        return pa.decompress(packed, decompressed_size=size, codec="lz4", asbytes=True)
    return gzip.decompress(request.body) if request.gzipped else request.body
