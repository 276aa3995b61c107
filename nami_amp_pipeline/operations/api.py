"""Everything that the command line does and a page will do, as one class; neither sees a table.

Methods import what they need when they are called: `nami-amp status` must not load everything else.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nami_amp_pipeline.operations.reading_operations import ReadingOperations

if TYPE_CHECKING:
    from pathlib import Path

    from nami_amp_pipeline.operations.as_code.operations import AsCode
    from nami_amp_pipeline.operations.backfill_operations import BackfillOperations
    from nami_amp_pipeline.operations.dead_letters import DeadLetter, Filter, Retried
    from nami_amp_pipeline.operations.newest_events import NewestEvents, Verdict
    from nami_amp_pipeline.operations.overview import Overview
    from nami_amp_pipeline.operations.pending import PendingUser
    from nami_amp_pipeline.operations.people import People
    from nami_amp_pipeline.operations.property_shares import PropertyShares
    from nami_amp_pipeline.operations.reconciliation import Reconciliation
    from nami_amp_pipeline.operations.repair import LostFile
    from nami_amp_pipeline.operations.standing import Standing
    from nami_amp_pipeline.operations.status import IntegrationStatus
    from nami_amp_pipeline.operations.trace import Answer
    from nami_amp_pipeline.stages.window import Window
    from nami_amp_pipeline.state.integrations import Integration
    from nami_amp_pipeline.state.resends import Resent
    from nami_amp_pipeline.state.rotation import Rotated

ACTOR = "NAMI_AMP_ACTOR"
"""The environment variable with the name for recorded changes; by default the user of the machine."""


class Operations(ReadingOperations):
    """What people ask and do. Close it when done, or use it as a context manager.

    All methods raise StoreUnavailable if the state store cannot be reached, and Misconfigured with one line for a
    person if an argument cannot be used.

    Args:
        settings: what was set; the store is opened when it is first needed.
        by: in whose name things are changed; empty for nobody in particular.
        clock: what time it is.
    """

    @property
    def as_code(self) -> AsCode:
        """The integrations as a file: export, plan, apply, release."""
        from nami_amp_pipeline.operations.as_code.operations import AsCode

        return AsCode(self._opened(), self._cipher(), by=self._by)

    # Where events are

    def status(self, keys: Sequence[str] | None = None) -> list[IntegrationStatus]:
        """The numbers of all integrations, or of those named."""
        from nami_amp_pipeline.operations.status import status

        return status(self._whole(), self.integrations(keys))

    def overview(self, keys: Sequence[str] | None = None) -> Overview:
        """Whether anybody is needed, how all integrations stand or those named, the warehouse, the last run, alerts.

        Raises:
            Misconfigured: one of the names is unknown.
        """
        from nami_amp_pipeline.operations.overview import overview

        return overview(self._whole(), None if keys is None else self.integrations(keys))

    def metrics(self) -> bytes:
        """The figures of all integrations as Prometheus reads them; of the type ``metrics.CONTENT_TYPE``."""
        from nami_amp_pipeline.operations import metrics

        return metrics.exposition(self._whole())

    def send_metrics(self) -> None:
        """Sends the same to the endpoint of OpenTelemetry that the environment names."""
        from nami_amp_pipeline.operations import telemetry

        telemetry.send(self._whole())

    def keep_sending_metrics(self) -> Callable[[], None]:
        """Does so again and again, if the environment names an endpoint; gives what ends it."""
        from nami_amp_pipeline.operations import telemetry
        from nami_amp_pipeline.operations.metrics import families

        return telemetry.keep_sending(lambda: families(self._whole()))

    def write_metrics(self, path: Path) -> None:
        """Writes the same to a file; raises Blocked if it cannot be written."""
        from nami_amp_pipeline.operations import metrics

        metrics.write(self._whole(), path)

    def standings(self, integrations: Sequence[Integration]) -> list[Standing]:
        """How integrations stand, from the state store alone; see :meth:`overview` for everything else."""
        from nami_amp_pipeline.operations.standing import standings

        return standings(self._whole(), integrations=integrations)

    def app_without_rows(self, app_id: str) -> str:
        """A sentence that the warehouse has no row of an app, with the app that was perhaps meant; empty if it has.

        It is empty too where the warehouse cannot be asked.
        """
        from nami_amp_pipeline.operations.overview import app_without_rows

        return app_without_rows(self._whole(), app_id)

    def pending(
        self, keys: Sequence[str] | None = None, users: Sequence[str] = (), *, most_queued: int | None = None
    ) -> list[PendingUser]:
        """Who waits, why and until when; of all integrations or those named, and of all users or some.

        Args:
            keys: ``<app_id>/<name>``.
            users: ids of Amplitude's or Nami's.
            most_queued: where more events than that are queued with an integration, their users are left out.

        Raises:
            Misconfigured: one of the names is unknown.
        """
        from nami_amp_pipeline.operations.pending import pending

        chosen = None if keys is None else self.integrations(keys)
        found = pending(self._whole(), chosen, most_queued=most_queued)
        return [user for user in found if not users or user.user in users or user.nami_user in users]

    def app_without_integration(self, app_id: str) -> str:
        """A sentence that no integration takes events of an app; empty if one does, or there is none at all."""
        from nami_amp_pipeline.operations.apps import app_without_integration

        return app_without_integration(self._opened(), app_id)

    def look_up(
        self,
        asked: str,
        *,
        only_user: bool = False,
        most: int = 20,
        whole_table: bool = False,
        app_id: str | None = None,
    ) -> Answer:
        """What became of an event or a user's events; see :func:`nami_amp_pipeline.operations.trace.look_up`."""
        from nami_amp_pipeline.operations.trace import look_up

        return look_up(self._whole(), asked, only_user=only_user, most=most, whole_table=whole_table, app_id=app_id)

    # Lost files

    def lost_files(self) -> list[LostFile]:
        """The files that the store needs and that are gone from the data folder."""
        from nami_amp_pipeline.operations.repair import lost_files

        context = self._whole()
        return lost_files(context.store, context.folder)

    def repair(self, lost: Sequence[LostFile], *, resend: bool = False) -> list[tuple[LostFile, str | None]]:
        """Mends lost files; see :func:`nami_amp_pipeline.operations.repair.repair`."""
        from nami_amp_pipeline.operations.repair import repair

        return repair(self._whole(), lost, resend=resend)

    # What Amplitude holds

    def reconciliation(self, key: str, source: str | None = None) -> Reconciliation:
        """Compares days of an integration with what Amplitude holds; see :mod:`.reconciliation`.

        Args:
            key: ``<app_id>/<name>``.
            source: a folder or ``s3://bucket/prefix`` with exported files; the Export API without it.

        Raises:
            Misconfigured: the integration or the source cannot be used.
        """
        from nami_amp_pipeline.operations.reconciliation import Reconciliation

        return Reconciliation(self._whole(), key, source)

    # Dead letters

    def dead_letters(
        self, which: Filter, limit: int | None = None, before: int | None = None
    ) -> tuple[list[DeadLetter], int]:
        """The newest dead letters, or those before a number, without their texts; and how many there are in all.

        Raises:
            Misconfigured: one of the ids or integrations is unknown.
        """
        from nami_amp_pipeline.operations import dead_letters

        self.integrations(list(which.integrations))
        return dead_letters.find(self._opened(), which, limit, before)

    def dead_letter(self, which: str) -> list[DeadLetter]:
        """A dead letter by its number, or those of an event by its id, with all texts."""
        from nami_amp_pipeline.operations import dead_letters

        return dead_letters.show(self._opened(), which)

    def count_dead_letters(self, which: Filter) -> dict[tuple[str, str], int]:
        """How many dead letters there are, by integration and reason."""
        from nami_amp_pipeline.operations import dead_letters

        self.integrations(list(which.integrations))
        return dead_letters.count(self._opened(), which)

    def dismiss(self, which: Filter, *, undo: bool = False) -> int:
        """Marks dead letters as seen; see :func:`nami_amp_pipeline.operations.dead_letters.dismiss`."""
        from nami_amp_pipeline.operations import dead_letters

        self.integrations(list(which.integrations))
        return dead_letters.dismiss(self._opened(), which, by=self._by, undo=undo)

    def retry(self, which: Filter, *, force: bool = False, after: Retried | None = None) -> Retried:
        """Sends dead letters again with the next run; see :func:`nami_amp_pipeline.operations.dead_letters.retry`."""
        from nami_amp_pipeline.operations import dead_letters

        self.integrations(list(which.integrations))
        return dead_letters.retry(self._opened(), which, force=force, by=self._by, after=after)

    def resent(self, app_id: str, since: int) -> list[Resent]:
        """What became of the dead letters of an app that people sent again since a time, the newest first."""
        from nami_amp_pipeline.state import resends

        return resends.of_app(self._opened(), app_id, since)

    # Backfills

    @property
    def backfills(self) -> BackfillOperations:
        """What people ask and do about backfills."""
        from nami_amp_pipeline.operations.backfill_operations import BackfillOperations

        return BackfillOperations(self._whole(), by=self._by)

    def preview(self, key: str, limit: int, window: Window | None = None) -> list[str]:
        """What would be posted next; see :func:`nami_amp_pipeline.operations.preview.preview`."""
        from nami_amp_pipeline.operations.preview import preview

        return preview(self._whole(), key, limit, window)

    def newest_events(
        self,
        key: str,
        *,
        event_type: str | None = None,
        user: str | None = None,
        verdict: Verdict | None = None,
        limit: int = 5,
    ) -> NewestEvents:
        """See :func:`nami_amp_pipeline.operations.newest_events.newest_events`."""
        from nami_amp_pipeline.operations.newest_events import newest_events

        (integration,) = self.integrations([key])
        return newest_events(self._whole(), integration, event_type=event_type, user=user, verdict=verdict, limit=limit)

    def made_up_event(self, key: str, event_type: str) -> str:
        """See :func:`nami_amp_pipeline.operations.trial_event.made_up_event`."""
        from nami_amp_pipeline.operations.trial_event import made_up_event

        return made_up_event(self.integrations([key])[0], event_type, self._whole().now())

    def property_shares(self, app_id: str) -> PropertyShares:
        """See :func:`nami_amp_pipeline.operations.property_shares.property_shares`."""
        from nami_amp_pipeline.operations.property_shares import property_shares

        return property_shares(self._whole(), app_id)

    # People

    @property
    def people(self) -> People:
        """Who may sign in to the Control Center, and their sessions."""
        from nami_amp_pipeline.operations.people import People

        return People(self._opened(), by=self._by)

    # Keys and store

    def rotate_keys(self) -> Rotated:
        """Encrypts all stored keys with the newest encryption key."""
        from nami_amp_pipeline.state import rotation

        return rotation.rotate(self._opened(), self._cipher())

    def forget_keys(self) -> int:
        """Drops unneeded older keys of the key file; returns how many."""
        from nami_amp_pipeline.state import rotation

        return rotation.forget(self._opened(), self._cipher())

    def migrate(self) -> tuple[int, int]:
        """Brings the state store to this program's version; returns the version before, and now."""
        from nami_amp_pipeline.clock import system_clock
        from nami_amp_pipeline.state import Store
        from nami_amp_pipeline.state import migrate as migrations

        store = Store(self._settings.state_url, self._clock or system_clock)
        try:
            return migrations.migrate(store, beside_others=True)
        finally:
            store.close()


def actor() -> str:
    """In whose name a command runs: ``NAMI_AMP_ACTOR``, or the user of the machine."""
    named = os.environ.get(ACTOR, "").strip()
    if named:
        return named[:200]
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return f"user {os.getuid()}"
