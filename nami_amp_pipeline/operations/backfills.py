"""Backfills and identifies as people ask for them: plan, run, look at, pause, resume, cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nami_amp_pipeline import contract
from nami_amp_pipeline.backfill.choice import CLASSES as CLASSES
from nami_amp_pipeline.backfill.choice import STORED_TWICE as STORED_TWICE
from nami_amp_pipeline.backfill.plan import Plan, make_plan, moved_since, save_plan
from nami_amp_pipeline.backfill.spool import spool
from nami_amp_pipeline.backfill.turns import Work, close_out, held, refuse_second, run_backfill
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked, Busy, Misconfigured, NamiAmpError
from nami_amp_pipeline.operations.abilities import need_ability
from nami_amp_pipeline.operations.backfill_status import BackfillStatus, show
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import backfills
from nami_amp_pipeline.state.backfills import ASKED_FOR
from nami_amp_pipeline.state.backfills import UNFINISHED as UNFINISHED
from nami_amp_pipeline.state.backfills import Backfill as Backfill
from nami_amp_pipeline.state.backfills import Kind as Kind
from nami_amp_pipeline.state.integration_rows import get

PROGRESS_SECONDS: Final = 5.0
"""How often progress is told."""


@dataclass(frozen=True)
class NewBackfill:
    """What a backfill is asked to do.

    Attributes:
        integration: ``<app_id>/<name>``.
        window: of time.
        patterns: event types or prefixes; None for those of the integration.
        resend: whether events are sent that Amplitude would store a second time.
    """

    integration: str
    window: Window
    patterns: Sequence[str] | None = None
    resend: bool = False


@dataclass(frozen=True)
class NewIdentify:
    """What an identify is asked to do.

    Attributes:
        integration: ``<app_id>/<name>``.
        silent_since: only users without an event that was delivered since then (µs since the epoch); None for all.
    """

    integration: str
    silent_since: int | None = None


SAYS: Final = (
    "Profile pages, and every later event of these users, have the properties at once. Charts and cohorts look at a "
    "user's latest active event, and an identify is none: silent users join no audience by it."
)
"""What an identify does and does not do, said wherever it is offered."""


def plan_command(made: Backfill) -> str:
    """The command that runs a saved plan."""
    if made.kind == "identify":
        return f"nami-amp identify --plan {made.id}"
    return f"nami-amp backfill --plan {made.id}"


@dataclass
class Progress:
    """How far a backfill or identify is, and how fast this process works on it.

    Attributes:
        status: the numbers.
        rate: events or users a second that came to an end since this process began; None until it is known.
    """

    status: BackfillStatus
    rate: float | None

    @property
    def seconds_left(self) -> float | None:
        """About how long it will take; None if that is not known yet."""
        left = (self.status.backfill.events or 0) - self.status.done
        return left / self.rate if self.rate else None

    def __str__(self) -> str:
        backfill = self.status.backfill
        if backfill.events is None:
            return f"{backfill.called}: reading {'the warehouse' if backfill.kind == 'backfill' else 'the users'}"
        text = f"{backfill.called}: {self.status.progress}"
        if self.rate is not None and self.seconds_left is not None:
            text += f", {self.rate:,.0f} a second, about {self.seconds_left:,.0f} s left"
        return text


class ProgressReport:
    """Tells how far a backfill is, every few seconds.

    Args:
        context: the process at work.
        number: of the backfill.
        tell: called with it.
    """

    def __init__(self, context: Context, number: int, tell: Callable[[Progress], None]) -> None:
        self._context = context
        self._number = number
        self._tell = tell
        self._began: tuple[float, int] | None = None
        self._told_at: float | None = None

    def __call__(self) -> None:
        """Tells it, unless it was told just now."""
        now = self._context.monotonic()
        if self._told_at is not None and now < self._told_at + PROGRESS_SECONDS:
            return
        self._told_at = now
        status = show(self._context, self._number)
        if self._began is None and status.backfill.events is not None:
            self._began = now, status.done
        rate = None
        if self._began is not None and now > self._began[0] and status.done > self._began[1]:
            rate = (status.done - self._began[1]) / (now - self._began[0])
        self._tell(Progress(status, rate))


def create(context: Context, new: NewBackfill | NewIdentify, *, by: str = "") -> Backfill:
    """Records a backfill or an identify; nothing is read or sent yet.

    Raises:
        Misconfigured: the integration is unknown or switched off, it has none of the event types, or nobody knows any
            more to whom events were delivered so long ago.
    """
    integration = get(context.store, new.integration)
    if not integration.enabled or integration.halted_reason:
        raise Misconfigured(
            f"{integration.key} is {'halted' if integration.enabled else 'switched off'}: "
            f"'nami-amp integrations enable {integration.key}' first"
        )
    if isinstance(new, NewIdentify):
        need_ability(integration, "identify")
        since = _checked_since(context, new)
        with context.store.begin() as tx:
            number = backfills.add(context.store, tx, integration, kind="identify", since=since, created_by=by)
            return backfills.get(tx, number)
    patterns = None
    if new.patterns is not None:
        try:
            patterns = contract.check_patterns(new.patterns)
        except ValueError as error:
            raise Misconfigured(str(error)) from None
        asked = {event_type.name for event_type in contract.select_events(patterns)}
        if not asked & set(integration.events):
            raise Misconfigured(f"{integration.key} has none of the event types {', '.join(patterns)}")
    with context.store.begin() as tx:
        number = backfills.add(
            context.store,
            tx,
            integration,
            since=new.window.since,
            until=new.window.until,
            by=new.window.by,
            patterns=patterns,
            resend=new.resend,
            created_by=by,
        )
        return backfills.get(tx, number)


def _checked_since(context: Context, new: NewIdentify) -> int:
    if new.silent_since is None:
        return 0
    days = context.settings.receipt_retention_days
    if new.silent_since < context.now() - int(days * 86_400_000_000):
        raise Misconfigured(
            f"receipts are kept for {days:g} days (NAMI_AMP_RECEIPT_RETENTION_DAYS), so nobody knows to whom events "
            "were delivered before: give a later time"
        )
    if new.silent_since > context.now():
        raise Misconfigured("give a time that has been: users without a delivered event since then are sent one")
    return new.silent_since


def dry_run(context: Context, new: NewBackfill | NewIdentify, *, by: str = "") -> tuple[Backfill, Plan]:
    """Records a backfill or an identify, and computes what it would send; nothing is sent."""
    backfill = create(context, new, by=by)
    integration = get(context.store, backfill.integration)
    with held(context, backfill.id) as lease:
        spool(context, backfill, integration, lease)
        plan = make_plan(context, backfill, integration)
        save_plan(context, backfill, plan)
    with context.store.reading() as tx:
        return backfills.get(tx, backfill.id), plan


def ask_for_plan(context: Context, new: NewBackfill, *, by: str = "") -> Backfill:
    """Records a backfill whose dry run is made elsewhere: the sensor ``unattended_backfills`` starts it.

    Raises:
        Misconfigured: as :func:`create`.
    """
    backfill = create(context, new, by=by)
    with context.store.begin() as tx:
        backfills.note(tx, backfill.id, run_id=ASKED_FOR)
        return backfills.get(tx, backfill.id)


def plan_asked(context: Context, number: int) -> Backfill:
    """Makes the dry run of a backfill that was asked for; one that has a plan, or is no plan any more, is left alone.

    Raises:
        Busy: another process works on it.
    """
    with held(context, number) as lease:
        backfill = _get(context, number)
        if backfill.state != "planned" or backfill.plan is not None:
            return backfill
        integration = get(context.store, backfill.integration)
        try:
            if backfill.events is None:
                spool(context, backfill, integration, lease)
            save_plan(context, backfill, make_plan(context, _get(context, number), integration))
        except NamiAmpError as error:
            with context.store.begin() as tx:
                backfills.note(tx, number, error=str(error), run_id=None)
            raise
    return _get(context, number)


def start(context: Context, number: int) -> BackfillStatus:
    """Lets a planned or paused backfill run elsewhere: the sensor ``unattended_backfills`` starts it.

    Raises:
        Blocked: its plan does not hold any more.
        Busy: another backfill of the integration has not ended.
        Misconfigured: it has ended, or has no plan yet.
    """
    backfill = _get(context, number)
    if backfill.state == "planned":
        if backfill.plan is None:
            raise Misconfigured(f"backfill {number} has no plan yet: wait for its dry run")
        _refuse_moved(context, backfill)
    with context.store.begin() as tx:
        refuse_second(tx, backfills.get(tx, number))
        if backfills.get(tx, number).state != "running":
            backfills.move(context.store, tx, number, "running")
    return show(context, number)


def run(
    context: Context,
    number: int,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> BackfillStatus:
    """Works on a backfill; see :func:`nami_amp_pipeline.backfill.turns.run_backfill`.

    Raises:
        Blocked: a saved plan does not hold any more.
    """
    backfill = _get(context, number)
    if backfill.state == "planned" and backfill.plan is not None:
        _refuse_moved(context, backfill)
    options: dict[str, Any] = {} if stop is None else {"stop": stop}
    if progress is not None:
        options["progress"] = ProgressReport(context, number, progress)
    run_backfill(context, number, Work(**options))
    return show(context, number)


def _refuse_moved(context: Context, backfill: Backfill) -> None:
    moved = moved_since(context, backfill, get(context.store, backfill.integration))
    if moved:
        another = "a backfill" if backfill.kind == "backfill" else "an identify"
        raise Blocked(
            f"the plan of {backfill.called} does not hold any more ({', '.join(moved)}): make a new plan, or run "
            f"{another} without one"
        )


def pause(context: Context, number: int) -> BackfillStatus:
    """Pauses a running backfill: the process that works on it ends its requests under way, and stops."""
    return _moved(context, number, "paused")


def cancel(context: Context, number: int) -> BackfillStatus:
    """Ends a backfill: what was posted stays in Amplitude, the rest is not sent.

    Raises:
        Busy: it is cancelled, and nothing more is posted, but its pending events have no end yet: do the same again.
    """
    status = _moved(context, number, "cancelled")
    # A process at work ends it; this one does so too, in case there is none. Whoever is second finds nothing to do.
    if not close_out(context, status.backfill):
        raise Busy(
            f"{status.backfill.called} is cancelled; a run delivers for its integration: cancel it once more later"
        )
    return show(context, number)


def _moved(context: Context, number: int, state: backfills.State) -> BackfillStatus:
    with context.store.begin() as tx:
        backfills.move(context.store, tx, number, state)
    return show(context, number)


def _get(context: Context, number: int) -> Backfill:
    with context.store.reading() as tx:
        return backfills.get(tx, number)
