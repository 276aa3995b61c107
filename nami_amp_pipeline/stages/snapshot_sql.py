"""Stage 2's SQL and schemas, made from ``contract.PROPERTIES``: fills the double braces in sql/snapshots_*.sql."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import orjson
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import ARRAY_CHARACTERS, GROUPS, Property
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.storage.duckdb_engine import literal, sql

_PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")
_ARROW = {"texts": pa.list_(pa.string()), "flag": pa.bool_()}

HAS_ACTIVE = "has_active_entitlement"
"""Kept beside the properties of entitlements: whether there are any, whatever their ids are."""


def snapshot_sql(name: str) -> str:
    """The text of ``sql/<name>.sql`` for the properties as they are declared.

    Raises:
        KeyError: a placeholder is not known.
    """
    return _filled(name, contract.PROPERTIES)


def snapshot_schema() -> pa.Schema:
    """Columns of a snapshot file (Parquet): one row per ``user.*`` event.

    ``row`` is the event's number in its segment; ``user_properties`` is the JSON object that Amplitude is sent;
    ``has_*`` says that the event carried the group itself, and ``has_scalar_group`` that one is a text, number or
    boolean instead; ``former_subscriber`` is Nami's flag, the property is ``namiml_former_subscriber``.
    """
    return pa.schema(
        [
            ("app_id", pa.string()),
            ("id", pa.string()),
            ("user_id", pa.string()),
            ("created_date", pa.timestamp("us", tz="UTC")),
            ("row", pa.int64()),
            *property_fields(),
            ("user_properties", pa.string()),
            *((prop.carried, pa.bool_()) for prop in contract.PROPERTIES if prop.unless_active),
            (HAS_ACTIVE, pa.bool_()),
            *((f"has_{group}", pa.bool_()) for group in GROUPS),
            ("has_scalar_group", pa.bool_()),
            ("truncated_arrays", pa.int32()),
        ]
    )


def stored_table(rows: Sequence[tuple[object, ...]]) -> pa.Table:
    """Rows of ``user_property_snapshots``, with all its columns, for the SQL that reads them as ``stored``."""
    kinds = {sa.Text: pa.string(), sa.BigInteger: pa.int64()}
    schema = pa.schema([(column.name, kinds[type(column.type)]) for column in tables.user_property_snapshots.columns])
    if not rows:
        return schema.empty_table()
    columns = [pa.array(values, column.type) for values, column in zip(zip(*rows, strict=True), schema, strict=True)]
    return pa.table(columns, schema=schema)


def property_fields() -> list[pa.Field]:
    """One Arrow field per user property: a list of texts, or a boolean."""
    return [pa.field(prop.name, _ARROW[prop.kind]) for prop in contract.PROPERTIES]


@cache
def _filled(name: str, properties: tuple[Property, ...]) -> str:
    parts = _parts(properties)
    return _PLACEHOLDER.sub(lambda found: parts[found[1]], sql(name))


def _parts(properties: Sequence[Property]) -> dict[str, str]:
    """What each placeholder stands for."""
    members = {group: [prop for prop in properties if prop.group == group] for group in GROUPS}
    texts = [prop for prop in properties if prop.kind == "texts"]
    first = {group: ".".join(map(_quoted, members[group][0].steps[:1])) for group in GROUPS}
    flags = [_value_in_payload(prop) for prop in members["journey"]]
    beside = [f"{group}.{name} AS {name}" for group, of in members.items() for name in _beside(group, of)]
    parts = {
        "array_characters": str(ARRAY_CHARACTERS),
        "payload_structure": _payload_structure(members),
        "any_journey": f"coalesce({', '.join(flags)})",
        "any_entitlement": f"item.{first['entitlements']}",
        "values": ", ".join(f"{_parsed(prop)} AS {prop.carried}" for prop in properties),
        "texts": ", ".join(f"to_json({prop.name})::VARCHAR AS {prop.name}_text" for prop in texts),
        "lengths": ", ".join(f"lengths_of({prop.name}, {prop.name}_text) AS {prop.name}_lengths" for prop in texts),
        "cuts": ", ".join(f"cut({prop.name}, {prop.name}_lengths) AS {prop.name}" for prop in texts),
        "truncated": " + ".join(f"({prop.name}_lengths IS NOT NULL)::INTEGER" for prop in texts),
        "properties": ", ".join(map(_column, properties)),
        "columns": ", ".join([*map(_column, properties), *beside]),
        "written": ", ".join([*(f"{group}.text AS {group}_text" for group in GROUPS), *beside]),
        "user_properties": ", ".join(_sent(group, of) for group, of in members.items()),
    }
    for group, of in members.items():
        parts[f"{group}_structure"] = _stored_structure(group, of)
        parts[f"{group}_text"] = _stored_text(group, of)
        parts[f"carried_{group}"] = _struct(group, of, str, lambda prop: f"text_of({prop.name}, {prop.name}_text)")
        parts[f"filed_{group}"] = _struct(group, of, str, lambda prop: f"to_json({prop.name})::VARCHAR")
        parts[f"stored_{group}"] = _struct(group, of, f"{group}.{{}}".format, _stored_as_text)
    return parts


def _payload_structure(members: dict[str, list[Property]]) -> str:
    """The structure that DuckDB's ``from_json`` extracts from a payload."""
    structure: dict[str, Any] = {}
    for group, of in members.items():
        fields: dict[str, Any] = {}
        for prop in of:
            at = fields
            for step in prop.steps[:-1]:
                at = at.setdefault(step, {})
            at[prop.steps[-1]] = "JSON"
        field = GROUPS[group]
        structure[field.removesuffix("[]")] = [fields] if field.endswith("[]") else fields
    structure["external_ids"] = [{"key": "VARCHAR", "value": "JSON"}]
    return literal(orjson.dumps(structure).decode())


def _value_in_payload(prop: Property) -> str:
    return ".".join(["p", GROUPS[prop.group].removesuffix("[]"), *map(_quoted, prop.steps)])


def _parsed(prop: Property) -> str:
    """A property's value, from the parsed payload ``p``."""
    if prop.kind == "flag":
        return f"flag({_value_in_payload(prop)})"
    item = ".".join(["item", *map(_quoted, prop.steps)])
    return f"tidy(list_transform(p.{GROUPS[prop.group].removesuffix('[]')}, lambda item: id_text({item})))"


def _struct(group: str, of: Sequence[Property], value: Callable[[str], str], text: Callable[[Property], str]) -> str:
    """A group's values as one, with ``text``: those that are sent as they are, as JSON without the braces."""
    fields = [f"'{prop.carried}': {value(prop.carried)}" for prop in of]
    if group == "entitlements":
        fields.append(f"'{HAS_ACTIVE}': {value(HAS_ACTIVE)}")
    texts = [
        _member(prop.name, text(prop) if prop.kind == "texts" else f"{value(prop.name)}::VARCHAR")
        for prop in of
        if not prop.unless_active
    ]
    return "{" + ", ".join([*fields, f"'text': nullif(concat_ws(',', {', '.join(texts)}), '')"]) + "}"


def _stored_as_text(prop: Property) -> str:
    return f"to_json({prop.group}.{prop.name})::VARCHAR"


def _column(prop: Property) -> str:
    """A property's column, from its group's struct: the only place where a flag may differ from Nami's."""
    value = f"{prop.group}.{prop.carried}"
    if prop.unless_active:
        active = f"coalesce(entitlements.{HAS_ACTIVE}, false)"
        value = f"CASE WHEN {value} IS NOT NULL THEN {value} AND NOT {active} END"
    return f"{value} AS {prop.name}"


def _sent(group: str, of: Sequence[Property]) -> str:
    """The members of the JSON object that a group adds to what is sent."""
    derived = [_member(prop.name, f"{prop.name}::VARCHAR") for prop in of if prop.unless_active]
    return ", ".join([*derived, f"{group}.text"])


def _stored_structure(group: str, of: Sequence[Property]) -> str:
    fields: dict[str, object] = {prop.carried: ["VARCHAR"] if prop.kind == "texts" else "BOOLEAN" for prop in of}
    if group == "entitlements":
        fields[HAS_ACTIVE] = "BOOLEAN"
    return literal(orjson.dumps(fields).decode())


def _stored_text(group: str, of: Sequence[Property]) -> str:
    """A group as the store keeps it, NULL for none; read again by :func:`_stored_structure`."""
    chosen = group[0]  # the alias in the join
    members = [f"{chosen}.{group}_text", *(_member(name, f"{chosen}.{name}::VARCHAR") for name in _beside(group, of))]
    return f"CASE WHEN {chosen}.row IS NOT NULL THEN concat('{{', concat_ws(',', {', '.join(members)}), '}}') END"


def _beside(group: str, of: Sequence[Property]) -> list[str]:
    """The stored fields of a group that are not sent unchanged."""
    return [prop.carried for prop in of if prop.unless_active] + ([HAS_ACTIVE] if group == "entitlements" else [])


def _member(name: str, text: str) -> str:
    return f"""'"{name}":' || {text}"""


def _quoted(name: str) -> str:
    return f'"{name}"'
