"""What an enrichment's function gave, as columns of the declared kinds; or why it is not understood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from nami_amp_pipeline.contract import Enrichment
from nami_amp_pipeline.contract.user_properties import KINDS, Kind
from nami_amp_pipeline.stages.snapshot_sql import ARROW
from nami_amp_pipeline.storage.row_faults import words_of


class NotUnderstood(Exception):
    """A function raised, took too long, or gave what was not declared; the message is a clause."""


def columns_of(enrichment: Enrichment, answer: Any, rows: int) -> pa.Table:
    """The declared columns of an answer.

    Args:
        enrichment: that gave it.
        answer: an Arrow table or batch, a data frame, or a mapping of columns by name.
        rows: of the batch that it was asked about.

    Raises:
        NotUnderstood: names, lengths or types are others.
    """
    given = _by_name(answer)
    wanted = enrichment.properties
    if given.keys() != wanted.keys():
        foreign = sorted(map(str, given.keys() - wanted.keys()))
        missing = sorted(wanted.keys() - given.keys())
        what = [f"lacks {', '.join(missing)}"] if missing else []
        what += [f"has {', '.join(foreign)}, which is not declared"] if foreign else []
        raise NotUnderstood(f"what it gave {' and '.join(what)}")
    return pa.table({name: _column(name, given[name], kind, rows) for name, kind in wanted.items()})


def _by_name(answer: Any) -> Mapping[Any, Any]:
    if isinstance(answer, (pa.Table, pa.RecordBatch)):
        names = answer.schema.names
        if len(set(names)) < len(names):
            raise NotUnderstood("what it gave has a column twice")
        return {name: answer.column(name) for name in names}
    if isinstance(answer, Mapping):
        return answer
    if hasattr(answer, "columns") and hasattr(answer, "iloc"):  # a data frame, without importing pandas
        if not answer.columns.is_unique:
            raise NotUnderstood("what it gave has a column twice")
        return {name: answer[name] for name in answer.columns}
    raise NotUnderstood(f"it gave {type(answer).__name__}, which is no table")


def _column(name: str, values: Any, kind: Kind, rows: int) -> pa.Array:
    try:
        found = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, from_pandas=True)
        if isinstance(found, pa.ChunkedArray):
            found = found.combine_chunks()
        if isinstance(found, pa.ChunkedArray):  # of several chunks still, as texts of more than 2 GB are
            raise NotUnderstood(f"{name} is too large")
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise NotUnderstood(f"{name} is no column: {words_of(error)}") from None
    if len(found) != rows:
        raise NotUnderstood(f"{name} has {len(found):,} values for {rows:,} events")
    if not _is(found.type, kind):
        raise NotUnderstood(f"{name} is of type {found.type}, and not {KINDS[kind]}")
    try:
        return found.cast(ARROW[kind], safe=kind != "number")
    except pa.ArrowException as error:
        raise NotUnderstood(f"{name} is not {KINDS[kind]}: {words_of(error)}") from None


def _is(found: pa.DataType, kind: Kind) -> bool:
    types = pa.types
    if types.is_null(found):
        return True
    if kind == "flag":
        return bool(types.is_boolean(found))
    if kind == "number":
        return any(test(found) for test in (types.is_integer, types.is_floating, types.is_decimal))
    if kind == "text":
        return _is_text(found.value_type if types.is_dictionary(found) else found)
    is_list = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
    return is_list and (_is_text(found.value_type) or types.is_null(found.value_type))


def _is_text(found: pa.DataType) -> bool:
    types = pa.types
    return any(test(found) for test in (types.is_string, types.is_large_string, types.is_string_view))
