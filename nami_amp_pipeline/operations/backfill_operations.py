"""What people ask and do about backfills and identifies, as one class for the command line and pages."""

from __future__ import annotations

from nami_amp_pipeline.backfill.plan import Plan
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations import backfill_status, backfills
from nami_amp_pipeline.operations.backfill_status import BackfillStatus
from nami_amp_pipeline.operations.backfills import NewBackfill, NewIdentify
from nami_amp_pipeline.state.backfills import Backfill


class BackfillOperations:
    """See the module's docstring. All methods raise Misconfigured for a backfill or an integration that is unknown.

    Args:
        context: of the stages.
        by: in whose name backfills are made.
    """

    def __init__(self, context: Context, *, by: str = "") -> None:
        self._context = context
        self._by = by

    def create(self, new: NewBackfill | NewIdentify) -> Backfill:
        """See :func:`nami_amp_pipeline.operations.backfills.create`."""
        return backfills.create(self._context, new, by=self._by)

    def plan(self, new: NewBackfill | NewIdentify) -> tuple[Backfill, Plan]:
        """See :func:`nami_amp_pipeline.operations.backfills.dry_run`."""
        return backfills.dry_run(self._context, new, by=self._by)

    def show(self, number: int) -> BackfillStatus:
        """A backfill with its numbers."""
        return backfill_status.show(self._context, number)

    def ask_for_plan(self, new: NewBackfill) -> Backfill:
        """See :func:`nami_amp_pipeline.operations.backfills.ask_for_plan`."""
        return backfills.ask_for_plan(self._context, new, by=self._by)

    def start(self, number: int) -> BackfillStatus:
        """See :func:`nami_amp_pipeline.operations.backfills.start`."""
        return backfills.start(self._context, number)

    def listed(
        self,
        integration: str | None = None,
        *,
        app_id: str | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[BackfillStatus]:
        """See :func:`nami_amp_pipeline.operations.backfill_status.listed`."""
        return backfill_status.listed(self._context, integration, app_id=app_id, before=before, limit=limit)

    def pause(self, number: int) -> BackfillStatus:
        """See :func:`nami_amp_pipeline.operations.backfills.pause`."""
        return backfills.pause(self._context, number)

    def cancel(self, number: int) -> BackfillStatus:
        """See :func:`nami_amp_pipeline.operations.backfills.cancel`."""
        return backfills.cancel(self._context, number)
