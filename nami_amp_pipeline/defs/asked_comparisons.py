"""The sensor ``asked_comparisons``: starts the comparisons that people asked for in the Control Center."""

from collections.abc import Callable
from typing import Final

import dagster as dg

from nami_amp_pipeline.defs.ours import DEFAULT, RECONCILE, STORE_TAG, UNDER_WAY, Place, store_label
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.state import comparison_requests

SENSOR: Final = "asked_comparisons"
TAG: Final = "nami_amp/comparison"
"""Of a run, with the integration and the day."""


def build_asked_comparisons(place: Place = DEFAULT) -> dg.SensorDefinition:
    """The sensor; a comparison that was asked for, and that no run works on, gets a run of the job."""

    def look(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            store = pipeline.store_if_any()
            if store is None:
                return dg.SkipReason("there is no state store yet")
            asked = comparison_requests.open_ones(store)
        except NamiAmpError as error:
            return dg.SkipReason(str(error))
        requests = []
        for each in asked:
            tags = {TAG: f"{each.integration.replace('/', '|')} {each.date}"}
            mine = {**tags, STORE_TAG: store_label(pipeline.settings)}
            if context.instance.get_run_records(dg.RunsFilter(tags=mine, statuses=UNDER_WAY), limit=1):
                continue
            config = {"integrations": [each.integration], "first_day": each.date}
            ops = {place.name("compare_days"): {"config": config}}
            requests.append(dg.RunRequest(run_config={"ops": ops}, tags=tags))
        return dg.SensorResult(run_requests=requests) if requests else dg.SkipReason("no comparison is asked for")

    decorate: Callable[..., dg.SensorDefinition] = dg.sensor(
        job_name=place.name(RECONCILE),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        name=place.name(SENSOR),
        description="Starts the comparisons with what Amplitude holds that people asked for in the Control Center.",
    )
    return decorate(place.owned(look))


asked_comparisons = build_asked_comparisons()
