"""The sandbox's page with what a search found, made on the server, so that a search needs no JavaScript.

Where there is JavaScript, ``search.js`` paints the same and keeps it up to date. Every text of an event is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

import orjson

LIMIT: Final = 20
"""Events, users and requests that are shown, at most so many of each; ``search.js`` has the same number."""

_INPUT: Final = '<input id="search-id" name="q"'
_CLOSE: Final = '<a id="search-clear" class="button" href="/" hidden>'
_FOUND: Final = '<div id="found" class="found-parts" hidden></div>'


def page_with(page: str, wanted: str, found: Mapping[str, Any]) -> str:
    """The page with what was found.

    Args:
        page: as it is without a search.
        wanted: what was looked for.
        found: the answer of the search: ``events``, ``users`` and ``requests``.
    """
    parts = [
        _part("Events", found["events"], _event, "No stored event has this id."),
        _part("Users, as Amplitude would hold them now", found["users"], _user, "No user or device has this id."),
        _part("Requests that carried it", found["requests"], _request, "None of the newest requests carried it."),
    ]
    for mark, text in (
        (_INPUT, f'{_INPUT} value="{escape(wanted)}"'),
        (_CLOSE, _CLOSE.replace(" hidden", "")),
        (_FOUND, f'<div id="found" class="found-parts">{"".join(parts)}</div>'),
    ):
        assert page.count(mark) == 1, mark
        page = page.replace(mark, text)
    return page


def _part(title: str, rows: Sequence[Any], build: Callable[[Any], str], none: str) -> str:
    count = f"newest {LIMIT}" if len(rows) == LIMIT else len(rows)
    listed = f'<ul class="found">{"".join(map(build, rows))}</ul>' if rows else f'<p class="none">{none}</p>'
    return f"<section><h3>{title} ({count})</h3>{listed}</section>"


def _event(row: Mapping[str, Any]) -> str:
    event = row["event"]
    damage = f'<span class="chip bad">{escape(_damage(row["damage"]))}</span>' if "damage" in row else ""
    return (
        f'<li><details><summary><span class="type">{escape(str(event["event_type"]))}</span> '
        f'<span class="mono">{escape(str(event.get("insert_id") or "without insert_id"))}</span>'
        f'<span class="sub">{_project(row)} · received {_moment(row["received_at"])} · {escape(row["path"])}</span>'
        f"{damage}</summary><pre>{escape(_json(event, indented=True))}</pre></details></li>"
    )


def _user(user: Mapping[str, Any]) -> str:
    devices = ", ".join(user["device_ids"])
    name = user["user_id"] if user["user_id"] is not None else f"Device {(user['device_ids'] or [''])[0]}"
    events = "1 event" if user["events"] == 1 else f"{user['events']:,} events"
    identifies = f" · {user['identifies']:,} identifies, which are no events" if user["identifies"] else ""
    chips = "".join(
        f'<span class="chip"><span class="key">{escape(key)} </span>{escape(_json(value))}</span>'
        for key, value in user["user_properties"].items()
    )
    return (
        f'<li><strong class="wrap">{escape(name)}</strong><span class="sub">{_project(user)} · {events}{identifies} · '
        f"devices: {escape(devices) or 'none'}</span>"
        + (f'<div class="chips">{chips}</div></li>' if chips else '<span class="none">none</span></li>')
    )


def _request(request: Mapping[str, Any]) -> str:
    status, indexes = request["status"], request["indexes"]
    tone = "good" if status == "200" else "warn" if status[:1] in "345" else "bad"
    total = f"{request['events']:,}"
    places = f"event {indexes[0] + 1} of {total}" if len(indexes) == 1 else f"{len(indexes)} of {total} events"
    named = f'<span class="sub">named in {escape(", ".join(request["named_in"]))}</span>' if request["named_in"] else ""
    return (
        f'<li><details><summary><span class="chip {tone}">{escape(status)}</span> {_moment(request["received_at"])} · '
        f"{escape(request['path'])} · {places}{named}</summary>"
        f"<pre>{escape(request['answer'] or '(no body)')}</pre></details></li>"
    )


def _damage(damage: Mapping[str, Any]) -> str:
    parts = ["lost after its 200"] if damage["lost"] else []
    parts += [f"stored {damage['copies']} times"] if damage["copies"] > 1 else []
    parts += [
        f"{name} not stored" if characters is None else f"{name} cut after {characters} characters"
        for name, characters in damage["cuts"].items()
    ]
    return ", ".join(parts)


def _project(row: Mapping[str, Any]) -> str:
    return escape(row["name"] or f"Project {row['project']}")


def _moment(seconds: float) -> str:
    found = datetime.fromtimestamp(seconds, UTC)
    return f"{found:%Y-%m-%d %H:%M:%S}.{found.microsecond // 1000:03d}Z".replace(".000Z", "Z")


def _json(value: Any, *, indented: bool = False) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indented else 0).decode()
