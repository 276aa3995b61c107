"""Keeps the partitions in step with the integrations, without a reload."""

import dagster as dg

from nami_amp_pipeline.defs.partitions import missing_partitions, orphaned_partitions
from nami_amp_pipeline.defs.resources import Pipeline
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.state.integrations import all_integrations


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Adds a partition for each new app and integration, and removes those of which no integration is left. Starts "
        "no run."
    ),
)
def integration_partitions(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.SensorResult | dg.SkipReason:
    """Compares the partitions with the integrations of the store."""
    try:
        store = pipeline.store_if_any()
        integrations = all_integrations(store) if store is not None else []
    except NamiAmpError as error:
        return dg.SkipReason(str(error))
    missing = missing_partitions(context.instance, integrations)
    orphaned = orphaned_partitions(context.instance, integrations)
    if not missing and not orphaned:
        return dg.SkipReason(f"the partitions are those of the {len(integrations)} integrations")
    return dg.SensorResult(
        dynamic_partitions_requests=[
            *(dg.AddDynamicPartitionsRequest(name, keys) for name, keys in missing.items()),
            *(dg.DeleteDynamicPartitionsRequest(name, keys) for name, keys in orphaned.items()),
        ]
    )
