"""Fingerprints of events: what is kept of an event that was sent, to compare it later with what Amplitude holds.

An event has a fingerprint for each part of its JSON. Those of the sent event are computed from the text as it was
posted; :mod:`nami_amp_pipeline.amplitude.exported.held` computes the same from an exported event.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from functools import cache
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

PARTS: Final = ("head", "event_properties", "revenue", "user_properties")
"""``head`` is what stands before the event properties: type, user, time, insert id, device."""

KIND: Final = b"fingerprints"
"""The key in the metadata of a file that says how its fingerprints were computed."""

_LARGE: Final = 10_000
"""Bytes of an event, on average, from which they are taken in portions."""

_PORTION: Final = 10_000_000

_PROBE: Final = "nami"
_LAYOUT: Final = 1

MACROS: Final = """
CREATE OR REPLACE TEMP MACRO print_of(text) AS CASE WHEN text IS NOT NULL THEN (hash(text) >> 32)::UINTEGER END;
-- Of texts in any order. As floats, which are summed fastest and are exact for two million of them.
CREATE OR REPLACE TEMP MACRO print_of_all(texts) AS
    (list_sum(list_transform(texts, lambda text: (hash(text) >> 32)::DOUBLE))::UBIGINT & 4294967295)::UINTEGER;
CREATE OR REPLACE TEMP MACRO respelled(members) AS (TRY(json(concat('{"', members, '}')))::VARCHAR)[3:-2];
"""
"""DuckDB's hash of a text may change with its version, which :func:`kind` notices."""

# No text inside of a JSON string matches any of these separators: within a string, a quote has a backslash before it,
# and behind a string's last quote comes a comma or a brace. Splitting and hashing takes less than parsing.
_PARTS: Final = """
FROM (
    SELECT head, string_split(parts[1], '},"price":') AS properties, parts[2] AS user_properties
    FROM (
        SELECT halves[1] AS head, string_split(halves[2], '},"user_properties":{') AS parts
        FROM (SELECT string_split(body, ',"event_properties":{"') AS halves FROM bodies)
    )
)
"""

# Without the CASE of print_of, which takes as long as the rest: the hash of null is known, and replaced later.
_PRINTS: Final = f"""
SELECT
    (hash(head) >> 32)::UINTEGER AS fingerprint_head,
    print_of_all(string_split(properties[1], ',"')) AS fingerprint_event_properties,
    (hash(properties[2]) >> 32)::UINTEGER AS fingerprint_revenue,
    (hash(user_properties) >> 32)::UINTEGER AS fingerprint_user_properties,
    -- What has one of these escapes may be spelled in another way.
    contains(properties[1], '\\u') OR contains(properties[1], '\\/') AS has_escapes
{_PARTS}
"""

_RESPELLED: Final = f"""
SELECT print_of_all(string_split(
    CASE WHEN suffix(properties[1], '}}}}') THEN respelled(properties[1][:-3]) || '}}}}'
        ELSE respelled(properties[1]) END,
    ',"'
)) AS fingerprint_event_properties
{_PARTS}
"""

_LOCK: Final = threading.RLock()


@cache
def _engine() -> duckdb.DuckDBPyConnection:
    config: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1,
        "memory_limit": "400MB",
        "autoinstall_known_extensions": False,
    }
    connection = duckdb.connect(":memory:", config=config)
    connection.execute(MACROS)
    return connection


@cache
def kind() -> bytes:
    """How fingerprints are computed by this process; those of another kind cannot be compared with them."""
    with _LOCK:
        ((probe,),) = _engine().execute("SELECT hash(?)", [_PROBE]).fetchall()
    return f"{_LAYOUT}:{probe}".encode()


@cache
def schema() -> pa.Schema:
    """The columns that receipts keep (32 bits each; null where an event has no such part), with :func:`kind`."""
    return pa.schema([(f"fingerprint_{part}", pa.uint32()) for part in PARTS], metadata={KIND: kind()})


def fingerprints(bodies: pa.ChunkedArray) -> pa.Table:
    """The fingerprints of events as they were posted.

    Args:
        bodies: the JSON texts, each behind a comma; null where nothing was posted.

    Returns:
        Rows in the same order, with the columns of :func:`schema`.
    """
    parts = []
    with _LOCK:
        for rows in _portions(bodies):
            try:
                parts.append(_computed(rows))
            except duckdb.Error as error:  # delivery must not fail for what is only compared later
                logging.getLogger("nami_amp_pipeline").warning("no fingerprints: %s", type(error).__name__)
                parts.append(pa.table([pa.nulls(len(rows), field.type) for field in schema()], schema=schema()))
    return pa.concat_tables(parts) if parts else schema().empty_table()


def _computed(bodies: pa.ChunkedArray) -> pa.Table:
    found = _query(_PRINTS, bodies)
    escaped = found["has_escapes"].fill_null(False)
    properties = found["fingerprint_event_properties"]
    if pc.any(escaped).as_py():
        again = _query(_RESPELLED, bodies.filter(escaped))["fingerprint_event_properties"]
        properties = pc.replace_with_mask(properties.combine_chunks(), escaped.combine_chunks(), again.combine_chunks())
    columns = {name: found[name] for name in schema().names} | {"fingerprint_event_properties": properties}
    nothing = pa.scalar(_nothing(), pa.uint32())
    for name in ("fingerprint_head", "fingerprint_revenue", "fingerprint_user_properties"):
        columns[name] = pc.if_else(pc.equal(columns[name], nothing), pa.scalar(None, pa.uint32()), columns[name])
    return pa.table(list(columns.values()), schema=schema())


def _query(query: str, bodies: pa.ChunkedArray) -> pa.Table:
    _engine().register("bodies", pa.table({"body": bodies}))
    try:
        return _engine().sql(query).to_arrow_table()
    finally:
        _engine().unregister("bodies")


@cache
def _nothing() -> int:
    """The fingerprint of null."""
    ((found,),) = _engine().execute("SELECT (hash(NULL::VARCHAR) >> 32)::UINTEGER").fetchall()
    return int(found)


def _portions(bodies: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """All of them at once, or fewer where they are large: DuckDB holds 2,048 texts in memory, several times."""
    if bodies.nbytes <= _LARGE * max(1, len(bodies)):
        yield bodies
        return
    for chunk in bodies.chunks:
        rows = max(1, min(len(chunk), _PORTION * len(chunk) // max(1, chunk.nbytes)))
        for start in range(0, len(chunk), rows):
            yield pa.chunked_array([chunk.slice(start, rows)])
