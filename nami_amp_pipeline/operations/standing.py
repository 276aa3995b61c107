"""How each integration stands: one function turns its facts into state, since when, why, next try, what to do, whose.

`status`, `trace`, `pending`, alerts, checks and asset pages all show what is decided here, so that they never disagree.
The words of states and reasons are in :mod:`nami_amp_pipeline.operations.reasons` and docs/glossary.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal

from nami_amp_pipeline.clock import from_datetime, to_datetime, to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.destinations import DEFAULT, destination_of
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.standing_facts import Facts, facts_of
from nami_amp_pipeline.operations.status import WAITING, IntegrationStatus
from nami_amp_pipeline.operations.wording import said_of
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.listed import Listed

State = Literal["delivering", "idle", "waiting", "throttled", "unreachable", "halted", "off"]
"""One word for each integration.

- ``off``: a person switched it off. Nothing is sent, nothing is lost.
- ``halted``: it stopped by itself, and goes on when a person has repaired something and enables it.
- ``unreachable``: events are pending, and since its last answer Amplitude did not answer. It goes on by itself.
- ``throttled``: Amplitude asked for a pause, for users or the whole project. It goes on by itself.
- ``waiting``: events should have been posted by now, for none of these reasons.
- ``idle``: no event has come since it was added.
- ``delivering``: everything else; what is pending goes with the next micro-batch, or waits for a login.
"""


@dataclass(frozen=True)
class Standing:
    """How one integration stands.

    Attributes:
        integration: ``<app_id>/<name>``.
        state: one word; see :data:`State`.
        needs_you: whether it does not go on, or not well, without a person: it is halted; rejected events can be sent
            again; the oldest event to post is late by ``NAMI_AMP_ALERT_LAG_SECONDS``; or a stage failed for it.
        since: since when, in UTC; None if there is nothing to tell.
        why: one sentence without a full stop; empty where the state says it all.
        next_try: when the next request can go, in UTC; None if nothing is to be sent, or only a person can go on.
        what_to_do: one sentence without a full stop, with the commands to run; None if there is nothing to do.
        pending: events that have no end yet.
        whose: at most 3 of the users that wait, as Amplitude knows them.
        whose_is_all: whether these are known to be all whose events are to be posted.
        rejected: dead letters of the last 7 days that Amplitude rejected or left unanswered; they can be sent again.
        dismissed: dead letters that a person marked as seen; nobody is asked about them.
        also: what else there is to know, each a sentence without a full stop.
        code: the reason behind ``why``, of :data:`~nami_amp_pipeline.operations.reasons.REASONS`; empty for none.
        lag_seconds: how long the oldest event that is to be posted has been in the warehouse; 0 with none.
        numbers: all counts.
    """

    integration: str
    state: State
    needs_you: bool
    since: datetime | None
    why: str
    next_try: datetime | None
    what_to_do: str | None
    pending: int
    whose: tuple[str, ...]
    whose_is_all: bool
    rejected: int
    dismissed: int
    also: tuple[str, ...]
    code: str
    lag_seconds: float
    numbers: IntegrationStatus

    @property
    def called(self) -> str:
        """The state as people see it, with what was rejected."""
        return f"{self.state}, {self.rejected:,} rejected" if self.rejected else self.state

    @property
    def whose_in_words(self) -> str:
        """The users that wait, and the command that lists them where there are or may be others."""
        if not self.whose or self.whose_is_all:
            return ", ".join(self.whose)
        return f"{', '.join(self.whose)}, … ('nami-amp pending list --integration {self.integration}')"

    @property
    def in_a_line(self) -> str:
        """All of it in one line that begins with the integration."""
        parts = [f"{self.integration}: {self.called}"]
        if self.since is not None:
            parts[0] += f" since {_text(self.since)}"
        parts += [part for part in (self.why, self.what_to_do) if part]
        return ". ".join(parts) + "."

    def to_json(self) -> dict[str, Any]:
        """What ``status --json`` adds to the counts of an integration."""
        return {
            "standing": self.state,
            "needs_you": self.needs_you,
            "since": _text(self.since),
            "reason": self.code or None,
            "why": self.why or None,
            "next_try": _text(self.next_try),
            "what_to_do": self.what_to_do,
            "whose": list(self.whose),
            "whose_is_all": self.whose_is_all,
            "rejected": self.rejected,
            "dismissed": self.dismissed,
            "also": list(self.also),
        }


def standings(
    context: Context, now: int | None = None, integrations: Sequence[Integration | Listed] | None = None
) -> list[Standing]:
    """How integrations stand, in their order.

    Args:
        context: the process at work.
        now: in µs since the epoch; the context's clock by default.
        integrations: those to look at; all by default.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    now = context.now() if now is None else now
    return [stand(facts, context.settings, now) for facts in facts_of(context, integrations, now)]


def stand(facts: Facts, settings: Settings, now: int) -> Standing:
    """How an integration stands: the one place that decides it.

    Args:
        facts: of the integration.
        settings: what counts as late, and when micro-batches run.
        now: in µs since the epoch.
    """
    rules = _RULES if facts.numbers.pending else _WITHOUT_PENDING
    main = next(found for rule in rules if (found := rule(facts, settings, now)) is not None)
    found = _with_rejected(_with_lag(main, settings), facts)
    where = facts.integration.destination
    if where == DEFAULT:
        return found  # the sentences are about it
    return replace(
        found,
        why=said_of(where, found.why),
        what_to_do=said_of(where, found.what_to_do),
        also=tuple(said_of(where, each) for each in found.also),
    )


def _plain(
    facts: Facts,
    state: State,
    *,
    needs_you: bool = False,
    since: datetime | None = None,
    why: str = "",
    next_try: datetime | None = None,
    what_to_do: str | None = None,
    code: str = "",
) -> Standing:
    numbers = facts.numbers
    return Standing(
        integration=numbers.integration,
        state=state,
        needs_you=needs_you,
        since=since,
        why=why,
        next_try=next_try,
        what_to_do=what_to_do,
        pending=numbers.pending,
        whose=facts.whose,
        whose_is_all=facts.whose_is_all,
        rejected=facts.rejected,
        dismissed=facts.dismissed,
        also=_for_a_login(numbers),
        code=code,
        lag_seconds=numbers.lag_seconds,
        numbers=numbers,
    )


def _off(facts: Facts, _settings: Settings, _now: int) -> Standing | None:
    if facts.integration.enabled:
        return None
    key = facts.integration.key
    waits = facts.numbers.pending
    why = f"{facts.off_by or 'A person'} switched it off"
    if waits:
        why += f"; {_events(waits)} wait{_s(waits == 1)} and go{'es' * (waits == 1)} when it is on again"
    return _plain(
        facts, "off", since=_time(facts.off_at), why=why, what_to_do=f"'nami-amp integrations enable {key}' goes on"
    )


def _halted(facts: Facts, _settings: Settings, _now: int) -> Standing | None:
    integration = facts.integration
    if not integration.halted_reason:
        return None
    try:
        repair = destination_of(integration.destination).repair(integration.halted_reason)
    except Misconfigured:
        repair = "Install the package of its destination, or repair its settings"
    word = integration.halted_reason.partition(": ")[0]
    return _plain(
        facts,
        "halted",
        needs_you=True,
        since=_time(integration.halted_at),
        why=reasons.halted_for(integration.halted_reason),
        code=word.split(" ")[0],
        what_to_do=(
            f"{repair}; see that 'nami-amp integrations test APP/NAME' succeeds; then 'nami-amp integrations enable "
            "APP/NAME' goes on where it stopped"
        ).replace("APP/NAME", integration.key),
    )


def _unreachable(facts: Facts, settings: Settings, now: int) -> Standing | None:
    if facts.unanswered is None or not facts.numbers.to_post:
        return None
    code, since = facts.unanswered
    known = reasons.reason(code)
    return _plain(
        facts,
        "unreachable",
        since=_time(since),
        why=_sentence(reasons.means(code)),
        code=code.partition(":")[0],
        next_try=_next(settings, now, facts.project_until),
        what_to_do=known.action.replace("APP/NAME", facts.integration.key) if known and known.action else None,
    )


def _throttled_project(facts: Facts, settings: Settings, now: int) -> Standing | None:
    if facts.project_until is None or facts.project_until <= now or not facts.numbers.to_post:
        return None
    return _plain(
        facts,
        "throttled",
        since=_oldest(facts.numbers, now),
        why=_sentence(reasons.means("project_throttled")),
        code="project_throttled",
        next_try=_next(settings, now, facts.project_until),
    )


def _throttled_users(facts: Facts, settings: Settings, now: int) -> Standing | None:
    by_why = facts.numbers.pending_by
    code = next((code for code in ("over_daily_quota", "throttled") if by_why.get(code)), None)
    if code is None:
        return None
    events = by_why[code]
    others = "" if by_why.get("queued") else "; all other events are delivered"
    known = reasons.REASONS[code]
    return _plain(
        facts,
        "throttled",
        since=_time(facts.held_since),
        why=f"{_sentence(known.means)}; {_events(events)} of {_users(facts.held_users)} wait{_s(events == 1)}{others}",
        code=code,
        next_try=_next(settings, now, facts.users_until),
        what_to_do=known.action,
    )


def _failed(facts: Facts, settings: Settings, now: int) -> Standing | None:
    """A stage could not be done for it, and nothing has moved since."""
    if facts.trouble is None:
        return None
    message, at = facts.trouble
    return _plain(
        facts,
        "waiting",
        needs_you=True,
        since=_time(at),
        why=message.rstrip("."),
        code="stage_failed",
        next_try=_next(settings, now),
        what_to_do="'nami-amp doctor' checks everything that a run needs",
    )


def _waiting(facts: Facts, settings: Settings, now: int) -> Standing | None:
    numbers = facts.numbers
    if not numbers.to_post or numbers.lag_seconds <= settings.timetable.late_after_seconds:
        return None
    silent = facts.last_sign is None or now - facts.last_sign > settings.timetable.late_after_seconds * 1_000_000
    return _plain(
        facts,
        "waiting",
        since=_oldest(numbers, now),
        why="No micro-batch has run" + (f" since {to_text(_second(facts.last_sign))}" if facts.last_sign else "")
        if silent
        else "The micro-batches since then did not come to these events",
        code="no_run" if silent else "queued",
        next_try=None if silent else _next(settings, now),
        what_to_do="Check that Dagster's daemon runs and that the schedule is on; 'nami-amp run' runs one micro-batch"
        if silent
        else "'nami-amp run' runs one micro-batch and says what keeps it",
    )


def _well(facts: Facts, settings: Settings, now: int) -> Standing | None:
    numbers = facts.numbers
    if not numbers.captured:
        return _plain(
            facts, "idle", why="No event has come since it was added", since=_time(facts.integration.created_at)
        )
    return _plain(facts, "delivering", next_try=_next(settings, now) if numbers.to_post else None)


_RULES: Final = (_off, _halted, _failed, _unreachable, _throttled_project, _throttled_users, _waiting, _well)
"""The first that has something to say decides the state."""

_WITHOUT_PENDING: Final = (_off, _halted, _failed, _well)
"""Those of them that say something where no event waits, as of nearly all integrations where there are thousands."""


def is_late(numbers: IntegrationStatus, settings: Settings) -> bool:
    """Whether the oldest event that is to be posted has waited longer than alerts allow."""
    limit = settings.alert_lag_seconds
    return bool(limit and numbers.pending and numbers.to_post and numbers.lag_seconds > limit)


def _with_lag(standing: Standing, settings: Settings) -> Standing:
    if standing.state in ("off", "halted") or not is_late(standing.numbers, settings):
        return standing
    return replace(
        standing,
        needs_you=True,
        what_to_do=standing.what_to_do
        or f"It takes unusually long: 'nami-amp integrations test {standing.integration}' asks Amplitude now",
    )


def _with_rejected(standing: Standing, facts: Facts) -> Standing:
    """Rejected events wait for a person whatever the state; where nothing else does, they are what it is about."""
    if not facts.rejected or standing.state == "off":
        return standing
    key = standing.integration
    named = f" ({facts.rejected_for})" if facts.rejected_for else ""
    said = f"Amplitude rejected {_events(facts.rejected)}{named}, which can be sent again"
    if set(facts.rejected_by) != {"rejected"}:
        by = ", ".join(f"{count:,} {code}" for code, count in sorted(facts.rejected_by.items()))
        said = f"{_events(facts.rejected)} can be sent again ({by})"
    action = (
        f"'nami-amp dead-letters list --integration {key}' shows them; repair the cause, then 'nami-amp dead-letters "
        f"retry --integration {key}' sends them again, or 'nami-amp dead-letters dismiss --integration {key}' marks "
        "them as seen"
    )
    if standing.state in ("delivering", "idle"):
        return replace(
            standing, needs_you=True, since=_time(facts.rejected_since), why=said, code="rejected", what_to_do=action
        )
    return replace(standing, needs_you=True, also=(*standing.also, f"{said}: {action}"))


def _for_a_login(numbers: IntegrationStatus) -> tuple[str, ...]:
    waiting = numbers.pending_by.get(WAITING, 0)
    if not waiting:
        return ()
    return (f"{_events(waiting)} wait{_s(waiting == 1)} for the login of the user, which needs nobody",)


def next_run(settings: Settings, after: int) -> int | None:
    """When the schedule starts the next micro-batch after a time, both in µs since the epoch; None if it never does."""
    return settings.timetable.next_start(after)


def _next(settings: Settings, now: int, not_before: int | None = None) -> datetime | None:
    at = next_run(settings, max(now, not_before or now))
    return None if at is None else to_datetime(at)


def _oldest(numbers: IntegrationStatus, now: int) -> datetime | None:
    return to_datetime(_second(now - int(numbers.lag_seconds * 1e6))) if numbers.lag_seconds else None


def _second(us: int) -> int:
    return us - us % 1_000_000


def _time(us: int | None) -> datetime | None:
    return None if us is None else to_datetime(_second(us))


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else to_text(from_datetime(moment))


def _events(count: int) -> str:
    return f"{count:,} event{_s(count != 1)}"


def _users(count: int) -> str:
    return f"{count:,} user{_s(count != 1)}"


def _s(wanted: bool) -> str:
    return "s" if wanted else ""


def _sentence(clause: str) -> str:
    return clause[:1].upper() + clause[1:]
