"""Reconciliation: whether Amplitude holds what was delivered, day by day; and who is in an audience."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Final

from starlette.responses import Response

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.control_center.payloads import Payload, payload
from nami_amp_pipeline.control_center.visit import NotFound, Visit, action, page
from nami_amp_pipeline.control_center.words import sentence
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.abilities import need_ability
from nami_amp_pipeline.operations.audience import PLACES, VALUES
from nami_amp_pipeline.operations.integrations import Integration

DAYS: Final = 30
"""So many days are shown."""

PLACE_WORDS: Final = {
    "sent": "Amplitude was sent their newest state",
    "waiting": "their newest state waits, or goes with their next event",
    "no_external_id": "have no External ID yet, so nothing is sent under one until they log in",
    "not_sent": "no event of theirs was sent: of another type, or from before the integration's start",
}
"""Where a user's state is, as the end of a sentence about users."""

CLASS_WORDS: Final = {
    "identical": "held as they were sent",
    "altered": "held, but not as they were sent",
    "missing": "delivered, and not held",
    "twice": "held twice",
    "undelivered": "held, although no answer said so",
    "others": "of other writers, such as the app's SDK",
}
"""The classes of a comparison, as the end of a sentence about events."""


def show_all(visit: Visit) -> Response:
    """The app's integrations with the newest comparison of each; of a single one, its page."""
    _ = visit.app
    named = visit.query.get("integration", "")
    if named or len(visit.of_app) == 1:
        return visit.redirect("reconciliation-of", app=visit.app_id, integration=named or visit.of_app[0].name)
    newest, not_comparable = {}, {}
    for integration in visit.of_app:
        if said := _not_comparable(integration):
            not_comparable[integration.name] = said
        days = visit.operations.reconciled(integration.key, first=_first(visit))
        newest[integration.name] = days[-1] if days else None
    return visit.render(
        "reconciliation_all.html", integrations=visit.of_app, newest=newest, not_comparable=not_comparable
    )


def _not_comparable(integration: Integration) -> str:
    """Why nothing can be compared with what its destination holds; empty if it can."""
    try:
        need_ability(integration, "reconcile")
    except Misconfigured as error:
        return sentence(str(error).removeprefix(f"{integration.key}: "))
    return ""


def _first(visit: Visit) -> int:
    return visit.now - DAYS * 86_400_000_000


def show(visit: Visit) -> Response:
    """The days of an integration, the newest first."""
    days = visit.operations.reconciled(visit.integration.key, first=_first(visit))
    yesterday = datetime.fromtimestamp(visit.now / 1e6, UTC) - timedelta(days=1)
    return visit.render(
        "reconciliation.html",
        integration=visit.integration,
        not_comparable=_not_comparable(visit.integration),
        days=days[::-1],
        yesterday=f"{yesterday:%Y-%m-%d}",
        asked=visit.operations.asked_comparison(visit.integration.key),
        properties=contract.PROPERTIES,
        prop="",
        value="",
    )


def compare(visit: Visit) -> Response:
    """Asks for yesterday to be compared."""
    done = ""
    if visit.is_post:
        visit.operations.ask_comparison(visit.integration.key, visit.now - 86_400_000_000)
        done = "comparison-asked"
    return visit.redirect("reconciliation-of", app=visit.app_id, integration=visit.integration.name, done=done)


def show_day(visit: Visit) -> Response:
    """One day: its events by class and column, and some differences side by side."""
    text = visit.request.path_params["day"]
    try:
        day = from_datetime(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise NotFound("There is no such day") from None
    found = visit.operations.reconciled(visit.integration.key, first=day, last=day)
    if not found:
        raise NotFound(f"{text} was not compared")
    samples = [(sample, _value(sample.sent), _value(sample.held)) for sample in found[0].samples]
    return visit.render(
        "reconciled_day.html", integration=visit.integration, day=found[0], classes=CLASS_WORDS, samples=samples
    )


def _value(text: str | None) -> Payload | None:
    return payload(text)


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def show_audience(visit: Visit) -> Response:
    """Users with a value of a property: here, sent, and waiting."""
    name, value = visit.query.get("property", ""), visit.query.get("value", "").strip()[:1_024]
    known = {prop.name: prop for prop in contract.PROPERTIES}
    place = visit.query.get("place") or None
    if place is not None and place not in PLACES:
        raise NotFound("There is no such list of users")
    errors: dict[str, str] = {}
    if name not in known:
        errors["property"] = "Choose a property"
    elif known[name].kind == "flag" and value not in VALUES:
        errors["value"] = f"{name} is true or false"
    elif known[name].kind == "number" and not _is_number(value):
        errors["value"] = f"{name} is a number"
    elif not value:
        errors["value"] = "Enter a value, such as premium"
    found = None
    if not errors:
        found = visit.operations.audience(
            visit.integration.key, name, value, place=place, after=visit.query.get("after", "")[:1_024]
        )
    return visit.render(
        "audience.html",
        status=400 if errors else 200,
        integration=visit.integration,
        found=found,
        place=place,
        errors=errors,
        properties=contract.PROPERTIES,
        prop=name,
        value=value,
        places=PLACE_WORDS,
    )


navigation: Final = ("reconciliation", "Reconciliation")
_OF: Final = "/apps/{app}/reconciliation/{integration}"
routes: Final = [
    page("/apps/{app}/reconciliation", show_all, name="reconciliation"),
    page(_OF, show, name="reconciliation-of"),
    action(f"{_OF}/compare", compare, name="compare"),
    page(f"{_OF}/audience", show_audience, name="audience"),
    page(f"{_OF}/days/{{day}}", show_day, name="reconciled-day"),
]
