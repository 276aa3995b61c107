"""The record of a request, which has its id once it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class RequestRecord:
    """A row of the table ``requests``.

    Attributes:
        row: its columns.
        id: the store's; None until it is written.
    """

    row: Mapping[str, Any]
    id: int | None = None
