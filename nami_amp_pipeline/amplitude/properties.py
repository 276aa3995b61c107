"""Event properties: the top-level scalars of a payload, whatever their names, without a Python object per event."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import duckdb
import orjson
import pyarrow as pa

from nami_amp_pipeline.compute import literal

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
    """Creates the table ``properties`` (row, properties, and :data:`NEEDED` as JSON texts).

    Payload fields are not known beforehand, but their sets are few: the fields of a segment become the columns of one
    JSON transform. Events with rare fields, with the same field twice, or with something else where Nami sends an
    array, are few; Python reads those.

    Args:
        connection: has a view ``selected_events`` (row, event_type, payload, shape) of well-formed events;
            events of the same shape have the same fields in the same order.
    """
    connection.execute(
        """
        CREATE TEMP TABLE shapes AS
        SELECT category, shape, events, json_keys(payload) AS fields
        FROM (
            SELECT split_part(event_type, '.', 1) AS category, shape, count(*) AS events, any_value(payload) AS payload
            FROM selected_events GROUP BY ALL
        )
        """
    )
    connection.execute(
        "CREATE TEMP TABLE properties (row BIGINT, properties VARCHAR, "
        + ", ".join(f"{field} VARCHAR" for field in NEEDED)
        + ")"
    )
    connection.execute("CREATE TEMP TABLE slow (row BIGINT)")
    for (category,) in connection.execute("SELECT DISTINCT category FROM shapes ORDER BY 1").fetchall():
        _fast(connection, category)
    _slow(connection)


def _fast(connection: duckdb.DuckDBPyConnection, category: str) -> None:
    frequency: Counter[str] = Counter()
    rows = connection.execute(
        "SELECT field, sum(events)::BIGINT "
        "FROM (SELECT unnest(fields) AS field, events FROM shapes WHERE category = ?) "
        "GROUP BY field",
        [category],
    ).fetchall()
    for field, events in rows:
        frequency[field] = events
    columns = _columns(frequency)
    wanted = [field for field in columns if field not in NOT_PROPERTIES and field not in ADDED[category]]
    read = list(dict.fromkeys([*wanted, *NEEDED]))
    known = [*columns, *CONTAINERS]
    connection.register("known_fields", pa.table({"field": pa.array(known, pa.string())}))
    here = f"split_part(event_type, '.', 1) = {literal(category)}"
    connection.execute("CREATE OR REPLACE TEMP TABLE odd (row BIGINT)")
    odd_shapes = connection.execute(
        """
        SELECT shape FROM shapes WHERE category = ? AND (
            len(fields) <> len(list_distinct(fields))
            OR NOT list_has_all((SELECT list(field) FROM known_fields), fields)
        )
        """,
        [category],
    ).fetchall()
    if odd_shapes:
        connection.register(
            "odd_shapes", pa.table({"shape": pa.array([shape for (shape,) in odd_shapes], pa.uint64())})
        )
        connection.execute(
            f"INSERT INTO odd SELECT row FROM selected_events SEMI JOIN odd_shapes USING (shape) WHERE {here}"  # noqa: S608
        )
    present = [field for field in CONTAINERS if field in frequency]
    if present:
        paths = "[" + ", ".join(literal(f"$.{field}") for field in present) + "]"
        connection.execute(
            f"""
            INSERT INTO odd SELECT row FROM selected_events
            WHERE {here} AND len(list_filter(json_type(payload, {paths}),
                lambda kind: kind IS NOT NULL AND kind NOT IN ('ARRAY', 'OBJECT', 'NULL'))) > 0
            """  # noqa: S608
        )
    connection.execute("INSERT INTO slow SELECT DISTINCT row FROM odd")
    structure = orjson.dumps(dict.fromkeys(read, "JSON")).decode()
    texts = ", ".join(
        f"CASE WHEN is_scalar({_field(field)}) THEN "
        f"{literal(orjson.dumps(field).decode() + ':')} || {_field(field)} END"
        for field in wanted
    )
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP MACRO is_scalar(value) AS
            regexp_matches(value::VARCHAR, '^(["0-9tf]|-[0-9])');
        INSERT INTO properties
        SELECT row, {f"concat_ws(',', {texts})" if texts else "''"}, {", ".join(_field(field) for field in NEEDED)}
        FROM (
            SELECT row, from_json(payload, {literal(structure)}) AS p
            FROM selected_events ANTI JOIN odd USING (row) WHERE {here}
        )
        """  # noqa: S608
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


def _slow(connection: duckdb.DuckDBPyConnection) -> None:
    rows = connection.execute(
        "SELECT row, split_part(event_type, '.', 1), json_extract(payload, '$')::VARCHAR "
        "FROM selected_events SEMI JOIN slow USING (row)"
    ).fetchall()
    if not rows:
        return
    texts: dict[str, list[str | int | None]] = {"row": [], "properties": [], **{field: [] for field in NEEDED}}
    for row, category, payload in rows:
        fields = json.loads(payload)
        texts["row"].append(row)
        texts["properties"].append(_properties(fields.items(), ADDED[category]))
        for field in NEEDED:
            texts[field].append(_text(fields[field]) if field in fields else None)
    connection.register("slow_properties", pa.table(texts))
    connection.execute(f"INSERT INTO properties SELECT row, properties, {', '.join(NEEDED)} FROM slow_properties")  # noqa: S608


def _properties(fields: Iterable[tuple[str, object]], added: Sequence[str]) -> str:
    kept = {
        name: value for name, value in fields if name not in NOT_PROPERTIES and name not in added and _is_scalar(value)
    }
    return _text(kept)[1:-1]


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
