"""The figures for Prometheus are those of status, in a text that Prometheus' own parser reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nami_amp_pipeline.operations.metrics import exposition
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.command_line import invoke
from nami_amp_pipeline_tests.support.scene import BAD_KEY, WARNINGS, Scene, scene

pytestmark = [pytest.mark.filterwarnings(WARNINGS)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("home")) as made, dg.DagsterInstance.ephemeral() as instance:
        made.load(users=4, apps=("fit", "radio"))
        made.add("fit")
        made.add("radio", "odd-name", key=BAD_KEY)
        made.run(instance)
        yield made


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


@pytest.mark.slow
def test_they_are_the_figures_of_status(stage: Scene) -> None:
    found = samples(exposition(stage.context).decode())
    numbers = {row.integration: row for row in status(stage.context, all_integrations(stage.context.store))}
    assert len(numbers) == 2
    for key, row in numbers.items():
        app_id, name = key.split("/")
        assert found["nami_amp_events_captured_total"][app_id, name] == row.captured
        assert found["nami_amp_events_delivered_total"][app_id, name] == row.delivered
        for family, by in (
            ("nami_amp_events_skipped_total", row.skipped),
            ("nami_amp_dead_letters", row.dead_letters),
            ("nami_amp_events_pending", {"queued": 0, **row.pending_by}),
        ):
            here = {labels[2]: value for labels, value in found.get(family, {}).items() if labels[:2] == (app_id, name)}
            assert here == by
        assert found["nami_amp_watermark_timestamp_seconds"][app_id, name] == (row.watermark or 0) / 1e6
    state = {labels: value for labels, value in found["nami_amp_state"].items() if value}
    assert state == {("fit", "main", "delivering"): 1, ("radio", "odd-name", "halted"): 1}
    assert len(found["nami_amp_state"]) == 14
    assert found["nami_amp_needs_you"] == {("fit", "main"): 0, ("radio", "odd-name"): 1}
    assert found["nami_amp_behind_seconds"]["radio", "odd-name"] > 0 == found["nami_amp_behind_seconds"]["fit", "main"]


def test_the_command_prints_them_or_writes_a_whole_file(stage: Scene, tmp_path: Path) -> None:
    printed = invoke(stage.home, "metrics", settings={"NAMI_AMP_HOME": str(stage.home)})
    assert printed.exit_code == 0, printed.output
    file = tmp_path / "nami.prom"
    done = invoke(stage.home, "metrics", "--textfile", str(file), settings={"NAMI_AMP_HOME": str(stage.home)})
    assert (done.exit_code, done.output) == (0, "")
    clock = "nami_amp_collected_timestamp_seconds"
    wanted, written = samples(printed.stdout), samples(file.read_text())
    for text in (wanted, written):
        for name in (clock, "nami_amp_behind_seconds"):  # which go on
            assert text.pop(name)
    assert wanted == written
    assert [path.name for path in tmp_path.iterdir()] == ["nami.prom"]


def test_a_file_that_cannot_be_written_is_said_in_a_line(stage: Scene, tmp_path: Path) -> None:
    done = invoke(
        stage.home,
        "metrics",
        "--textfile",
        str(tmp_path / "no" / "x.prom"),
        settings={"NAMI_AMP_HOME": str(stage.home)},
    )
    assert done.exit_code == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
