"""When micro-batches start: minutes, cron schedules, time zones, nights on which clocks are set, quiet hours."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nami_amp_pipeline.clock import Timetable, from_datetime, to_datetime
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings

BERLIN = "Europe/Berlin"


def following(table: Timetable, text: str) -> str | None:
    """The next start after a time in UTC."""
    at = table.next_start(from_datetime(datetime.fromisoformat(f"{text}+00:00")))
    return None if at is None else f"{to_datetime(at):%Y-%m-%d %H:%M}"


@pytest.mark.parametrize(
    ("table", "after", "start"),
    [
        (Timetable(5), "2026-09-01 12:04:59", "2026-09-01 12:05"),
        (Timetable(5), "2026-09-01 12:05:00", "2026-09-01 12:10"),
        (Timetable(25), "2026-09-01 12:51", "2026-09-01 13:00"),
        (Timetable(cron="30 6-22 * * 1-5"), "2026-09-04 22:30", "2026-09-07 06:30"),  # over a weekend
        (Timetable(cron="0 0 13 * 5"), "2026-09-01 00:00", "2026-09-04 00:00"),  # day of the month or of the week
        (Timetable(cron="0 0 * * 7"), "2026-09-01 00:00", "2026-09-06 00:00"),  # Sunday is 0 and 7
        (Timetable(cron="0 8 * * *", zone=BERLIN), "2026-07-01 00:00", "2026-07-01 06:00"),
        (Timetable(cron="0 8 * * *", zone=BERLIN), "2026-12-01 00:00", "2026-12-01 07:00"),
        (Timetable(cron="30 2 * * *", zone=BERLIN), "2026-03-29 00:00", "2026-03-30 00:30"),  # 02:30 is not there
        (Timetable(5, quiet="23:00-06:00"), "2026-09-01 22:55", "2026-09-02 06:00"),
        (Timetable(5, quiet="12:00-13:00", zone=BERLIN), "2026-07-01 09:58", "2026-07-01 11:00"),
        (Timetable(cron="0 0 30 2 *"), "2026-01-01 00:00", None),
    ],
)
def test_the_next_start(table: Timetable, after: str, start: str | None) -> None:
    assert following(table, after) == start


def test_what_is_late_is_three_starts_old_and_a_quiet_night_is_not_late() -> None:
    assert Timetable(5).late_after_seconds == 900
    assert Timetable(cron="0 * * * *").late_after_seconds == 3 * 3_600
    assert Timetable(5, quiet="23:00-06:00").late_after_seconds == 7 * 3_600 + 300 + 2 * 300


def test_quiet_hours_begin_and_end_on_the_minute() -> None:
    table = Timetable(5, quiet="23:00-06:00")
    for clock, quiet in (("22:59", False), ("23:00", True), ("05:59", True), ("06:00", False)):
        moment = datetime.fromisoformat(f"2026-09-01T{clock}+00:00").astimezone(UTC)
        assert table.is_quiet(from_datetime(moment)) is quiet


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TICK_CRON", "* * * *"), ("TICK_CRON", "60 * * * *"), ("TICK_CRON", "*/0 * * * *"),
        ("TICK_CRON", "5-1 * * * *"),
        ("TICK_CRON", "@hourly"), ("TICK_TIME_ZONE", "Mars/Olympus"), ("TICK_TIME_ZONE", "../etc/passwd"),
        ("QUIET_HOURS", "23-6"), ("QUIET_HOURS", "24:00-06:00"), ("QUIET_HOURS", "06:00-06:00"),
    ],
)  # fmt: skip
def test_what_is_no_time_is_said_in_one_line(name: str, value: str) -> None:
    with pytest.raises(Misconfigured, match=f"NAMI_AMP_{name} must be ") as raised:
        Settings.load({f"NAMI_AMP_{name}": value})
    assert value not in str(raised.value).replace("23:00-06:00", "")
