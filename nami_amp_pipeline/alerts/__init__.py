"""Alerts: one message for each problem that needs a person, to a webhook in Slack's format and to the log."""

from nami_amp_pipeline.alerts.alert_store import FailedRun, note_failed_run, open_failed_runs
from nami_amp_pipeline.alerts.kinds import Alert, Kind
from nami_amp_pipeline.alerts.watch import Watch, tell, watch

__all__ = ["Alert", "FailedRun", "Kind", "Watch", "note_failed_run", "open_failed_runs", "tell", "watch"]
