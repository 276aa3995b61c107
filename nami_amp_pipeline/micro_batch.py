"""One micro-batch from end to end: what the job of Dagster and the command line have in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from nami_amp_pipeline import errors
from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked, Misconfigured, NamiAmpError, StoreUnavailable, in_words
from nami_amp_pipeline.operations.shards import Shard
from nami_amp_pipeline.operations.status import IntegrationStatus, numbers_of, status
from nami_amp_pipeline.stages.facts import Facts
from nami_amp_pipeline.stages.pipeline import never, run_stage
from nami_amp_pipeline.stages.stage import Stage, Stop, Subject, called, partition_key
from nami_amp_pipeline.stages.table import DELIVER, PREPARE
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_rows import Integration, by_id
from nami_amp_pipeline.state.integrations import all_integrations, apps_with_integrations
from nami_amp_pipeline.state.listed import Listed, list_all
from nami_amp_pipeline.state.store import Transaction

LEFT_TO_ANOTHER: Final = "skipped: another run holds this integration's lease and will deliver its events"

LONGEST_KEY: Final = 200
"""A longer text is not an integration's key; errors do not repeat it."""


@dataclass
class MicroBatch:
    """A micro-batch under way. The error of a stage is noted, and the later stages still do their work.

    Each stage of a run may have its own process. Errors are noted in the store, where the last process finds them.

    Attributes:
        context: the process at work.
        keys: ``<app_id>/<name>`` of the integrations to work for; None for all.
        shard: the share of the apps to work for; None for all.
        began_with: its integrations before the first stage of this process.
        before: the counts of each integration before the first stage of this process, by key.
        after: the same after the last stage, where that was looked at already.
        done: the results of the stages that ran in this process, by asset and partition key.
    """

    context: Context
    keys: Sequence[str] | None
    shard: Shard | None = None
    began_with: list[Listed] = field(default_factory=list)
    before: dict[str, IntegrationStatus] = field(default_factory=dict)
    after: dict[str, IntegrationStatus] | None = None
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    _worked_for: dict[str, Sequence[Subject]] = field(default_factory=dict)

    @staticmethod
    def begin(context: Context, keys: Sequence[str] | None = None, shard: Shard | None = None) -> MicroBatch:
        """Starts a micro-batch, or a process of one.

        Raises:
            Misconfigured: one of the integrations is unknown.
            StoreUnavailable: the store cannot be read.
        """
        if any(len(key) > LONGEST_KEY for key in keys or ()):
            raise Misconfigured(f"an integration is named <app_id>/<name>, with at most {LONGEST_KEY} characters")
        tick = MicroBatch(context, list(keys) if keys is not None else None, shard)
        if tick.keys is not None:
            all_integrations(context.store, tick.keys)  # one that vanishes from here on is left out
        numbers = tick._numbers()
        tick.began_with = [integration for integration, _ in numbers]
        tick.before = {row.integration: row for _, row in numbers}
        return tick

    @property
    def log(self) -> logging.Logger:
        """For people; the stage that runs sets it."""
        return self.context.log

    @property
    def troubles(self) -> list[tuple[str, NamiAmpError]]:
        """The errors of this run's stages, each with the stage's asset, including those of its other processes.

        Raises:
            StoreUnavailable: the store cannot be read.
        """
        return self.troubles_of(self.context.run_id)

    def troubles_of(self, run_id: str) -> list[tuple[str, NamiAmpError]]:
        """The same of any run.

        Raises:
            StoreUnavailable: the store cannot be read.
        """
        return [(asset, error) for asset, _, error in self.noted(run_id)]

    def noted(self, run_id: str | None = None) -> list[tuple[str, str | None, NamiAmpError]]:
        """The same of this run or any, each with the stage's asset and the partition, None if it is everybody's.

        Raises:
            StoreUnavailable: the store cannot be read.
        """
        table = tables.run_troubles
        query = sa.select(table).where(table.c.run_id == (run_id or self.context.run_id)).order_by(table.c.id)
        with self.context.store.begin() as tx:
            rows = tx.execute(query).all()
        return [(row.asset, row.partition, _kind(row.kind)(row.message)) for row in rows]

    def integrations(self) -> list[Listed]:
        """The integrations of this micro-batch, freshly read, without what it takes to work for them."""
        with self.context.store.reading() as tx:
            return self._read(tx)

    def _read(self, tx: Transaction) -> list[Listed]:
        some = list_all(tx)
        if self.keys is not None:
            known = {integration.key: integration for integration in some}
            some = [known[key] for key in dict.fromkeys(self.keys) if key in known]
        return some if self.shard is None else [each for each in some if self.shard.has(each.app_id)]

    def _numbers(self) -> list[tuple[Listed, IntegrationStatus]]:
        """The integrations of this micro-batch, each with its counts."""
        with self.context.store.reading() as tx:
            some = self._read(tx)
            return list(zip(some, numbers_of(self.context, tx, some), strict=True))

    def has(self, key: str) -> bool:
        """Whether this micro-batch works for an integration.

        Args:
            key: ``<app_id>/<name>``.
        """
        mine = self.shard is None or self.shard.has(key.partition("/")[0])
        return mine and (self.keys is None or key in self.keys)

    def partitions(self, stage: Stage) -> list[str]:
        """The partition keys of a stage: of the integrations, or of the apps with an enabled integration."""
        if stage.per == "integration":
            return [integration.partition_key for integration in self.integrations()]
        return self._app_ids()

    def _app_ids(self) -> list[str]:
        if self.keys is not None:
            return sorted({integration.app_id for integration in self.integrations() if integration.enabled})
        app_ids = apps_with_integrations(self.context.store)
        return app_ids if self.shard is None else [app_id for app_id in app_ids if self.shard.has(app_id)]

    def subjects(self, stage: Stage) -> Sequence[Subject]:
        """The subjects of a stage; where it can tell who has work, only those. There may be thousands without."""
        if stage.with_work is None:
            return self._app_ids() if stage.per == "app" else self._whole({each.id for each in self.integrations()})
        some = stage.with_work(self.context)
        if not some:
            return []
        if stage.per == "app":
            return [app_id for app_id in self._app_ids() if app_id in some]
        return self._whole(some)

    def _whole(self, ids: Set[int]) -> list[Integration]:
        """Those of the integrations that are of this micro-batch, freshly read, in the order of their keys."""
        with self.context.store.reading() as tx:
            some = by_id(tx, ids).values()
        mine = [each for each in some if each.backfill_of is None and self.has(each.key)]
        return sorted(mine, key=lambda integration: (integration.app_id, integration.name))

    def run(self, stage: Stage, stop: Stop = never) -> dict[str, Any]:
        """Runs a stage for all its subjects, and notes its errors.

        Args:
            stage: which one.
            stop: once true, nothing new is begun.

        Returns:
            Results by partition key.

        Raises:
            StoreUnavailable: the store cannot be read or written; no stage can do anything about it.
            Misconfigured: a setting cannot be used; nor about that.
        """

        def failed(subject: Subject, error: NamiAmpError) -> None:
            self.note(stage, type(error)(f"{called(subject)}: {error}"), partition_key(subject))

        try:
            subjects = self._worked_for[stage.asset] = self.subjects(stage)
            done = run_stage(self.context, stage, subjects, stop=stop, failed=failed)
        except (StoreUnavailable, Misconfigured):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the other stages have their turn
            self.note(stage, in_words(self.context.log, error))
            done = {}
        self.done[stage.asset] = done
        return done

    def describe(self, stage: Stage, done: Mapping[str, Any]) -> dict[str, Facts]:
        """The facts of the partitions that a stage moved; an error in making them does not fail the run."""
        if not done:
            return {}
        try:
            moved = [each for each in self._worked_for.get(stage.asset, ()) if partition_key(each) in done]
            ids = {each.id for each in moved if isinstance(each, Integration)}
            return stage.describe(self.context, self._whole(ids) if ids else moved, done)
        except NamiAmpError:
            raise
        except Exception as error:  # noqa: BLE001 - the work itself is done and committed
            self.note(stage, in_words(self.context.log, error))
            return {}

    def note(self, stage: Stage, error: NamiAmpError, partition: str | None = None) -> None:
        """Records the error of a stage, so that the run fails at its end.

        Args:
            stage: which one.
            error: why.
            partition: whose work it was; None if it was everybody's.
        """
        self.log.error("%s: %s", stage.asset, error)
        with self.context.store.begin() as tx:
            tx.execute(
                sa.insert(tables.run_troubles).values(
                    run_id=self.context.run_id,
                    asset=stage.asset,
                    partition=partition,
                    kind=type(error).__name__,
                    message=str(error),
                    at=self.context.now(),
                )
            )

    def halted(self) -> list[IntegrationStatus]:
        """The halted integrations."""
        halted = [
            integration for integration in self.integrations() if integration.enabled and integration.halted_reason
        ]
        return [now for now in status(self.context, halted) if now.is_halted] if halted else []

    def problems(self) -> list[str]:
        """A line for each obstacle to delivery: stages first, then integrations."""
        lines = [f"{asset}: {error}" for asset, error in self.troubles]
        if not any(self.error_of(partition) for done in self.done.values() for partition in done):
            return lines
        return lines + [
            f"{integration.key}: {error}"
            for integration in self.integrations()
            if (error := self.error_of(integration.partition_key))
        ]

    def error_of(self, partition: str) -> str | None:
        """Why the work for a partition is unfinished, according to the stages of this process."""
        for done in self.done.values():
            if partition in done and (error := getattr(done[partition], "error", None)):
                return str(error)
        return None

    def report(self) -> list[dict[str, Any]]:
        """Each integration as ``run --json`` shows it: what this process did, and the counts after it."""
        troubles, rows = self.troubles, []
        after = {row.integration: row for _, row in self._numbers()} if self.after is None else self.after
        for key in after if self.keys is None else dict.fromkeys(self.keys):
            now = after.get(key)
            if now is None or not self.has(key):
                continue
            was = self.before.get(key) or IntegrationStatus(key, now.state)
            rows.append(
                {
                    "integration": key,
                    "captured": self._captured(was, now),
                    "delivered": now.delivered - was.delivered,
                    "skipped": _growth(was.skipped, now.skipped),
                    "dead_letters": _growth(was.dead_letters, now.dead_letters),
                    "pending": now.pending,
                    "watermark": to_text(now.watermark),
                    "lag_seconds": round(now.lag_seconds, 3),
                    "error": self._shown_error(now, troubles),
                    "state": now.state,
                    "pending_by": now.pending_by,
                    "lag_by": now.shown_lags,
                }
            )
        return rows

    def _captured(self, was: IntegrationStatus, now: IntegrationStatus) -> int:
        """Events that were read in this run, or earlier and taken over by this integration now."""
        prepared = self.done.get(PREPARE.asset, {}).get(now.partition_key)
        return max(now.captured - was.captured, prepared.captured if prepared is not None else 0)

    def _shown_error(self, now: IntegrationStatus, troubles: Sequence[tuple[str, NamiAmpError]]) -> str | None:
        if not now.enabled:
            return None
        error = self.error_of(now.partition_key)
        if error:
            return error
        if troubles:
            return str(troubles[0][1])
        if now.to_post and now.partition_key not in self.done.get(DELIVER.asset, {}):
            return (now.error if now.is_halted else None) or LEFT_TO_ANOTHER
        return None


def _kind(name: str) -> type[NamiAmpError]:
    """The class of a noted error; a class that only a newer version knows counts as :class:`Blocked`."""
    found = getattr(errors, name, Blocked)
    return found if isinstance(found, type) and issubclass(found, NamiAmpError) else Blocked


def _growth(was: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    if now == was:  # as in nearly every integration of thousands
        return {}
    return {reason: events - was.get(reason, 0) for reason, events in now.items() if events != was.get(reason, 0)}
