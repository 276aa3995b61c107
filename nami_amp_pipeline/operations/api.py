"""Everything that the command line does and a page will do, as one class; neither sees a table.

Methods import what they need when they are called: `nami-amp status` must not load everything else.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nami_amp_pipeline import redaction
from nami_amp_pipeline.errors import Busy

if TYPE_CHECKING:
    from nami_amp_pipeline.clock import Clock
    from nami_amp_pipeline.context import Context
    from nami_amp_pipeline.operations.apps import App
    from nami_amp_pipeline.operations.connection import Tested
    from nami_amp_pipeline.operations.dead_letters import DeadLetter, Filter, Retried
    from nami_amp_pipeline.operations.overview import Overview
    from nami_amp_pipeline.operations.pending import PendingUser
    from nami_amp_pipeline.operations.repair import LostFile
    from nami_amp_pipeline.operations.status import IntegrationStatus
    from nami_amp_pipeline.operations.trace import Trace, UserTrace
    from nami_amp_pipeline.secrets import Cipher
    from nami_amp_pipeline.settings import Settings
    from nami_amp_pipeline.state import Store
    from nami_amp_pipeline.state.integration_changes import IntegrationChange
    from nami_amp_pipeline.state.integration_history import ChangeRecord
    from nami_amp_pipeline.state.integrations import Integration, NewIntegration
    from nami_amp_pipeline.state.rotation import Rotated

ACTOR = "NAMI_AMP_ACTOR"
"""The environment variable with the name for recorded changes; by default the user of the machine."""


class Operations:
    """What people ask and do. Close it when done, or use it as a context manager.

    All methods raise StoreUnavailable if the state store cannot be reached, and Misconfigured with one line for a
    person if an argument cannot be used.

    Args:
        settings: what was set; the store is opened when it is first needed.
        by: in whose name things are changed; empty for nobody in particular.
        clock: what time it is.
    """

    def __init__(self, settings: Settings, *, by: str = "", clock: Clock | None = None) -> None:
        redaction.add_settings(settings)
        self._settings = settings
        self._by = by
        self._clock = clock
        self._store: Store | None = None
        self._context: Context | None = None
        self._is_lent = False

    @staticmethod
    def over(context: Context, *, by: str = "") -> Operations:
        """The same over what is open already; closing it leaves that open."""
        operations = Operations(context.settings, by=by, clock=context.clock)
        operations._store, operations._context, operations._is_lent = context.store, context, True
        return operations

    def __enter__(self) -> Operations:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the store; the next question opens it again."""
        if self._store is not None and not self._is_lent:
            self._store.close()
            self._store = self._context = None

    # Integrations

    def integrations(self, keys: Sequence[str] | None = None) -> list[Integration]:
        """All integrations by key, or those named ``<app_id>/<name>``.

        Raises:
            Misconfigured: one of the names is unknown.
        """
        from nami_amp_pipeline.state.integration_rows import all_integrations

        return all_integrations(self._opened(), keys)

    def add(self, new: NewIntegration) -> Integration:
        """Adds an integration; see :func:`nami_amp_pipeline.state.integrations.add`."""
        from nami_amp_pipeline.state import integrations

        return integrations.add(self._opened(), self._cipher(), new, by=self._by)

    def change(self, key: str, change: IntegrationChange, *, if_version: int | None = None) -> Integration:
        """Changes settings of an integration; what is not given stays as it is.

        Args:
            key: ``<app_id>/<name>``.
            change: what to change.
            if_version: the version that the change is based on.

        Raises:
            Misconfigured: a value cannot be used, or somebody else changed it since that version.
            Busy: its start is to move back while a run works for it.
        """
        from nami_amp_pipeline.state import integration_changes

        return integration_changes.change(
            self._opened(), self._cipher(), key, change, by=self._by, if_version=if_version
        )

    def history(self, key: str) -> list[ChangeRecord]:
        """Who changed what of an integration, the oldest change first."""
        from nami_amp_pipeline.state import integration_history

        return integration_history.history(self._opened(), key)

    def enable(self, key: str) -> Integration:
        """Switches an integration on: it goes on where it stopped, and a halt is forgotten."""
        return self._switch(key, on=True)

    def disable(self, key: str) -> Integration:
        """Switches an integration off: nothing is sent, and nothing is lost."""
        return self._switch(key, on=False)

    def remove(self, key: str) -> None:
        """Removes an integration with its pending events and dead letters; what it sent stays in Amplitude.

        Raises:
            Busy: a run delivers for it, and must not have it pulled away.
        """
        from nami_amp_pipeline.state import integrations

        store = self._opened()
        integration_id = integrations.get(store, key).id
        leases = store.acquire([f"integration:{integration_id}"])
        if not leases:
            raise Busy(f"a run is delivering for {key}: remove it when the run has ended")
        try:
            files = integrations.remove(store, key, by=self._by)
        finally:
            store.release(leases.values())
        for name in files:
            (self._settings.data_dir / name).unlink(missing_ok=True)

    def test(self, keys: Sequence[str] | None = None) -> list[Tested]:
        """Asks the endpoints of integrations whether they take their keys; no event is stored."""
        from nami_amp_pipeline.operations.connection import Tested, check_connection

        cipher = self._cipher()
        return [
            Tested(
                integration.key,
                *check_connection(integration.endpoint, cipher.decrypt(integration.api_key), self._settings),
            )
            for integration in self.integrations(keys)
        ]

    # Apps

    def apps(self) -> list[App]:
        """The Nami apps that are known here."""
        from nami_amp_pipeline.operations.apps import list_apps

        return list_apps(self._opened())

    def set_plan(self, app_id: str, plan: str) -> None:
        """Says which plan (``paid`` or ``free``) the organisation of an app is on."""
        from nami_amp_pipeline.state import integrations
        from nami_amp_pipeline.state.integration_rules import check_app_id

        integrations.set_plan(self._opened(), check_app_id(app_id), plan)

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

    def app_without_rows(self, app_id: str) -> str:
        """A sentence that the warehouse has no row of an app, with the app that was perhaps meant; empty if it has.

        It is empty too where the warehouse cannot be asked.
        """
        from nami_amp_pipeline.operations.overview import app_without_rows

        return app_without_rows(self._whole(), app_id)

    def pending(self, keys: Sequence[str] | None = None, users: Sequence[str] = ()) -> list[PendingUser]:
        """Who waits, why and until when; of all integrations or those named, and of all users or some.

        Args:
            keys: ``<app_id>/<name>``.
            users: ids of Amplitude's or Nami's.

        Raises:
            Misconfigured: one of the names is unknown.
        """
        from nami_amp_pipeline.operations.pending import pending

        found = pending(self._whole(), None if keys is None else self.integrations(keys))
        return [user for user in found if not users or user.user in users or user.nami_user in users]

    def app_without_integration(self, app_id: str) -> str:
        """A sentence that no integration takes events of an app; empty if one does, or there is none at all."""
        from nami_amp_pipeline.operations.apps import app_without_integration

        return app_without_integration(self._opened(), app_id)

    def trace(self, event_id: str, *, whole_table: bool = False) -> Trace:
        """Where one event is; see :func:`nami_amp_pipeline.operations.trace.trace`."""
        from nami_amp_pipeline.operations.trace import trace

        return trace(self._whole(), event_id, whole_table=whole_table)

    def trace_user(self, user: str, most: int) -> UserTrace:
        """The newest events of an External ID or Nami user; see :mod:`nami_amp_pipeline.operations.trace`."""
        from nami_amp_pipeline.operations.trace import trace_user

        return trace_user(self._whole(), user, most)

    # Lost files

    def lost_files(self) -> list[LostFile]:
        """The files that the store needs and that are gone from the data folder."""
        from nami_amp_pipeline.operations.repair import lost_files

        context = self._whole()
        return lost_files(context.store, context.folder.root)

    def repair(self, lost: Sequence[LostFile], *, resend: bool = False) -> list[tuple[LostFile, str | None]]:
        """Mends lost files; see :func:`nami_amp_pipeline.operations.repair.repair`."""
        from nami_amp_pipeline.operations.repair import repair

        return repair(self._whole(), lost, resend=resend)

    # Dead letters

    def dead_letters(self, which: Filter, limit: int | None = None) -> tuple[list[DeadLetter], int]:
        """The newest dead letters, without their texts, and how many there are in all.

        Raises:
            Misconfigured: one of the ids or integrations is unknown.
        """
        from nami_amp_pipeline.operations import dead_letters

        self.integrations(list(which.integrations))
        return dead_letters.find(self._opened(), which, limit)

    def dead_letter(self, which: str) -> list[DeadLetter]:
        """A dead letter by its number, or those of an event by its id, with all texts."""
        from nami_amp_pipeline.operations import dead_letters

        return dead_letters.show(self._opened(), which)

    def retry(self, which: Filter, *, force: bool = False) -> Retried:
        """Sends dead letters again with the next run; see :func:`nami_amp_pipeline.operations.dead_letters.retry`."""
        from nami_amp_pipeline.operations import dead_letters

        self.integrations(list(which.integrations))
        return dead_letters.retry(self._opened(), which, force=force)

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

    def _switch(self, key: str, *, on: bool) -> Integration:
        from nami_amp_pipeline.state import integrations

        return integrations.set_enabled(self._opened(), key, enabled=on, by=self._by)

    def _opened(self) -> Store:
        """The state store, its tables made where they are missing."""
        if self._store is None:
            from nami_amp_pipeline.clock import system_clock
            from nami_amp_pipeline.state import Store
            from nami_amp_pipeline.state.migrate import create_or_upgrade

            store = Store(self._settings.state_url, self._clock or system_clock, self._settings.lease_seconds)
            try:
                create_or_upgrade(store)
            except BaseException:
                store.close()
                raise
            self._store = store
        return self._store

    def _cipher(self) -> Cipher:
        from nami_amp_pipeline.secrets import Cipher

        return Cipher(self._settings.encryption_key, self._settings.home / "encryption.key")

    def _whole(self) -> Context:
        """The context of the stages, for operations that read their files and the warehouse."""
        if self._context is None:
            from nami_amp_pipeline.clock import system_clock
            from nami_amp_pipeline.context import Context
            from nami_amp_pipeline.storage.data_folder import DataFolder
            from nami_amp_pipeline.warehouse import open_warehouse

            self._context = Context(
                settings=self._settings,
                store=self._opened(),
                folder=DataFolder(self._settings.data_dir),
                warehouse=open_warehouse(self._settings),
                cipher=self._cipher(),
                clock=self._clock or system_clock,
            )
        return self._context


def actor() -> str:
    """In whose name a command runs: ``NAMI_AMP_ACTOR``, or the user of the machine."""
    named = os.environ.get(ACTOR, "").strip()
    if named:
        return named[:200]
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return f"user {os.getuid()}"
