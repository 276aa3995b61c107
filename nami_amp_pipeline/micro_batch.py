"""One micro-batch from end to end: what the job of Dagster and the command line have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.attempt import Delivered
from nami_amp_pipeline.errors import Misconfigured, NamiAmpError, StoreUnavailable
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.pipeline import (
    Failed,
    as_named_error,
    capture_apps,
    deliver_integrations,
    prepare_integrations,
    snapshot_apps,
)
from nami_amp_pipeline.stages.capture import Captured
from nami_amp_pipeline.stages.prepare import Prepared
from nami_amp_pipeline.stages.snapshots import Snapshotted
from nami_amp_pipeline.state.integrations import Integration, all_integrations

R = TypeVar("R")
V = TypeVar("V")

LEFT_TO_ANOTHER = "another process is working on this integration; its events are left to that one"


@dataclass
class MicroBatch:
    """A micro-batch under way. A stage that cannot go on is noted, and the stages after it still do what they can.

    Attributes:
        context: the process at work.
        keys: ``<app_id>/<name>`` of the integrations to work for; None for all.
        before: the numbers of each integration before the first stage, by key.
        troubles: what stages ran into, with the stage's asset.
        captured, snapshotted, prepared, delivered: what the stages did.
    """

    context: Context
    keys: Sequence[str] | None
    before: dict[str, IntegrationStatus] = field(default_factory=dict)
    troubles: list[tuple[str, NamiAmpError]] = field(default_factory=list)
    captured: dict[str, Captured] = field(default_factory=dict)
    snapshotted: dict[str, Snapshotted] = field(default_factory=dict)
    prepared: dict[int, Prepared] = field(default_factory=dict)
    delivered: dict[int, Delivered] = field(default_factory=dict)

    @staticmethod
    def begin(context: Context, keys: Sequence[str] | None = None) -> MicroBatch:
        """Starts a micro-batch.

        Raises:
            Misconfigured: one of the integrations is unknown.
            StoreUnavailable: the store cannot be read.
        """
        tick = MicroBatch(context, list(keys) if keys is not None else None)
        tick.before = {one.integration: one for one in status(context, tick.integrations())}
        return tick

    @property
    def log(self) -> logging.Logger:
        """For people; the stage that runs sets it."""
        return self.context.log

    def integrations(self) -> list[Integration]:
        """The integrations of this tick as they stand now."""
        if self.keys is None:
            return all_integrations(self.context.store)
        known = {one.key: one for one in all_integrations(self.context.store)}
        if not self.before:  # a name may vanish while the tick runs, but not before it
            return all_integrations(self.context.store, self.keys)
        return [known[key] for key in dict.fromkeys(self.keys) if key in known]

    def capture(self) -> dict[str, Captured]:
        """Stage 1, of the apps that have an integration switched on; by app id."""
        apps = self._apps()
        self.captured = self._stage("nami_events", lambda failed: capture_apps(self.context, apps, failed=failed))
        return self.captured

    def snapshot(self) -> dict[str, Snapshotted]:
        """Stage 2; by app id."""
        apps = self._apps()
        self.snapshotted = self._stage(
            "user_property_snapshots", lambda failed: snapshot_apps(self.context, apps, failed=failed)
        )
        return self.snapshotted

    def prepare(self) -> dict[int, Prepared]:
        """Stage 3; by integration id."""
        self.prepared = self._stage(
            "amplitude_events",
            lambda failed: prepare_integrations(self.context, self.integrations(), failed=failed),
        )
        return self.prepared

    def deliver(self, stop: Callable[[], bool]) -> dict[int, Delivered]:
        """Stage 4; by integration id, also those that had nothing pending.

        Args:
            stop: once true, nothing new is posted, and what is under way is recorded.
        """
        self.delivered = self._stage(
            "amplitude_deliveries",
            lambda failed: deliver_integrations(self.context, self.integrations(), stop=stop, failed=failed),
        )
        return self.delivered

    def halted(self) -> list[IntegrationStatus]:
        """The integrations that stand still until a person repairs something."""
        halted = [one for one in self.integrations() if one.enabled and one.halted_reason]
        return [now for now in status(self.context, halted) if now.is_halted] if halted else []

    def problems(self) -> list[str]:
        """A line for each thing that keeps events from being delivered: stages first, then integrations."""
        lines = [f"{asset}: {error}" for asset, error in self.troubles]
        for one in self.integrations():
            done = self.delivered.get(one.id)
            if done is not None and done.error:
                lines.append(f"{one.key}: {done.error}")
        return lines

    def report(self) -> list[dict[str, Any]]:
        """Each integration as ``run --json`` shows it: what this tick did, and how things stand after it."""
        integrations = self.integrations()
        rows = []
        for one, now in zip(integrations, status(self.context, integrations), strict=True):
            was = self.before.get(one.key, IntegrationStatus(one.key, now.state))
            rows.append(
                {
                    "integration": one.key,
                    "captured": self._captured(one, was, now),
                    "delivered": now.delivered - was.delivered,
                    "skipped": _growth(was.skipped, now.skipped),
                    "dead_letters": _growth(was.dead_letters, now.dead_letters),
                    "pending": now.pending,
                    "watermark": to_text(now.watermark),
                    "lag_seconds": round(now.lag_seconds, 3),
                    "error": self._error(one, now),
                    "state": now.state,
                    "pending_by": now.pending_by,
                    "lag_by": now.to_json()["lag_by"],
                }
            )
        return rows

    def _captured(self, one: Integration, was: IntegrationStatus, now: IntegrationStatus) -> int:
        """Events that were read, or that this integration took up from what had been read before it was ready."""
        prepared = self.prepared.get(one.id)
        return max(now.captured - was.captured, prepared.captured if prepared is not None else 0)

    def _error(self, one: Integration, now: IntegrationStatus) -> str | None:
        if not one.enabled:
            return None
        done = self.delivered.get(one.id)
        if done is not None and done.error:
            return done.error
        if self.troubles:
            return str(self.troubles[0][1])
        if done is None and now.pending:
            return one.halted_reason or LEFT_TO_ANOTHER
        return None

    def _apps(self) -> list[str]:
        return sorted({one.app_id for one in self.integrations() if one.enabled})

    def _stage(self, asset: str, act: Callable[[Failed[Any]], dict[R, V]]) -> dict[R, V]:
        def failed(key: str | Integration, error: NamiAmpError) -> None:
            self._note(asset, type(error)(f"{key if isinstance(key, str) else key.key}: {error}"))

        try:
            return act(failed)
        except (StoreUnavailable, Misconfigured):
            raise  # no stage can do anything about it
        except Exception as error:  # noqa: BLE001 - whatever it is, the other stages have their turn
            self._note(asset, as_named_error(self.context, error))
            return {}

    def _note(self, asset: str, error: NamiAmpError) -> None:
        self.troubles.append((asset, error))
        self.log.error("%s: %s", asset, error)


def _growth(was: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    return {reason: events - was.get(reason, 0) for reason, events in now.items() if events != was.get(reason, 0)}
