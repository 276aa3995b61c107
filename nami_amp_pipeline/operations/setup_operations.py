"""What people ask and do to set things up: integrations, their keys, apps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nami_amp_pipeline.contract import event_type_names
from nami_amp_pipeline.destinations import DEFAULT, destination_of
from nami_amp_pipeline.errors import Busy
from nami_amp_pipeline.operations.opened import Opened

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.app_numbers import AppNumbers
    from nami_amp_pipeline.operations.apps import App
    from nami_amp_pipeline.operations.connection import KeyTrial, Tested
    from nami_amp_pipeline.operations.everything import Everything
    from nami_amp_pipeline.operations.integrations import KeyEnds
    from nami_amp_pipeline.operations.trial_event import TrialEvent
    from nami_amp_pipeline.secrets import Secret
    from nami_amp_pipeline.state.integration_changes import IntegrationChange
    from nami_amp_pipeline.state.integration_history import ChangeRecord
    from nami_amp_pipeline.state.integrations import Integration, NewIntegration


class SetupOperations(Opened):
    """See the module's docstring."""

    # Integrations

    @property
    def nothing_here(self) -> str:
        """What to say where there is no integration at all: where it looked, and what to do, without a full stop."""
        import sqlalchemy as sa

        url = sa.make_url(self._settings.state_url)
        where = f"{url.host or 'localhost'}/{url.database}"
        if url.drivername.startswith("sqlite"):
            where = str(Path(url.database or "").absolute())
        return (
            f"there is no integration in {where} yet: 'nami-amp integrations add' adds one; if it should hold some, "
            "start this in the pipeline's folder, or set NAMI_AMP_HOME"
        )

    def integrations(self, keys: Sequence[str] | None = None) -> list[Integration]:
        """All integrations by key, or those named ``<app_id>/<name>``.

        Raises:
            Misconfigured: one of the names is unknown.
        """
        from nami_amp_pipeline.state.integration_rows import all_integrations

        return all_integrations(self._opened(), keys)

    def has_integrations(self) -> bool:
        """Whether there is any integration."""
        from nami_amp_pipeline.state.integration_rows import is_there_any

        return is_there_any(self._opened())

    def integrations_of(self, app_id: str) -> list[Integration]:
        """The integrations of an app, by name."""
        from nami_amp_pipeline.state.integration_rows import of_app

        return of_app(self._opened(), app_id)

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
        from nami_amp_pipeline.state import integrations, live_first
        from nami_amp_pipeline.storage.cached_folder import open_folder

        store = self._opened()
        integration_id = integrations.get(store, key).id
        leases = live_first.acquire(store, [f"{live_first.INTEGRATION}{integration_id}"])
        if not leases:
            raise Busy(f"a run is delivering for {key}: remove it when the run has ended")
        try:
            files = integrations.remove(store, key, by=self._by)
        finally:
            store.release(leases.values())
        folder = open_folder(self._settings)
        for name in files:
            folder.remove(name)

    def test(self, keys: Sequence[str] | None = None) -> list[Tested]:
        """Asks the endpoints of integrations whether they take their keys; no event is stored."""
        from nami_amp_pipeline.operations.connection import Tested, check_connection
        from nami_amp_pipeline.state.own_fields import as_set, secrets_of

        cipher = self._cipher()
        found = []
        for integration in self.integrations(keys):
            destination = as_set(integration, cipher)
            asked = integration.endpoint, cipher.decrypt(integration.api_key), self._settings, destination
            own = secrets_of(destination, integration, cipher).values()
            found.append(Tested(integration.key, *check_connection(*asked, own)))
        return found

    def try_key(
        self,
        endpoint: str,
        api_key: Secret,
        destination: str = DEFAULT,
        fields: Mapping[str, str] | None = None,
        secret_fields: Mapping[str, Secret] | None = None,
    ) -> KeyTrial:
        """Asks an endpoint whether it accepts a key that no integration has yet; nothing is stored.

        Args:
            endpoint: the URL.
            api_key: the key.
            destination: whose endpoint it is.
            fields: of its own, that are no secrets.
            secret_fields: that are.
        """
        from nami_amp_pipeline.operations.connection import try_key
        from nami_amp_pipeline.state.own_fields import given_to

        own = secret_fields or {}
        target = given_to(destination_of(destination), fields or {}, own)
        return try_key(endpoint, api_key, self._settings, target, own.values())

    def try_stored_key(
        self,
        key: str,
        endpoint: str | None = None,
        api_key: Secret | None = None,
        fields: Mapping[str, str] | None = None,
        secret_fields: Mapping[str, Secret | None] | None = None,
    ) -> KeyTrial:
        """The same with what an integration has, where nothing else is given; a secret field that is None is left out.

        Raises:
            Misconfigured: there is none of that name, or a stored key cannot be decrypted.
        """
        from nami_amp_pipeline.state.own_fields import secrets_of

        (integration,) = self.integrations([key])
        cipher, given = self._cipher(), secret_fields or {}
        destination = destination_of(integration.destination)
        stored = secrets_of(destination, integration, cipher, but=given)
        return self.try_key(
            endpoint or integration.endpoint,
            cipher.decrypt(integration.api_key) if api_key is None else api_key,
            integration.destination,
            integration.fields if fields is None else fields,
            stored | {name: secret for name, secret in given.items() if secret is not None},
        )

    def send_trial_event(self, key: str, event_type: str) -> TrialEvent:
        """Posts one made-up event as an integration would.

        Raises:
            Misconfigured: there is no such integration or event type.
        """
        from nami_amp_pipeline.operations.trial_event import send_trial_event
        from nami_amp_pipeline.state.integration_rules import check_choice

        check_choice(event_type, event_type_names(), "the event type")
        return send_trial_event(self._whole(), self.integrations([key])[0], event_type)

    def key_ends(self, key: str) -> KeyEnds:
        """The last characters of an integration's keys, to tell one key from another; no more of them is ever shown.

        Raises:
            Misconfigured: there is none of that name.
        """
        from nami_amp_pipeline.operations.integrations import key_ends

        return key_ends(self._opened(), self._cipher(), key)

    # Apps

    def apps(self) -> list[App]:
        """The Nami apps that are known here."""
        from nami_amp_pipeline.operations.apps import list_apps

        return list_apps(self._opened())

    def app(self, app_id: str) -> App | None:
        """A Nami app; None if it is not known here."""
        from nami_amp_pipeline.operations.apps import list_apps

        return next(iter(list_apps(self._opened(), app_id)), None)

    def app_numbers(self, app_id: str) -> AppNumbers:
        """What is known of an app's events and users, from what the pipeline keeps."""
        from nami_amp_pipeline.operations.app_numbers import app_numbers

        return app_numbers(self._whole(), app_id)

    def everything(self, app_id: str) -> Everything:
        """How many rows of an app the warehouse has; see :func:`nami_amp_pipeline.operations.everything.everything`."""
        from nami_amp_pipeline.operations.everything import everything

        return everything(self._whole(), app_id)

    def apps_of_warehouse(self) -> list[str]:
        """Apps that have rows in the warehouse; of a large table perhaps not all of them.

        Raises:
            WarehouseUnavailable: it cannot be read.
        """
        from nami_amp_pipeline.operations.apps import apps_of_warehouse

        return apps_of_warehouse(self._whole())

    def set_plan(self, app_id: str, plan: str) -> None:
        """Says which plan (``paid`` or ``free``) the organisation of an app is on."""
        from nami_amp_pipeline.state import integrations
        from nami_amp_pipeline.state.integration_rules import check_app_id

        integrations.set_plan(self._opened(), check_app_id(app_id), plan, by=self._by)

    def set_quota(self, app_id: str, quota: int | None) -> None:
        """Says how many events a month the Amplitude organisation of an app takes; None forgets it.

        Raises:
            Misconfigured: it is no number of events.
        """
        from nami_amp_pipeline.state import integrations
        from nami_amp_pipeline.state.integration_rules import check_app_id, check_quota

        integrations.set_quota(self._opened(), check_app_id(app_id), check_quota(quota), by=self._by)

    def _switch(self, key: str, *, on: bool) -> Integration:
        from nami_amp_pipeline.state import integrations

        return integrations.set_enabled(self._opened(), key, enabled=on, by=self._by)
