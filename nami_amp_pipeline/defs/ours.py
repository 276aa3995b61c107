"""What is this pipeline's of a Dagster that may serve others too: names of jobs, their tag, and the assets."""

from __future__ import annotations

from typing import Final

import dagster as dg

from nami_amp_pipeline.dagster_support.run_history import Ours
from nami_amp_pipeline.stages.table import STAGES

MICRO_BATCH: Final = "micro_batch"
RETENTION: Final = "retention"

JOB_TAG: Final = "nami/job"
"""Every run of our jobs has it, with the job's name; ``dagster.yaml`` lets one ``micro_batch`` run at a time by it."""

OURS: Final = Ours(
    tag=JOB_TAG, jobs=frozenset({MICRO_BATCH, RETENTION}), assets=frozenset(dg.AssetKey(one.asset) for one in STAGES)
)
