"""Dagster's home and instance: where its history is, and how it is opened."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import dagster as dg
import sqlalchemy as sa
import yaml

from nami_amp_pipeline.errors import Blocked, Misconfigured
from nami_amp_pipeline.settings import Settings, variable

CODE_LOCATION: Final = "nami_amp_pipeline"
"""The default name of this code location."""

OPENING_SECONDS: Final = 30.0
"""How long to wait for another process that opens Dagster's history: a stopped process would never finish."""

DAGSTER_YAML: Final = """\
# Dagster's settings for one machine, made by nami-amp; its storage is this folder. Change it as you like.
telemetry: {enabled: false}
nux: {enabled: false}
compute_logs: {module: dagster._core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}
concurrency:
  runs:
    max_concurrent_runs: 2
    tag_concurrency_limits:
      - {key: nami/job, value: micro_batch, limit: 1}
run_queue: {dequeue_interval_seconds: 1}
run_monitoring: {enabled: true, start_timeout_seconds: 180, max_runtime_seconds: 3600, poll_interval_seconds: 60}
run_retries: {enabled: true, max_retries: 1, retry_on_asset_or_op_failure: false}
scheduler: {module: dagster._core.scheduler, class: DagsterDaemonScheduler, config: {max_catchup_runs: 0}}
retention:
  schedule: {purge_after_days: 14}
  sensor: {purge_after_days: {skipped: 2, failure: 30, success: 14}}
"""
"""The same as ``dagster.yaml`` of a clone, for a home without one."""


def dagster_home(settings: Settings) -> Path:
    """Where Dagster's history is: ``DAGSTER_HOME`` (of the environment or ``.env``), or a folder of the home."""
    return Path(variable("DAGSTER_HOME") or settings.home / "dagster").absolute()


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Opens Dagster's history, making it where it is missing.

    Raises:
        Misconfigured: ``DAGSTER_HOME`` is no folder, or its ``dagster.yaml`` cannot be used.
        Blocked: the folder cannot be written.
    """
    home = dagster_home(settings)
    if variable("DAGSTER_HOME") and not home.is_dir():
        raise Misconfigured(f"DAGSTER_HOME is {home}, which is not a folder")
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home):
            _make_settings(home / "dagster.yaml")
            instance = _open(home)
    except OSError as error:
        raise Blocked(f"cannot write to {home}: {error.strerror or error}") from None
    except sa.exc.OperationalError as error:
        raise _unwritable(home, error) from None
    try:
        with instance:
            yield instance
    except sa.exc.OperationalError as error:
        raise _unwritable(home, error) from None


def _unwritable(home: Path, error: sa.exc.OperationalError) -> Blocked:
    said = " ".join(str(error.orig).split())[:200]
    if "locked" in said:
        return _locked(home)
    return Blocked(f"Dagster's history in {home} cannot be read or written: {said}")


def _locked(home: Path) -> Blocked:
    return Blocked(f"Dagster's history in {home} is locked by another process; the next run tries again")


def _make_settings(file: Path) -> None:
    """Without this file Dagster reports its use to its makers, and says so on the console."""
    if not file.exists():
        aside = file.with_name(f".{file.name}.part")
        aside.write_text(DAGSTER_YAML)
        aside.rename(file)


def _open(home: Path) -> dg.DagsterInstance:
    try:
        instance = dg.DagsterInstance.from_config(str(home))
    except (dg.DagsterInvalidConfigError, dg.DagsterInvariantViolationError, yaml.YAMLError) as error:
        raise Misconfigured(f"{home / 'dagster.yaml'} cannot be used: {' '.join(str(error).split())[:300]}") from None
    instance.get_runs_count()  # the tables are made on first use, which must not happen twice at once
    return instance


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Lets only one process at a time make the tables: two at once break the history."""
    until = time.monotonic() + OPENING_SECONDS
    with (home / ".nami-amp.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise _locked(home) from None
            time.sleep(0.05)
        yield
