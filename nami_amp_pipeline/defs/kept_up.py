"""How assets are kept up to date, which their descriptions begin with."""

from __future__ import annotations

from nami_amp_pipeline.defs.ours import SCHEDULE, loaded_settings


def kept_up_to_date(how: str = "each micro-batch brings it up to date") -> str:
    """The first sentence of a description, by the settings of this code location.

    Args:
        how: a clause.
    """
    times = loaded_settings().timetable
    return (
        f"**Kept up to date by the schedule `{SCHEDULE}`, {times.called}**: {how}. Nothing needs to be materialized "
        "by hand."
    )
