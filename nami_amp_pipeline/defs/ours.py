"""What is this pipeline's of a Dagster that may serve others too: names of jobs, their tag, and the assets."""

from __future__ import annotations

import hashlib
import logging
import socket
from pathlib import Path
from typing import Final

import dagster as dg
import sqlalchemy as sa

from nami_amp_pipeline.dagster_support.run_history import Ours
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages.table import STAGES

LOG: Final = logging.getLogger("nami_amp_pipeline.schedules")

MICRO_BATCH: Final = "micro_batch"
RETENTION: Final = "retention"
SCHEDULE: Final = "micro_batch_schedule"
REPORT: Final = "delivery_report"

JOB_TAG: Final = "nami/job"
"""Every run of our jobs has it, with the job's name; ``dagster.yaml`` lets one ``micro_batch`` run at a time by it."""

STORE_TAG: Final = "nami/store"
"""Every run of our jobs has it. Several code locations of one Dagster may load this pipeline: those with a store in
common leave a micro-batch to each other, and those with stores of their own do not."""


def loaded_settings() -> Settings:
    """The settings; the defaults where one cannot be used, so that the code loads and the run says what is wrong."""
    try:
        return Settings.load()
    except Misconfigured as error:
        LOG.warning("%s; until then the schedule and the sensors keep their default times", error)
        return Settings()


def store_label(settings: Settings) -> str:
    """A short name of the state store, the same for all who use it, that tells nothing of its address."""
    url = sa.make_url(settings.state_url)
    where = f"{url.host}:{url.port}/{url.database}"
    if url.drivername.startswith("sqlite"):
        where = f"{socket.gethostname()}:{Path(url.database or '').absolute()}"
    return hashlib.sha256(where.encode()).hexdigest()[:12]


OURS: Final = Ours(
    tag=JOB_TAG,
    jobs=frozenset({MICRO_BATCH, RETENTION}),
    assets=frozenset(dg.AssetKey(name) for name in (*(stage.asset for stage in STAGES), REPORT)),
)
