"""The asset ``delivery_report``: all integrations in one table, as of the end of the last micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.alerts.kinds import partition_page
from nami_amp_pipeline.clock import from_datetime, to_text
from nami_amp_pipeline.defs.asset_pages.standing_page import DELIVERIES, commands_as_code, is_in_trouble, partition_of
from nami_amp_pipeline.defs.kept_up import kept_up_to_date
from nami_amp_pipeline.defs.ours import REPORT
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.operations.standing import Standing, standings

MOST_ROWS: Final = 100
"""Rows of the table: it stands in Dagster's history once for each micro-batch."""

MOST_PLOTTED: Final = 20
"""Integrations with numbers of their own, which Dagster plots."""

_COLUMNS: Final = {
    "integration": "string", "state": "string", "needs_you": "string", "since": "string", "why": "string",
    "what_to_do": "string", "next_try": "string", "pending": "int", "whose": "string", "rejected": "int",
    "delivered": "int", "skipped": "int", "dead_letters": "int", "lag_seconds": "float",
}  # fmt: skip


def report(found: Sequence[Standing]) -> dict[str, Any]:
    """The metadata of the report.

    Numbers whose names end in ``_total`` are sums over all integrations; those with the name of an integration are of
    it alone. Dagster plots each.

    Args:
        found: all integrations.
    """
    order = sorted(found, key=lambda one: (not one.needs_you, not is_in_trouble(one), one.integration))
    you = [one for one in order if one.needs_you]
    facts: dict[str, Any] = {
        "verdict": _verdict(len(you), len(found)),
        "integrations": _table(order),
        "integrations_total": len(found),
        "needs_you_total": len(you),
        "pending_total": sum(one.pending for one in found),
        "rejected_total": sum(one.rejected for one in found),
        "delivered_total": sum(one.numbers.delivered for one in found),
        "skipped_total": sum(sum(one.numbers.skipped.values()) for one in found),
        "dead_letters_total": sum(sum(one.numbers.dead_letters.values()) for one in found),
        "lag_seconds_of_the_latest": max((round(one.lag_seconds, 3) for one in found), default=0.0),
    }
    trouble = [one for one in order if is_in_trouble(one)]
    if trouble:
        facts["what_is_wrong"] = dg.MetadataValue.md("\n".join(map(_in_a_line, trouble[:MOST_PLOTTED])))
    if len(order) > MOST_ROWS:
        facts["more"] = f"{len(order) - MOST_ROWS:,} more integrations: nami-amp status"
    for one in sorted(order[:MOST_PLOTTED], key=lambda one: one.integration):
        facts[f"pending of {one.integration}"] = one.pending
        facts[f"delivered of {one.integration}"] = one.numbers.delivered
    return facts


def _verdict(you: int, everybody: int) -> str:
    if not everybody:
        return "There is no integration yet: nami-amp integrations add"
    return f"{you:,} of {everybody:,} integration{'s' * (everybody != 1)} need{'s' * (you == 1)} you"


def _in_a_line(one: Standing) -> str:
    page = partition_page(DELIVERIES.to_user_string(), partition_of(one))
    said = commands_as_code(one.in_a_line.removeprefix(one.integration))
    return f"- [{partition_of(one)}]({page}){said}"


def _table(order: Sequence[Standing]) -> dg.TableMetadataValue:
    records = [
        dg.TableRecord(
            {
                "integration": one.integration,
                "state": one.called,
                "needs_you": "yes" if one.needs_you else "",
                "since": to_text(from_datetime(one.since)) or "" if one.since else "",
                "why": one.why,
                "what_to_do": one.what_to_do or "",
                "next_try": to_text(from_datetime(one.next_try)) or "" if one.next_try else "",
                "pending": one.pending,
                "whose": ", ".join(one.whose),
                "rejected": one.rejected,
                "delivered": one.numbers.delivered,
                "skipped": sum(one.numbers.skipped.values()),
                "dead_letters": sum(one.numbers.dead_letters.values()),
                "lag_seconds": round(one.lag_seconds, 3),
            }
        )
        for one in order[:MOST_ROWS]
    ]
    return dg.MetadataValue.table(
        records, dg.TableSchema([dg.TableColumn(name, kind) for name, kind in _COLUMNS.items()])
    )


def materialization(found: Sequence[Standing]) -> dg.AssetMaterialization:
    """What a micro-batch logs."""
    return dg.AssetMaterialization(REPORT, metadata=report(found))


@dg.asset(
    name=REPORT,
    deps=[DELIVERIES],
    group_name="nami_to_amplitude",
    owners=["team:data-platform"],
    kinds={"report"},
    tags={"domain": "subscriptions", "grain": "integration"},
    code_version="1",
    description=f"""
{kept_up_to_date("each micro-batch refreshes it")}

All integrations in one table: state, since when, why, what to do, how many events wait and whose, and all counts.
It has no partitions.

- **Who needs me?** `verdict` and `what_is_wrong` of the newest materialization; each line there leads to the partition.
- **Plots**: numbers that end in `_total` are sums over all integrations; the others are of one integration each.
- `nami-amp status` says the same. Running it again is always safe.
""",
)
def delivery_report(pipeline: dg.ResourceParam[PipelineSession]) -> dg.MaterializeResult[None]:
    """All integrations as they stand now."""
    return dg.MaterializeResult(metadata=report(standings(pipeline.open())))
