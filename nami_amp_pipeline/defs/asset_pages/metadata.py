"""Turns what a stage did into the metadata of a materialization, with how the integration stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.stages.facts import ROWS, Counts, Fact, Facts, Moment, Rows, moment
from nami_amp_pipeline.stages.stage import Stage
from nami_amp_pipeline.state.integrations import Integration

Metadata = dict[str, Any]
"""Metadata of one materialization."""

ROW_COUNT: Final = "dagster/partition_row_count"


def metadata_of(
    context: Context, stage: Stage, subjects: Sequence[Any], found: Mapping[str, Facts]
) -> dict[str, Metadata]:
    """Metadata by partition key.

    Args:
        context: the process at work.
        stage: whose work it was.
        subjects: what it worked on.
        found: facts by partition key, of the partitions to show.
    """
    made = {
        key: {ROW_COUNT if name == ROWS else name: _value(fact) for name, fact in facts.items()}
        for key, facts in found.items()
    }
    if stage.finishes_events:
        concerned = [one for one in subjects if one.partition_key in made]
        for one, now in zip(concerned, status(context, concerned) if concerned else [], strict=True):
            made[one.partition_key] |= _standing(one, now, context.run_id)
    return made


def _standing(one: Integration, now: IntegrationStatus, run_id: str) -> Metadata:
    return {
        "pending": now.pending,
        "lag_seconds": round(now.lag_seconds, 3),
        "watermark": _value(moment(now.watermark)),
        "since_the_beginning": _value(
            Counts(
                "outcome",
                {
                    "captured": now.captured,
                    "delivered": now.delivered,
                    "skipped": sum(now.skipped.values()),
                    "dead letters": sum(now.dead_letters.values()),
                    "pending": now.pending,
                },
            )
        ),
        "how_to_trace": dg.MetadataValue.md(
            "Where one event is: `nami-amp trace EVENT_ID`. Rejected events: "
            f"`nami-amp dead-letters list --integration {one.key}`. "
            f"How all integrations stand: `nami-amp status`. All of this run: [run {run_id[:8]}](/runs/{run_id})."
        ),
    }


def _value(fact: Fact) -> Any:
    if isinstance(fact, Moment):
        return dg.MetadataValue.null() if fact.at is None else dg.MetadataValue.timestamp(fact.at)
    if isinstance(fact, Counts):
        schema = dg.TableSchema([dg.TableColumn(fact.of, "text"), dg.TableColumn("count", "int")])
        records = [dg.TableRecord({fact.of: name, "count": number}) for name, number in fact.numbers.items()]
        return dg.MetadataValue.table(records, schema)
    return _table(fact.rows) if isinstance(fact, Rows) else fact


def _table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as text, so that empty fields do not change a column's type."""
    names = list(rows[0]) if rows else []
    return dg.MetadataValue.table(
        [dg.TableRecord({name: _text(row[name]) for name in names}) for row in rows],
        dg.TableSchema([dg.TableColumn(name, "text") for name in names]),
    )


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return "" if value is None else str(value)
