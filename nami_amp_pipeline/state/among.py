"""Conditions over many values: all of them are one parameter, so that a statement is made and parsed once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import orjson
import sqlalchemy as sa

if TYPE_CHECKING:
    from nami_amp_pipeline.state.store import Store


def among(store: Store, column: sa.Column[Any], values: Iterable[str] | Iterable[int]) -> sa.ColumnElement[bool]:
    """``column IN values``.

    Args:
        store: for its kind.
        column: of texts or whole numbers.
        values: however many they are.
    """
    return is_among(column, is_sqlite=store.is_sqlite, given=together(values, is_sqlite=store.is_sqlite))


def is_among(column: sa.Column[Any], *, is_sqlite: bool, given: object = None) -> sa.ColumnElement[bool]:
    """The same for a statement that is made once and carried out often: its parameter is called ``among``.

    Args:
        column: of texts or whole numbers.
        is_sqlite: whether the store is one of SQLite.
        given: what :func:`together` made of the values; None where they come later.
    """
    of = sa.Text() if isinstance(column.type, sa.Text) else sa.BigInteger()
    kind: Any = sa.Text() if is_sqlite else sa.ARRAY(of)
    values: sa.BindParameter[Any] = sa.bindparam("among", given, type_=kind, required=given is None)
    if is_sqlite:
        return column.in_(sa.text("SELECT value FROM json_each(:among)").bindparams(values))
    return column == sa.func.any(values)


def together(values: Iterable[str] | Iterable[int], *, is_sqlite: bool) -> object:
    """Values as the parameter ``among``."""
    return orjson.dumps(list(values)).decode() if is_sqlite else list(values)
