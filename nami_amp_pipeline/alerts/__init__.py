"""Tells people, once each, what needs them: by a webhook in Slack's format, and in the log."""

from nami_amp_pipeline.alerts.alert_store import FailedRun, note_failed_run, open_failed_runs
from nami_amp_pipeline.alerts.kinds import Alert, Kind
from nami_amp_pipeline.alerts.watch import Watch, tell, watch

__all__ = ["Alert", "FailedRun", "Kind", "Watch", "note_failed_run", "open_failed_runs", "tell", "watch"]
