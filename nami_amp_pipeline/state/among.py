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
    values: sa.BindParameter[Any] = sa.bindparam("among", given, type_=sa.Text(), required=given is None)
    if is_sqlite:
        return column.in_(sa.text("SELECT value FROM json_each(:among)").bindparams(values))
    return column == sa.func.any(sa.cast(values, sa.ARRAY(of)))


def together(values: Iterable[str] | Iterable[int], *, is_sqlite: bool) -> str:
    """Values as the parameter ``among``: one text, which both databases read faster than thousands of literals."""
    if is_sqlite:
        return orjson.dumps(list(values)).decode()
    texts = [
        '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"')) if isinstance(value, str) else str(value)
        for value in values
    ]
    return f"{{{','.join(texts)}}}"
