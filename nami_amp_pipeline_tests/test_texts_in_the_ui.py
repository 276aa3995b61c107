"""Every text that Dagster's pages show: no marks of reStructuredText, none of the words that mean nothing, no stack."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap

from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.dagster_support.one_line_failure import OneLineFailure
from nami_amp_pipeline.definitions import defs
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.night import REJECTED, night
from nami_amp_pipeline_tests.support.scene import WARNINGS

pytestmark = pytest.mark.filterwarnings(WARNINGS)

RST = re.compile(r"``|:(?:class|func|data|attr|mod|meth|exc|obj|ref|doc|py:\w+):|^\.\. \w+::|`_\b", re.MULTILINE)


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a structure as JSON has it, each with where it stands."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts(inner, f"{path}[{number}]")
    elif isinstance(value, str):
        yield path, value


def marked(value: Any) -> dict[str, str]:
    return {path: text for path, text in texts(value) if RST.search(text)}


@pytest.fixture(scope="module")
def shown() -> Any:
    """All that a code location tells the pages: what they show of definitions is taken from it."""
    snap = RepositorySnap.from_def(defs.get_repository_def())
    return json.loads(dg.serialize_value(snap))


def test_no_definition_shows_marks_of_restructuredtext(shown: Any) -> None:
    assert marked(shown) == {}
    described = [text for path, text in texts(shown) if path.endswith("description")]
    for part in (
        "Posted to Amplitude", "All integrations in one table", "Amplitude rejected no event",  # assets, a check
        "Captures new rows of the warehouse", "Did an event arrive?", "Removes expired data",  # jobs
        "Nami's event id, which is", "Only these integrations", "How much of the run's log",  # fields
        "Sends one alert", "Starts the job every hour", "The pipeline as the variables", "Looks for an event",
    ):  # fmt: skip
        assert any(part in text for text in described), part


def test_no_description_says_refused(shown: Any) -> None:
    described = {path: text for path, text in texts(shown) if path.endswith("description")}
    assert {path: text for path, text in described.items() if "refuse" in text.lower()} == {}


@pytest.mark.parametrize("text", ["``x``", ":class:`X`", "see :py:data:`X`", ".. note::", "`page`_"])
def test_marks_are_found(text: str) -> None:
    assert marked({"a": ["well", text]}) == {".a[1]": text}
    assert marked(["`code`", "12:30", "a: class", "**bold**"]) == {}


def test_a_failure_for_a_known_reason_is_its_text_alone() -> None:
    @dg.op
    def fails() -> None:
        raise OneLineFailure("no such table\nnor view", {"kind": "Misconfigured"})

    @dg.job
    def job() -> None:
        fails()

    (failure,) = [
        event.step_failure_data
        for event in job.execute_in_process(raise_on_error=False).all_events
        if event.is_step_failure
    ]
    assert failure.error is not None
    assert (failure.error.message, failure.error.stack) == ("no such table\nnor view", [])
    assert (failure.error.cause, failure.error.context) == (None, None)
    assert failure.user_failure_data is not None
    assert failure.user_failure_data.description == "no such table\nnor view"
    assert set(failure.user_failure_data.metadata) == {"kind"}
    with pytest.raises(dg.Failure, match="no such table"):
        job.execute_in_process()


@pytest.mark.slow
def test_no_event_of_a_bad_night_shows_marks_or_a_stack(tmp_path: Path) -> None:
    with night(tmp_path) as scene:
        scene.fall()
        assert scene.run("run").exit_code == 1
        scene.lose_the_warehouse()
        assert scene.run("run").exit_code == 1
    with dagster_instance(Settings.load({"NAMI_AMP_HOME": str(tmp_path / ".nami-amp")})) as instance:
        runs = instance.get_runs()
        entries = [entry for run in runs for entry in instance.all_logs(run.run_id)]
    assert len(runs) == 2
    told = [json.loads(dg.serialize_value(entry)) for entry in entries]
    assert marked(told) == {}
    every = [text for _, text in texts(told)]
    assert any(f"{REJECTED} rejected" in text for text in every)
    assert any("there is no DuckDB file" in text for text in every)
    assert [text for text in every if "Traceback" in text or 'File "' in text or "refuse" in text.lower()] == []
    failures = [
        entry.dagster_event.step_failure_data
        for entry in entries
        if entry.dagster_event is not None and entry.dagster_event.is_step_failure
    ]
    assert len(failures) == 2
