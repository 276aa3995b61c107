"""Runs a backfill or an identify in short turns under the lease of its integration; live delivery goes first."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from nami_amp_pipeline.backfill.ahead import Ahead
from nami_amp_pipeline.backfill.channels import channel_of
from nami_amp_pipeline.backfill.close import close
from nami_amp_pipeline.backfill.kinds import KINDS
from nami_amp_pipeline.backfill.prepare import prepare_file
from nami_amp_pipeline.backfill.spool import spool
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.outbox_finisher import Background
from nami_amp_pipeline.delivery.rate_limit import ProjectRates
from nami_amp_pipeline.delivery.request_threads import Wire
from nami_amp_pipeline.errors import Busy, LostFile, LostLease, NamiAmpError, Unexpected, in_words
from nami_amp_pipeline.stages.deliver import Means, deliver
from nami_amp_pipeline.state import backfills, live_first, tables
from nami_amp_pipeline.state.backfills import Backfill, BackfillFile
from nami_amp_pipeline.state.heartbeat import kept
from nami_amp_pipeline.state.integration_rows import Integration, refreshed
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline.state.projects import Projects
from nami_amp_pipeline.state.store import Lease

TURN_SECONDS: Final = 20.0
"""A turn ends after so long, so that whoever waits for the lease of the integration gets it."""

WAIT_SECONDS: Final = 0.2
_LONGEST_WAIT_SECONDS: Final = 5.0

_OTHERS_SECONDS: Final = 20.0
"""How often a backfill looks for other integrations of its project."""


def _never() -> bool:
    return False


def _nothing() -> None:
    return


@dataclass(frozen=True)
class Work:
    """How a process works on a backfill.

    Attributes:
        stop: asked often; once true, the process ends its turn and leaves the rest to a later one.
        progress: called often.
        wire: where requests go; HTTP in threads by default. A function, as each turn needs a new one.
        background: where receipts are written.
        rng: for jitter.
    """

    stop: Callable[[], bool] = _never
    progress: Callable[[], None] = _nothing
    wire: Callable[[], Wire] | None = None
    background: Background | None = None
    rng: random.Random | None = None


def run_backfill(context: Context, backfill_id: int, work: Work | None = None) -> Backfill:
    """Works on a backfill until it has ended, is paused, cannot go on for now, or the process is asked to stop.

    Args:
        context: the process at work.
        backfill_id: of a backfill that is planned, running (its process was killed) or paused.
        work: how.

    Returns:
        The backfill as it is then. Still ``running`` means that a later run goes on; ``error`` says why. ``failed``
        means that trying again would not help: a bug, or a lost file.

    Raises:
        Busy: another process works on it, or another backfill of the integration has not ended.
        Misconfigured: there is none of that number, or it has ended.
        WarehouseUnavailable: the warehouse could not be read; the backfill stays as it was.
    """
    work = work or Work()
    with held(context, backfill_id) as lease:
        with context.store.begin(under=[lease]) as tx:
            backfill = backfills.get(tx, backfill_id)
            refuse_second(tx, backfill)
            backfill = backfills.move(context.store, tx, backfill_id, "running", run_id=context.run_id)
            _forget_halt(tx, backfill)
        try:
            if backfill.events is None:
                spool(context, backfill, _integration(context, backfill), lease)
            return _Turns(context, backfill, lease, work).run()
        except Exception as error:
            failure = in_words(context.log, error)
            if not isinstance(failure, LostFile | Unexpected):
                raise
            return _fail(context, backfill, lease, failure)


def _fail(context: Context, backfill: Backfill, lease: Lease, failure: NamiAmpError) -> Backfill:
    """Notes that trying again does not help; a cancel that came meanwhile stays one."""
    with context.store.begin(under=[lease]) as tx:
        if backfills.get(tx, backfill.id).state not in backfills.ENDED:
            return backfills.move(context.store, tx, backfill.id, "failed", error=str(failure))
        return backfills.get(tx, backfill.id)


def close_out(context: Context, backfill: Backfill) -> bool:
    """Ends what a cancelled backfill has taken on, as soon as the lease of its integration is free.

    Returns:
        Whether it could; otherwise live delivery kept the lease for too long, and it can be tried again.
    """
    until = context.monotonic() + live_first.PATIENCE_SECONDS
    while context.monotonic() < until:
        leases = live_first.take_turn(context.store, backfill.integration_id)
        if leases is None:
            context.sleep(WAIT_SECONDS)
            continue
        try:
            close(context, backfill, leases[f"{live_first.INTEGRATION}{backfill.integration_id}"])
            return True
        finally:
            with suppress(NamiAmpError):
                context.store.release(leases.values())
    return False


@contextmanager
def held(context: Context, backfill_id: int) -> Iterator[Lease]:
    """The lease of a backfill, renewed during the block.

    Raises:
        Busy: another process works on it.
    """
    name = backfills.lease_of(backfill_id)
    taken = context.store.acquire([name])
    if not taken:
        raise Busy(f"another process works on number {backfill_id} of 'nami-amp backfills list'")
    try:
        with kept(context.store, taken.values()):
            yield taken[name]
    finally:
        with suppress(NamiAmpError):  # a lease that is not given back runs out by itself
            context.store.release(taken.values())


def refuse_second(tx: sa.Connection, backfill: Backfill) -> None:
    """Raises Busy if another backfill of the integration runs or is paused."""
    for other in backfills.of_integration(tx, backfill.integration_id):
        if other.id != backfill.id and other.state in backfills.UNFINISHED:
            raise Busy(
                f"{other.called} of {other.integration} is {other.state}: wait for its end, or cancel it with "
                f"'nami-amp backfills cancel {other.id}'"
            )


def _forget_halt(tx: sa.Connection, backfill: Backfill) -> None:
    table = tables.integrations
    tx.execute(
        sa.update(table)
        .where(table.c.id == backfill.channel_id)
        .values(halted_reason=None, halted_at=None, last_error=None)
    )


def _integration(context: Context, backfill: Backfill) -> Integration:
    return all_integrations(context.store, [backfill.integration])[0]


class _Turns:
    """The turns of one process.

    Args:
        context: the process at work.
        backfill: running, with its files.
        lease: of the backfill.
        work: how.
    """

    def __init__(self, context: Context, backfill: Backfill, lease: Lease, work: Work) -> None:
        self._context = context
        self._backfill = backfill
        self._lease = lease
        self._work = work
        self._integration = _integration(context, backfill)
        self._looked_at = 0.0
        self._turn_ends = 0.0
        self._ends_turn = False
        self._trouble: str | None = None
        self._closed: set[int] = set()
        self._ahead = Ahead(context, backfill)
        self._projects = Projects(context.cipher)
        self._rates = ProjectRates()
        self._others: Sequence[int] = ()
        self._others_at: float | None = None

    def run(self) -> Backfill:
        """See :func:`run_backfill`."""
        try:
            return self._run()
        finally:
            self._ahead.drop()

    def _run(self) -> Backfill:
        context = self._context
        patience = context.settings.run_retry_seconds
        moved_at, wait = context.monotonic(), WAIT_SECONDS
        while True:
            self._work.progress()
            backfill = self._refresh()
            if backfill.state != "running":
                return self._left(backfill)
            if self._work.stop():
                return backfill
            self._compute_ahead()
            self._look_for_others()
            leases = live_first.take_turn(context.store, backfill.integration_id, self._others)
            if leases is None:
                context.sleep(WAIT_SECONDS)
                continue
            try:
                moved = self._turn(leases[f"{live_first.INTEGRATION}{backfill.integration_id}"])
            except LostLease as error:
                context.log.info("%s; %s goes on in its next turn", error, backfill.called)
                moved = False
            finally:
                with suppress(NamiAmpError):
                    context.store.release(leases.values())
            if moved:
                moved_at, wait = context.monotonic(), WAIT_SECONDS
                continue
            if self._backfill.state == "running" and context.monotonic() - moved_at > patience:
                return self._note(error=self._trouble or "it got no further")
            context.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)

    def _look_for_others(self) -> None:
        """Looks now and then for the integrations that post to the same project: their live events go first too."""
        now = self._context.monotonic()
        if self._others_at is not None and now < self._others_at + _OTHERS_SECONDS:
            return
        with self._context.store.reading() as tx:
            self._others = self._projects.others(tx, self._integration)
        self._others_at = now

    def _left(self, backfill: Backfill) -> Backfill:
        if backfill.state == "cancelled":
            close_out(self._context, backfill)
        return backfill

    def _turn(self, lease: Lease) -> bool:
        """One turn under the lease of the integration; whether it got any further."""
        context, backfill = self._context, self._backfill
        self._turn_ends = context.monotonic() + TURN_SECONDS
        self._ends_turn = False
        with context.store.reading() as tx:
            (integration,) = refreshed(tx, [self._integration])
        self._integration = integration
        if not integration.enabled or integration.halted_reason:
            why = "switched off" if integration.halted_reason is None else f"halted ({integration.halted_reason})"
            self._move("paused", error=f"{integration.key} is {why}: enable it, then resume {backfill.called}")
            return False
        if self._has_open_outbox(integration.id):  # what live delivery has in hand goes first
            return self._deliver(integration, lease)
        KINDS[backfill.kind].keep_profiles(context, self._refresh(), integration, lease)
        moved = False
        if not self._has_open_outbox(backfill.channel_id):
            file = self._next_file()
            if file is not None:
                if self._end_cancelled(lease):
                    self._ahead.drop()
                computed = self._ahead.take(file, integration, lease)
                if computed is None and self._ahead.may_try_again:
                    return True
                prepare_file(context, backfill, file, integration, lease, computed)
                moved = True
            elif not self._has_held():
                self._move("done")
                return True
        if self._is_throttled(integration.id):
            return moved
        return self._deliver(channel_of(backfill, integration), lease) or moved

    def _is_throttled(self, integration_id: int) -> bool:
        """Whether Amplitude told live delivery to slow down: what the project may be sent next is for that."""
        table = tables.pauses
        query = sa.select(sa.func.max(table.c.until)).where(
            table.c.integration_id.in_((integration_id, *self._others)), table.c.identity == ""
        )
        with self._context.store.reading() as tx:
            until = tx.execute(query).scalar()
        if until is None or until <= self._context.now():
            return False
        self._trouble = "Amplitude throttles the project, and live delivery goes first"
        return True

    def _compute_ahead(self) -> None:
        """Computes the next file before the turn in which it is prepared: live delivery does not wait for that."""
        if self._has_open_outbox(self._backfill.channel_id):
            return
        file = self._next_file()
        if file is not None:
            self._ahead.compute(file, self._integration)

    def _end_cancelled(self, lease: Lease) -> bool:
        """Ends what others took on that were cancelled: while it is pending, its events would be left to them.

        Returns:
            Whether there was any.
        """
        with self._context.store.reading() as tx:
            others = backfills.of_integration(tx, self._integration.id)
        left = [other for other in others if other.state == "cancelled" and other.id not in self._closed]
        for other in left:
            close(self._context, other, lease)
            self._closed.add(other.id)
        return bool(left)

    def _deliver(self, channel: Integration, lease: Lease) -> bool:
        work = self._work
        means = Means(work.wire() if work.wire else None, work.background, work.rng, self._rates, self._stop)
        if channel.id == self._backfill.channel_id:
            self._refuse_lost_outbox()
        done = deliver(self._context, [channel], {channel.id: lease}, means)[channel.id]
        if done.is_bug and channel.id == self._backfill.channel_id:
            raise Unexpected(done.error)
        self._trouble = done.error
        halted = self._halted(channel)
        if halted is not None:
            self._move("paused", error=halted)
        return bool(done.delivered or done.dead)

    def _stop(self) -> bool:
        """Whether the turn is to end: live wants the lease, the turn was long enough, or the backfill is to stop."""
        if self._ends_turn or self._work.stop():
            return True
        now = self._context.monotonic()
        if now >= self._turn_ends:
            self._ends_turn = True
        elif now >= self._looked_at + live_first.LOOK_SECONDS:
            self._looked_at = now
            self._work.progress()
            store = self._context.store
            wanted = live_first.is_wanted(store, self._backfill.integration_id)
            wanted = wanted or live_first.is_delivering(store, self._others)
            self._ends_turn = wanted or self._refresh().state != "running"
        return self._ends_turn

    def _refresh(self) -> Backfill:
        with self._context.store.reading() as tx:
            self._backfill = backfills.get(tx, self._backfill.id)
        return self._backfill

    def _move(self, state: backfills.State, error: str | None = None) -> None:
        self._context.step("backfill.move")
        with self._context.store.begin(under=[self._lease]) as tx:
            if backfills.get(tx, self._backfill.id).state == "running":  # a person may have paused it meanwhile
                backfills.move(self._context.store, tx, self._backfill.id, state, error=error)
        self._refresh()

    def _note(self, error: str) -> Backfill:
        with self._context.store.begin(under=[self._lease]) as tx:
            backfills.note(tx, self._backfill.id, error=error)
        return self._refresh()

    def _next_file(self) -> BackfillFile | None:
        with self._context.store.reading() as tx:
            files = backfills.files_of(tx, self._backfill.id)
        return next((file for file in files if not file.is_prepared), None)

    def _has_open_outbox(self, integration_id: int) -> bool:
        table = tables.outboxes
        open_ones = sa.select(table.c.id).where(table.c.integration_id == integration_id, table.c.done_at.is_(None))
        with self._context.store.reading() as tx:
            return tx.execute(open_ones.limit(1)).first() is not None

    def _refuse_lost_outbox(self) -> None:
        """What was in an outbox of a backfill is in no other file."""
        table, folder = tables.outboxes, self._context.folder
        mine = sa.select(table.c.file).where(
            table.c.integration_id == self._backfill.channel_id, table.c.done_at.is_(None)
        )
        with self._context.store.reading() as tx:
            names = list(tx.execute(mine).scalars())
        lost = [name for name in names if not folder.exists(name)]
        if lost:
            raise LostFile(f"{lost[0]}, with events of {self._backfill.called}, is gone from the data folder")

    def _has_held(self) -> bool:
        table = tables.exceptions
        held = sa.select(table.c.id).where(table.c.integration_id == self._backfill.channel_id, table.c.state == "held")
        with self._context.store.reading() as tx:
            return tx.execute(held.limit(1)).first() is not None

    def _halted(self, channel: Integration) -> str | None:
        table = tables.integrations
        with self._context.store.reading() as tx:
            reason: str | None = tx.execute(sa.select(table.c.halted_reason).where(table.c.id == channel.id)).scalar()
        return reason
