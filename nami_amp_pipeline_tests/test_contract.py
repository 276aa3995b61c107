"""What comes out of the SQL core is what a plain reading of the contract says, for fixed cases and for any history."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings

from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.support import reference
from nami_amp_pipeline_tests.support.current_snapshots import current_snapshots
from nami_amp_pipeline_tests.support.harness import Pipeline
from nami_amp_pipeline_tests.support.histories import histories, integrations, times
from nami_amp_pipeline_tests.support.postgres import Postgres

pytestmark = pytest.mark.slow_cases

GOLDEN = Path(__file__).parent / "cases" / "golden"


def canonical(events: list[dict[str, Any]]) -> list[str]:
    """Texts that tell 1 from 1.0 and from true."""
    return sorted(json.dumps(event, sort_keys=True) for event in events)


@pytest.mark.parametrize("name", ["external_id_skip", "anonymous_nami_user_id", "anonymous_device_id", "nami_user_id"])
@pytest.mark.contract("1.8", "2.6", "2.7", "3.1", "3.2", "4.2", "4.3", "4.5", "4.7")
def test_fixed_cases_come_out_exactly(name: str, tmp_path: Path, state_url: str, warehouse_url: str) -> None:
    rows = [json.loads(line) for line in (GOLDEN / "nami_events.ndjson").read_text("utf-8").splitlines()]
    case = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_STATE_URL": state_url, "NAMI_AMP_WAREHOUSE_URL": warehouse_url})
    pipeline.insert(rows)
    wanted = case["integration"]
    one = pipeline.add(
        "app-105-0",
        user_id_kind=wanted["user_id"],
        anonymous=wanted.get("anonymous", "skip"),
        events=[wanted["events"]],
    )
    pipeline.tick()
    sent = pipeline.sent(one)
    for event in sent:
        event.pop("$skip_user_properties_sync", None)
    assert canonical(sent) == canonical(case["delivered"])
    numbers = pipeline.status(one)
    assert numbers.skipped == dict(Counter(case["skipped"].values()))
    assert numbers.dead_letters == dict(Counter(case["dead_letters"].values()))
    assert numbers.captured == numbers.delivered + sum(numbers.skipped.values()) + sum(numbers.dead_letters.values())
    assert numbers.pending == 0
    with pipeline.context.store.begin() as tx:
        dead = dict(tx.execute(sa.select(tables.exceptions.c.event_id, tables.exceptions.c.reason)).tuples().all())
    assert dead == case["dead_letters"]
    pipeline.close()


@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(history=histories(), wanted=integrations())
@pytest.mark.contract("1.3", "1.4", "2.13", "3.1", "3.2", "3.7", "4.2", "4.5", "4.11", "5.1.1")
@pytest.mark.slow
def test_any_history_comes_out_as_the_plain_reading_says(
    history: list[list[reference.Row]], wanted: reference.Settings
) -> None:
    check_history(history, wanted, {})


@settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(history=histories(), wanted=integrations())
@pytest.mark.slow
def test_any_history_of_postgresql_comes_out_as_the_plain_reading_says(
    postgres: Postgres, history: list[list[reference.Row]], wanted: reference.Settings
) -> None:
    check_history(
        history,
        wanted,
        {"NAMI_AMP_STATE_URL": postgres.fresh_database(), "NAMI_AMP_WAREHOUSE_URL": postgres.fresh_database()},
    )


def check_history(history: list[list[reference.Row]], wanted: reference.Settings, environ: dict[str, str]) -> None:
    expected = reference.run(history, wanted, app_id="app", times=times(history))
    home = Path(tempfile.mkdtemp())
    try:
        pipeline = Pipeline(home, environ)
        pipeline.allow_nulls()
        pipeline.add("app", "reader", events=["device.impression"])  # so that rows before start_from are read too
        patterns = [wanted.events] if isinstance(wanted.events, str) else list(wanted.events)
        selected = [event_type for event_type in reference.SELECTABLE if wanted.selects(event_type)]
        one = pipeline.add(
            "app",
            user_id_kind=wanted.user_id,
            anonymous=wanted.anonymous,
            events=selected or patterns,
            rename={old: new for old, new in wanted.rename.items() if old in reference.SELECTABLE},
            start_from=wanted.start_from,
            sandbox=wanted.sandbox,
            exclude=wanted.exclude,
            revenue=wanted.revenue,
        )
        for tick, now in zip(history, times(history), strict=True):
            pipeline.insert(tick)
            pipeline.clock.set(now)
            pipeline.tick()
            numbers = pipeline.status(one)
            assert (
                numbers.captured
                == numbers.delivered
                + sum(numbers.skipped.values())
                + sum(numbers.dead_letters.values())
                + numbers.pending
            )
        assert canonical(pipeline.sent(one)) == canonical(expected.delivered)
        numbers = pipeline.status(one)
        assert numbers.captured == len(expected.captured)
        assert numbers.skipped == dict(Counter(expected.skipped.values()))
        assert numbers.dead_letters == dict(Counter(expected.dead_letters.values()))
        assert numbers.pending == len(expected.pending)
        assert current_snapshots(pipeline.context.store) == {
            user_id: snapshot.properties for user_id, snapshot in expected.current.items()
        }
        pipeline.close()
    finally:
        shutil.rmtree(home)
