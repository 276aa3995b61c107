"""Turns what a stage did into the metadata of a materialization, with how the integration stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.defs.asset_pages.standing_page import NAMES, how_to_trace, partition_of
from nami_amp_pipeline.defs.asset_pages.standing_page import facts as facts_of
from nami_amp_pipeline.defs.ours import DEFAULT, Place
from nami_amp_pipeline.operations.standing import Standing
from nami_amp_pipeline.stages.facts import FROM, ROWS, TO, Counts, Fact, Facts, Moment, Rows, moment
from nami_amp_pipeline.stages.stage import Stage

Metadata = dict[str, Any]
"""Metadata of one materialization."""

ROW_COUNT: Final = "dagster/partition_row_count"


WHAT: Final = "what"
"""Metadata of a delivery: whether it was of what is new, or a backfill."""

WHAT_IS_NEW: Final = "what is new"

_LOOKED_AT = 20
"""So many materializations are looked through for the newest that is no backfill's."""


def metadata_of(
    context: Context,
    stage: Stage,
    standings: Sequence[Standing],
    found: Mapping[str, Facts],
    place: Place = DEFAULT,
) -> dict[str, Metadata]:
    """Metadata by partition key.

    Args:
        context: the process at work.
        stage: whose work it was.
        standings: how the integrations stand that it worked for, if events end in it.
        found: facts by partition key, of the partitions to show.
        place: of the pipeline.
    """
    made = {
        key: {ROW_COUNT if name == ROWS else name: _value(fact) for name, fact in facts.items()}
        for key, facts in found.items()
    }
    for standing in standings:
        if partition_of(standing) in made:
            made[partition_of(standing)] |= standing_facts(standing, context.run_id, place)
    return made


def _is_of_backfill(made: dg.AssetMaterialization) -> bool:
    return WHAT in made.metadata and made.metadata[WHAT].value != WHAT_IS_NEW


def again(
    instance: dg.DagsterInstance,
    stage: Stage,
    partition: str,
    fresh: Metadata | None = None,
    place: Place = DEFAULT,
) -> dg.AssetMaterialization:
    """A materialization of a partition with nothing new: with the facts of what it was before, so that none is wiped.

    Args:
        instance: of Dagster.
        stage: whose asset.
        partition: which.
        fresh: facts that are of now.
        place: of the pipeline.
    """
    filters = dg.AssetRecordsFilter(asset_key=place.key(stage.asset), asset_partitions=[partition])
    records = instance.fetch_materializations(filters, limit=_LOOKED_AT).records
    known = [made for record in records if (made := record.asset_materialization) is not None]
    before = next((made for made in known if not _is_of_backfill(made)), None)
    facts: Metadata = dict(before.metadata) if before is not None else {ROW_COUNT: 0}
    for name in (*NAMES, "error") if fresh else ():
        facts.pop(name, None)
    if TO in facts:  # where the other one ended, and nothing since
        facts[FROM] = facts[TO]
    now = dg.MetadataValue.timestamp(datetime.now(UTC))
    return dg.AssetMaterialization(
        place.key(stage.asset), partition=partition, metadata={**facts, **(fresh or {}), "nothing_new_at": now}
    )


def standing_facts(standing: Standing, run_id: str, place: Place = DEFAULT) -> Metadata:
    """How an integration stands, what became of its events so far, and where to look further."""
    now = standing.numbers
    return {
        WHAT: WHAT_IS_NEW,
        **facts_of(standing),
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
        "did_it_arrive": how_to_trace(standing, place),
        "run": dg.MetadataValue.md(f"[{run_id[:8]}](/runs/{run_id}): everything that this run did"),
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
