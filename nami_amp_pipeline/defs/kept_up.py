"""How assets are kept up to date, which their descriptions begin with."""

from __future__ import annotations

from nami_amp_pipeline.defs.ours import DEFAULT, MICRO_BATCH, SCHEDULE, Place, loaded_settings


def kept_up_to_date(how: str = "each micro-batch brings it up to date", place: Place = DEFAULT) -> str:
    """The first sentence of a description, by the settings of this code location.

    Args:
        how: a clause.
        place: of the pipeline.
    """
    if not place.is_scheduled:
        return f"**Kept up to date by the job `{place.name(MICRO_BATCH)}`**, which your own schedule starts: {how}."
    times = loaded_settings(place).timetable
    return (
        f"**Kept up to date by the schedule `{place.name(SCHEDULE)}`, {times.called}**: {how}. Nothing needs to be "
        "materialized by hand."
    )
