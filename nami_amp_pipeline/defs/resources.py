"""What ops and assets are given: the settings, and the store, files and warehouse opened when first asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import dagster as dg

from nami_amp_pipeline.clock import Clock, system_clock
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.defs.ours import DEFAULT, Place
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations.backfills import Progress
from nami_amp_pipeline.operations.shards import Shard
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
        place: of the pipeline; it says where the settings are.

    Attributes:
        error: what ended a step, for a caller in the same process.
        progress: told how far a backfill is, where the caller in the same process wants to know.
        backfill: the number of the backfill that the run worked on.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        run_id: str = NO_RUN,
        clock: Clock = system_clock,
        place: Place = DEFAULT,
    ) -> None:
        self._settings = settings
        self._place = place
        self._clock = clock
        self._run_id = run_id
        self._context: Context | None = None
        self._micro_batch: MicroBatch | None = None
        self._heartbeat: Heartbeat | None = None
        self.error: NamiAmpError | None = None
        self.progress: Callable[[Progress], None] | None = None
        self.backfill: int | None = None

    @property
    def settings(self) -> Settings:
        """What was set.

        Raises:
            Misconfigured: a setting cannot be used.
        """
        if self._settings is None:
            self._settings = self._place.settings()
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

    def micro_batch(self, keys: Sequence[str], shard: str, log: logging.Logger) -> MicroBatch:
        """The micro-batch of this run, begun by whichever stage comes first.

        Args:
            keys: the integrations to work for; none means all.
            shard: the share of the apps to work for, such as ``2/4``; empty means all.
            log: where progress goes from now on.
        """
        context = self.open(log)
        if self._micro_batch is None:
            self._micro_batch = MicroBatch.begin(context, keys or None, Shard.parse(shard))
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
    """The pipeline as the variables `NAMI_AMP_…` of the environment, or of a file `.env`, describe it.

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
        return self.session(context.run.run_id if context.run is not None else NO_RUN)

    def session(self, run_id: str) -> PipelineSession:
        """A way to the pipeline for a run."""
        return PipelineSession(run_id=run_id)


def resource_of(place: Place) -> PipelineResource:
    """The resource of a pipeline. It has no fields either."""
    if place == DEFAULT:
        return PipelineResource()

    class PlacedResource(PipelineResource):
        """The pipeline as its component and the environment describe it."""

        def session(self, run_id: str) -> PipelineSession:
            """A way to the pipeline for a run."""
            return PipelineSession(run_id=run_id, place=place)

    return PlacedResource()
