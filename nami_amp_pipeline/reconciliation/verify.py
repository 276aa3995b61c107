"""Compares single events by value, where fingerprints differ: another spelling of the same value is no difference.

A fingerprint is of a text. What was sent is made again from its segment; if that has the fingerprint of what was sent,
its values decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import orjson
import pyarrow as pa

from nami_amp_pipeline.amplitude import fingerprints
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.history import current_names
from nami_amp_pipeline.stages.rebuild import events_again
from nami_amp_pipeline.state.integrations import Integration

BY_VALUE: Final = {
    "event_properties": "event_properties", "revenue": "revenue", "user_properties": "user_properties",
    "event_type": "head", "user_id": "head", "device_id": "head", "time": "head",
}  # fmt: skip
"""Column to the part of an event that has a fingerprint."""

_REVENUE: Final = ("price", "quantity", "productId", "revenueType", "currency")


@dataclass(frozen=True)
class Altered:
    """A field that is held otherwise than it was sent.

    Attributes:
        column: of the event.
        field: within event or user properties and revenue; else the column.
        sent: its value; None if what was sent is not known any more.
        held: its value; None if it is not held.
    """

    column: str
    field: str
    sent: Any
    held: Any


def differences(sent: Mapping[str, Any], held: Mapping[str, Any]) -> Iterator[Altered]:
    """The fields of a sent event that are held otherwise; what is held besides belongs to other writers.

    Args:
        sent: an event as it is posted.
        held: as :mod:`nami_amp_pipeline.amplitude.exported.held` has it.
    """
    for column in ("event_type", "user_id", "device_id", "time"):
        if column in sent and not _is_same(sent[column], held[column]):
            yield Altered(column, column, sent[column], held[column])
    for column in ("event_properties", "user_properties"):
        own = _loaded(held[column])
        for name, value in sent.get(column, {}).items():
            if not _is_same(value, own.get(name)):
                yield Altered(column, name, value, own.get(name))
    revenue = _loaded(held["revenue"])
    for name in _REVENUE if revenue else ():
        if name in sent and not _is_same(sent[name], revenue.get(name)):
            yield Altered("revenue", name, sent[name], revenue.get(name))


def verify(
    context: Context, connection: duckdb.DuckDBPyConnection, integration: Integration, most: int
) -> dict[int, list[Altered]]:
    """Takes out of ``held.differs`` what is the same by value.

    Args:
        context: the process at work.
        connection: has the tables ``sent`` and ``held``.
        integration: whose events.
        most: of how many events the differences are wanted.

    Returns:
        Number in ``sent`` to the fields that are held otherwise.
    """
    found: dict[int, list[Altered]] = {}
    _verify_as(context, connection, integration, most, found, as_of_now=True)
    if current_names():  # an event that has become history since was sent with them, and would not be now
        _verify_as(context, connection, integration, most, found, as_of_now=False)
    return found


def _verify_as(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    integration: Integration,
    most: int,
    found: dict[int, list[Altered]],
    *,
    as_of_now: bool,
) -> None:
    wanted = connection.execute(
        "SELECT DISTINCT s.id, s.segment_id FROM held h JOIN sent s USING (number) WHERE len(h.differs) > 0"
    ).fetchall()
    if not wanted:
        return
    for _, events in events_again(context, integration, dict(wanted), as_of_now=as_of_now):
        prints = fingerprints.fingerprints(events["body"])
        again = pa.table(
            [events["id"], events["body"], *prints.columns],
            names=["id", "body", *(f"again_{name}" for name in prints.column_names)],
        )
        connection.register("again", again)
        rows = connection.execute(_PAIRS).fetchall()
        names = [column[0] for column in connection.description or ()]
        pairs = (dict(zip(names, row, strict=True)) for row in rows)
        # As it was before, an event counts only if it was sent so.
        changes = list(_changes((row for row in pairs if as_of_now or row["same_user_properties"]), found, most))
        connection.unregister("again")
        _apply(connection, changes)


_PAIRS: Final = f"""
SELECT h.rowid AS place, h.number, h.differs, h.event_type, h.user_id, h.device_id, h.time, h.event_properties,
    h.user_properties, h.revenue, a.body, s.was_again,
    {
    ", ".join(
        f"s.fingerprint_{part} IS NOT DISTINCT FROM a.again_fingerprint_{part} AS same_{part}"
        for part in fingerprints.PARTS
    )
}
FROM held h JOIN sent s USING (number) JOIN again a USING (id)
WHERE len(h.differs) > 0
"""  # noqa: S608


def _changes(
    rows: Iterable[Mapping[str, Any]], found: dict[int, list[Altered]], most: int
) -> Iterator[tuple[int, list[str]]]:
    """Place in ``held`` and what differs by value, where that is less."""
    for row in rows:
        fields = list(differences(orjson.loads(row["body"].removeprefix(",")), row))
        by_value = {field.column for field in fields}
        # Where what was made again is not what was sent, only the fingerprint can say; which is of the first time.
        unknown = [part for part in fingerprints.PARTS if not (row[f"same_{part}"] or row["was_again"])]
        left = [name for name in row["differs"] if name in by_value or BY_VALUE[name] in unknown]
        if left and (len(found) < most or row["number"] in found):
            found[row["number"]] = [field for field in fields if field.column in left]
        elif not left:
            found.pop(row["number"], None)
        if left != row["differs"]:
            yield row["place"], left


def _apply(connection: duckdb.DuckDBPyConnection, changes: Sequence[tuple[int, list[str]]]) -> None:
    if not changes:
        return
    connection.register(
        "changes",
        pa.table(
            {
                "place": pa.array([place for place, _ in changes], pa.int64()),
                "left_over": pa.array([left for _, left in changes], pa.list_(pa.string())),
            }
        ),
    )
    connection.execute("UPDATE held SET differs = c.left_over FROM changes c WHERE held.rowid = c.place")
    connection.unregister("changes")


def _loaded(text: str | None) -> Mapping[str, Any]:
    loaded = orjson.loads(text) if text else {}
    return loaded if isinstance(loaded, dict) else {}


def _is_same(sent: object, held: object) -> bool:
    """Numbers are the same whatever their spelling; true is no number."""
    return sent == held and isinstance(sent, bool) == isinstance(held, bool)
