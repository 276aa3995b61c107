"""Writes and registers the outbox of one file of a backfill or an identify."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pyarrow as pa

from nami_amp_pipeline.backfill.choice import ComputedFile
from nami_amp_pipeline.backfill.identify_events import replace_dead
from nami_amp_pipeline.backfill.kinds import KINDS
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import LostFile
from nami_amp_pipeline.stages.held_history import flag_held
from nami_amp_pipeline.stages.outbox_writer import Prepared
from nami_amp_pipeline.stages.prepare import commit_parts
from nami_amp_pipeline.state import backfills
from nami_amp_pipeline.state.backfills import Backfill, BackfillFile
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.store import Lease
from nami_amp_pipeline.state.users import move_sent


def prepare_file(
    context: Context,
    backfill: Backfill,
    file: BackfillFile,
    integration: Integration,
    lease: Lease,
    computed: ComputedFile | None = None,
) -> Prepared:
    """Writes and registers the outbox of a file.

    Args:
        context: the process at work.
        backfill: that is running.
        file: not prepared yet.
        integration: that it belongs to, as it is now.
        lease: of the integration.
        computed: of the file, if nobody else has worked on the integration since; None to compute it now.

    Raises:
        LostFile: the file is gone.
    """
    if not context.folder.exists(file.file):
        raise LostFile(f"{file.file}, with rows of {backfill.called}, is gone from the data folder")
    if computed is None:
        computed = KINDS[backfill.kind].compute(context, backfill, file, integration)
    done = Prepared()
    unused = list(_unused(computed))
    context.folder.publish(segment.file for segment in computed.parts if segment.file not in unused)
    context.step("backfill.prepare")
    with context.store.begin(under=[lease]) as tx:
        for segment in computed.parts:
            for channel_id, part in segment.parts.items():
                commit_parts(context, tx, {channel_id: part}, file.segment_id, segment.file)
                done.add(part.done)
            move_sent(context.store, tx, _of_profiles(segment.sent, integration))
        backfills.note_file(
            tx,
            file.id,
            prepared_at=context.now(),
            found=orjson.dumps(computed.choice.found).decode(),
        )
        if backfill.kind == "identify":
            replace_dead(context, tx, backfill, computed.parts)
        flag_held(context.store, tx, integration.id, profiles_of=integration.id)
    for name in (file.file, *unused):
        context.folder.remove(name)
    context.step("backfill.prepared")
    return done


def _unused(computed: ComputedFile) -> Iterator[str]:
    return (segment.file for segment in computed.parts if not any(part.rows for part in segment.parts.values()))


def _of_profiles(sent: pa.Table, integration: Integration) -> pa.Table:
    """The states that users were sent, as those of the integration: a backfill updates the same profiles."""
    at = sent.schema.get_field_index("integration_id")
    return sent.set_column(at, "integration_id", pa.repeat(pa.scalar(integration.id, pa.int64()), sent.num_rows))
