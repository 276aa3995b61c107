"""Removes secrets from everything that is shown or stored: in one place, on whole texts, before they are cut."""

from __future__ import annotations

import html
import json
import logging
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus, unquote, unquote_plus

if TYPE_CHECKING:
    from nami_amp_pipeline.secrets import Secret
    from nami_amp_pipeline.settings import Settings

HIDDEN: Final = "…"

PIECE: Final = 8
"""Pieces of a secret of at least this length are removed too: other programs cut texts before we see them."""

_SHORTEST = 4
"""Shorter secrets are not searched for in texts; in an address they are removed all the same."""

_NAMES = (
    r"(?:[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|apikey|api[_-]?key|access[_-]?key|signature|credential)"
    r"[a-z0-9_.-]*|pwd|pass|auth|sig|key)"
)
# A password may hold any of @, / and #: it ends at the last @ of the word. Left of its colon stands a user's name.
_IN_ADDRESS = re.compile(r"(?<=://)([^\s:/@'\"]*):(\S*)@")
_IN_QUERY = re.compile(rf"(?i)((?:[?&;]|\b){_NAMES}=)([^\s&;'\"<>]+)")
_IN_JSON = re.compile(rf"""(?ix)( \\*["'] {_NAMES} \\*["'] \s*:\s* (\\*["']) ) (?: (?!\2) . )+ """)
_NAME = re.compile(r"[A-Z][A-Z0-9]{0,14}(?:_[A-Z0-9]{1,15}){0,7}")


class Redactor:
    """Knows secrets, and removes them from texts in every form.

    Args:
        secrets: the first ones to know.
    """

    def __init__(self, secrets: Iterable[str | Secret] = ()) -> None:
        self._lock = threading.Lock()
        self._known: frozenset[str] = frozenset()
        self._whole: tuple[str, ...] = ()
        self._pieces: frozenset[str] = frozenset()
        self.add(*secrets)

    def add(self, *secrets: str | Secret | None) -> None:
        """Learns secrets; None and empty values are ignored."""
        texts = {_text(secret).strip() for secret in secrets if secret is not None}
        with self._lock:
            new = {text for text in texts if len(text) >= _SHORTEST} - self._known
            if not new:
                return
            self._known |= new
            forms = {form for text in new for form in _forms(text)}
            short = {form for form in forms if len(form) < PIECE}
            self._whole = tuple(sorted({*self._whole, *short}, key=len, reverse=True))
            self._pieces |= {
                form[start : start + PIECE] for form in forms for start in range(len(form) - PIECE + 1)
            }  # fmt: skip

    def add_url(self, url: str | None) -> None:
        """Learns the secrets in an address: its password, and parameters that are named like one."""
        self.add(*secrets_of_url(url or ""))

    def clean(self, text: str) -> str:
        """A text without the secrets: neither whole, nor encoded, nor any piece of :data:`PIECE` characters."""
        text = self._without_pieces(text)
        for secret in self._whole:
            if secret in text:
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", HIDDEN, text)
        if "@" in text:
            text = _IN_ADDRESS.sub(rf"\1:{HIDDEN}@", text)
        if "=" in text:
            text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
        if ":" in text:
            text = _IN_JSON.sub(rf"\1{HIDDEN}", text)
        return text

    def _without_pieces(self, text: str) -> str:
        pieces = self._pieces
        if not pieces:
            return text
        kept, end, start = [], 0, 0
        last = len(text) - PIECE
        while start <= last:
            if text[start : start + PIECE] not in pieces:
                start += 1
                continue
            kept.append(text[end:start])
            end = start + PIECE
            start += 1
            while start <= last and start <= end and text[start : start + PIECE] in pieces:
                end = start + PIECE
                start += 1
            kept.append(HIDDEN)
            start = end
        kept.append(text[end:])
        return "".join(kept)


def secrets_of_url(url: str) -> list[str]:
    """The secrets in an address, both as written and decoded.

    The address may be malformed: a password may contain ``@``, ``/``, ``#`` or ``?`` without being encoded.
    """
    _, scheme, rest = url.partition("://")
    if not scheme:
        return []
    found: list[str] = []
    before, at, after = rest.rpartition("@")
    if at:
        found.append(before.partition(":")[2])
        # A driver splits the address in its own way, and names a part of the password as a host, port or database.
        found += re.split(r"[@/#?:]", found[0])
    for match in _IN_QUERY.finditer(f"?{(after if at else rest).partition('?')[2]}"):
        found.append(match.group(2))
    found += [unquote(text) for text in found] + [unquote_plus(text) for text in found]
    return [text for text in dict.fromkeys(found) if text]


def shown_name(name: str) -> str:
    """The name of an environment variable for a message; “…” if it may be a secret that was given in its place."""
    return name if _NAME.fullmatch(name) and sum(map(str.isdigit, name)) < PIECE else HIDDEN


def shown_path(path: Path | str) -> str:
    """A path for a message; if there is no such file its name may be a secret that was given in its place."""
    path = Path(path)
    try:
        if path.exists():
            return str(path)
        return str(path.parent / HIDDEN) if len(path.parts) > 1 and path.parent.exists() else HIDDEN
    except (OSError, ValueError):
        return HIDDEN


SHARED: Final = Redactor()
"""The secrets that this process has met; settings, the encryption keys and the commands register theirs."""


def add(*secrets: str | Secret | None) -> None:
    """Registers secrets with :data:`SHARED`."""
    SHARED.add(*secrets)


def add_url(url: str | None) -> None:
    """Registers the secrets of an address with :data:`SHARED`."""
    SHARED.add_url(url)


def clean(text: str) -> str:
    """A text without the secrets of :data:`SHARED`, and without any password in an address."""
    return SHARED.clean(text)


def add_settings(settings: Settings) -> None:
    """Registers the secret settings."""
    add(*(settings.encryption_key or "").split(","), settings.alert_webhook_url)
    add_url(settings.state_url)
    add_url(settings.warehouse_url)


class _LogFilter(logging.Filter):
    """Removes secrets from log records, tracebacks included."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = clean(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = clean(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


_FILTER = _LogFilter()


def guarded_logger(name: str) -> logging.Logger:
    """The logger of this name, which logs no secret."""
    logger = logging.getLogger(name)
    logger.addFilter(_FILTER)  # once, however often
    return logger


def _text(secret: str | Secret) -> str:
    return secret if isinstance(secret, str) else secret.reveal()


def _forms(secret: str) -> set[str]:
    """A secret as texts show it: itself, in JSON, in an address (either case), in HTML, and as Python shows it."""
    plain = {secret, unquote(secret)}
    forms = set(plain)
    for text in plain:
        escaped = json.dumps(text)[1:-1]
        forms |= {escaped, json.dumps(escaped)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
        for encoded in (quote(text), quote(text, safe=""), quote_plus(text)):
            forms |= {encoded, re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), encoded)}
        forms |= {html.escape(text), html.escape(text, quote=False)}
    return {form for form in forms if len(form) >= _SHORTEST}
