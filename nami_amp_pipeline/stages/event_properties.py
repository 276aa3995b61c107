"""Event properties: the top-level scalars of a payload, whatever their names, without a Python object per event."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import orjson
import pyarrow as pa

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import CATEGORY, GROSS_AMOUNT, SUBCATEGORY, EventType
from nami_amp_pipeline.stages.body_variants import PLAIN, Variant
from nami_amp_pipeline.storage.duckdb_engine import literal
from nami_amp_pipeline.storage.json_text import is_finite, top_level

NOT_PROPERTIES = ("id", "event_type", "created_date", "user_id", "device_id", "external_id")
"""Payload fields that become other parts of the Amplitude event."""

CONTAINERS = ("active_entitlements", "customer_journey_state", "devices", "external_ids")
"""Payload fields that Nami documents as arrays or objects; they are large, so only scalars in their place are read."""

NEEDED = ("device_id", "amount", "currency", "quantity", "sku", "purchase_env", "event_platform")
"""Fields that other parts of the event need too."""

_ENVIRONMENT = "purchase_env"

_JUDGED = ("device_id", _ENVIRONMENT, "event_platform")
"""Fields of these on which decisions depend, so that they are read unchanged, even if they are hidden."""

MAX_COLUMNS = 150
"""Fields beyond this many in one segment are rare ones; their events take the slow path."""


@dataclass(frozen=True)
class _Kind:
    """Event types whose payloads are read in the same way.

    Attributes:
        types: their names.
        category: the first part of them.
        has_subcategory: whether they have three parts or more.
        needed: fields that other parts of the event need too.
        added: properties that the pipeline computes; they replace payload fields of the same name.
        variant: which fields are sent, and how.
    """

    types: tuple[str, ...]
    category: str
    has_subcategory: bool
    needed: tuple[str, ...]
    added: tuple[str, ...]
    variant: Variant

    @property
    def here(self) -> str:
        """SQL condition: the event is of this kind."""
        return f"event_type IN ({', '.join(map(literal, self.types))})"


def _kinds(types: Iterable[str], variant: Variant, *, with_environment: bool) -> list[_Kind]:
    """The event types by kind: category, with or without a subcategory, and with money where devices have none."""
    revenue = {event_type.name for event_type in contract.EVENT_TYPES if event_type.is_revenue}
    by_kind: dict[tuple[str, bool, bool], list[str]] = {}
    for name in sorted(types):
        event_type = EventType(name)
        has_money = event_type.carries_device or name in revenue
        by_kind.setdefault((event_type.category, event_type.subcategory is not None, has_money), []).append(name)
    kinds = []
    for (category, has_subcategory, has_money), names in by_kind.items():
        needed: tuple[str, ...] = NEEDED[:-1] if has_money else (_ENVIRONMENT,) if with_environment else ()
        added = [CATEGORY, *([SUBCATEGORY] if has_subcategory else [])]
        if variant.revenue == "net":
            needed, added = (NEEDED if has_money else needed), [*added, GROSS_AMOUNT]
        kinds.append(_Kind(tuple(names), category, has_subcategory, needed, tuple(added), variant))
    return kinds


def create_properties(
    connection: duckdb.DuckDBPyConnection, variant: Variant = PLAIN, *, with_environment: bool = False
) -> None:
    """Creates the view ``properties`` (row, id, event_type, created_date, properties, :data:`NEEDED` as JSON texts).

    Payload fields are not known beforehand, but there are few sets of them: the fields of a segment become the columns
    of one JSON transform. Python reads the few events with rare fields, with the same field twice, or with a scalar
    where Nami sends an array.

    Args:
        connection: has the macros of ``prepare_0_macros.sql`` and views ``selected_events`` (row, id, event_type,
            created_date, payload, shape) of well-formed events, those of the same shape with the same fields in the
            same order, and ``snapshots`` (row, has_scalar_group) of events that carry a state.
        variant: which fields are sent, and how.
        with_environment: whether ``purchase_env`` is needed of every event.
    """
    connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE shapes AS
        SELECT event_type, shape, events, json_keys(payload) AS fields
        FROM selected_events JOIN (
            SELECT min(row) AS row, count(*) AS events FROM selected_events GROUP BY event_type, shape
        ) USING (row)
        """
    )
    connection.execute("CREATE OR REPLACE TEMP TABLE slow (row BIGINT)")
    types = [name for (name,) in connection.execute("SELECT DISTINCT event_type FROM shapes").fetchall()]
    parts = []
    kinds = _kinds(types, variant, with_environment=with_environment)
    columns = []
    for kind in kinds:
        frequency = Counter(
            dict(
                connection.execute(
                    "SELECT field, sum(events)::BIGINT FROM (SELECT unnest(fields) AS field, events FROM shapes "  # noqa: S608
                    f"WHERE {kind.here}) GROUP BY ALL ORDER BY ALL"
                ).fetchall()
            )
        )
        columns.append(_columns(frequency))
        _find_slow(connection, kind, columns[-1], [container for container in CONTAINERS if container in frequency])
    slow = _read_slow(connection, {name: kind for kind in kinds for name in kind.types})
    connection.register("slow_properties", slow)
    parts = [_fast(kind, fields, without_slow=slow.num_rows > 0) for kind, fields in zip(kinds, columns, strict=True)]
    if slow.num_rows or not parts:
        parts.append(
            "SELECT e.row, e.id, e.event_type, e.created_date, s.* EXCLUDE (row) "
            "FROM slow_properties s JOIN selected_events e USING (row)"
        )
    connection.execute("CREATE OR REPLACE TEMP VIEW properties AS " + " UNION ALL BY NAME ".join(parts))


def _find_slow(
    connection: duckdb.DuckDBPyConnection, kind: _Kind, columns: Sequence[str], containers: Sequence[str]
) -> None:
    """Fills the table ``slow`` with the events that Python has to read."""
    connection.register("known_fields", pa.table({"field": pa.array([*columns, *CONTAINERS], pa.string())}))
    connection.execute(
        f"""
        INSERT INTO slow SELECT row FROM selected_events SEMI JOIN (
            SELECT event_type, shape FROM shapes WHERE {kind.here} AND (
                len(fields) <> len(list_distinct(fields))
                OR NOT list_has_all((SELECT list(field) FROM known_fields), fields)
            )
        ) USING (event_type, shape)
        """  # noqa: S608
    )
    if EventType(kind.types[0]).carries_state:
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
            WHERE {kind.here} AND row NOT IN (FROM slow) AND len(list_filter(json_type(payload, {paths}),
                lambda kind: kind IS NOT NULL AND kind NOT IN ('ARRAY', 'OBJECT', 'NULL'))) > 0
            """  # noqa: S608
        )


def _fast(kind: _Kind, columns: Sequence[str], *, without_slow: bool) -> str:
    """The query that reads all other events of a kind."""
    hidden = {*NOT_PROPERTIES, *kind.added, *kind.variant.exclude}
    wanted = [field for field in columns if field not in hidden]
    structure = orjson.dumps(dict.fromkeys([*wanted, *kind.needed] or ["event_type"], "JSON")).decode()
    # A scalar is what begins neither as an object or array nor as null; the payload is known to be strict JSON. Numbers
    # that no double holds, which have five characters at least, cannot be sent.
    texts = ", ".join(
        f"CASE WHEN ascii({_field(field)}) IN (91, 110, 123) THEN NULL "
        f"WHEN strlen({_field(field)}) > 4 AND ascii({_field(field)}) BETWEEN 45 AND 57 "
        f"AND NOT isfinite(try_cast({_field(field)} AS DOUBLE)) THEN NULL "
        f"ELSE {literal(orjson.dumps(field).decode() + ':')} || {_sent(kind.variant, field)} END"
        for field in wanted
    )
    others = ", ".join(f"{_needed(kind, field)} AS {field}" for field in NEEDED)
    return (
        f"SELECT row, id, event_type, created_date, concat_ws(',', {texts or 'NULL'}) AS properties, {others} "  # noqa: S608
        f"FROM (SELECT row, id, event_type, created_date, from_json(payload, {literal(structure)}) AS p "
        f"FROM selected_events {'ANTI JOIN slow USING (row)' if without_slow else ''} "
        f"WHERE {kind.here})"
    )


def _sent(variant: Variant, name: str) -> str:
    return f"hashed({_field(name)})" if name in variant.hashed else _field(name)


def _needed(kind: _Kind, name: str) -> str:
    if name not in kind.needed:
        return "NULL::VARCHAR"
    return _field(name) if name in _JUDGED else kind.variant.column(name, _field(name))


def _field(name: str) -> str:
    return f"p[{literal(name)}]::VARCHAR"


def _columns(frequency: Counter[str]) -> list[str]:
    """The fields to read as columns: the most frequent fields that DuckDB can tell apart."""
    folded = Counter(field.casefold() for field in frequency)
    reserved = {field.casefold() for field in (*CONTAINERS, *NEEDED)} - set(NEEDED)
    return [
        field
        for field, _ in frequency.most_common(MAX_COLUMNS)
        if field.isascii() and field.isprintable() and field and folded[field.casefold()] == 1
        and field.casefold() not in reserved and (field in NEEDED or field.casefold() not in NEEDED)
    ]  # fmt: skip


def _read_slow(connection: duckdb.DuckDBPyConnection, kind_of: Mapping[str, _Kind]) -> pa.Table:
    rows = []
    if _is_any(connection, "slow"):
        rows = connection.execute(
            "SELECT row, event_type, json_extract(payload, '$')::VARCHAR "
            "FROM selected_events SEMI JOIN slow USING (row)"
        ).fetchall()
    texts: dict[str, list[str | int | None]] = {"row": [], "properties": [], **{field: [] for field in NEEDED}}
    for row, event_type, payload in rows:
        kind = kind_of[event_type]
        fields = {orjson.loads(name): value for name, value in top_level(payload)}  # of a name twice the last counts
        texts["row"].append(row)
        texts["properties"].append(_properties(fields, kind))
        for field in NEEDED:
            is_read = field in kind.needed and field in fields
            texts[field].append(_needed_text(kind.variant, field, fields[field]) if is_read else None)
    schema = pa.schema([(name, pa.int64() if name == "row" else pa.string()) for name in texts])
    return pa.table(texts, schema=schema)


def _needed_text(variant: Variant, name: str, value: str) -> str | None:
    """As :func:`_needed` has it, of a JSON text."""
    if name in _JUDGED:
        return value
    shown = variant.column(name, "")
    if shown.startswith("NULL"):
        return None
    return _hashed(variant, value) if name in variant.hashed else value


def _is_any(connection: duckdb.DuckDBPyConnection, source: str) -> bool:
    return connection.execute(f"SELECT 1 FROM {source} LIMIT 1").fetchone() is not None  # noqa: S608


def _properties(fields: Mapping[str, str], kind: _Kind) -> str:
    """The scalars among fields (name to JSON text) as JSON text, in the payload's own spelling."""
    hidden, hashed = {*NOT_PROPERTIES, *kind.added, *kind.variant.exclude}, kind.variant.hashed
    return ",".join(
        f"{json.dumps(name, ensure_ascii=False)}:{_hashed(kind.variant, value) if name in hashed else value}"
        for name, value in fields.items()
        if name not in hidden and _is_scalar(value)
    )


def _hashed(variant: Variant, value: str) -> str:
    """The replacement for a JSON text that is to be hashed."""
    return f'"{variant.hash_of(orjson.loads(value) if value.startswith(chr(34)) else value)}"'


def _is_scalar(value: str) -> bool:
    return value[0] not in "[{n" and (value[0] in '"tf' or is_finite(value))
