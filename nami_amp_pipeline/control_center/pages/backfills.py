"""Backfills: a dry run counts what a window would send; its plan runs, is paused and cancelled.

This process only records what is asked for. The sensor ``unattended_backfills`` of Dagster's daemon does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.responses import Response

from nami_amp_pipeline.control_center.paging import ROWS, Part
from nami_amp_pipeline.control_center.payloads import payload
from nami_amp_pipeline.control_center.receiver import Receiver
from nami_amp_pipeline.control_center.typed import TYPED
from nami_amp_pipeline.control_center.visit import NotFound, Visit, action, page
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.backfill_status import BackfillStatus
from nami_amp_pipeline.operations.backfills import CLASSES, STORED_TWICE, NewBackfill
from nami_amp_pipeline.operations.times import parse_window

FIELDS: Final = ("integration", "from", "to", "by", "events", "resend")


def show_all(visit: Visit) -> Response:
    """All backfills of the app, the newest first."""
    _ = visit.app
    before = visit.query.get("after", "")
    if before and not (before.isascii() and before.isdecimal() and len(before) < 19):
        raise NotFound("There is no such page of the list")
    found = visit.operations.backfills.listed(
        app_id=visit.app_id, before=int(before) if before else None, limit=ROWS + 1
    )
    part = Part(found[:ROWS], str(found[ROWS - 1].backfill.id) if len(found) > ROWS else None)
    return visit.render("backfills.html", part=part, words=_words)


def make(visit: Visit) -> Response:
    """A form for a window; asks for its dry run."""
    if not visit.of_app:
        raise NotFound("This app has no integration yet")
    given = {name: visit.text(name).strip() for name in FIELDS}
    if not visit.is_post:
        given |= {"integration": visit.query.get("integration", visit.of_app[0].name), "by": "created_date"}
        return _form(visit, given, {})
    if visit.text("act") == TYPED:
        return _form(visit, given, {})
    errors = {name: said for name, said in _NEEDED.items() if not given[name]}
    keys = {integration.name: integration.key for integration in visit.of_app}
    if given["integration"] not in keys:
        errors["integration"] = "Choose an integration"
    if errors:
        return _form(visit, given, errors)
    try:
        window = parse_window(given["from"], given["to"], given["by"])
    except Misconfigured as error:
        field = "to" if str(error).startswith("--to") else "from"
        return _form(visit, given, {field: _plain(error)})
    patterns = [part.strip() for part in given["events"].split(",") if part.strip()]
    new = NewBackfill(keys[given["integration"]], window, patterns or None, resend=bool(given["resend"]))
    try:
        made = visit.operations.backfills.ask_for_plan(new)
    except Misconfigured as error:
        return _form(visit, given, {"events" if patterns else "integration": _plain(error)})
    return visit.redirect("backfill", app=visit.app_id, number=made.id, done="plan-asked")


_NEEDED: Final = {"from": "Enter the first instant of the window", "to": "Enter the first instant after the window"}


def _plain(error: Exception) -> str:
    text = str(error).replace("--from", "From").replace("--to", "To")
    return text[:1].upper() + text[1:]


def _form(visit: Visit, given: Mapping[str, str], errors: Mapping[str, str]) -> Response:
    return visit.render("new_backfill.html", status=400 if errors else 200, given=given, errors=errors)


def _one(visit: Visit) -> BackfillStatus:
    try:
        found = visit.operations.backfills.show(visit.number)
    except Misconfigured:
        raise NotFound("There is no such backfill") from None
    if found.backfill.integration.partition("/")[0] != visit.app_id:
        raise NotFound("There is no such backfill")
    return found


def show(visit: Visit) -> Response:
    """One backfill: its plan, or how far it is."""
    found = _one(visit)
    plan = found.backfill.plan or {}
    examples = [payload(text) for text in plan.get("preview", [])[:3]]
    return visit.render(
        "backfill.html",
        found=found,
        backfill=found.backfill,
        pace=found.pace(visit.now),
        plan=plan,
        twice=sum(plan.get("found", {}).get(name, 0) for name in STORED_TWICE),
        classes={name: said.replace("Amplitude", _to(visit, found)) for name, said in (CLASSES | _CLASSES).items()},
        examples=examples,
        words=_words,
    )


def _to(visit: Visit, found: BackfillStatus) -> str:
    """What receives the events of a backfill, as a sentence calls it."""
    names = [each.destination for each in visit.of_app if each.key == found.backfill.integration]
    try:
        return Receiver.of(names[0]).title if names else "Amplitude"
    except Misconfigured:  # the package that adds it is missing
        return names[0]


_CLASSES: Final = {"dead_letter": "refused: they can be sent again from Refused"}
"""Where the words of the command line name a command."""


def _words(found: BackfillStatus) -> tuple[str, str]:
    """The state for people, and its kind."""
    backfill = found.backfill
    if backfill.state == "planned":
        if backfill.error:
            return "The dry run failed", "bad"
        if backfill.plan is None:
            return ("Dry run under way" if found.is_at_work else "Dry run waits to be started"), "warn"
        return "Planned: nothing was sent", ""
    if backfill.state == "running":
        return ("Running" if found.is_at_work else "Waits to be started"), "warn"
    return backfill.state.capitalize(), {"done": "good", "failed": "bad", "paused": "warn"}.get(backfill.state, "")


_Act = Callable[[Any, int], object]

ACTS: Final[Mapping[str, tuple[_Act, str, str]]] = {
    "run": (lambda backfills, number: backfills.start(number), "Run", "backfill-started"),
    "pause": (lambda backfills, number: backfills.pause(number), "Pause", "backfill-paused"),
    "cancel": (lambda backfills, number: backfills.cancel(number), "Cancel", "backfill-cancelled"),
}
"""What can be done with a backfill: how, its word, and the notice afterwards."""


def act(visit: Visit) -> Response:
    """Asks, and then runs, pauses or cancels a backfill."""
    found, name = _one(visit), visit.request.path_params["act"]
    if name not in ACTS:
        raise NotFound("There is nothing of that name to do")
    do, word, notice = ACTS[name]
    if visit.is_post:
        do(visit.operations.backfills, found.backfill.id)
        return visit.redirect("backfill", app=visit.app_id, number=found.backfill.id, done=notice)
    return visit.render(
        "backfill_act.html", found=found, backfill=found.backfill, act=name, word=word, to=_to(visit, found)
    )


navigation: Final = ("backfills", "Backfills")
_OF: Final = "/apps/{app}/backfills"
routes: Final = [
    page(_OF, show_all, name="backfills"),
    action(f"{_OF}/new", make, name="new-backfill", keeps=True),
    page(f"{_OF}/{{number:int}}", show, name="backfill"),
    action(f"{_OF}/{{number:int}}/{{act}}", act, name="backfill-act"),
]
