"""What ops and assets are given: the settings, and the store, files and warehouse opened when first asked for."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import dagster as dg

from nami_amp_pipeline.clock import Clock, system_clock
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store
from nami_amp_pipeline.state.heartbeat import Heartbeat

NO_RUN: Final = "none"


class PipelineSession:
    """A run's way to the pipeline.

    Args:
        settings: read from the environment when first needed, where not given.
        run_id: Dagster's.
        clock: what time it is.

    Attributes:
        error: what ended a step, for a caller in the same process.
    """

    def __init__(self, settings: Settings | None = None, run_id: str = NO_RUN, clock: Clock = system_clock) -> None:
        self._settings = settings
        self._clock = clock
        self._run_id = run_id
        self._context: Context | None = None
        self._micro_batch: MicroBatch | None = None
        self._heartbeat: Heartbeat | None = None
        self.error: NamiAmpError | None = None

    @property
    def settings(self) -> Settings:
        """What was set.

        Raises:
            Misconfigured: a setting cannot be used.
        """
        if self._settings is None:
            self._settings = Settings.load()
        return self._settings

    def open(self, log: logging.Logger | None = None) -> Context:
        """The context of this run; the same each time.

        Args:
            log: where progress goes from now on.

        Raises:
            Misconfigured: a setting cannot be used.
            StoreUnavailable: the store cannot be reached.
        """
        if self._context is None:
            self._context = Context.open(self.settings, run_id=self._run_id, clock=self._clock)
            if self._run_id != NO_RUN:
                self._heartbeat = Heartbeat(self._context.store, self._run_id)
                self._heartbeat.start()
        if log is not None:
            self._context.log = log
        return self._context

    def micro_batch(self, keys: Sequence[str], log: logging.Logger) -> MicroBatch:
        """The micro-batch of this run, begun by whichever stage comes first.

        Args:
            keys: the integrations to work for; none means all.
            log: where progress goes from now on.
        """
        context = self.open(log)
        if self._micro_batch is None:
            self._micro_batch = MicroBatch.begin(context, keys or None)
        return self._micro_batch

    @property
    def last_micro_batch(self) -> MicroBatch | None:
        """The micro-batch of this run, if one was begun."""
        return self._micro_batch

    def store_if_any(self) -> Store | None:
        """The store, unless it is a file that nothing was ever written to; for those who only look."""
        if self._context is None:
            url = self.settings.state_url
            if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
                return None
        return self.open().store

    def close(self) -> None:
        """Gives the store's connections back."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self._context is not None:
            self._context.store.close()
            self._context = None


class PipelineResource(dg.ConfigurableResource[PipelineSession]):
    """The pipeline as ``NAMI_AMP_…`` in the environment (or ``.env``) describes it.

    It has no fields: what it needs are addresses and keys, which have no place in run config, and are read inside the
    run.
    """

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[PipelineSession]:
        """Opens nothing yet; closes what was opened."""
        pipeline = self.create_resource(context)
        try:
            yield pipeline
        finally:
            pipeline.close()

    def create_resource(self, context: dg.InitResourceContext) -> PipelineSession:
        """A way to the pipeline for the run that is about to start."""
        return PipelineSession(run_id=context.run.run_id if context.run is not None else NO_RUN)
