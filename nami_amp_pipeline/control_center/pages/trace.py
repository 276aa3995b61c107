"""Trace: what became of an event, or of a user's events; a verdict for each integration first."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import orjson
from starlette.responses import Response

from nami_amp_pipeline import contract
from nami_amp_pipeline.control_center.payloads import download
from nami_amp_pipeline.control_center.visit import NotFound, Visit, page
from nami_amp_pipeline.control_center.words import meanings
from nami_amp_pipeline.operations.trace import Answer
from nami_amp_pipeline.operations.user_state import UserState

LONGEST: Final = 1_024
"""Characters of what can be asked for: no id is longer."""

MOST_USERS: Final = 5
"""So many users of one External ID are shown with their properties."""

_NAMES: Final = {"arrived": "good", "rejected": "bad", "unknown": "bad", "waits": "warn", "not read yet": "warn"}


def show(visit: Visit) -> Response:
    """A box; and below it what was found."""
    _ = visit.app
    asked = visit.query.get("q", "").strip()[:LONGEST]
    answer = _look_up(visit, asked) if asked else None
    return visit.render(
        "trace.html",
        asked=asked,
        answer=answer,
        is_found=answer is not None and not answer.missing,
        states=_states(visit, answer),
        kinds=_NAMES,
        moment=datetime.fromisoformat,
        as_json=lambda value: orjson.dumps(value).decode(),
        properties=meanings(),
        groups={prop.name: prop.field for prop in contract.PROPERTIES},
    )


def _look_up(visit: Visit, asked: str) -> Answer:
    only_user = visit.query.get("as") == "user"
    return visit.operations.look_up(asked, only_user=only_user, app_id=visit.app_id)


def _states(visit: Visit, answer: Answer | None) -> list[UserState]:
    """How the users stand now whom an answer is about."""
    if answer is None or answer.missing or answer.user is None:
        return []
    return visit.operations.user_states(visit.app_id, [user for _, user, _ in answer.user.users][:MOST_USERS])


def _text(found: dict[str, Any]) -> str:
    return orjson.dumps(found, option=orjson.OPT_INDENT_2).decode()


def show_file(visit: Visit) -> Response:
    """All that is known, as ``nami-amp trace --json`` writes it."""
    asked = visit.query.get("q", "").strip()[:LONGEST]
    if not asked:
        raise NotFound("Nothing is asked for")
    return download(_text(_look_up(visit, asked).to_json()), "trace.json")


navigation: Final = ("trace", "Trace")
routes: Final = [
    page("/apps/{app}/trace", show, name="trace"),
    page("/apps/{app}/trace/all.json", show_file, name="trace-file"),
]
