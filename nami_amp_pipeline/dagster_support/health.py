"""Checks what the pipeline needs of Dagster: a readable history and living daemons."""

from __future__ import annotations

import time

from dagster._daemon.controller import get_daemon_statuses

from nami_amp_pipeline.dagster_support.instance import dagster_home, dagster_instance
from nami_amp_pipeline.operations.histories import WHAT_TO_DO, histories, in_words
from nami_amp_pipeline.settings import Settings, contradictions
from nami_amp_pipeline.warehouse.base import Finding

_START = "start 'nami-amp dev' (or 'dagster-daemon run'), or call 'nami-amp run' by a timer of your own"


def check_dagster(settings: Settings) -> list[Finding]:
    """Checks that Dagster's history is readable and its daemons had a recent heartbeat."""
    return [*_two_homes(settings), *_check_history(settings)]


def _two_homes(settings: Settings) -> list[Finding]:
    """Whether Dagster's processes and this one work, or worked, with different settings or histories."""
    findings = []
    names = contradictions()
    if names:
        findings.append(
            Finding(
                "dagster",
                "warning",
                f"{', '.join(names)}: the environment and .env in this folder say different things; 'nami-amp' takes "
                "the environment, Dagster's commands take .env",
                "unset the variable, or remove it from .env",
            )
        )
    found = histories(settings.home, time.time())
    if len(found) > 1:
        findings.append(Finding("dagster", "warning", in_words(found), WHAT_TO_DO))
    return findings


def _check_history(settings: Settings) -> list[Finding]:
    home = dagster_home(settings)
    if not (home / "dagster.yaml").exists():
        if home.exists() and not home.is_dir():
            return [Finding("dagster", "error", f"{home} is not a folder", "set DAGSTER_HOME to a folder")]
        return [
            Finding(
                "dagster",
                "warning",
                f"{home} has no dagster.yaml: there has been no run yet",
                "start one with 'nami-amp run'",
            )
        ]
    with dagster_instance(settings) as instance:
        findings = [Finding("dagster", "ok", f"{instance.get_runs_count():,} runs in the history of {home}")]
        now = time.time()
        statuses = get_daemon_statuses(instance, instance.get_required_daemon_types(), ignore_errors=True)
    beats = {kind: status.last_heartbeat for kind, status in statuses.items() if status.last_heartbeat is not None}
    if not beats:
        return [*findings, Finding("daemon", "warning", "has never run: nothing starts by itself", _START)]
    silent = sorted(kind.lower() for kind, status in statuses.items() if not status.healthy)
    if silent:
        newest = max(beat.timestamp for beat in beats.values())
        return [
            *findings,
            Finding(
                "daemon",
                "error",
                f"no recent heartbeat of {', '.join(silent)}; the newest heartbeat of any daemon is "
                f"{now - newest:,.0f} s old",
                _START,
            ),
        ]
    for kind, beat in beats.items():
        if beat.errors:
            said = " ".join(beat.errors[0].message.split())[:300]
            findings.append(Finding("daemon", "error", f"{kind.lower()} says: {said}", "check the daemon's log"))
    return findings if len(findings) > 1 else [*findings, Finding("daemon", "ok", "alive")]
