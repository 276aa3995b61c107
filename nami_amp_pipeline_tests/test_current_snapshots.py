"""The current snapshots can be asked for by app, as an Arrow table."""

from __future__ import annotations

from pathlib import Path

import pytest

from nami_amp_pipeline.operations.current_snapshots import current_snapshots
from nami_amp_pipeline_tests.support.harness import Pipeline
from nami_amp_pipeline_tests.support.rows import ACCOUNT, row


@pytest.mark.contract("3.7")
def test_a_late_event_never_moves_the_current_snapshot_back(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.add("app")
    flags = {"former_subscriber": True, "in_trial_period": True}
    pipeline.insert([row("2", 2, active_entitlements=[], customer_journey_state=flags, external_ids=ACCOUNT)])
    pipeline.tick()
    older = {"former_subscriber": False, "in_trial_period": False}
    pipeline.insert([row("1", 1, customer_journey_state=older, devices=[{"id": "d1", "platform": {"id": "p1"}}])])
    pipeline.tick()
    table = current_snapshots(pipeline.settings, "app")
    pipeline.close()
    (user,) = table.to_pylist()
    assert user["user_id"] == "u"
    assert user["external_id"] == "account-1"
    assert user["as_of"].minute == 2
    assert user["namiml_former_subscriber"] is True
    assert user["namiml_in_trial_period"] is True
    assert user["namiml_active_entitlements"] == []
    assert user["namiml_device_ids"] == ["d1"]  # never seen before, so it is news all the same
    assert current_snapshots(pipeline.settings, "other").num_rows == 0
