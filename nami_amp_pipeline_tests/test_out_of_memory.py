"""A run that has no memory left says so, for the app that it met; the others go on, and the next run does the rest."""

from __future__ import annotations

import errno
import resource
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from nami_amp_pipeline.errors import OUT_OF_MEMORY, OutOfMemory
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.stages.stage import Stage, Subject, partition_key
from nami_amp_pipeline.stages.table import CAPTURE, STAGES
from nami_amp_pipeline_tests.support.command_line import PROGRAM, environment
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]

HOW = [
    lambda: MemoryError(),
    lambda: pa.ArrowMemoryError("malloc of size 123 failed"),
    lambda: duckdb.OutOfMemoryException("Out of Memory Error: Failed to allocate block of 16384 bytes"),
    lambda: RuntimeError("can't start new thread"),
    lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    lambda: ImportError("libarrow.so: failed to map segment from shared object"),
]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / ".nami-amp") as made:
        yield made


def too_much_for_radio(stage: Stage, error: Callable[[], Exception]) -> Stage:
    def run(context: Any, some: Sequence[Subject], *rest: Any) -> Mapping[Any, Any]:
        if any(partition_key(one).split("|")[0] == "radio" for one in some):
            raise error()
        return stage.run(context, some, *rest)

    return replace(stage, run=run)


@pytest.mark.parametrize(
    ("at", "error"),
    # What an error means and where it is caught have nothing to do with each other: each of both is met, and more.
    [(stage, error) for number, error in enumerate(HOW) for stage in (STAGES[number % 4], STAGES[(number + 1) % 4])],
    ids=lambda value: str(value.asset) if isinstance(value, Stage) else None,
)
@pytest.mark.slow
def test_other_apps_go_on_and_so_does_the_next_run(stage: Scene, at: Stage, error: Callable[[], Exception]) -> None:
    radio, fit = stage.add("radio"), stage.add("fit")
    stage.load(users=5)
    tick = MicroBatch.begin(stage.context)
    for one in STAGES:
        tick.run(too_much_for_radio(one, error) if one is at else one)
    called = "radio" if at.per == "app" else "radio/main"
    assert tick.problems() == [f"{at.asset}: {called}: {OUT_OF_MEMORY}"]
    assert isinstance(tick.troubles[0][1], OutOfMemory)
    found = stage.status(radio, fit)
    assert (found["fit/main"].pending, found["radio/main"].delivered) == (0, 0)
    assert found["fit/main"].delivered > 0
    stage.context.run_id = "next"
    tick = MicroBatch.begin(stage.context)
    for one in STAGES:
        tick.run(one)
    assert tick.problems() == []
    found = stage.status(radio, fit)
    assert (found["radio/main"].pending, stage.sandbox.audit.duplicates) == (0, 0)
    assert stage.sandbox.audit.accepted == sum(one.delivered for one in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [700, 1_100])
def test_a_process_that_may_have_no_more_memory(stage: Scene, megabytes: int) -> None:
    """Wherever it meets its limit, even where a library ends the process: nothing is lost and nothing sent twice."""
    one = stage.add("radio")
    stage.load(users=40, apps=("radio",))
    limit = megabytes * 1024 * 1024

    def run(**more: Any) -> subprocess.CompletedProcess[str]:
        folder = stage.home.parent
        return subprocess.run(
            [PROGRAM, "run"], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False,
            timeout=120, **more,
        )  # fmt: skip

    ended = run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert "this is a bug" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert run().returncode == 0
    now = stage.status(one)["radio/main"]
    assert now.captured == now.delivered == stage.sandbox.audit.accepted > 0


def test_a_thread_that_cannot_be_started_is_said_in_one_line(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    stage.add("radio")
    stage.load(users=5, apps=("radio",))
    monkeypatch.setattr("nami_amp_pipeline.stages.pipeline.kept", fails)
    tick = MicroBatch.begin(stage.context)
    tick.run(CAPTURE)
    assert tick.problems() == [f"nami_events: radio: {OUT_OF_MEMORY}"]
