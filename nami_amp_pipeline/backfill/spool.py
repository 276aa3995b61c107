"""Registers the files of a backfill or an identify."""

from __future__ import annotations

from nami_amp_pipeline.backfill.kinds import KINDS
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import backfills
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.store import Lease


def spool(context: Context, backfill: Backfill, integration: Integration, lease: Lease) -> None:
    """Writes the files of a backfill or an identify, and registers them.

    Args:
        context: the process at work.
        backfill: without files.
        integration: that it belongs to.
        lease: of the backfill.

    Raises:
        WarehouseUnavailable: nothing was registered.
        LostLease: another process works on the backfill.
    """
    files = KINDS[backfill.kind].write_files(context, backfill, integration)
    context.folder.publish(name for name, *_ in files)
    context.step("backfill.spool")
    with context.store.begin(under=[lease]) as tx:
        backfills.add_files(tx, backfill.id, files)
        backfills.note(tx, backfill.id, events_in_window=sum(events for *_, events in files))
    context.step("backfill.spooled")
