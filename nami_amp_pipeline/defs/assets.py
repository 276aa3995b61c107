"""The four assets, for people who run one app or integration by hand, and for backfills.

Each does what the job ``micro_batch`` does, for its own partitions: what is new since the last time, under a lease, so
that a partition which a micro-batch works on at the moment is left to that.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.dagster_support.shutdown import graceful, prompt
from nami_amp_pipeline.defs.asset_pages import metadata
from nami_amp_pipeline.defs.asset_pages.columns import definition_metadata
from nami_amp_pipeline.defs.asset_pages.descriptions import DESCRIPTIONS
from nami_amp_pipeline.defs.jobs import in_one_line, incomplete
from nami_amp_pipeline.defs.partitions import app_integrations, nami_apps
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.pipeline import capture_apps, deliver_integrations, prepare_integrations, snapshot_apps
from nami_amp_pipeline.state.integrations import Integration, all_integrations, apps_with_integrations

CODE_VERSION: Final = "1"
"""Raised when the same rows would give other bytes."""


def _asset(name: str, partitions: dg.PartitionsDefinition, kinds: set[str], *deps: str) -> Callable[..., Any]:
    options: dict[str, Any] = {
        "name": name,
        "deps": list(deps),
        "partitions_def": partitions,
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "output_required": False,
        "group_name": "nami_to_amplitude",
        "owners": ["team:data-platform"],
        "kinds": kinds,
        "tags": {"domain": "subscriptions", "grain": "event"},
        "code_version": CODE_VERSION,
        "description": DESCRIPTIONS[name],
        "metadata": definition_metadata(name),
    }
    with ignore_beta_warnings():  # backfill_policy
        decorate: Callable[..., Any] = dg.asset(**options)
        return decorate


@_asset("nami_events", nami_apps, {"duckdb", "parquet"})
def nami_events(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
) -> Iterator[dg.MaterializeResult[None]]:
    """Stage 1."""
    with in_one_line(pipeline), prompt():
        opened, apps = _apps(context, pipeline)
        found = metadata.captured(opened, capture_apps(opened, apps))
    yield from _materialized(context, apps, found)


@_asset("user_property_snapshots", nami_apps, {"duckdb", "parquet"}, "nami_events")
def user_property_snapshots(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
) -> Iterator[dg.MaterializeResult[None]]:
    """Stage 2."""
    with in_one_line(pipeline), prompt():
        opened, apps = _apps(context, pipeline)
        found = metadata.snapshotted(opened, snapshot_apps(opened, apps))
    yield from _materialized(context, apps, found)


@_asset("amplitude_events", app_integrations, {"duckdb", "arrow"}, "nami_events", "user_property_snapshots")
def amplitude_events(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
) -> Iterator[dg.MaterializeResult[None]]:
    """Stage 3."""
    with in_one_line(pipeline), prompt():
        opened, chosen = _integrations(context, pipeline)
        found = metadata.prepared(opened, chosen, prepare_integrations(opened, chosen))
    yield from _materialized(context, [one.partition_key for one in chosen], found)


@_asset("amplitude_deliveries", app_integrations, {"amplitude", "parquet"}, "amplitude_events")
def amplitude_deliveries(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
) -> Iterator[dg.MaterializeResult[None]]:
    """Stage 4."""
    with in_one_line(pipeline):
        opened, chosen = _integrations(context, pipeline)
        with graceful() as stop:
            done = deliver_integrations(opened, chosen, stop=stop)
        found = metadata.delivered(opened, chosen, done)
    problems = [f"{one.key}: {done[one.id].error}" for one in chosen if one.id in done and done[one.id].error]
    if problems:
        for key, facts in found.items():
            context.log_event(dg.AssetMaterialization("amplitude_deliveries", partition=key, metadata=facts))
        raise incomplete(problems, [now for now in status(opened, chosen) if now.is_halted])
    yield from _materialized(context, [one.partition_key for one in chosen], found)


def _apps(context: dg.AssetExecutionContext, pipeline: PipelineSession) -> tuple[Context, list[str]]:
    opened = pipeline.open(context.log)
    due = set(apps_with_integrations(opened.store))
    return opened, [key for key in map(str, context.partition_keys) if key in due]


def _integrations(context: dg.AssetExecutionContext, pipeline: PipelineSession) -> tuple[Context, list[Integration]]:
    opened = pipeline.open(context.log)
    keys = set(map(str, context.partition_keys))
    return opened, [one for one in all_integrations(opened.store) if one.partition_key in keys]


def _materialized(
    context: dg.AssetExecutionContext, existing: list[str], found: Mapping[str, metadata.Facts]
) -> Iterator[dg.MaterializeResult[None]]:
    """Marks the partitions of this run as up to date, unless none of them is of an integration that exists."""
    if not existing:
        context.log.info("no integration that is switched on has these partitions; nothing to do")
        return
    for key in existing:
        context.add_asset_metadata(found.get(key, {metadata.ROW_COUNT: 0}), partition_key=key)
    yield dg.MaterializeResult()


ASSETS: Final = (nami_events, user_property_snapshots, amplitude_events, amplitude_deliveries)
"""In the order in which an event passes them."""
