"""``nami-amp backfill --dry-run`` as people read it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nami_amp_pipeline_tests.support.command_line import add, event, invoke, load_events

pytestmark = pytest.mark.slow_cases


@pytest.mark.parametrize(
    ("day", "said"),
    [
        ("2026-09-01", "2 events of 1 user would be sent in 1 request (B), in less than a second. Nothing was sent.\n"),
        ("2026-08-01", "No event would be sent.\n"),
    ],
)
def test_a_small_dry_run_takes_less_than_a_second(tmp_path: Path, day: str, said: str) -> None:
    load_events(tmp_path, event(1), event(2))
    add(tmp_path, "http://127.0.0.1:9/2/httpapi", "--start-from", "now")
    done = invoke(tmp_path, "backfill", "radio/prod", "--from", day, "--to", f"{day[:-1]}2", "--dry-run")
    assert done.exit_code == 0, done.output
    assert re.sub(r"\([\d,]+ B\)", "(B)", done.stdout).startswith(said)
