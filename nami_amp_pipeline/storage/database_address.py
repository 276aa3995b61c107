"""Addresses of databases as people write them, with passwords that hold any character."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urlsplit

_HOST: Final = r"([\w.\-%]*|\[[\da-fA-F:.]+\])(:\d*)?"
_HOSTS: Final = re.compile(f"{_HOST}(,{_HOST})*")
_AFTER_LOGIN: Final = re.compile(rf"{_HOSTS.pattern}(/[^@/?#]*)?(\?[^@#]*)?")
"""The part after the login in a database URL: hosts, a database, parameters."""


def with_quoted_password(rest: str) -> str:
    """An address without its scheme, whose user and password may contain ``@``, ``/``, ``#`` or ``?``.

    An address that is well formed is left as it is, parameters with an ``@`` included.

    Raises:
        ValueError: it is no address of a database.
    """
    if _is_well_formed(rest):
        return rest
    login, at, after = rest.rpartition("@")
    if not at or not _AFTER_LOGIN.fullmatch(after):
        raise ValueError("not an address of a database")
    user, colon, password = login.partition(":")
    return f"{_quoted(user)}{colon}{_quoted(password)}@{after}"


def _is_well_formed(rest: str) -> bool:
    if "#" in rest or any(letter.isspace() for letter in rest):
        return False
    try:
        parts = urlsplit(f"postgresql://{rest}")
    except ValueError:  # a bracket that opens no IPv6 address
        return False
    login, _, hosts = parts.netloc.rpartition("@")
    if (
        "@" in login
        or "@" in parts.path
        or any("=" not in parameter for parameter in parts.query.split("&") if parameter)
    ):
        return False
    return _HOSTS.fullmatch(hosts) is not None


def _quoted(text: str) -> str:
    return quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text), safe="%!$&'()*+,;=~")
