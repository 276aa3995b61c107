"""Everything at a glance: whether anybody is needed, each integration, the warehouse, the last run, open alerts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import did_you_mean, nearest
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.operations.backfill_status import BackfillStatus, not_ended
from nami_amp_pipeline.operations.histories import History, histories
from nami_amp_pipeline.operations.standing import Standing, standings
from nami_amp_pipeline.operations.standing_facts import last_sign
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.heartbeat import beats
from nami_amp_pipeline.state.integrations import Integration, all_integrations
from nami_amp_pipeline.state.store import Transaction

_UNREADABLE: Final = "WarehouseUnavailable"
_OF_STANDINGS: Final = ("integration_halted", "dead_letters_growing", "lag_over_limit", "unreachable", "warehouse")
"""What the kinds of those alerts hold whose problems the integrations and the warehouse tell here by themselves."""


@dataclass(frozen=True)
class Unread:
    """Rows of the warehouse that no micro-batch has read.

    Attributes:
        rows: how many.
        oldest: the oldest ``ingested_at`` of them, in µs since the epoch.
    """

    rows: int
    oldest: int


@dataclass(frozen=True)
class WarehouseView:
    """What is known of the warehouse; times in µs since the epoch.

    Attributes:
        name: the table.
        error: why it cannot be read; None if it can.
        since: since when no run could read it; None if the runs can.
        unread: rows that wait in it, by app.
        silent: apps with an integration and without any row, each with the app that was perhaps meant.
    """

    name: str
    error: str | None = None
    since: int | None = None
    unread: dict[str, Unread] = field(default_factory=dict)
    silent: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class LastRun:
    """The micro-batch that was heard of last.

    Attributes:
        run_id: of the last one that captured, prepared or posted anything, or failed; None if none did.
        at: when a micro-batch last did anything, one with nothing to do included, in µs since the epoch.
        problems: what its stages could not do; empty if all is well.
        under_way: whether one runs at this moment.
        killed: whether its process ended without a word, and none has come since.
    """

    run_id: str | None
    at: int | None
    problems: tuple[str, ...] = ()
    under_way: bool = False
    killed: bool = False


@dataclass(frozen=True)
class OpenAlert:
    """A problem that an alert is open for.

    Attributes:
        kind: as the store has it.
        subject: of which integration, app or job.
        summary: the facts in a line.
        since: in µs since the epoch.
        over: whether the problem is over, and people are told so when the sensor looks next.
    """

    kind: str
    subject: str
    summary: str
    since: int
    over: bool = False


@dataclass(frozen=True)
class Overview:
    """See the module's docstring.

    Attributes:
        standings: of the integrations that were asked for.
        warehouse: see :class:`WarehouseView`.
        last_run: see :class:`LastRun`.
        alerts: the open ones, the oldest first.
        now: in µs since the epoch.
        histories: of Dagster that worked on the home within a day; more than one is one too many.
        backfills: of the integrations, those that have not ended.
    """

    standings: list[Standing]
    warehouse: WarehouseView
    last_run: LastRun
    alerts: list[OpenAlert]
    now: int
    histories: list[History] = field(default_factory=list)
    backfills: list[BackfillStatus] = field(default_factory=list)

    @property
    def in_need(self) -> list[Standing]:
        """The integrations that need a person."""
        return [standing for standing in self.standings if standing.needs_you]

    @property
    def other_alerts(self) -> list[OpenAlert]:
        """Open alerts about what nothing else here tells."""
        return [alert for alert in self.alerts if not (alert.over or any(word in alert.kind for word in _OF_STANDINGS))]

    @property
    def needs_you(self) -> bool:
        """Whether a person is needed for anything."""
        return bool(
            self.in_need
            or self.warehouse.error
            or self.warehouse.silent
            or self.last_run.problems
            or self.other_alerts
            or not self.standings
        )

    @property
    def verdict(self) -> str:
        """One sentence: who is needed for what, or nobody."""
        if not self.standings:
            return "There is no integration yet."
        many, need = len(self.standings), len(self.in_need)
        parts = []
        if need:
            of = (
                f"{need} of {many} integrations need{'s' * (need == 1)} you"
                if many > 1
                else "The integration needs you"
            )
            parts.append(of)
        if self.warehouse.error:
            parts.append("the warehouse cannot be read")
        elif self.last_run.problems:
            parts.append("the last run could not do everything")
        if self.warehouse.silent:
            apps = ", ".join(sorted(self.warehouse.silent))
            parts.append(f"the warehouse has no row of {apps}")
        if self.other_alerts:
            count = len(self.other_alerts)
            parts.append(f"{count} alert{'s are' if count != 1 else ' is'} open")
        if parts:
            said = ", and ".join(parts)
            return f"{said[:1].upper()}{said[1:]}."
        on = sum(standing.state != "off" for standing in self.standings)
        alone = [standing for standing in self.standings if standing.state in ("unreachable", "throttled", "waiting")]
        if alone:
            go_on = "waits and goes on by itself" if len(alone) == 1 else "wait and go on by themselves"
            return f"Nobody is needed: {len(alone)} of {many} {go_on}."
        return f"Nobody is needed: {on} of {many} {'is' if on == 1 else 'are'} at work."

    def to_json(self) -> dict[str, Any]:
        """The object of ``status --json``."""
        return {
            "run_id": self.last_run.run_id,
            "integrations": [self._integration(standing) for standing in self.standings],
            "verdict": self.verdict,
            "needs_you": self.needs_you,
            "integrations_in_need": len(self.in_need),
            "warehouse": {
                "error": self.warehouse.error,
                "unreadable_since": to_text(self.warehouse.since),
                "not_read": {app: unread.rows for app, unread in self.warehouse.unread.items()},
                "apps_without_rows": sorted(self.warehouse.silent),
            },
            "last_run": {
                "run_id": self.last_run.run_id,
                "at": to_text(self.last_run.at),
                "age_seconds": self.age_seconds,
                "outcome": self.outcome,
                "problems": list(self.last_run.problems),
            },
            "alerts": [
                {
                    "kind": alert.kind,
                    "subject": alert.subject,
                    "summary": alert.summary,
                    "since": to_text(alert.since),
                    "over": alert.over,
                }
                for alert in self.alerts
            ],
            "dagster_histories": [history.to_json() for history in self.histories],
            "backfills": [backfill.to_json() for backfill in self.backfills],
        }

    @property
    def age_seconds(self) -> float | None:
        """How long ago a micro-batch last did anything; None if none ever did."""
        return None if self.last_run.at is None else round(max(0.0, (self.now - self.last_run.at) / 1e6), 3)

    @property
    def outcome(self) -> str:
        """How the last micro-batch went, in a word."""
        if self.last_run.at is None:
            return "none yet"
        if self.last_run.problems:
            return "failed"
        return "under way" if self.last_run.under_way else "killed" if self.last_run.killed else "ended"

    @property
    def pending(self) -> int:
        """Events of these integrations that have no end yet."""
        return sum(standing.pending for standing in self.standings)

    def not_read(self, standing: Standing) -> Unread | None:
        """The rows that wait in the warehouse for the app of an integration; None where it is off or has none."""
        return None if standing.state == "off" else self.warehouse.unread.get(standing.integration.partition("/")[0])

    def _integration(self, standing: Standing) -> dict[str, Any]:
        unread = self.not_read(standing)
        return {
            **standing.numbers.to_json(),
            **standing.to_json(),
            "not_read": None if self.warehouse.error else unread.rows if unread else 0,
            "not_read_since": to_text(unread.oldest) if unread else None,
        }


def overview(context: Context, integrations: Sequence[Integration] | None = None) -> Overview:
    """How everything stands now; an unreadable warehouse is part of the answer.

    Args:
        context: the process at work.
        integrations: those to look at; all by default.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    now = context.now()
    chosen = all_integrations(context.store) if integrations is None else list(integrations)
    found = standings(context, now, chosen)
    table = tables.alerts
    recorded = sa.select(table).where(table.c.ended_at.is_(None), table.c.kind != tables.SILENCED)
    keys, apps = {integration.key for integration in chosen}, {integration.app_id for integration in chosen}
    with context.store.reading() as tx:
        run = _last_run(tx, now)
        alerts = [
            OpenAlert(row.kind, row.subject, row.summary, row.since)
            for row in tx.execute(recorded.order_by(table.c.since, table.c.kind, table.c.subject))
            if integrations is None or row.subject in keys | apps
        ]
        since = unreadable_since(tx)
    seen = histories(context.settings.home, now / 1e6)
    unfinished = [status for status in not_ended(context) if status.backfill.integration in keys]
    return Overview(found, _look(context, chosen, since), run, alerts, now, seen, unfinished)


def unreadable_since(tx: Transaction) -> int | None:
    """Since when runs could not read the warehouse, in µs since the epoch; None if the last one could."""
    table, observations = tables.run_troubles, tables.observations
    last_read = tx.execute(sa.select(sa.func.max(observations.c.observed_at))).scalar()
    query = sa.select(sa.func.min(table.c.at)).where(table.c.kind == _UNREADABLE)
    if last_read is not None:
        query = query.where(table.c.at > last_read)
    since: int | None = tx.execute(query).scalar()
    return since


def unreadable(context: Context) -> str:
    """Since when runs cannot read the warehouse and why, in a clause; empty if the last one could."""
    table = tables.run_troubles
    with context.store.reading() as tx:
        since = unreadable_since(tx)
        newest = sa.select(table.c.message).where(table.c.kind == _UNREADABLE).order_by(table.c.id.desc()).limit(1)
        message = None if since is None else tx.execute(newest).scalar()
    return "" if since is None else f"cannot be read since {to_text(since - since % 1_000_000)}: {message}"


def _last_run(tx: Transaction, now: int) -> LastRun:
    newest: list[tuple[int, str]] = []
    for table, moment in (
        (tables.segments, tables.segments.c.captured_at),
        (tables.outboxes, tables.outboxes.c.prepared_at),
        (tables.requests, tables.requests.c.answered_at),
        (tables.run_troubles, tables.run_troubles.c.at),
    ):
        newest += tx.execute(sa.select(moment, table.c.run_id).order_by(table.c.id.desc()).limit(1)).tuples().all()
    at, run_id = max(newest) if newest else (None, None)
    sign = last_sign(tx)
    troubles = tables.run_troubles
    problems: tuple[str, ...] = ()
    if run_id is not None:
        query = sa.select(troubles.c.message).where(troubles.c.run_id == run_id).order_by(troubles.c.id)
        # A run with nothing to do leaves no other trace than that it read the warehouse: then the troubles are over.
        read = tx.execute(sa.select(sa.func.max(tables.observations.c.observed_at))).scalar()
        failed = tx.execute(sa.select(sa.func.max(troubles.c.at)).where(troubles.c.run_id == run_id)).scalar()
        if failed is not None and (read is None or read <= failed):
            problems = tuple(dict.fromkeys(tx.execute(query).scalars()))
    signs = beats(tx, now)
    alive = next((beat for beat in signs if beat.is_alive), None)
    if alive is not None:
        return LastRun(alive.run_id, now, problems if alive.run_id == run_id else (), under_way=True)
    at = sign if sign is not None else at
    killed = any(beat.run_id == run_id and (at or 0) <= beat.last_at for beat in signs)
    return LastRun(run_id, at, problems, killed=killed)


def _look(context: Context, chosen: Sequence[Integration], since: int | None) -> WarehouseView:
    """Asks the warehouse for the rows that no micro-batch has read, and for apps that it has no row of."""
    working = [integration for integration in chosen if integration.enabled]
    name = context.warehouse.name
    if not working:
        return WarehouseView(name)
    from nami_amp_pipeline.storage.duckdb_engine import compute  # here: it brings all of DuckDB

    positions, fresh = _positions(context, working)
    try:
        with compute(context.settings) as connection:
            unread = context.warehouse.unread(connection, positions)
            silent = fresh - unread.keys()
            if silent:  # a row from before the start is a row
                silent -= context.warehouse.unread(connection, dict.fromkeys(silent)).keys()
            there = context.warehouse.app_ids(connection) if silent else []
    except NamiAmpError as error:
        return WarehouseView(name, str(error), since if since is not None else context.now())
    rows = {app: Unread(count, oldest) for app, (count, oldest) in unread.items()}
    return WarehouseView(name, None, since, rows, {app: nearest(app, set(there) - {app}) for app in silent})


def app_without_rows(context: Context, app_id: str) -> str:
    """A sentence that the warehouse has no row of an app; empty if it has one, or cannot be asked."""
    from nami_amp_pipeline.storage.duckdb_engine import compute

    try:
        with compute(context.settings) as connection:
            if context.warehouse.unread(connection, {app_id: None}):
                return ""
            there = context.warehouse.app_ids(connection)
    except NamiAmpError:
        return ""
    meant = did_you_mean(app_id, set(there) - {app_id})
    return f"the warehouse has no row of app {app_id} yet{meant}"


def _positions(context: Context, working: Sequence[Integration]) -> tuple[dict[str, int | None], set[str]]:
    """After which ``ingested_at`` the rows of each app are not read, and the apps of which nothing ever was."""
    table, segments = tables.apps, tables.segments
    with context.store.reading() as tx:
        known = {row.app_id: row for row in tx.execute(sa.select(table))}
        head = tx.execute(sa.select(sa.func.max(tables.observations.c.max_ingested_at))).scalar()
        last = sa.select(segments.c.run_id).order_by(segments.c.id.desc()).limit(1).scalar_subquery()
        rows = tx.execute(sa.select(sa.func.sum(segments.c.rows)).where(segments.c.run_id == last)).scalar() or 0
    stopped_at_limit = rows >= context.settings.max_rows_per_tick  # then it saw rows that it did not read
    positions: dict[str, int | None] = {}
    fresh = set()
    for integration in working:
        row = known.get(integration.app_id)
        if row is None or row.watermark is None:
            fresh.add(integration.app_id)
        if row is not None and row.captured_at is not None and head is not None:
            at: int | None = max(row.watermark or row.frontier or head, row.frontier or 0) if stopped_at_limit else head
        else:
            at = None if integration.start_of_new is None else integration.start_of_new - 1
        is_first = integration.app_id not in positions
        positions[integration.app_id] = at if is_first else _earlier(positions[integration.app_id], at)
    return positions, fresh


def _earlier(position: int | None, other: int | None) -> int | None:
    return None if position is None or other is None else min(position, other)
