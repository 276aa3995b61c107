"""What people look at: deliveries, refused events by cause, comparisons, audiences. A part of ``Operations``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nami_amp_pipeline.operations.setup_operations import SetupOperations

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.app_history import Happening, Kind
    from nami_amp_pipeline.operations.audience import Audience
    from nami_amp_pipeline.operations.causes import Cause
    from nami_amp_pipeline.operations.dead_letters import Filter
    from nami_amp_pipeline.operations.deliveries import Deliveries, Tally
    from nami_amp_pipeline.operations.event_rows import EventRow
    from nami_amp_pipeline.operations.reconciliation import ComparisonRequest, ReconciledDay
    from nami_amp_pipeline.operations.request_rows import RequestRow
    from nami_amp_pipeline.operations.user_state import UserState
    from nami_amp_pipeline.state.integrations import Integration


class ReadingOperations(SetupOperations):
    """See the module's docstring. All methods raise Misconfigured for an integration that is unknown."""

    def deliveries(self, key: str, window: str = "24h") -> Deliveries:
        """What became of the events of a window; see :func:`nami_amp_pipeline.operations.deliveries.deliveries`."""
        from nami_amp_pipeline.operations.deliveries import deliveries

        return deliveries(self._whole(), self.integrations([key])[0], window)

    def totals(self, integrations: Sequence[Integration], window: str = "24h") -> dict[str, Tally]:
        """The same in total, of several integrations by key."""
        from nami_amp_pipeline.operations.deliveries import totals

        return totals(self._whole(), integrations, window)

    def by_hour(self, integrations: Sequence[Integration], window: str = "24h") -> dict[str, list[Tally]]:
        """The same hour by hour, of several integrations by key."""
        from nami_amp_pipeline.operations.deliveries import by_hour

        return by_hour(self._whole(), integrations, window)

    def event_rows(
        self,
        key: str,
        outcome: str,
        window: str = "24h",
        *,
        event_type: str | None = None,
        after: str = "",
        limit: int = 50,
    ) -> tuple[list[EventRow], str | None]:
        """The events behind such a number; see :func:`nami_amp_pipeline.operations.event_rows.event_rows`."""
        from nami_amp_pipeline.operations.event_rows import event_rows

        integration = self.integrations([key])[0]
        return event_rows(self._whole(), integration, outcome, window, event_type=event_type, after=after, limit=limit)

    def request_rows(
        self, key: str, *, since: int | None = None, only_failed: bool = False, after: str = "", limit: int = 50
    ) -> tuple[list[RequestRow], str | None]:
        """Requests with answers; see :func:`nami_amp_pipeline.operations.request_rows.request_rows`."""
        from nami_amp_pipeline.operations.request_rows import request_rows

        integration = self.integrations([key])[0]
        return request_rows(self._whole(), integration, since=since, only_failed=only_failed, after=after, limit=limit)

    def app_history(
        self, app_id: str, *, name: str | None = None, kind: Kind | None = None, after: str = "", limit: int = 50
    ) -> tuple[list[Happening], str | None]:
        """What happened in an app, the newest first; see :func:`nami_amp_pipeline.operations.app_history.app_history`.

        Raises:
            Misconfigured: there is no such page or kind.
        """
        from nami_amp_pipeline.operations.app_history import app_history

        return app_history(self._whole(), app_id, name=name, kind=kind, after=after, limit=limit)

    def user_states(self, app_id: str, nami_users: Sequence[str]) -> list[UserState]:
        """The properties of users as they are now; see :mod:`nami_amp_pipeline.operations.user_state`."""
        from nami_amp_pipeline.operations.user_state import user_states

        return user_states(self._whole(), app_id, list(nami_users))

    def causes(self, which: Filter) -> list[Cause]:
        """Dead letters by cause, the largest first; see :func:`nami_amp_pipeline.operations.causes.causes`."""
        from nami_amp_pipeline.operations.causes import causes

        self.integrations(list(which.integrations))
        return causes(self._opened(), which)

    def reconciled(self, key: str, *, first: int | None = None, last: int | None = None) -> list[ReconciledDay]:
        """What the newest comparison of each day found; see :func:`.reconciliation.reconciled`."""
        from nami_amp_pipeline.operations.reconciliation import reconciled

        return reconciled(self._whole(), key, first=first, last=last)

    def ask_comparison(self, key: str, day: int) -> None:
        """Asks for a day to be compared elsewhere; see :func:`.reconciliation.ask_comparison`."""
        from nami_amp_pipeline.operations.reconciliation import ask_comparison

        ask_comparison(self._whole(), key, day, by=self._by)

    def asked_comparison(self, key: str) -> ComparisonRequest | None:
        """The comparison of an integration that was asked for last; None if none was."""
        from nami_amp_pipeline.operations.reconciliation import asked_comparison

        return asked_comparison(self._whole(), key)

    def audience(
        self, key: str, name: str, value: str, *, place: str | None = None, after: str = "", limit: int = 50
    ) -> Audience:
        """Users with a value of a property, here and sent; see :func:`nami_amp_pipeline.operations.audience.audience`.

        Raises:
            Misconfigured: the property, value or place is unknown.
        """
        from nami_amp_pipeline.operations.audience import audience

        integration = self.integrations([key])[0]
        return audience(self._whole(), integration, name, value, place=place, after=after, limit=limit)
