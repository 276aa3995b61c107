"""Deliveries: what was captured, delivered, skipped and refused, and what waits; each number opens its events."""

from __future__ import annotations

import csv
import hashlib
import io
from typing import Final

from starlette.responses import Response

from nami_amp_pipeline.control_center import words
from nami_amp_pipeline.control_center.chart import Chart, stacked
from nami_amp_pipeline.control_center.paging import ROWS, Part
from nami_amp_pipeline.control_center.payloads import csv_file
from nami_amp_pipeline.control_center.visit import NotFound, Visit, page
from nami_amp_pipeline.operations.deliveries import WINDOWS
from nami_amp_pipeline.operations.event_rows import OUTCOMES
from nami_amp_pipeline.operations.pending import MOST_QUEUED, PendingUser

WINDOW_WORDS: Final = {"1h": "1 hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}
"""The windows in words; each begins with a full hour."""

OUTCOME_WORDS: Final = {
    "captured": "Read from the warehouse, of the event types that this integration takes.",
    "delivered": "Amplitude acknowledged these events.",
    "skipped": "These events were not sent, on purpose.",
    "dead_letters": "Amplitude refused these events, or no Amplitude event could be made of them.",
    "waiting": "These events have no end yet.",
}
LABELS: Final = {
    "captured": "Captured",
    "delivered": "Delivered",
    "skipped": "Skipped",
    "dead_letters": "Refused",
    "waiting": "Waiting",
}
"""The outcomes as the pages call them: who has no terminal knows no dead letters."""

MOST_CHARTS: Final = 10
"""An app with more integrations than this has its table without small charts."""

_REQUESTS_SHOWN: Final = 10


def window_of(visit: Visit) -> str:
    """The window of the address.

    Raises:
        NotFound: there is none of that name.
    """
    window = visit.query.get("window", "24h")
    if window not in WINDOWS:
        raise NotFound("There is no such window of time")
    return window


def show_all(visit: Visit) -> Response:
    """All integrations of the app in numbers; an app with one integration has that one's page."""
    _ = visit.app
    named = visit.query.get("integration", "")
    if named or len(visit.of_app) == 1:
        return visit.redirect("deliveries-of", app=visit.app_id, integration=named or visit.of_app[0].name)
    window = window_of(visit)
    keys = [integration.key for integration in visit.of_app]
    charts: dict[str, Chart] = {}
    if len(keys) <= MOST_CHARTS:
        each = {key: visit.operations.deliveries(key, window) for key in keys}
        totals = {key: found.total for key, found in each.items()}
        charts = {key: stacked(found.bars) for key, found in each.items()}
    else:
        totals = visit.operations.totals(visit.of_app, window)
    return visit.render(
        "deliveries_all.html",
        window=window,
        windows=WINDOW_WORDS,
        labels=LABELS,
        totals=totals,
        charts=charts,
        standings=visit.standings,
    )


def show(visit: Visit) -> Response:
    """One integration: the sum, hour by hour, by type, and the newest requests."""
    found = visit.operations.deliveries(visit.integration.key, window_of(visit))
    requests, _ = visit.operations.request_rows(visit.key, since=found.since, limit=_REQUESTS_SHOWN)
    return visit.render(
        "deliveries.html",
        found=found,
        chart=stacked(found.bars, found.marks),
        windows=WINDOW_WORDS,
        labels=LABELS,
        standing=visit.standing,
        requests=requests,
        means=words.means,
    )


def show_events(visit: Visit) -> Response:
    """The events behind a number."""
    outcome, window = visit.query.get("outcome", "captured"), window_of(visit)
    if outcome not in OUTCOMES:
        raise NotFound("There is no such list of events")
    event_type = visit.query.get("type") or None
    rows, after = visit.operations.event_rows(
        visit.integration.key, outcome, window, event_type=event_type, after=visit.query.get("after", ""), limit=ROWS
    )
    return visit.render(
        "delivery_events.html",
        part=Part(rows, after),
        outcome=outcome,
        says=OUTCOME_WORDS[outcome],
        window=window,
        windows=WINDOW_WORDS,
        labels=LABELS,
        event_type=event_type,
        means=words.means,
    )


def show_requests(visit: Visit) -> Response:
    """All requests with their answers."""
    only_failed = visit.query.get("only") == "failed"
    rows, after = visit.operations.request_rows(
        visit.integration.key, only_failed=only_failed, after=visit.query.get("after", ""), limit=ROWS
    )
    return visit.render("requests.html", part=Part(rows, after), only_failed=only_failed)


def show_waiting(visit: Visit) -> Response:
    """Whose events wait, why, and until when."""
    found = visit.operations.pending([visit.integration.key], most_queued=MOST_QUEUED)
    numbers = visit.standing.numbers
    after = visit.query.get("after", "")
    if after:
        oldest, _, mark = after.partition(".")
        here = [number for number, user in enumerate(found) if _key_of(user) == after]
        if not here and (not oldest.lstrip("-").isdecimal() or len(oldest) > 18 or not mark):
            raise NotFound("There is no such page of the list")
        found = found[here[0] + 1 :] if here else [user for user in found if user.oldest >= int(oldest)]
    rows = found[:ROWS]
    return visit.render(
        "waiting.html",
        part=Part(rows, _key_of(rows[-1]) if len(found) > ROWS else None),
        numbers=numbers,
        standing=visit.standing,
        is_left_out=numbers.pending_by.get("queued", 0) > MOST_QUEUED,
        means=words.means,
    )


def _key_of(user: PendingUser) -> str:
    names = f"{user.user}\0{user.nami_user}\0{user.reason}".encode(errors="replace")
    return f"{user.oldest}.{hashlib.sha256(names).hexdigest()[:16]}"


def show_csv(visit: Visit) -> Response:
    """The numbers part by part, as a file."""
    found = visit.operations.deliveries(visit.integration.key, window_of(visit)).to_json()
    text = io.StringIO()
    table = csv.DictWriter(text, ["from", "to", *OUTCOMES])
    table.writeheader()
    table.writerows(found["hours"])
    return csv_file(text.getvalue(), f"deliveries-{visit.app_id}-{visit.integration.name}-{found['window']}.csv")


navigation: Final = ("deliveries", "Deliveries")
_OF: Final = "/apps/{app}/deliveries/{integration}"
routes: Final = [
    page("/apps/{app}/deliveries", show_all, name="deliveries"),
    page(_OF, show, name="deliveries-of"),
    page(f"{_OF}/events", show_events, name="delivery-events"),
    page(f"{_OF}/requests", show_requests, name="requests"),
    page(f"{_OF}/waiting", show_waiting, name="waiting"),
    page(f"{_OF}/hours.csv", show_csv, name="deliveries-csv"),
]
