"""Event properties: the top-level scalars of a payload, whatever their names, without a Python object per event."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import duckdb
import orjson
import pyarrow as pa

from nami_amp_pipeline.json_text import is_finite, top_level
from nami_amp_pipeline.storage.duckdb_engine import literal

NOT_PROPERTIES = ("id", "event_type", "created_date", "user_id", "device_id", "external_id")
"""Payload fields that are something else of the Amplitude event."""

ADDED = {"device": ("namiml_event_category",), "user": ("namiml_event_category", "namiml_event_subcategory1")}
"""Properties that the pipeline computes, by the first part of the type; a payload's own of that name gives way."""

CONTAINERS = ("active_entitlements", "customer_journey_state", "devices", "external_ids")
"""Payload fields that Nami documents as arrays or objects; large, so they are looked at only where they are not."""

NEEDED = ("device_id", "amount", "currency", "quantity", "sku", "purchase_env")
"""Fields that are read for other parts of the event too."""

MAX_COLUMNS = 150
"""Fields beyond this many in one segment are rare ones; their events take the slow path."""


def create_properties(connection: duckdb.DuckDBPyConnection) -> None:
    """Creates the view ``properties`` (row, id, event_type, created_date, properties, :data:`NEEDED` as JSON texts).

    Payload fields are not known beforehand, but their sets are few: the fields of a segment become the columns of one
    JSON transform. Events with rare fields, with the same field twice, or with something else where Nami sends an
    array, are few; Python reads those.

    Args:
        connection: has views ``selected_events`` (row, id, event_type, created_date, payload, shape) of well-formed
            events, those of the same shape with the same fields in the same order, and ``snapshots`` (row,
            has_scalar_group) of ``user.*`` events.
    """
    connection.execute(
        """
        CREATE TEMP TABLE shapes AS
        SELECT split_part(event_type, '.', 1) AS category, shape, events, json_keys(payload) AS fields
        FROM selected_events JOIN (
            SELECT min(row) AS row, sum(events) AS events
            FROM (SELECT event_type, shape, min(row) AS row, count(*) AS events FROM selected_events GROUP BY ALL)
            GROUP BY split_part(event_type, '.', 1), shape
        ) USING (row)
        """
    )
    connection.execute("CREATE TEMP TABLE slow (row BIGINT)")
    frequencies: dict[str, dict[str, int]] = {}
    for category, field, events in connection.execute(
        "SELECT category, field, sum(events)::BIGINT "
        "FROM (SELECT category, unnest(fields) AS field, events FROM shapes) GROUP BY ALL ORDER BY ALL"
    ).fetchall():
        frequencies.setdefault(category, {})[field] = events
    categories = connection.execute("SELECT DISTINCT category FROM shapes ORDER BY 1").fetchall()
    columns = {category: _columns(Counter(frequencies.get(category, {}))) for (category,) in categories}
    for category, fields in columns.items():
        _find_slow(connection, category, fields, [one for one in CONTAINERS if one in frequencies.get(category, {})])
    slow = _read_slow(connection)
    connection.register("slow_properties", slow)
    parts = [_fast(category, fields, without_slow=slow.num_rows > 0) for category, fields in columns.items()]
    if slow.num_rows or not parts:
        parts.append(
            "SELECT e.row, e.id, e.event_type, e.created_date, s.* EXCLUDE (row) "
            "FROM slow_properties s JOIN selected_events e USING (row)"
        )
    connection.execute("CREATE TEMP VIEW properties AS " + " UNION ALL BY NAME ".join(parts))


def _find_slow(
    connection: duckdb.DuckDBPyConnection, category: str, columns: Sequence[str], containers: Sequence[str]
) -> None:
    """Adds the events that Python has to read to the table ``slow``."""
    here = f"starts_with(event_type, {literal(category + '.')})"
    connection.register("known_fields", pa.table({"field": pa.array([*columns, *CONTAINERS], pa.string())}))
    connection.execute(
        f"""
        INSERT INTO slow SELECT row FROM selected_events SEMI JOIN (
            SELECT shape FROM shapes WHERE category = {literal(category)} AND (
                len(fields) <> len(list_distinct(fields))
                OR NOT list_has_all((SELECT list(field) FROM known_fields), fields)
            )
        ) USING (shape) WHERE {here}
        """  # noqa: S608
    )
    if category == "user":
        if _is_any(connection, "snapshots WHERE has_scalar_group"):  # joining takes longer than looking first
            connection.execute(
                "INSERT INTO slow SELECT row FROM snapshots SEMI JOIN selected_events USING (row) "
                "WHERE has_scalar_group AND row NOT IN (FROM slow)"
            )
    elif containers:
        paths = "[" + ", ".join(literal(f"$.{field}") for field in containers) + "]"
        connection.execute(
            f"""
            INSERT INTO slow SELECT row FROM selected_events
            WHERE {here} AND row NOT IN (FROM slow) AND len(list_filter(json_type(payload, {paths}),
                lambda kind: kind IS NOT NULL AND kind NOT IN ('ARRAY', 'OBJECT', 'NULL'))) > 0
            """  # noqa: S608
        )


def _fast(category: str, columns: Sequence[str], *, without_slow: bool) -> str:
    """The query that reads all other events of a category."""
    wanted = [field for field in columns if field not in NOT_PROPERTIES and field not in ADDED[category]]
    needed = NEEDED if category == "device" else ()
    structure = orjson.dumps(dict.fromkeys([*wanted, *needed] or ["event_type"], "JSON")).decode()
    # A scalar is what begins neither as an object or array nor as null; the payload is known to be strict JSON. Numbers
    # that no double holds, which have five characters at least, cannot be sent.
    texts = ", ".join(
        f"CASE WHEN ascii({_field(field)}) IN (91, 110, 123) "
        f"OR (ascii({_field(field)}) < 58 AND ascii({_field(field)}) <> 34 AND strlen({_field(field)}) > 4 "
        f"AND NOT isfinite(try_cast({_field(field)} AS DOUBLE))) THEN NULL "
        f"ELSE {literal(orjson.dumps(field).decode() + ':')} || {_field(field)} END"
        for field in wanted
    )
    others = ", ".join(f"{_field(field) if field in needed else 'NULL::VARCHAR'} AS {field}" for field in NEEDED)
    return (
        f"SELECT row, id, event_type, created_date, concat_ws(',', {texts or 'NULL'}) AS properties, {others} "  # noqa: S608
        f"FROM (SELECT row, id, event_type, created_date, from_json(payload, {literal(structure)}) AS p "
        f"FROM selected_events {'ANTI JOIN slow USING (row)' if without_slow else ''} "
        f"WHERE starts_with(event_type, {literal(category + '.')}))"
    )


def _field(name: str) -> str:
    return f"p[{literal(name)}]::VARCHAR"


def _columns(frequency: Counter[str]) -> list[str]:
    """The fields to read as columns: the most frequent, none of which DuckDB would take for another."""
    folded = Counter(field.casefold() for field in frequency)
    reserved = {field.casefold() for field in (*CONTAINERS, *NEEDED)} - set(NEEDED)
    return [
        field
        for field, _ in frequency.most_common(MAX_COLUMNS)
        if field.isascii() and field.isprintable() and field and folded[field.casefold()] == 1
        and field.casefold() not in reserved and (field in NEEDED or field.casefold() not in NEEDED)
    ]  # fmt: skip


def _read_slow(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    rows = []
    if _is_any(connection, "slow"):
        rows = connection.execute(
            "SELECT row, split_part(event_type, '.', 1), json_extract(payload, '$')::VARCHAR "
            "FROM selected_events SEMI JOIN slow USING (row)"
        ).fetchall()
    texts: dict[str, list[str | int | None]] = {"row": [], "properties": [], **{field: [] for field in NEEDED}}
    for row, category, payload in rows:
        fields = {orjson.loads(name): value for name, value in top_level(payload)}  # of a name twice the last counts
        texts["row"].append(row)
        texts["properties"].append(_properties(fields, ADDED[category]))
        for field in NEEDED:
            texts[field].append(fields.get(field))
    schema = pa.schema([(name, pa.int64() if name == "row" else pa.string()) for name in texts])
    return pa.table(texts, schema=schema)


def _is_any(connection: duckdb.DuckDBPyConnection, source: str) -> bool:
    return connection.execute(f"SELECT 1 FROM {source} LIMIT 1").fetchone() is not None  # noqa: S608


def _properties(fields: Mapping[str, str], added: Sequence[str]) -> str:
    """The scalars among fields (name to JSON text) as JSON text, as they stand in the payload."""
    return ",".join(
        f"{json.dumps(name, ensure_ascii=False)}:{value}"
        for name, value in fields.items()
        if name not in NOT_PROPERTIES and name not in added and _is_scalar(value)
    )


def _is_scalar(value: str) -> bool:
    return value[0] not in "[{n" and (value[0] in '"tf' or is_finite(value))
