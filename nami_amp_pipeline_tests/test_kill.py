"""A process killed at any instruction and started again reaches the same end: nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from nami_amp_pipeline_tests.simulation.killing import Killing
from nami_amp_pipeline_tests.support.postgres import Postgres

pytestmark = pytest.mark.slow


@pytest.mark.contract("5.1.2")
def test_killed_processes_lose_nothing_and_send_nothing_twice(
    tmp_path: Path, state_url: str, request: pytest.FixtureRequest
) -> None:
    warehouse_url = None
    if state_url.startswith("postgresql"):
        server: Postgres = request.getfixturevalue("postgres")
        warehouse_url = server.fresh_database()
    killing = Killing(tmp_path, seed=1, state_url=state_url, warehouse_url=warehouse_url)
    killing.run(kills=10)
    assert killing.kills >= 10
