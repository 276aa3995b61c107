"""The asset ``delivery_report``: all integrations in one table, as of the end of the last micro-batch."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.alerts.kinds import integration_page
from nami_amp_pipeline.clock import from_datetime, to_text
from nami_amp_pipeline.defs.asset_pages.standing_page import (
    DELIVERIES,
    commands_as_code,
    is_in_trouble,
    partition_of,
)
from nami_amp_pipeline.defs.failures import in_one_line
from nami_amp_pipeline.defs.kept_up import kept_up_to_date
from nami_amp_pipeline.defs.ours import DEFAULT, REPORT, Place
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.operations.overview import unreadable
from nami_amp_pipeline.operations.standing import Standing, standings

MOST_ROWS: Final = 100
"""Rows of the table: it stands in Dagster's history once for each micro-batch."""

MOST_PLOTTED: Final = 20
"""Integrations with numbers of their own, which Dagster plots."""

_COLUMNS: Final = {
    "integration": "string", "state": "string", "needs_you": "string", "since": "string", "why": "string",
    "what_to_do": "string", "next_try": "string", "pending": "int", "whose": "string", "rejected": "int",
    "dismissed": "int", "delivered": "int", "skipped": "int", "dead_letters": "int", "lag_seconds": "float",
}  # fmt: skip


def report(found: Sequence[Standing], warehouse: str = "", place: Place = DEFAULT) -> dict[str, Any]:
    """The metadata of the report.

    Numbers whose names end in ``_total`` are sums over all integrations; those with the name of an integration are of
    it alone. Dagster plots each.

    Args:
        found: all integrations.
        warehouse: why it cannot be read, in a clause that begins so; empty if it can.
        place: of the pipeline.
    """
    order = sorted(
        found, key=lambda standing: (not standing.needs_you, not is_in_trouble(standing), standing.integration)
    )
    you = [standing for standing in order if standing.needs_you]
    facts: dict[str, Any] = {
        "verdict": _verdict(len(you), len(found)) + (", and the warehouse cannot be read" if warehouse else ""),
        **({"what is wrong with the warehouse": _of_warehouse(warehouse)} if warehouse else {}),
        # An entry each: Dagster hides a long Markdown text behind a button.
        **{
            f"what is wrong with {standing.integration}": dg.MetadataValue.md(_in_a_line(standing, place))
            for standing in order[:MOST_PLOTTED]
            if is_in_trouble(standing)
        },
        "integrations": _table(order),
        "integrations_total": len(found),
        "needs_you_total": len(you),
        "pending_total": sum(standing.pending for standing in found),
        "rejected_total": sum(standing.rejected for standing in found),
        "dismissed_total": sum(standing.dismissed for standing in found),
        "delivered_total": sum(standing.numbers.delivered for standing in found),
        "skipped_total": sum(sum(standing.numbers.skipped.values()) for standing in found),
        "dead_letters_total": sum(sum(standing.numbers.dead_letters.values()) for standing in found),
        "lag_seconds_of_the_latest": max((round(standing.lag_seconds, 3) for standing in found), default=0.0),
    }
    if len(order) > MOST_ROWS:
        facts["more"] = f"{len(order) - MOST_ROWS:,} more integrations, which 'nami-amp status' shows"
    for standing in sorted(order[:MOST_PLOTTED], key=lambda standing: standing.integration):
        facts[f"pending of {standing.integration}"] = standing.pending
        facts[f"delivered of {standing.integration}"] = standing.numbers.delivered
    return facts


def _verdict(you: int, everybody: int) -> str:
    if not everybody:
        return "There is no integration yet: 'nami-amp integrations add' adds one"
    return f"{you:,} of {everybody:,} integration{'s' * (everybody != 1)} need{'s' * (you == 1)} you"


def _of_warehouse(why: str) -> dg.MarkdownMetadataValue:
    said = why.rstrip(".")
    return dg.MetadataValue.md(
        f"It {said}. `nami-amp doctor` says what is wrong with it. What was read goes on being delivered."
    )


def _in_a_line(standing: Standing, place: Place) -> str:
    page = integration_page(partition_of(standing), place.page(DELIVERIES))
    said = commands_as_code(standing.in_a_line.removeprefix(standing.integration))
    return f"[{partition_of(standing)}]({page}){said}"


def _table(order: Sequence[Standing]) -> dg.TableMetadataValue:
    records = [
        dg.TableRecord(
            {
                "integration": standing.integration,
                "state": standing.called,
                "needs_you": "yes" if standing.needs_you else "",
                "since": to_text(from_datetime(standing.since)) or "" if standing.since else "",
                "why": standing.why,
                "what_to_do": standing.what_to_do or "",
                "next_try": to_text(from_datetime(standing.next_try)) or "" if standing.next_try else "",
                "pending": standing.pending,
                "whose": standing.whose_in_words,
                "rejected": standing.rejected,
                "dismissed": standing.dismissed,
                "delivered": standing.numbers.delivered,
                "skipped": sum(standing.numbers.skipped.values()),
                "dead_letters": sum(standing.numbers.dead_letters.values()),
                "lag_seconds": round(standing.lag_seconds, 3),
            }
        )
        for standing in order[:MOST_ROWS]
    ]
    return dg.MetadataValue.table(
        records, dg.TableSchema([dg.TableColumn(name, kind) for name, kind in _COLUMNS.items()])
    )


def materialization(found: Sequence[Standing], warehouse: str = "", place: Place = DEFAULT) -> dg.AssetMaterialization:
    """What a micro-batch logs; see :func:`report`."""
    return dg.AssetMaterialization(place.key(REPORT), metadata=report(found, warehouse, place))


def build_report(place: Place = DEFAULT) -> dg.AssetsDefinition:
    """The asset."""

    def delivery_report(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.MaterializeResult[None]:
        """All integrations as they stand now."""
        with in_one_line(pipeline):
            opened = pipeline.open()
            return dg.MaterializeResult(metadata=report(standings(opened), unreadable(opened), place))

    decorate: Callable[..., dg.AssetsDefinition] = dg.asset(
        key=place.key(REPORT),
        deps=[place.key(DELIVERIES)],
        group_name=place.group,
        owners=list(place.owners),
        kinds={"report"},
        tags={"domain": "subscriptions", "grain": "integration"},
        code_version="1",
        description=f"""
{kept_up_to_date("each micro-batch refreshes it", place)}

All integrations in one table: state, since when, why, what to do, how many events wait and whose, and all counts.
It has no partitions.

- **Who needs me?** The verdict of the newest materialization, and a line for each integration with trouble, which leads
  to its partition.
- **Plots**: numbers that end in `_total` are sums over all integrations; the others are of one integration each.
- **Did an event arrive?** [Ask here]({place.ask}): the launchpad of the job `trace`. Give an event id or a user, and
  launch.
- `nami-amp status` says the same. Running it again is always safe.
""",
    )
    return decorate(place.owned(delivery_report))


delivery_report = build_report()
