"""What Dagster loads. Loading reads no store, warehouse or network, and needs no setting."""

from __future__ import annotations

import dagster as dg

from nami_amp_pipeline.defs.alert_sensors import alerts, failed_runs
from nami_amp_pipeline.defs.assets import ASSETS
from nami_amp_pipeline.defs.checks import asset_checks
from nami_amp_pipeline.defs.delivery_report import delivery_report
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.resources import PipelineResource
from nami_amp_pipeline.defs.retention_job import retention, retention_hourly
from nami_amp_pipeline.defs.schedules import micro_batch_schedule
from nami_amp_pipeline.defs.sensors import early_micro_batch, integration_partitions, lost_runs_sensor


@dg.definitions
def defs() -> dg.Definitions:
    """All of it: the assets in the order in which an event passes them, and what drives them."""
    return dg.Definitions(
        assets=[*ASSETS, delivery_report],
        asset_checks=asset_checks,
        jobs=[micro_batch, retention],
        schedules=[micro_batch_schedule, retention_hourly],
        sensors=[integration_partitions, early_micro_batch, lost_runs_sensor, alerts, failed_runs],
        resources={"pipeline": PipelineResource()},
        executor=dg.in_process_executor,  # a process for each step would cost seconds, and stages share their files
    )
