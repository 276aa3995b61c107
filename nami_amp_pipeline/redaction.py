"""Removes secrets from everything that is shown or stored: in one place, on whole texts, before they are cut."""

from __future__ import annotations

import html
import json
import logging
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus, unquote, unquote_plus

if TYPE_CHECKING:
    from nami_amp_pipeline.secrets import Secret
    from nami_amp_pipeline.settings import Settings

HIDDEN: Final = "…"

PIECE: Final = 8
"""Pieces of a secret of at least this length are removed too: other programs cut texts before we see them."""

MOST_PASSING: Final = 32
"""So many secrets are known that may be none."""

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


def _texts(secrets: Iterable[str | Secret | None]) -> set[str]:
    texts = {_text(secret).strip() for secret in secrets if secret is not None}
    return {text for text in texts if len(text) >= _SHORTEST}


def _text(secret: str | Secret) -> str:
    return secret if isinstance(secret, str) else secret.reveal()


@dataclass(frozen=True)
class _Searched:
    """Secrets, and what texts are searched for: forms that are shorter than a piece, and pieces."""

    secrets: frozenset[str] = frozenset()
    short: frozenset[str] = frozenset()
    pieces: frozenset[str] = frozenset()

    @staticmethod
    def of(secrets: set[str]) -> _Searched:
        forms = {form for text in secrets for form in _forms(text)}
        pieces = {form[start : start + PIECE] for form in forms for start in range(len(form) - PIECE + 1)}
        short = {form for form in forms if len(form) < PIECE}
        return _Searched(frozenset(secrets), frozenset(short), frozenset(pieces))

    def __or__(self, other: _Searched) -> _Searched:
        return _Searched(self.secrets | other.secrets, self.short | other.short, self.pieces | other.pieces)


class Redactor:
    """Knows secrets, and removes them from texts in every form.

    Args:
        secrets: the first ones to know.
    """

    def __init__(self, secrets: Iterable[str | Secret] = ()) -> None:
        self._lock = threading.Lock()
        self._kept = _Searched()
        self._passing: dict[str, _Searched] = {}
        self._whole: tuple[str, ...] = ()
        self._pieces: frozenset[str] = frozenset()
        self.add(*secrets)

    def add(self, *secrets: str | Secret | None) -> None:
        """Learns secrets; None and empty values are ignored."""
        new = _texts(secrets) - self._kept.secrets
        if new:
            with self._lock:
                self._kept |= _Searched.of(new)
                self._put_together()

    def add_passing(self, *secrets: str | Secret | None) -> None:
        """Learns secrets that may be none, such as what a person typed; of all of these the last :data:`MOST_PASSING`.

        Whoever types keys all day must not make texts unreadable, or fill the memory.
        """
        with self._lock:
            for text in sorted(_texts(secrets)):
                known = self._passing.pop(text) if text in self._passing else _Searched.of({text})
                self._passing[text] = known
            for old in list(self._passing)[:-MOST_PASSING]:
                del self._passing[old]
            self._put_together()

    def _put_together(self) -> None:
        whole = self._kept
        for each in self._passing.values():
            whole |= each
        self._whole = tuple(sorted(whole.short, key=len, reverse=True))
        self._pieces = whole.pieces

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


def add_passing(*secrets: str | Secret | None) -> None:
    """Registers secrets with :data:`SHARED` that are forgotten once enough others came after them."""
    SHARED.add_passing(*secrets)


def add_url(url: str | None) -> None:
    """Registers the secrets of an address with :data:`SHARED`."""
    SHARED.add_url(url)


def clean(text: str) -> str:
    """A text without the secrets of :data:`SHARED`, and without any password in an address."""
    return SHARED.clean(text)


def add_settings(settings: Settings) -> None:
    """Registers the secret settings."""
    add(*(settings.encryption_key or "").split(","), settings.alert_webhook_url)
    add(settings.control_center_oidc_client_secret, settings.control_center_metrics_token)
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
