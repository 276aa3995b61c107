"""What an enrichment's function is given to ask the warehouse with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from nami_amp_pipeline.clock import to_datetime
from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.warehouse.base import Answering, Warehouse

if TYPE_CHECKING:
    import pyarrow as pa

_LIST: Final = re.compile(r"\$([a-z_]\w*)")


class Asked:
    """See :class:`~nami_amp_pipeline.contract.user_properties.EnrichmentContext`.

    Args:
        warehouse: that the settings name.
        seconds: how long one query may take.
        now: in µs since the epoch.
    """

    def __init__(self, warehouse: Warehouse, seconds: float, now: int) -> None:
        self._warehouse, self._seconds = warehouse, seconds
        self.now = to_datetime(now)

    def query(self, sql: str, **lists: Any) -> pa.Table:
        """See :class:`~nami_amp_pipeline.contract.user_properties.EnrichmentContext`.

        Raises:
            WarehouseUnavailable: it cannot be answered.
            TypeError: a list has a value that is neither a text, a number, a boolean nor a time.
        """
        if not isinstance(self._warehouse, Answering):
            raise WarehouseUnavailable(f"{self._warehouse.name} cannot be asked for another table")
        texts = {name: _literals(values) for name, values in lists.items()}
        filled = _LIST.sub(lambda found: texts.get(found[1], found[0]), sql)
        return self._warehouse.query(filled, self._seconds)


def _literals(values: Any) -> str:
    """A list for SQL, in parentheses; each value once."""
    to_list = getattr(values, "to_pylist", None) or getattr(values, "tolist", None)
    found: Iterable[Any] = to_list() if to_list is not None else values
    kept = dict.fromkeys(value for value in found if value is not None and value == value)  # no NaN
    return f"({', '.join(map(_literal, kept)) or 'NULL'})"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, datetime):
        return f"TIMESTAMP WITH TIME ZONE '{value.isoformat()}'"
    if isinstance(value, str):
        # No database has a text with U+0000, and PostgreSQL takes none.
        return "'" + value.replace("\0", "").replace("'", "''") + "'"
    raise TypeError(f"a list for SQL cannot have a value of type {type(value).__name__}")
