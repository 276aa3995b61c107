"""A night on which the clocks are set back changes nothing, whatever zone the process and the database live in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa

from nami_amp_pipeline_tests.support.harness import Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres

NIGHTS = {
    "America/New_York": datetime(2026, 11, 1, 4, tzinfo=UTC),  # 1:30 comes twice
    "Europe/Berlin": datetime(2026, 10, 25, 0, tzinfo=UTC),
}
PYTHON = "from nami_amp_pipeline_tests.test_time_zones import main; main()"


def main() -> None:
    """Ticks every quarter of an hour through a night; prints what was sent, and how things stand."""
    home, night = Path(sys.argv[1]), datetime.fromisoformat(sys.argv[2])
    made = Pipeline(home, dict(os.environ), open_at=night)
    one = made.add("radio", user_id_kind="nami_user_id", start_from=night - timedelta(minutes=1))
    for tick in range(8):
        rows = []
        for number in range(3):
            at = night + timedelta(minutes=30 * tick + 4 * number, microseconds=1)
            names = {"id": f"{tick}-{number}", "app_id": "radio", "user_id": f"u{number % 2}"}
            times = {"created_date": at, "ingested_at": at}
            rows.append({**names, **times, "event_type": "user.subscription.renewed", "payload": "{}"})
        made.insert(rows)
        made.clock.set(night + timedelta(minutes=30 * tick + 10))
        made.tick()
    sent = [(event["insert_id"], event["time"]) for event in made.sent(one)]
    sys.stdout.write(json.dumps([sent, made.status(one).to_json()]))
    made.close()


@pytest.fixture(params=["duckdb", pytest.param("postgresql", marks=pytest.mark.slow)])
def databases(request: pytest.FixtureRequest, zone: str) -> Iterator[dict[str, str]]:
    """Settings of a warehouse and a store; those of PostgreSQL have the zone as their own, and dates day first."""
    if request.param == "duckdb":
        yield {}
        return
    server: Postgres = request.getfixturevalue("postgres")
    urls = [server.fresh_database(), server.fresh_database()]
    for url in urls:
        name = sa.make_url(url).database
        connection = psycopg2.connect(url)
        connection.autocommit = True
        connection.cursor().execute(f"ALTER DATABASE {name} SET timezone = '{zone}'")
        connection.cursor().execute(f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'")
        connection.close()
    yield {"NAMI_AMP_WAREHOUSE_URL": urls[0], "NAMI_AMP_STATE_URL": urls[1]}


@pytest.mark.slow
@pytest.mark.parametrize("zone", NIGHTS)
def test_a_night_on_which_clocks_are_set_back(tmp_path: Path, zone: str, databases: dict[str, str]) -> None:
    night = NIGHTS[zone]
    done = subprocess.run(
        [sys.executable, "-c", PYTHON, str(tmp_path / "home"), night.isoformat()],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1]), "TZ": zone, **databases},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent, now = json.loads(done.stdout.splitlines()[-1])
    start = int(night.timestamp() * 1_000)
    expected: list[Any] = [
        [f"{tick}-{number}", start + (30 * tick + 4 * number) * 60_000] for tick in range(8) for number in range(3)
    ]
    assert sorted(sent) == sorted(expected)
    assert (now["captured"], now["delivered"], now["pending"], now["lag_seconds"]) == (24, 24, 0, 0.0)
