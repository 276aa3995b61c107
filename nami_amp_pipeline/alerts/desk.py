"""What people do about alerts: list them, send a test, silence what they know of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nami_amp_pipeline.alerts.alert_store import entries
from nami_amp_pipeline.alerts.conditions import duration
from nami_amp_pipeline.alerts.kinds import Kind
from nami_amp_pipeline.alerts.message import escape
from nami_amp_pipeline.alerts.silence import is_silenced, silence, silences
from nami_amp_pipeline.alerts.webhook import post
from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings

_UNITS: Final = {"m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True)
class OpenAlert:
    """An alert whose problem is not over.

    Attributes:
        kind: a value of :class:`~nami_amp_pipeline.alerts.kinds.Kind`.
        subject: an integration, app or job.
        summary: the facts in a line.
        since: when it was first seen, in µs since the epoch.
        told: ``yes``, ``not yet`` or ``silenced``.
        page: path of the page of Dagster's that shows more.
    """

    kind: str
    subject: str
    summary: str
    since: int
    told: str
    page: str

    def to_json(self) -> dict[str, Any]:
        """An object of ``alerts list --json``."""
        return {
            "kind": self.kind,
            "subject": self.subject,
            "summary": self.summary,
            "since": to_text(self.since),
            "told": self.told,
            "page": self.page,
        }


def open_alerts(context: Context) -> list[OpenAlert]:
    """The alerts whose problems are not over, oldest first, as the sensor saw them last.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    muted = silences(context.store, context.now())
    found = []
    for entry in entries(context.store):
        alert = entry.alert
        if entry.ended_at is None:
            told = "silenced" if is_silenced(alert, muted) else "yes" if entry.told_at else "not yet"
            found.append(OpenAlert(alert.kind.value, alert.subject, alert.summary, entry.since, told, alert.page))
    return found


def silenced(context: Context) -> list[dict[str, Any]]:
    """The silences, each as ``{"kind", "subject", "until"}``."""
    return [
        {"kind": kind, "subject": subject, "until": to_text(until)}
        for (kind, subject), until in sorted(silences(context.store, context.now()).items())
    ]


def silence_for(context: Context, kind: str, subject: str, length: str) -> str:
    """Silences an alert for a time such as ``4h``, or ends that with ``0``; returns what holds now, in a sentence.

    Raises:
        Misconfigured: there is no such alert, or this is no time.
        StoreUnavailable: nothing was changed.
    """
    match = re.fullmatch(r"(\d{1,5})([mhd])|0", length)
    if match is None:
        raise Misconfigured("--for takes a time such as 30m, 4h or 1d; 0 ends a silence")
    seconds = int(match[1]) * _UNITS[match[2]] if match[1] else 0
    now = context.now()
    silence(context.store, kind, subject, now, now + seconds * 1_000_000)
    if not seconds:
        return f"{kind} {subject} is not silenced."
    return f"{kind} {subject} is silenced for {duration(seconds)}, until {to_text(now + seconds * 1_000_000)}."


def send_test(settings: Settings, send: Callable[[str, str], None] = post) -> None:
    """Posts a message that says it is a test.

    Raises:
        Misconfigured: there is no webhook.
        WebhookFailed: the webhook did not accept it.
    """
    if not settings.alert_webhook_url:
        raise Misconfigured("there is no webhook to test: set NAMI_AMP_ALERT_WEBHOOK_URL")
    link = f" <{settings.dagster_url}/assets/delivery_report|open in Dagster>" if settings.dagster_url else ""
    kinds = ", ".join(escape(kind.called.lower()) for kind in Kind)
    send(settings.alert_webhook_url, f"🔵 *Test of alerts*: nothing is wrong. Alerts come here for: {kinds}.{link}")
