"""The notebook of the documentation: its cells run, and it was kept as it ran."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline_tests.support.scene import WARNINGS, scene
from nami_amp_pipeline_tests.tools.notebook import PATH, executed, made, outputs


def test_it_was_kept_as_it_ran() -> None:
    kept = nbformat.read(PATH, as_version=4)
    wanted = [(cell.cell_type, cell.source) for cell in made().cells]
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == wanted
    given = outputs(kept)
    assert [number for number, found in enumerate(given) if not found] == [len(given) - 1]
    assert "/tmp" not in PATH.read_text()
    assert "Error" not in str(given)


@pytest.mark.slow
@pytest.mark.filterwarnings(WARNINGS)
def test_its_cells_run_on_another_home(tmp_path: Path) -> None:
    with scene(tmp_path / "home") as stage:
        stage.load(apps=("fit",), users=20)
        stage.add("fit")
        run = run_micro_batch(stage.settings)
        assert run.ok
    given = outputs(executed(tmp_path / "home"))
    delivered = sum(each["delivered"] for each in run.integrations)
    assert delivered > 0
    assert str(delivered) in given[0][0]
    assert "fit/main" in given[-2][0]
