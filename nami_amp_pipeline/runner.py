"""Runs a job of Dagster's in this process, so that it is in the history of all runs."""

from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from typing import Any, TextIO, cast

import dagster as dg
from dagster import DagsterExecutionInterruptedError

from nami_amp_pipeline.dagster_support.instance import CODE_LOCATION, dagster_instance
from nami_amp_pipeline.dagster_support.shutdown import ASKED_TO_END, guarded
from nami_amp_pipeline.defs.backfill_job import JOBS
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.ours import BACKFILL_TAG, STORE_TAG, store_label
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import Blocked, NamiAmpError
from nami_amp_pipeline.operations.backfills import Progress
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.backfills import Kind
from nami_amp_pipeline.state.integrations import all_integrations


@dataclass(frozen=True)
class RunReport:
    """The report of one micro-batch.

    Attributes:
        run_id: Dagster's; the run's page is ``/runs/<run_id>``.
        integrations: one object each, as ``nami-amp run --json`` prints them. ``captured``, ``delivered``, ``skipped``
            and ``dead_letters`` are of this run; ``pending``, ``watermark`` and ``lag_seconds`` are as of its end.
        problems: a line for each thing that kept events from being delivered; empty if all is well.
        error: the error that stopped a stage, such as an unreadable warehouse. The other stages still did their work.
    """

    run_id: str
    integrations: list[dict[str, Any]]
    problems: list[str]
    error: NamiAmpError | None = None

    @property
    def ok(self) -> bool:
        """Whether everything was delivered."""
        return not self.problems and not any(row["error"] for row in self.integrations)

    def to_json(self) -> dict[str, Any]:
        """The object of ``run --json``."""
        return {"run_id": self.run_id, "integrations": self.integrations}


def run_micro_batch(
    settings: Settings, integrations: Sequence[str] | None = None, *, verbose: bool = False
) -> RunReport:
    """Runs one micro-batch and waits for it.

    Args:
        settings: what was set.
        integrations: ``<app_id>/<name>`` of those to work for; None for all that are enabled.
        verbose: whether the run's log goes to standard error.

    Returns:
        The report, also if an integration or a stage failed.

    Raises:
        Misconfigured: a setting cannot be used, or one of the integrations is unknown; nothing was run.
        StoreUnavailable: the state store cannot be read or written.
        Blocked: Dagster's history cannot be written; finished work is recorded.
        KeyboardInterrupt: SIGINT asked this process to end; requests under way were recorded.
        SystemExit: SIGTERM did; with 143.
    """
    run_id = str(uuid.uuid4())
    pipeline = PipelineSession(settings, run_id)
    try:
        store = pipeline.open().store  # a missing store and unknown names are no failed run
        if integrations:
            all_integrations(store, integrations)
        with dagster_instance(settings) as instance:
            config = {
                "integrations": list(integrations or ()),
                "console_log_level": "INFO" if verbose else "CRITICAL",
            }
            _execute(instance, micro_batch, pipeline, run_id, config, {"nami/from": "nami-amp run"}, verbose)
        tick = pipeline.last_micro_batch
        if pipeline.error is not None or tick is None:
            raise pipeline.error or Blocked(f"run {run_id} did not start")
        troubles = tick.troubles
        return RunReport(run_id, tick.report(), tick.problems(), troubles[0][1] if troubles else None)
    finally:
        pipeline.close()


def run_backfill(
    settings: Settings,
    number: int,
    kind: Kind = "backfill",
    *,
    progress: Callable[[Progress], None] | None = None,
    verbose: bool = False,
) -> None:
    """Works on a backfill or an identify through Dagster, and waits for it.

    Args:
        settings: what was set.
        number: of the backfill or the identify.
        kind: which of both it is.
        progress: told how far it is, every few seconds.
        verbose: whether the run's log goes to standard error.

    Raises:
        NamiAmpError: it could not be done, or not to its end.
        KeyboardInterrupt: SIGINT asked this process to end; requests under way were recorded.
        SystemExit: SIGTERM did; with 143.
    """
    run_id = str(uuid.uuid4())
    pipeline = PipelineSession(settings, run_id)
    pipeline.progress = progress
    config = {"number": number, "console_log_level": "INFO" if verbose else "CRITICAL"}
    try:
        pipeline.open()
        with dagster_instance(settings) as instance:
            tags = {"nami/from": f"nami-amp {kind}", BACKFILL_TAG: str(number)}
            _execute(instance, JOBS[kind], pipeline, run_id, config, tags, verbose)
        if pipeline.error is not None:
            raise pipeline.error
    finally:
        pipeline.close()


def _execute(
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    pipeline: PipelineSession,
    run_id: str,
    config: dict[str, Any],
    tags: dict[str, str],
    verbose: bool,
) -> None:
    guard = None
    try:
        with (
            guarded(lambda: _cancel(instance, run_id)) as guard,
            nullcontext() if verbose else redirect_stderr(cast("TextIO", _WithoutEventLog(sys.stderr))),
        ):
            job.execute_in_process(
                run_config=config,
                instance=instance,
                resources={"pipeline": pipeline},
                run_id=run_id,
                # Shows the run on the job's page too, which lists only runs of its code location.
                tags={
                    ".dagster/repository": f"__repository__@{CODE_LOCATION}",
                    **tags,
                    STORE_TAG: store_label(pipeline.settings),
                },
            )
    except dg.Failure:
        return  # the tick, or the pipeline, knows what it was
    except DagsterExecutionInterruptedError:
        _cancel(instance, run_id)
        if guard is not None and guard.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise KeyboardInterrupt from None


def _cancel(instance: dg.DagsterInstance, run_id: str) -> None:
    """Marks a run as canceled if it was interrupted between two steps or was given up."""
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status is not dg.DagsterRunStatus.CANCELED:
        instance.report_run_canceled(run, ASKED_TO_END)


class _WithoutEventLog:
    """Filters Dagster's words about an unwritable history from standard error; the run's error reports it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Exception while writing logger call") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
