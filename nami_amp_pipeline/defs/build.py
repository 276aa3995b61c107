"""All definitions of one pipeline, for its place in a code location."""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg

from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.defs import backfill_job, reconciliation
from nami_amp_pipeline.defs.alert_sensors import build_alert_sensors
from nami_amp_pipeline.defs.asked_comparisons import build_asked_comparisons
from nami_amp_pipeline.defs.assets import build_asset
from nami_amp_pipeline.defs.checks import build_checks
from nami_amp_pipeline.defs.delivery_report import build_report
from nami_amp_pipeline.defs.jobs import build_micro_batch
from nami_amp_pipeline.defs.ours import Place, loaded_settings
from nami_amp_pipeline.defs.resources import resource_of
from nami_amp_pipeline.defs.retention_job import build_hourly, build_retention
from nami_amp_pipeline.defs.schedules import build_schedule
from nami_amp_pipeline.defs.sensors import build_sensors
from nami_amp_pipeline.defs.steps import Execute, at_once
from nami_amp_pipeline.defs.trace_job import build_trace
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.stages.table import STAGES

Respec = Callable[[dg.AssetSpec], dg.AssetSpec]
"""Gives the spec of an asset for the one that it would have."""


def build_definitions(place: Place, execute: Execute = at_once, respec: Respec = lambda spec: spec) -> dg.Definitions:
    """The assets in the order in which an event passes them, and what drives them.

    No executor is among them, and of resources only our own.

    Args:
        place: of the pipeline.
        execute: does a step.
        respec: may change what an asset says of itself, but its key.

    Raises:
        Misconfigured: ``respec`` changed a key.
    """
    job, retention = build_micro_batch(place=place, execute=execute), build_retention(place)
    reconcile = reconciliation.build_job(place)
    partitions, early, lost = build_sensors(place)
    assets = [
        *(build_asset(stage, place, execute) for stage in STAGES),
        build_report(place),
        reconciliation.build_asset(place),
    ]
    with ignore_beta_warnings():
        changed = [asset.map_asset_specs(_checked(respec)) for asset in assets]
    starts = [build_schedule(loaded_settings(place), place, job)] if place.is_scheduled else []
    return dg.Definitions(
        assets=changed,
        asset_checks=[*build_checks(place), reconciliation.build_check(place)],
        jobs=[
            job,
            *(backfill_job.build_job(kind, place) for kind in backfill_job.JOBS),
            retention,
            build_trace(place),
            reconcile,
        ],
        schedules=[*starts, build_hourly(place, retention), reconciliation.build_daily(place, reconcile)],
        sensors=[
            partitions,
            *([early] if place.is_scheduled else []),
            lost,
            *(backfill_job.build_unattended(kind, place) for kind in backfill_job.JOBS),
            build_asked_comparisons(place),
            *build_alert_sensors(place),
        ],
        resources={place.resource: resource_of(place)},
    )


def _checked(respec: Respec) -> Respec:
    def checked(spec: dg.AssetSpec) -> dg.AssetSpec:
        changed = respec(spec)
        if changed.key != spec.key:
            raise Misconfigured(
                f"get_asset_spec gave {spec.key.to_user_string()} the key {changed.key.to_user_string()}: use the "
                "attribute asset_key_prefix, which the checks, jobs and partitions follow"
            )
        return changed

    return checked
