"""Preview: what Amplitude would get, beside Nami's event; and what each user property means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from nami_amp_pipeline.control_center.visit import Visit, page
from nami_amp_pipeline.control_center.words import meanings, means
from nami_amp_pipeline.operations.newest_events import LOOKED_AT, VERDICTS, PreviewedEvent, Verdict

_SHOWN: Final = (1, 5, 20)
_LONGEST: Final = 1_024

_LABELS: Final[Mapping[Verdict, str]] = {
    "sent": "Would be sent",
    "skipped": "Skipped",
    "refused": "Would be refused",
    "waiting": "Would wait for the login",
}

_RECIPES: Final[Mapping[str, str]] = {
    "namiml_active_entitlements": "Subscribers of one level: namiml_active_entitlements contains “premium”.",
    "namiml_active_skus": "Annual subscribers: namiml_active_skus contains the id of the annual product.",
    "namiml_device_ids": "People with one device: rarely of use for an audience; it helps to find somebody.",
    "namiml_device_platforms": "People on Android: namiml_device_platforms contains the id of your Android app.",
    "namiml_former_subscriber": "Lapsed: namiml_former_subscriber is true.",
    "namiml_in_grace_period": "Payment failed: namiml_in_grace_period is true. Ask for another card now.",
    "namiml_in_trial_period": "In a trial: namiml_in_trial_period is true.",
    "namiml_in_intro_offer_period": "Pays the introductory price: namiml_in_intro_offer_period is true.",
}


_KINDS: Final[Mapping[str, str]] = {
    "texts": "A list of texts",
    "text": "A text",
    "number": "A number",
    "flag": "True or false",
}


@dataclass(frozen=True)
class Shown:
    """An event as the page shows it.

    Attributes:
        event: with both sides.
        properties: its user properties in Amplitude: name, value as JSON text, and what it means.
        why: why it would not be sent; empty if it would.
    """

    event: PreviewedEvent
    properties: list[tuple[str, str, str]]
    why: str


def show(visit: Visit) -> Response:
    """The newest events, and what would be posted of each."""
    integration = visit.integration
    asked = visit.query.get("event", "")
    event_type = asked if asked in integration.events else None
    user = visit.query.get("user", "").strip()[:_LONGEST]
    tab: Verdict = next((verdict for verdict in VERDICTS if verdict == visit.query.get("tab")), "sent")
    count = next((number for number in _SHOWN if str(number) == visit.query.get("show")), 5)
    found = visit.operations.newest_events(
        integration.key, event_type=event_type, user=user or None, verdict=tab, limit=count
    )
    reasons = [(means(reason), events) for (verdict, reason), events in found.reasons.items() if verdict == tab]
    asked_for = {"app": visit.app_id, "integration": integration.name, "event": event_type, "user": user, "show": count}
    return visit.render(
        "preview.html",
        integration=integration,
        shown=[_shown(event) for event in found.events],
        tabs=[(verdict, _LABELS[verdict], found.verdicts.get(verdict, 0)) for verdict in VERDICTS],
        tab=tab,
        reasons=reasons if tab != "sent" else [],
        looked_at=sum(found.verdicts.values()),
        most=LOOKED_AT,
        event_type=event_type or "",
        user=user,
        made_up=visit.operations.made_up_event(integration.key, event_type)
        if event_type and not found.verdicts
        else "",
        count=count,
        counts=_SHOWN,
        asked_for={name: value for name, value in asked_for.items() if value is not None},
    )


def _shown(event: PreviewedEvent) -> Shown:
    sent = json.loads(event.amplitude) if event.amplitude else {}
    known = meanings()
    properties = [
        (name, json.dumps(value, ensure_ascii=False), known.get(name, ""))
        for name, value in sent.get("user_properties", {}).items()
    ]
    return Shown(event, properties, means(event.reason) if event.reason else "")


def download(visit: Visit) -> Response:
    """What would be posted, as a file."""
    integration = visit.integration
    asked = visit.query.get("event", "")
    found = visit.operations.newest_events(
        integration.key,
        event_type=asked if asked in integration.events else None,
        user=visit.query.get("user", "").strip()[:_LONGEST] or None,
        verdict="sent",
        limit=_SHOWN[-1],
    )
    lines = "".join(f"{event.amplitude}\n" for event in found.events)
    name = f"preview-{visit.app_id}-{integration.name}.ndjson"
    return Response(
        lines, media_type="application/x-ndjson", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


def glossary(visit: Visit) -> Response:
    """The user properties: what each means, how many users have which value, an audience to make of it."""
    _ = visit.app
    shares = visit.operations.property_shares(visit.app_id)
    return visit.render("glossary.html", shares=shares, recipes=_RECIPES, kinds=_KINDS)


_PATH: Final = "/apps/{app}/integrations/{integration}/preview"
navigation: Final = ("glossary", "Properties")
routes: Final = [
    page("/apps/{app}/properties", glossary, name="glossary"),
    page(_PATH, show, name="preview"),
    page(f"{_PATH}/download", download, name="preview-download"),
]
