"""User properties that are declared by SQL: how DuckDB is asked for them, and whether it can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Final

import duckdb

from nami_amp_pipeline.contract.user_properties import KINDS, Kind, Property

COLUMNS: Final = {
    "id": "VARCHAR",
    "app_id": "VARCHAR",
    "user_id": "VARCHAR",
    "event_type": "VARCHAR",
    "created_date": "TIMESTAMPTZ",
    "payload": "JSON",
}
"""What the SQL of a property may name: columns of the event, and their types."""

_CAST: Final[dict[Kind, str]] = {"texts": "VARCHAR[]", "text": "VARCHAR", "number": "DOUBLE", "flag": "BOOLEAN"}
_NUMBER: Final = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)")


def tried(prop: Property) -> str:
    """SQL of a struct with the value of a property; NULL where its SQL raises an error of the row."""
    return f"TRY({{'value': (\n{prop.sql}\n)::{_CAST[prop.kind]}}})"


@cache
def mistakes(properties: Sequence[Property]) -> tuple[str, ...]:
    """A line for each property whose SQL cannot be used.

    Args:
        properties: declared by whomever, as a tuple; those with a path are passed over.
    """
    own = [prop for prop in properties if prop.sql]
    if not own:
        return ()
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": False, "threads": 1}) as connection:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        connection.execute(f"SET TimeZone = 'UTC'; CREATE TABLE events ({columns})")
        connection.execute("INSERT INTO events BY NAME SELECT '{}' AS payload")
        found = [(prop, _mistake(connection, prop)) for prop in own]
    return tuple(f"{prop.name}: {why}" for prop, why in found if why)


def _mistake(connection: duckdb.DuckDBPyConnection, prop: Property) -> str:
    try:
        # By itself first: what closes a parenthesis of ours is no expression.
        alone = f"DESCRIBE SELECT (\n{prop.sql}\n) AS value FROM events"  # noqa: S608 - the operator's own
        ((_, kind, *_),) = connection.execute(alone).fetchall()
        if not _fits(kind, prop.kind):
            return f"its SQL gives {kind}, which is not {KINDS[prop.kind]}{_advice(kind, prop.kind)}"
        connection.execute(f"SELECT {tried(prop)} FROM events").fetchall()  # noqa: S608
    except duckdb.Error as error:
        return f"its SQL cannot be used: {' '.join(str(error).split('LINE ')[0].split())[:200]}"
    except ValueError:
        return "its SQL is no single expression"
    return ""


def _fits(found: str, kind: Kind) -> bool:
    return bool(_NUMBER.fullmatch(found)) if kind == "number" else found == _CAST[kind]


def _advice(found: str, kind: Kind) -> str:
    if found == "JSON":
        return ": '->>' gives a text, and a cast what it is, such as (payload ->> '$.amount')::DOUBLE"
    return f": add a cast, such as (…)::{_CAST[kind]}"
