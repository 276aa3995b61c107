import dagster as dg

from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.operations.frames import Frames

INTEGRATIONS = dg.DynamicPartitionsDefinition(name="nami_app_integrations")
EAGER = dg.AutomationCondition.eager()


def read_up_to(context, asset):
    wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[context.partition_key])
    found = context.instance.fetch_materializations(wanted, limit=1).records
    return found[0].asset_materialization.metadata["nami/to"].value if found else 0


@dg.asset(deps=["amplitude_deliveries"], partitions_def=INTEGRATIONS, automation_condition=EAGER)
def trials(context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineSession]):
    first, last = read_up_to(context, "trials"), read_up_to(context, "amplitude_deliveries")
    with Frames(pipeline.settings) as frames:
        key = context.partition_key.replace("|", "/")
        new = frames.events(integration=key, after=first, upto=last).to_arrow()
    began = new["event_type"].to_pylist().count("user.journey.trial.started")
    return dg.MaterializeResult(metadata={"nami/to": last, "events": new.num_rows, "trials": began})
