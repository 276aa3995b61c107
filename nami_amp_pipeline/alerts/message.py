"""The texts of alerts."""

from __future__ import annotations

from collections.abc import Sequence

from nami_amp_pipeline.alerts.alert_store import Entry
from nami_amp_pipeline.alerts.conditions import duration
from nami_amp_pipeline.alerts.kinds import Alert

LISTED = 10
"""Subjects that one message lists; of more it says how many."""


def alarm(entries: Sequence[Entry], dagster_url: str) -> str:
    """One message in Slack's mrkdwn about alerts of one kind that people do not know of yet."""
    kind = entries[0].alert.kind
    lines = [f"🔴 *{kind.called}*{_count(entries)}"]
    lines += [f"• *{escape(entry.alert.subject)}*: {escape(entry.alert.summary)}{_link(entry.alert, dagster_url)}"
              for entry in entries[:LISTED]]  # fmt: skip
    return "\n".join([*lines, *_rest(entries), f"_What to do:_ {escape(_advice(entries))}"])


def all_clear(entries: Sequence[Entry], dagster_url: str) -> str:
    """One message in Slack's mrkdwn about alerts of one kind that are over."""
    kind = entries[0].alert.kind
    lines = [f"✅ *Over: {kind.called}*{_count(entries)}"]
    lines += [f"• *{escape(entry.alert.subject)}*: after {_lasted(entry)}{_link(entry.alert, dagster_url)}"
              for entry in entries[:LISTED]]  # fmt: skip
    return "\n".join([*lines, *_rest(entries)])


def log_line(alert: Alert, dagster_url: str) -> str:
    """The same for the log, in a line."""
    page = f" {dagster_url}{alert.page}" if dagster_url else f" Dagster's page: {alert.page}"
    advice = alert.kind.advice.replace("APP/NAME", alert.subject)
    return f"{alert.kind.called}: {alert.subject}: {' '.join(alert.summary.split())}. What to do: {advice}{page}"


def escape(text: str) -> str:
    """Text as Slack wants it: no markup of its own, and in one line."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _advice(entries: Sequence[Entry]) -> str:
    advice = entries[0].alert.kind.advice
    return advice.replace("APP/NAME", entries[0].alert.subject) if len(entries) == 1 else advice


def _count(entries: Sequence[Entry]) -> str:
    return f" ({len(entries):,})" if len(entries) > 1 else ""


def _rest(entries: Sequence[Entry]) -> list[str]:
    return [f"… and {len(entries) - LISTED:,} more"] if len(entries) > LISTED else []


def _lasted(entry: Entry) -> str:
    return duration(((entry.ended_at or entry.since) - entry.since) / 1e6)


def _link(alert: Alert, dagster_url: str) -> str:
    return f" <{dagster_url}{alert.page}|open in Dagster>" if dagster_url else ""
