"""Compares exported events with the fingerprints of those that were sent: one join for each chunk of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import duckdb

from nami_amp_pipeline import contract
from nami_amp_pipeline.amplitude import fingerprints
from nami_amp_pipeline.contract import CATEGORY, GROSS_AMOUNT, SUBCATEGORY
from nami_amp_pipeline.contract.user_properties import as_sent
from nami_amp_pipeline.storage.duckdb_engine import files, literal

COLUMNS: Final = ("event_type", "user_id", "device_id", "time", "event_properties", "revenue", "user_properties")
"""What an event may be altered in."""

_REVENUE: Final = ("price", "quantity", "productId", "revenueType", "currency")
"""An export may have them beside the event type or, behind a dollar, among the event properties. Where it has neither,
revenue is not compared."""


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Creates the empty tables ``known``, ``held`` and ``strangers``.

    ``known`` has the events of an integration, ``held`` those of them that an export holds, and ``strangers`` how many
    others it holds, by hour.
    ``known.time`` is in ms, ``uploaded_at`` in µs. ``differs`` lists the columns of :data:`COLUMNS` in which an event
    is not what was sent; only then do the other columns say what is held.
    """
    connection.execute(fingerprints.MACROS)
    connection.execute(
        """
        CREATE TEMP TABLE known (
            number BIGINT, id VARCHAR, identity VARCHAR, name VARCHAR, time BIGINT,
            fingerprint_head UINTEGER, fingerprint_event_properties UINTEGER, fingerprint_revenue UINTEGER,
            fingerprint_user_properties UINTEGER
        );
        CREATE TEMP TABLE held (
            number BIGINT, uuid VARCHAR, uploaded_at BIGINT, differs VARCHAR[], event_type VARCHAR, user_id VARCHAR,
            device_id VARCHAR, time BIGINT, event_properties VARCHAR, user_properties VARCHAR, revenue VARCHAR
        );
        CREATE TEMP TABLE strangers (hour BIGINT, events BIGINT);
        """
    )
    connection.execute(_macros())


def add_held(connection: duckdb.DuckDBPyConnection, paths: Sequence[Path], first: int, end: int) -> list[int]:
    """Adds the events of some files that were uploaded from ``first`` up to ``end`` (µs since the epoch).

    Returns:
        The hours of the events, by their first µs.

    Raises:
        duckdb.Error: a file is damaged.
    """
    if not paths:
        return []
    connection.execute(_CHUNK.format(files=files(list(paths))), {"first": first, "end": end})
    connection.execute(_COMPARE)
    connection.execute(
        "INSERT INTO strangers SELECT uploaded_at // 3600000000 * 3600000000, count(*) FROM chunk "
        "WHERE number IS NULL AND NOT is_identify GROUP BY ALL"
    )
    hours = connection.execute("SELECT DISTINCT uploaded_at // 3600000000 * 3600000000 FROM chunk").fetchall()
    connection.execute("DROP TABLE chunk")
    return [hour for (hour,) in hours]


_CHUNK: Final = """
CREATE OR REPLACE TEMP TABLE chunk AS
SELECT
    k.number, r.uploaded_at,
    -- Whoever sent it, it is no event, and exports need not hold it: it is not counted.
    coalesce(r.event_type = '$identify', false) AS is_identify,
    -- Of events of somebody else nothing is kept.
    CASE WHEN k.number IS NOT NULL THEN r END AS held
FROM (
    SELECT
        "$insert_id" AS id, uuid, event_type, user_id, device_id, event_properties::VARCHAR AS event_properties,
        user_properties, price, quantity, "productId", "revenueType", currency,
        epoch_us(coalesce(try_cast(client_event_time AS TIMESTAMP), try_cast(event_time AS TIMESTAMP))) // 1000 AS time,
        epoch_us(try_cast(server_upload_time AS TIMESTAMP)) AS uploaded_at
    FROM read_json({files}, format = 'newline_delimited', maximum_object_size = 33554432, columns = {{
        '$insert_id': 'VARCHAR', uuid: 'VARCHAR', event_type: 'VARCHAR', user_id: 'VARCHAR', device_id: 'VARCHAR',
        client_event_time: 'VARCHAR', event_time: 'VARCHAR', server_upload_time: 'VARCHAR',
        event_properties: 'JSON', user_properties: 'JSON',
        price: 'JSON', quantity: 'JSON', productId: 'JSON', revenueType: 'JSON', currency: 'JSON'
    }})
) r
LEFT JOIN known k ON k.id = r.id
WHERE r.uploaded_at >= $first AND r.uploaded_at < $end
"""

_COMPARE: Final = """
CREATE OR REPLACE TEMP TABLE checked AS
SELECT number, uuid, uploaded_at, held,
    head IS NULL OR head_is(head, identity, held.event_type, held.user_id, held.time, held.id, held.device_id)
        AS same_head,
    fingerprint_event_properties IS NULL OR fingerprint_event_properties = CASE
        WHEN fingerprint_revenue IS NULL AND fingerprint_user_properties IS NULL THEN print_with_end(texts)
        ELSE print_of_all(texts)
    END AS same_event_properties,
    fingerprint_revenue IS NULL OR coalesce(fingerprint_revenue = print_of(revenue_of(held)), true) AS same_revenue,
    fingerprint_user_properties IS NULL
        OR fingerprint_user_properties = print_of(own_user_properties(held.user_properties)) AS same_user_properties
FROM (
    SELECT c.number, c.uploaded_at, c.held, c.held.uuid, k.* EXCLUDE (number, id, time, fingerprint_head),
        k.fingerprint_head AS head, own_texts(c.held.event_properties) AS texts
    FROM chunk c JOIN known k USING (number)
);
INSERT INTO held (number, uuid, uploaded_at, differs)
SELECT number, uuid, uploaded_at, [] FROM checked
WHERE same_head AND same_event_properties AND same_revenue AND same_user_properties;
INSERT INTO held
WITH others AS (
    SELECT c.*, k.identity, k.name, k.fingerprint_head AS head, k.time AS sent_time, held.event_type, held.user_id,
        held.device_id, held.time, held.id
    FROM checked c JOIN known k USING (number)
    WHERE NOT (same_head AND same_event_properties AND same_revenue AND same_user_properties)
),
named AS (
    SELECT *,
        NOT same_head AND prefix(identity, 'u:') AND identity[3:] IS DISTINCT FROM user_id AS other_user,
        NOT same_head AND time IS DISTINCT FROM sent_time AS other_time,
        -- Which of the other two, the type or the device, is what was sent?
        NOT same_head AND NOT head_is(head, identity, event_type, identity[3:], sent_time, id, device_id) AS other_rest,
        NOT same_head AND head_is(head, identity, name, identity[3:], sent_time, id, device_id) AS same_but_type
    FROM others
)
SELECT number, uuid, uploaded_at,
    list_filter([
        CASE WHEN other_rest AND same_but_type THEN 'event_type' END,
        CASE WHEN other_user THEN 'user_id' END,
        CASE WHEN other_rest AND NOT same_but_type THEN 'device_id' END,
        CASE WHEN other_time THEN 'time' END,
        CASE WHEN NOT same_event_properties THEN 'event_properties' END,
        CASE WHEN NOT same_revenue THEN 'revenue' END,
        CASE WHEN NOT same_user_properties THEN 'user_properties' END
    ], lambda name: name IS NOT NULL),
    event_type, user_id, device_id, time, held.event_properties, held.user_properties::VARCHAR,
    '{"price":' || revenue_of(held)
FROM named;
DROP TABLE checked;
"""


def _macros() -> str:
    """SQL that spells what is held as the texts that :mod:`fingerprints` splits sent events into."""
    ours = ", ".join(
        f"{literal(_name(prop.name))} || json_extract(properties, {literal(f'$.{prop.name}')})::VARCHAR"
        for prop in as_sent(contract.PROPERTIES)
    )
    revenue = ", ".join(
        f'{literal(_name(name)) if name != "price" else literal("")} || coalesce(held."{name}"::VARCHAR, '
        f"json_extract(held.event_properties, '$.\"${name}\"')::VARCHAR)"
        for name in _REVENUE
    )
    last = " ".join(
        f"WHEN list_any(texts, {literal(f'{name}{chr(34)}:')}) IS NOT NULL "
        f"THEN list_any(texts, {literal(f'{name}{chr(34)}:')})"
        for name in (GROSS_AMOUNT, SUBCATEGORY, CATEGORY)
    )
    flag = literal(',"$skip_user_properties_sync":true')
    return f"""
CREATE OR REPLACE TEMP MACRO own_user_properties(properties) AS concat_ws(',', {ours}) || '}}}}';
CREATE OR REPLACE TEMP MACRO revenue_of(held) AS nullif(concat_ws(',', {revenue}), '') || '}}';
-- Without what Amplitude adds itself.
CREATE OR REPLACE TEMP MACRO own_texts(properties) AS CASE
    WHEN contains(properties, '"$') OR contains(properties, '"[Amplitude]') THEN list_filter(
        string_split(properties[3:-2], ',"'),
        lambda text: NOT prefix(text, '$') AND NOT prefix(text, '[Amplitude]')
    ) ELSE string_split(properties[3:-2], ',"') END;
CREATE OR REPLACE TEMP MACRO list_any(texts, start) AS list_filter(texts, lambda text: prefix(text, start))[1];
CREATE OR REPLACE TEMP MACRO last_text(texts) AS CASE {last} END;
-- The end of the event stands behind its last text.
CREATE OR REPLACE TEMP MACRO print_with_end(texts) AS (
    (print_of_all(texts)::BIGINT - coalesce(print_of(last_text(texts))::BIGINT, 0)
        + coalesce(print_of(last_text(texts) || '}}}}')::BIGINT, 0)) & 4294967295
)::UINTEGER;
CREATE OR REPLACE TEMP MACRO head_of(identity, event_type, user_id, flag, time, id, device) AS print_of(concat(
    ',{{"event_type":', to_json(event_type),
    CASE WHEN prefix(identity, 'u:') THEN ',"user_id":' || to_json(user_id) END,
    flag, ',"time":', time, ',"insert_id":', to_json(id), device
));
CREATE OR REPLACE TEMP MACRO head_is(head, identity, event_type, user_id, time, id, device_id) AS (
    head = head_of(identity, event_type, user_id, '', time, id, '')
    OR head = head_of(identity, event_type, user_id, '', time, id, ',"device_id":' || to_json(device_id))
    OR head = head_of(identity, event_type, user_id, {flag}, time, id, '')
    OR head = head_of(identity, event_type, user_id, {flag}, time, id, ',"device_id":' || to_json(device_id))
);
"""


def _name(name: str) -> str:
    return f'"{name}":'
