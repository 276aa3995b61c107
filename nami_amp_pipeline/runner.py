"""Runs one micro-batch through Dagster in this process, so that it stands in the same history as the scheduled ones."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO, cast

import dagster as dg
import sqlalchemy as sa
import yaml
from dagster import DagsterExecutionInterruptedError

from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.resources import Pipeline
from nami_amp_pipeline.defs.stopping import ASKED_TO_END, guarded
from nami_amp_pipeline.errors import Halted, Misconfigured, NamiAmpError
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import all_integrations

CODE_LOCATION: Final = "nami_amp_pipeline"

OPENING_SECONDS: Final = 30.0
"""How long another process that opens Dagster's history is waited for: one that was stopped would never be done."""

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
"""The same as ``dagster.yaml`` of a clone, for where there is none."""


@dataclass(frozen=True)
class RunReport:
    """What one micro-batch did.

    Attributes:
        run_id: Dagster's; the run's page is ``/runs/<run_id>``.
        integrations: one object each, as ``nami-amp run --json`` prints them. ``captured``, ``delivered``, ``skipped``
            and ``dead_letters`` are of this run; ``pending``, ``watermark`` and ``lag_seconds`` are as of its end.
        problems: a line for each thing that kept events from being delivered; empty if all is well.
        error: what a stage could not get past, such as a warehouse that cannot be read. What the other stages could do
            was done all the same.
    """

    run_id: str
    integrations: list[dict[str, Any]]
    problems: list[str]
    error: NamiAmpError | None = None

    @property
    def ok(self) -> bool:
        """Whether everything that can be delivered was."""
        return not self.problems and not any(one["error"] for one in self.integrations)

    def to_json(self) -> dict[str, Any]:
        """The object of ``run --json``."""
        return {"run_id": self.run_id, "integrations": self.integrations}


def run_micro_batch(
    settings: Settings, integrations: Sequence[str] | None = None, *, verbose: bool = False
) -> RunReport:
    """Runs one micro-batch and waits for it.

    Args:
        settings: what was set.
        integrations: ``<app_id>/<name>`` of those to work for; None for all that are switched on.
        verbose: whether the run's log goes to standard error.

    Returns:
        What was done, also where an integration or a stage failed.

    Raises:
        Misconfigured: a setting cannot be used, or one of the integrations is unknown; nothing was run.
        StoreUnavailable: the state store cannot be read or written.
        Halted: Dagster's history cannot be written; what was done up to then is recorded.
        KeyboardInterrupt: SIGINT asked this process to end; what was under way is recorded.
        SystemExit: SIGTERM did; with 143.
    """
    run_id = str(uuid.uuid4())
    pipeline = Pipeline(settings, run_id)
    try:
        all_integrations(pipeline.open().store, integrations)  # unknown names and a missing store are no failed run
        with dagster_instance(settings) as instance:
            _execute(instance, pipeline, run_id, integrations, verbose)
        tick = pipeline.last_tick
        if pipeline.error is not None or tick is None:
            raise pipeline.error or Halted(f"run {run_id} did not begin")
        return RunReport(run_id, tick.report(), tick.problems(), tick.troubles[0][1] if tick.troubles else None)
    finally:
        pipeline.close()


def _execute(
    instance: dg.DagsterInstance, pipeline: Pipeline, run_id: str, integrations: Sequence[str] | None, verbose: bool
) -> None:
    guard = None
    try:
        with (
            guarded(lambda: _cancel(instance, run_id)) as guard,
            nullcontext() if verbose else redirect_stderr(cast("TextIO", _WithoutEventLog(sys.stderr))),
        ):
            micro_batch.execute_in_process(
                run_config={
                    "integrations": list(integrations or ()),
                    "console_log_level": "INFO" if verbose else "CRITICAL",
                },
                instance=instance,
                resources={"pipeline": pipeline},
                run_id=run_id,
                # Makes the run stand on the job's page too, which shows those of its code location only.
                tags={".dagster/repository": f"__repository__@{CODE_LOCATION}", "nami/from": "nami-amp run"},
            )
    except dg.Failure:
        return  # the tick, or the pipeline, knows what it was
    except DagsterExecutionInterruptedError:
        _cancel(instance, run_id)
        if guard is not None and guard.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise KeyboardInterrupt from None


def _cancel(instance: dg.DagsterInstance, run_id: str) -> None:
    """Lets a run that was interrupted between two steps, or must be given up, stand as canceled."""
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status is not dg.DagsterRunStatus.CANCELED:
        instance.report_run_canceled(run, ASKED_TO_END)


class _WithoutEventLog:
    """Standard error without what Dagster writes there when its history cannot be written; the run's error says it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Exception while writing logger call") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def dagster_home(settings: Settings) -> Path:
    """Where Dagster's history is: ``DAGSTER_HOME``, or a folder under the pipeline's home."""
    return Path(os.environ.get("DAGSTER_HOME") or settings.home / "dagster").absolute()


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Opens Dagster's history, making it where it is missing.

    Raises:
        Misconfigured: ``DAGSTER_HOME`` is no folder, or its ``dagster.yaml`` cannot be used.
        Halted: the folder cannot be written.
    """
    home = dagster_home(settings)
    if os.environ.get("DAGSTER_HOME") and not home.is_dir():
        raise Misconfigured(f"DAGSTER_HOME is {home}, which is not a folder")
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home):
            _make_settings(home / "dagster.yaml")
            instance = _open(home)
    except OSError as error:
        raise Halted(f"cannot write to {home}: {error.strerror or error}") from None
    except sa.exc.OperationalError as error:
        raise _unwritable(home, error) from None
    try:
        with instance:
            yield instance
    except sa.exc.OperationalError as error:
        raise _unwritable(home, error) from None


def _unwritable(home: Path, error: sa.exc.OperationalError) -> Halted:
    return Halted(f"Dagster's history in {home} cannot be read or written: {' '.join(str(error.orig).split())[:200]}")


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
    """Lets one process at a time make the tables: two at once leave a history that Dagster refuses to open."""
    until = time.monotonic() + OPENING_SECONDS
    with (home / ".nami-amp.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise Halted(
                        f"Dagster's history in {home} is locked by another process; the next run tries again"
                    ) from None
            time.sleep(0.05)
        yield
