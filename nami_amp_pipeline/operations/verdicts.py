"""What became of an event with an integration, in one word, with when, why and what to do: ``trace`` says it first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from nami_amp_pipeline.clock import from_datetime, to_text
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.named_fields import error_of, named_fields
from nami_amp_pipeline.operations.standing import Standing

Word = Literal["arrived", "waits", "rejected", "not sent", "not selected", "not read yet", "unknown"]
"""What became of an event.

- ``arrived``: Amplitude acknowledged it.
- ``waits``: it is pending.
- ``rejected``: a dead letter; Amplitude rejected it, or it could not become an Amplitude event.
- ``not sent``: skipped on purpose, or from before the integration's start.
- ``not selected``: the integration does not take its type.
- ``not read yet``: it is in the warehouse, and no run has read it.
- ``unknown``: nobody knows: no answer came for 7 days, its records are past their retention, or its type was
  selected after it had been read.
"""

EXIT: Final[Mapping[Word, int]] = {
    "arrived": 0, "not sent": 5, "not selected": 5, "waits": 3, "not read yet": 3, "unknown": 4, "rejected": 4,
}  # fmt: skip
"""The exit status of ``trace``. Of several integrations the worst counts: 4, then 3, then 0, then 5."""

WORST_FIRST: Final = (4, 3, 0, 5)
"""Exit statuses."""


@dataclass(frozen=True)
class Verdict:
    """What became of an event with one integration.

    Attributes:
        integration: ``<app_id>/<name>``.
        word: see :data:`Word`.
        at: when, as ISO-8601 text; None where nothing happened yet.
        why: a clause without a full stop; empty where the word says it all.
        next_try: when it goes at the earliest, as ISO-8601 text; None if a person or a login decides, or it is over.
        what_to_do: a sentence without a full stop; None if there is nothing to do.
    """

    integration: str
    word: Word
    at: str | None = None
    why: str = ""
    next_try: str | None = None
    what_to_do: str | None = None

    @property
    def when(self) -> str | None:
        """The time to the second, for people."""
        return None if self.at is None else re.sub(r"\.\d+", "", self.at)

    def __str__(self) -> str:
        at = f" {'since ' if self.word == 'waits' else ''}{self.when}" if self.at else ""
        why = f": {self.why}" if self.why else ""
        then = f"; next try {self.next_try}" if self.next_try else ""
        return f"{self.integration}: {self.word}{at}{why}{then}"

    def to_json(self) -> dict[str, Any]:
        """An object of ``trace --json``."""
        return {
            "integration": self.integration,
            "verdict": self.word,
            "at": self.at,
            "why": self.why or None,
            "next_try": self.next_try,
            "what_to_do": self.what_to_do,
        }


def exit_status(verdicts: Iterable[Verdict]) -> int:
    """The worst of them, as :data:`EXIT` has it; 1 where there is none at all."""
    there = {EXIT[verdict.word] for verdict in verdicts}
    return next((status for status in WORST_FIRST if status in there), 1)


def verdict(place: Mapping[str, Any], standing: Standing) -> Verdict:
    """Judges where an event is with an integration.

    Args:
        place: as the trace has it: ``state``, ``reason``, and what else is known.
        standing: of the integration.
    """
    state, key = place["state"], standing.integration
    request = place.get("request") or {}
    if state == "delivered":
        # The record of a request that was delivered holds an answer only where there is something to warn of.
        return Verdict(key, "arrived", request.get("answered_at") or place.get("at"), request.get("answer") or "")
    if state == "dead_letter":
        return _dead(place, key)
    if state == "skipped":
        return Verdict(key, "not sent", _prepared(place), reasons.means(place["reason"] or ""))
    if state == "waiting_for_login":
        return Verdict(key, "waits", place.get("at") or _prepared(place), reasons.means("waiting_for_login"))
    if state == "not_selected":
        return Verdict(key, "not selected", None, place["reason"], None,
                       f"'nami-amp integrations show {key}' lists the selected event types")  # fmt: skip
    if state == "before_start":
        return Verdict(key, "not sent", None, place["reason"])
    if state == "expired":
        return Verdict(key, "unknown", None, place["reason"])
    if state == "not_captured" and standing.state != "off":
        return Verdict(key, "not read yet", None, "no run has read it", _next(standing), _to_go_on(standing))
    return _waits(place, standing)


def _dead(place: Mapping[str, Any], key: str) -> Verdict:
    code = place["reason"] or ""
    known = reasons.reason(code)
    said = "; ".join(map(str, named_fields(place.get("answer"), place.get("body")))) or error_of(place.get("answer"))
    action = known.action if known is not None else None
    if action is not None:
        action = action.replace("APP/NAME", key).replace(" ID", f" {place.get('dead_letter', 'ID')}")
    return Verdict(
        key,
        "unknown" if code == "outcome_unknown" else "rejected",
        place.get("at") or _prepared(place),
        f"{reasons.means(code)}{f' ({said})' if said else ''}",
        None,
        action,
    )


def _waits(place: Mapping[str, Any], standing: Standing) -> Verdict:
    """For its own reason where it has one, otherwise for that of the whole integration."""
    since, own = place.get("at"), place.get("paused_for")
    if standing.state in ("off", "halted", "unreachable") or (standing.needs_you and standing.state == "waiting"):
        since = _text(standing) or since
        why = f"the integration is {standing.state}" + (f": {standing.why}" if standing.why else "")
        return Verdict(standing.integration, "waits", since, why, _next(standing), standing.what_to_do)
    if own:
        known = reasons.reason(own)
        until = max(
            filter(None, (place.get("paused_until"), _next(standing))), key=datetime.fromisoformat, default=None
        )
        return Verdict(standing.integration, "waits", since, reasons.means(own), until, known.action if known else None)
    if place["state"] == "outcome_unknown":
        why = "it was posted, and no answer is recorded yet; it goes again, and Amplitude recognises a repeat"
    elif place["state"] == "held":
        why = reasons.means(place["reason"] or "held")
    else:
        why = standing.why if standing.code in ("project_throttled", "no_run") else reasons.means("queued")
    return Verdict(standing.integration, "waits", since, why, _next(standing), _to_go_on(standing))


def _to_go_on(standing: Standing) -> str | None:
    """What a person does for events that wait, not for those that were rejected."""
    return standing.what_to_do if standing.state == "waiting" else None


def _prepared(place: Mapping[str, Any]) -> str | None:
    return (place.get("outbox") or {}).get("prepared_at")


def _next(standing: Standing) -> str | None:
    return None if standing.next_try is None else to_text(from_datetime(standing.next_try))


def _text(standing: Standing) -> str | None:
    return None if standing.since is None else to_text(from_datetime(standing.since))
