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
from nami_amp_pipeline.contract import ARRAY_CHARACTERS, ENRICHED, GROUPS, Property
from nami_amp_pipeline.contract.user_properties import TEXT_CHARACTERS
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.storage.duckdb_engine import literal, sql
from nami_amp_pipeline.storage.property_sql import tried

_PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")
ARROW = {"texts": pa.list_(pa.string()), "flag": pa.bool_(), "text": pa.string(), "number": pa.float64()}
"""The type of a property's column, by its kind."""

_STORED = {"texts": ["VARCHAR"], "flag": "BOOLEAN", "text": "VARCHAR", "number": "DOUBLE"}

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
    """One Arrow field per user property."""
    return [pa.field(prop.name, ARROW[prop.kind]) for prop in contract.PROPERTIES]


@cache
def _filled(name: str, properties: tuple[Property, ...]) -> str:
    parts = _parts(properties)
    return _PLACEHOLDER.sub(lambda found: parts[found[1]], sql(name))


def _parts(declared: Sequence[Property]) -> dict[str, str]:
    """What each placeholder stands for."""
    properties = [prop for prop in declared if prop.group != ENRICHED]
    members = {group: [prop for prop in properties if prop.group == group] for group in GROUPS}
    texts = [prop for prop in properties if prop.kind == "texts"]
    first = {group: ".".join(map(_quoted, members[group][0].steps[:1])) for group in GROUPS}
    flags = [_value_in_payload(prop) for prop in members["journey"] if not prop.sql]
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
        "properties": ", ".join(map(_column, declared)),
        "columns": ", ".join([*map(_column, properties), *beside]),
        "batch_columns": ", ".join([*(f"s.{prop.name}" for prop in properties), "g.payload"]),
        "written": ", ".join([*(f"{group}.text AS {group}_text" for group in GROUPS), *beside]),
        "user_properties": ", ".join(_sent(group, of) for group, of in members.items()),
    }
    for group, of in members.items():
        parts[f"{group}_structure"] = _stored_structure(group, of)
        parts[f"{group}_text"] = _stored_text(group, of)
        parts[f"carried_{group}"] = _struct(
            group, of, str, lambda prop: _json_text(prop, prop.name, f"text_of({prop.name}, {prop.name}_text)")
        )
        parts[f"filed_{group}"] = _struct(group, of, str, lambda prop: _json_text(prop, prop.name))
        parts[f"stored_{group}"] = _struct(
            group, of, f"{group}.{{}}".format, lambda prop: _json_text(prop, f"{prop.group}.{prop.name}")
        )
    return parts | _by_sql(properties) | _enriched([prop for prop in declared if prop.group == ENRICHED])


def _by_sql(properties: Sequence[Property]) -> dict[str, str]:
    """What properties by SQL add; nothing where there are none."""
    own = [prop for prop in properties if prop.sql]
    if not own:
        return {"parsed": "parsed", "also_parsed": "", "raised": "", "also_raised": ""}
    here = {prop.name: f"is_user AND p.{prop.field} IS NOT NULL" for prop in own}
    values = ", ".join(f"CASE WHEN {here[prop.name]} THEN {tried(prop)} END AS {prop.name}_tried" for prop in own)
    raised = ", ".join(
        f"CASE WHEN {here[prop.name]} AND {prop.name}_tried IS NULL THEN {literal(prop.name)} END" for prop in own
    )
    return {
        "parsed": "(SELECT * REPLACE (payload::VARCHAR AS payload) FROM "  # noqa: S608 - declared by the operator
        f"(SELECT *, {values} FROM (SELECT * REPLACE (payload::JSON AS payload) FROM parsed)))",
        "also_parsed": ", event_type",
        "raised": f", list_filter([{raised}], lambda name: name IS NOT NULL) AS raised",
        "also_raised": ", raised",
    }


def _enriched(own: Sequence[Property]) -> dict[str, str]:
    """What enrichments add; nothing where there are none."""
    names = [
        "enriched_values",
        "enriched_texts",
        "enriched_lengths",
        "enriched_cuts",
        "enriched_text",
        "enriched_group",
    ]
    names += ["enriched_columns", "with_enriched", "no_enriched_text", "sent_enriched", "also_enriched_text"]
    if not own:
        return dict.fromkeys([*names, "enriched_current", "with_enriched_current"], "")
    texts = [prop for prop in own if prop.kind == "texts"]
    of_event = [_json_text(prop, prop.name, f"text_of({prop.name}, {prop.name}_text)") for prop in own]
    stored = [_json_text(prop, f"{ENRICHED}.{prop.name}") for prop in own]
    structure = literal(orjson.dumps({prop.name: _STORED[prop.kind] for prop in own}).decode())
    return {
        "enriched_values": "".join(f", {_kept(prop, prop.name)} AS {prop.name}" for prop in own),
        "enriched_texts": "".join(f", to_json({prop.name})::VARCHAR AS {prop.name}_text" for prop in texts),
        "enriched_lengths": "".join(
            f", lengths_of({prop.name}, {prop.name}_text) AS {prop.name}_lengths" for prop in texts
        ),
        "enriched_cuts": _cuts(texts),
        "enriched_text": _members(own, of_event),
        "enriched_group": f", from_json({ENRICHED}, {structure}) AS {ENRICHED}",
        "enriched_columns": "".join(f", e.{prop.name}" for prop in own) + ", e.enriched_text",
        "with_enriched": " s LEFT JOIN enriched e USING (row)",
        "no_enriched_text": ", enriched_text",
        "sent_enriched": ", enriched_text",
        "also_enriched_text": f", {_members(own, stored)} AS enriched_text",
        "enriched_current": f", CASE WHEN g.is_given THEN concat('{{', g.enriched_text, '}}') END AS {ENRICHED}"
        f", CASE WHEN g.is_given THEN epoch_us(a.created_date) END AS {ENRICHED}_date"
        f", CASE WHEN g.is_given THEN a.id END AS {ENRICHED}_event",
        "with_enriched_current": "LEFT JOIN enriched g ON g.row = n.as_of_row",
    }


def _cuts(texts: Sequence[Property]) -> str:
    cuts = ", ".join(f"cut({prop.name}, {prop.name}_lengths) AS {prop.name}" for prop in texts)
    return f" REPLACE ({cuts})" if texts else ""


def _members(own: Sequence[Property], texts: Sequence[str]) -> str:
    members = ", ".join(_member(prop.name, text) for prop, text in zip(own, texts, strict=True))
    return f"nullif(concat_ws(',', {members}), '')"


def _payload_structure(members: dict[str, list[Property]]) -> str:
    """The structure that DuckDB's ``from_json`` extracts from a payload."""
    structure: dict[str, Any] = {}
    for group, of in members.items():
        fields: dict[str, Any] = {}
        for prop in of:
            if prop.sql:
                continue
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
    """A property's value, from the parsed payload ``p``, or from what its SQL gave."""
    if prop.sql:
        return _kept(prop, f"{prop.name}_tried.value")
    if prop.kind == "flag":
        return f"flag({_value_in_payload(prop)})"
    item = ".".join(["item", *map(_quoted, prop.steps)])
    return f"tidy(list_transform(p.{GROUPS[prop.group].removesuffix('[]')}, lambda item: id_text({item})))"


def _struct(group: str, of: Sequence[Property], value: Callable[[str], str], text: Callable[[Property], str]) -> str:
    """A group's values as one, with ``text``: those that are sent as they are, as JSON without the braces."""
    fields = [f"'{prop.carried}': {value(prop.carried)}" for prop in of]
    if group == "entitlements":
        fields.append(f"'{HAS_ACTIVE}': {value(HAS_ACTIVE)}")
    texts = [_member(prop.name, text(prop)) for prop in of if not prop.unless_active]
    return "{" + ", ".join([*fields, f"'text': nullif(concat_ws(',', {', '.join(texts)}), '')"]) + "}"


def _json_text(prop: Property, value: str, of_texts: str | None = None) -> str:
    """SQL of a value as JSON text; a whole number without a fraction."""
    if prop.kind == "flag":
        return f"{value}::VARCHAR"
    if prop.kind == "number":
        is_whole = f"{value} = trunc({value}) AND abs({value}) < 1e15"
        return f"CASE WHEN {is_whole} THEN {value}::BIGINT::VARCHAR ELSE to_json({value})::VARCHAR END"
    return of_texts if of_texts is not None and prop.kind == "texts" else f"to_json({value})::VARCHAR"


def _kept(prop: Property, value: str) -> str:
    """SQL of a value as it is kept: arrays tidy, texts as long as Amplitude keeps them, numbers that JSON has."""
    if prop.kind == "number":
        return f"CASE WHEN isfinite({value}) THEN {value} END"
    return {"texts": f"tidy({value})", "text": f"left({value}, {TEXT_CHARACTERS})", "flag": value}[prop.kind]


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
    fields: dict[str, object] = {prop.carried: _STORED[prop.kind] for prop in of}
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
