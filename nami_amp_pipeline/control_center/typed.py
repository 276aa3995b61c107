"""What was typed into a form whose session has ended: it stays in the page that asks to sign in, and comes back after.

Nothing of it is kept on the server, where anybody could leave something without having signed in. Keys are left out.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import orjson
from starlette.datastructures import FormData

TYPED: Final = "typed"
"""The act of a form that comes back: it is shown, and nothing is done."""

LONGEST_FIELD: Final = 64 * 1024
"""Bytes of a field of a form; what was typed is one field while somebody signs in."""

_MOST_FIELDS: Final = 400
_LEFT_OUT: Final = frozenset({"api_key", "secret_key", "password", "act"})
_SECRETS: Final = "secret."
"""Begins the names of the secrets that a destination has of its own."""


def pack(form: FormData) -> str:
    """The fields of a form as one text; empty if there are none, or it is too long to be kept."""
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str) and _may_come_back(name)]
    packed = orjson.dumps(fields)
    return packed.decode() if fields and len(packed) <= LONGEST_FIELD - 64 else ""


def unpack(text: str) -> list[tuple[str, str]]:
    """The fields of such a text; none if it is not one."""
    with suppress(ValueError, TypeError):
        fields = [(name, value) for name, value in orjson.loads(text)]
        if len(fields) <= _MOST_FIELDS and all(isinstance(part, str) for field in fields for part in field):
            return [(name, value) for name, value in fields if _may_come_back(name)]
    return []


def _may_come_back(name: str) -> bool:
    return name not in _LEFT_OUT and not name.startswith(_SECRETS)
