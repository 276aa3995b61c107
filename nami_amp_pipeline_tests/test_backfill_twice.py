"""A backfill over partitions that runs twice at once, beside a micro-batch: real processes, one store, one history."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.defs.partitions import add_partitions
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.command_line import environment
from nami_amp_pipeline_tests.support.nursery import NAMI_AMP, Started
from nami_amp_pipeline_tests.support.scene import WARNINGS, scene

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

DAGSTER = "dagster._cli:main"


def materialize(assets: str, first: str, last: str) -> list[str]:
    """The command that materializes a range of partitions in one run."""
    module = ["-m", "nami_amp_pipeline.definitions"]
    return ["asset", "materialize", "--select", assets, "--partition-range", f"{first}...{last}", *module]


def test_each_event_once_and_no_run_red_for_nothing(tmp_path: Path) -> None:
    home = tmp_path / ".nami-amp"
    with scene(home, batch_events="20") as stage:
        for app in ("fit", "radio"):
            stage.add(app)
        for seed in range(3):
            stage.load(users=60, seed=seed)
        with dagster_instance(stage.settings) as instance:
            add_partitions(instance, all_integrations(stage.context.store))
        environ = environment(
            tmp_path, DAGSTER_HOME=str(home / "dagster"), NAMI_AMP_HOME=str(home), NAMI_AMP_BATCH_EVENTS="20"
        )
        apps = materialize("nami_events,user_property_snapshots", "fit", "radio")
        ones = materialize("amplitude_events,amplitude_deliveries", "fit|main", "radio|main")
        rounds = [[(DAGSTER, apps), (DAGSTER, apps)], [(DAGSTER, ones), (DAGSTER, ones), (NAMI_AMP, ["run"])]]
        for commands in rounds:
            together = [Started(words, tmp_path, environ, program=program) for program, words in commands]
            for done in [process.ended(300) for process in together][:2]:
                assert done.returncode == 0, (done.stdout + done.stderr)[-4_000:]
        after = Started(["run"], tmp_path, environ).ended(300)
        assert after.returncode == 0, after.stderr
        found = stage.status(*all_integrations(stage.context.store)).values()
        assert [one.pending for one in found] == [0, 0]
        assert sum(one.captured for one in found) == sum(one.delivered for one in found)
        assert sum(one.delivered for one in found) == stage.sandbox.audit.accepted > 0
        assert stage.sandbox.audit.duplicates == 0
        assert stage.sandbox.audit.order_violations.count == 0
        with dagster_instance(stage.settings) as instance:
            assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
