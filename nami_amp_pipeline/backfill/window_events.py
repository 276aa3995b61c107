"""The events that a backfill sends of one file, made by the stages that live delivery uses."""

from __future__ import annotations

from nami_amp_pipeline.backfill.channels import channel_of
from nami_amp_pipeline.backfill.choice import ComputedFile, choose
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.prepare import compute_carefully
from nami_amp_pipeline.stages.prepare_inputs import PreparedSegment
from nami_amp_pipeline.stages.snapshots import snapshot_whole_file
from nami_amp_pipeline.state.backfills import Backfill, BackfillFile
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.storage.duckdb_engine import engine


def compute_window(context: Context, backfill: Backfill, file: BackfillFile, integration: Integration) -> ComputedFile:
    """Computes what a file sends; the outbox files count after a commit, and are removed by the caller without one."""
    with engine(context.settings) as own:
        choice = choose(context, backfill, file, integration, own)
    if not choice.rows.num_rows:
        return ComputedFile(choice, [])
    snapshots, current = snapshot_whole_file(context, file.file, integration.app_id)
    try:
        segment = PreparedSegment(
            file.segment_id,
            file.file,
            [snapshots],
            [channel_of(backfill, integration)],
            chosen=choice.rows,
            logins=current,
            sent_to=choice.sent_to,
        )
        with engine(context.settings) as own:
            return ComputedFile(choice, list(compute_carefully(context, segment, own)))
    finally:
        context.folder.remove(snapshots)
