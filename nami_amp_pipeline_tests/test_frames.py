"""Data frames for notebooks: every event once with its outcome, and the code of the page runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.frames import Frames
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.command_line import working_in
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.test_field_stage3 import bought, paid, row

PAGE = Path(__file__).parents[1] / "docs" / "notebooks.md"


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path / "home", {"NAMI_AMP_BATCH_EVENTS": "2"})
    yield made
    made.close()


def fill(pipeline: Pipeline, app: str = "shop") -> None:
    """Events of every end."""
    pipeline.add(app, "prod", anonymous="wait_for_login", sandbox="skip")
    rows: list[dict[str, Any]] = [
        *(bought(f"good{number}", number) for number in range(5)),
        bought("test", 6, purchase_env="sandbox"),
        bought("reserved", 7, user="u2", external_ids=[{"key": "external_id", "value": "null"}]),
        paid("waits", 8) | {"user_id": "u3"},
        row("joins", "device.impression", 9, user="u4"),
    ]
    pipeline.insert([{**one, "app_id": app} for one in rows])
    pipeline.clock.set(START + timedelta(hours=1))
    pipeline.tick()
    pipeline.insert([{**bought("login", 90, user="u4"), "app_id": app}])
    pipeline.clock.set(START + timedelta(hours=2))
    pipeline.tick()


@pytest.mark.slow
def test_each_event_once_with_its_outcome(pipeline: Pipeline) -> None:
    fill(pipeline)
    pipeline.insert([bought("late", 100, user="u5")])
    pipeline.clock.set(START + timedelta(hours=3))
    stages.capture_apps(pipeline.context)
    stages.snapshot_apps(pipeline.context)
    stages.prepare_integrations(pipeline.context, all_integrations(pipeline.context.store))
    with Frames(pipeline.settings) as frames:
        events = frames.events().to_pandas()
        outcomes = zip(events["event_id"], events["state"], events["reason"], strict=True)
        by_id = {ident: (state, reason if isinstance(reason, str) else None) for ident, state, reason in outcomes}
        assert len(by_id) == len(events)
        good = {f"good{number}": ("delivered", None) for number in range(5)}
        assert by_id == good | {
            "test": ("skipped", "sandbox"),
            "reserved": ("dead_letter", "reserved_user_id"),
            "waits": ("waiting_for_login", "no_external_id"),
            "joins": ("delivered", None),
            "login": ("delivered", None),
            "late": ("pending", None),
        }
        (one,) = all_integrations(pipeline.context.store)
        status = pipeline.status(one)
        counted = Counter(state for state, _ in by_id.values())
        assert counted["delivered"] == status.delivered == 7
        assert len(events) == status.captured
        window = frames.events(since=START + timedelta(minutes=2), until=START + timedelta(minutes=4)).to_arrow()
        assert window["event_id"].to_pylist() == ["good2", "good3"]
        assert frames.events(app_id="other").to_arrow().num_rows == 0
        requests = frames.requests(integration="shop/prod").to_pandas()
        delivered = events[(events["state"] == "delivered") & events["request_id"].notna()]
        assert set(delivered["request_id"]) == set(requests["id"])
        assert int(requests["events"].sum()) == 7
        (letter,) = frames.dead_letters().to_pandas().to_dict("records")
        assert (letter["event_id"], letter["reason"]) == ("reserved", "reserved_user_id")
        assert frames.dead_letters(until=START).to_arrow().num_rows == 0


@pytest.mark.slow
def test_what_waited_too_long_was_skipped(pipeline: Pipeline) -> None:
    fill(pipeline)
    pipeline.clock.set(START + timedelta(days=40))
    pipeline.tick()
    with Frames(pipeline.settings) as frames:
        (state,) = (one for one in frames.events().to_arrow().to_pylist() if one["event_id"] == "waits")
    assert (state["state"], state["reason"]) == ("skipped", "no_external_id")


@pytest.mark.slow
def test_flags_that_were_never_seen_are_missing_not_false(pipeline: Pipeline) -> None:
    fill(pipeline)
    with Frames(pipeline.settings) as frames:
        users = frames.current_snapshots("shop").to_pandas()
    assert str(users["namiml_in_trial_period"].dtype) == "boolean"
    assert bool(users["namiml_in_trial_period"].any())


def test_what_cannot_be_used_is_said(pipeline: Pipeline) -> None:
    with Frames(pipeline.settings) as frames:
        with pytest.raises(Misconfigured, match="no integration radio/none"):
            frames.events(integration="radio/none")
        with pytest.raises(Misconfigured, match="no time zone"):
            frames.requests(since=datetime(2026, 9, 1))  # noqa: DTZ001
        assert frames.events(since=datetime(2026, 9, 1, tzinfo=UTC)).to_pandas().empty


@pytest.mark.slow
def test_the_code_of_the_page_runs(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(pipeline, app="radio")
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    monkeypatch.setenv("NAMI_AMP_HOME", str(tmp_path / "home"))
    names: dict[str, Any] = {}
    with working_in(tmp_path):
        exec(compile(code, "notebook", "exec"), names)
    assert names["by_type"].loc["user.subscription.purchased", "delivered"] == 6
    assert dict(names["skipped"]) == {"sandbox": 1}
    assert dict(names["reasons"]) == {"reserved_user_id": 1}
    assert len(names["in_trial"]) == 3
    assert (names["seconds"] >= 0).all()
    assert ("radio/prod", "delivered", 7) in names["counts"]


@pytest.mark.slow
def test_pandas_is_on_no_path_but_this() -> None:
    imports = "import sys, nami_amp_pipeline.stages.pipeline, nami_amp_pipeline.operations.frames"
    program = f"{imports}; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
