"""``nami-amp alerts``: what is wrong, a test of the webhook, and silences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nami_amp_pipeline.alerts import FailedRun, note_failed_run
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.command_line import invoke, one_line
from nami_amp_pipeline_tests.support.webhook import Webhook


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder whose store knows of a failed run."""
    assert "There is no integration in " in invoke(tmp_path, "alerts", "list").stdout
    context = Context.open(Settings.load({"NAMI_AMP_HOME": str(tmp_path / ".nami-amp")}))
    note_failed_run(context.store, FailedRun("micro_batch", "r-1", 1_000_000, ["fit|main: it is throttled"]))
    context.store.close()
    return tmp_path


def test_open_alerts_are_listed_and_silenced(home: Path) -> None:
    (alert,) = json.loads(invoke(home, "alerts", "list", "--json").stdout)["alerts"]
    assert alert == {
        "kind": "run_failed",
        "subject": "micro_batch",
        "summary": "fit|main: it is throttled",
        "since": "1970-01-01T00:00:01Z",
        "told": "not yet",
        "page": "/runs/r-1",
    }
    done = invoke(home, "alerts", "silence", "run_failed", "micro_batch", "--for", "4h")
    assert done.exit_code == 0
    assert done.stdout.startswith("run_failed micro_batch is silenced for 4 h, until ")
    shown = json.loads(invoke(home, "alerts", "list", "--json").stdout)
    assert shown["alerts"][0]["told"] == "silenced"
    assert [silence["subject"] for silence in shown["silences"]] == ["micro_batch"]
    assert "Silenced until " in invoke(home, "alerts", "list").stdout
    assert [alert["kind"] for alert in json.loads(invoke(home, "status", "--json").stdout)["alerts"]] == ["run_failed"]
    assert invoke(home, "alerts", "silence", "run_failed", "micro_batch", "--for", "0").exit_code == 0
    assert json.loads(invoke(home, "alerts", "list", "--json").stdout)["silences"] == []


@pytest.mark.parametrize("arguments", [("run_fialed",), ("run_failed", "x", "--for", "soon")])
def test_what_cannot_be_silenced_is_said_in_one_line(home: Path, arguments: tuple[str, ...]) -> None:
    done = invoke(home, "alerts", "silence", *arguments)
    assert done.exit_code == 2
    one_line(done.stderr)


def test_the_webhook_is_tested(home: Path) -> None:
    done = invoke(home, "alerts", "test")
    assert done.exit_code == 2
    assert "NAMI_AMP_ALERT_WEBHOOK_URL" in one_line(done.stderr)
    with Webhook() as webhook:
        done = invoke(home, "alerts", "test", settings={"NAMI_AMP_ALERT_WEBHOOK_URL": webhook.url})
        assert (done.exit_code, done.stdout) == (0, "The webhook accepted the test message.\n")
        assert "Test of alerts" in webhook.messages[0]
