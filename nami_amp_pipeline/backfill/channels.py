"""The integration as a backfill or an identify delivers for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nami_amp_pipeline.backfill.window_sql import selected_types
from nami_amp_pipeline.destinations import destination_of
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.integration_rows import Integration

IDENTIFY: Final = "$identify"
"""What Amplitude calls an event that only sets user properties. It is no event in its charts."""


def channel_of(backfill: Backfill, integration: Integration) -> Integration:
    """Its settings, with the row of the backfill or identify, and the endpoint for many events."""
    is_identify = backfill.kind == "identify"
    return replace(
        integration,
        id=backfill.channel_id,
        name=f"{integration.name}~{backfill.channel_name}",
        backfill_of=integration.id,
        events=(IDENTIFY,) if is_identify else selected_types(backfill, integration),
        rename={} if is_identify else integration.rename,
        endpoint=destination_of(integration.destination).endpoint_for_many(integration.endpoint),
        start_from=None,
        rereads=(),
        # Who has no External ID by now is skipped: another backfill sends those events once they have one.
        anonymous="skip" if integration.anonymous == "wait_for_login" else integration.anonymous,
    )
