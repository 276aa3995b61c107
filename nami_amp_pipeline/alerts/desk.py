"""What people do about alerts: list them, send a test, silence what they know of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nami_amp_pipeline.alerts.alert_store import Entry, entries
from nami_amp_pipeline.alerts.conditions import Found, conditions, duration
from nami_amp_pipeline.alerts.kinds import Kind
from nami_amp_pipeline.alerts.message import escape
from nami_amp_pipeline.alerts.silence import ANY, is_silenced, silence, silences
from nami_amp_pipeline.alerts.webhook import post
from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import did_you_mean
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import all_integrations

_ONLY: Final = {Kind.WAREHOUSE_UNREADABLE: "warehouse", Kind.STORE_UNAVAILABLE: "state store"}
"""Kinds of alerts that have one subject."""

_LISTS: Final = {
    "app": "'nami-amp apps list'",
    "integration": "'nami-amp integrations list'",
    "subject": "'nami-amp alerts list'",
}
"""What shows the subjects."""

_UNITS: Final = {"m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True)
class OpenAlert:
    """An alert whose problem is not over.

    Attributes:
        kind: a value of :class:`~nami_amp_pipeline.alerts.kinds.Kind`.
        subject: an integration, app or job.
        summary: the facts in a line.
        since: when it was first seen, in µs since the epoch.
        told: ``yes``, ``not yet``, ``silenced``, or ``over`` if the problem is over and people were not told yet.
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
    """The alerts that the sensor has recorded, oldest first, then the problems that it has not looked at yet.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    muted = silences(context.store, context.now())
    there = _recorded(context)
    now = conditions(context, {entry.alert.key: entry.since for entry in there})
    over = _over(there, now)
    found = []
    for entry in there:
        alert = entry.alert
        told = "silenced" if is_silenced(alert, muted) else "yes" if entry.told_at else "not yet"
        told = "over" if alert.key in over else told
        found.append(OpenAlert(alert.kind.value, alert.subject, alert.summary, entry.since, told, alert.page))
    known = {entry.alert.key for entry in there}
    for alert in now.alerts:
        if alert.key not in known:
            told = "silenced" if is_silenced(alert, muted) else "not yet"
            found.append(OpenAlert(alert.kind.value, alert.subject, alert.summary, context.now(), told, alert.page))
    return found


def over_by_now(context: Context) -> frozenset[tuple[str, str]]:
    """Kinds and subjects of recorded alerts whose problems are over, of which the sensor has not told people yet.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    there = _recorded(context)
    now = conditions(context, {entry.alert.key: entry.since for entry in there})
    return frozenset((kind.value, subject) for kind, subject in _over(there, now))


def _recorded(context: Context) -> list[Entry]:
    return [entry for entry in entries(context.store) if entry.ended_at is None]


def _over(there: Sequence[Entry], now: Found) -> set[tuple[Kind, str]]:
    """What a look at this moment would find to be over."""
    wrong = {alert.key for alert in now.alerts}
    keys = {entry.alert.key for entry in there if entry.alert.kind in now.known}
    return keys - wrong - now.unsettled


def silenced(context: Context) -> list[dict[str, Any]]:
    """The silences, each as ``{"kind", "subject", "until"}``."""
    return [
        {"kind": kind, "subject": subject, "until": to_text(until)}
        for (kind, subject), until in sorted(silences(context.store, context.now()).items())
    ]


def silence_for(context: Context, kind: str, subject: str, length: str) -> str:
    """Silences an alert for a time such as ``4h``, or ends that with ``0``; returns what holds now, in a sentence.

    Raises:
        Misconfigured: there is no such alert or subject, or this is no time.
        StoreUnavailable: nothing was changed.
    """
    match = re.fullmatch(r"(\d{1,5})([mhd])|0", length)
    if match is None:
        raise Misconfigured("--for takes a time such as 30m, 4h or 1d; 0 ends a silence")
    seconds = int(match[1]) * _UNITS[match[2]] if match[1] else 0
    if seconds:
        _check_subject(context, kind, subject)
    now = context.now()
    silence(context.store, kind, subject, now, now + seconds * 1_000_000)
    if not seconds:
        return f"{kind} {subject} is not silenced."
    return f"{kind} {subject} is silenced for {duration(seconds)}, until {to_text(now + seconds * 1_000_000)}."


def _check_subject(context: Context, kind: str, subject: str) -> None:
    """Makes sure that there can be such an alert; what failed runs were for is free."""
    if subject == ANY or kind not in set(Kind) - {Kind.RUN_FAILED}:
        return
    keys = [integration.key for integration in all_integrations(context.store)]
    if kind in (Kind.NOTHING_CAPTURED, Kind.NOTHING_INGESTED):
        what, known = "app", {key.partition("/")[0] for key in keys}
    elif kind in _ONLY:
        what, known = "subject", {_ONLY[Kind(kind)]}
    else:
        what, known = "integration", set(keys)
    known |= {alert.subject for alert in open_alerts(context) if alert.kind == kind}
    if subject not in known:
        meant = did_you_mean(subject, known) or f"; {_LISTS[what]} shows all"
        raise Misconfigured(f"{kind}: there is no {what} {subject[:200]}{meant}")


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
