"""The window of a backfill as SQL over the columns of a segment."""

from __future__ import annotations

from collections.abc import Sequence

from nami_amp_pipeline import contract
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.storage.duckdb_engine import literal


def selected_types(backfill: Backfill, integration: Integration) -> tuple[str, ...]:
    """The event types that a backfill sends: those of its integration, as they are now, that it was asked for."""
    if backfill.patterns is None:
        return integration.events
    asked = {event_type.name for event_type in contract.select_events(backfill.patterns)}
    return tuple(name for name in integration.events if name in asked)


def in_window(backfill: Backfill) -> str:
    """Whether a row is in the window."""
    return f"(epoch_us({backfill.by}) >= {backfill.since} AND epoch_us({backfill.by}) < {backfill.until})"


def is_needed(backfill: Backfill) -> str:
    """Whether a row is in the window, or may carry state that events of the window need."""
    needed = f"({in_window(backfill)} OR carries_state(event_type))"
    if backfill.by == "created_date":  # what comes after the window is of no use to it
        return f"epoch_us(created_date) < {backfill.until} AND {needed}"
    return needed


def is_of(types: Sequence[str]) -> str:
    """Whether a row is of one of some event types."""
    return f"event_type IN ({', '.join(map(literal, types))})" if types else "false"
