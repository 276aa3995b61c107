"""Previews: the first rows that a run wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nami_amp_pipeline import contract
from nami_amp_pipeline.delivery.receipts import RECEIPT_SCHEMA
from nami_amp_pipeline.stages.snapshot_sql import snapshot_schema
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA

PREVIEW_ROWS = 5


def segment_preview(path: Path, app_id: str) -> list[dict[str, Any]]:
    """A few events of an app, without their payload."""
    return _head(path, SEGMENT_SCHEMA, app_id, ["id", "event_type", "user_id", "created_date", "ingested_at"])


def snapshot_preview(path: Path, app_id: str) -> list[dict[str, Any]]:
    """A few snapshots of an app."""
    names = [prop.name for prop in contract.PROPERTIES]
    return _head(path, snapshot_schema(), app_id, ["user_id", "created_date", *names])


def created_between(paths: Sequence[Path], app_id: str) -> tuple[datetime, datetime]:
    """The earliest and the latest ``created_date`` of an app's snapshots."""
    dates = _dataset([str(path) for path in paths], schema=snapshot_schema()).to_table(
        columns=["created_date"], filter=pc.field("app_id") == app_id
    )
    found = pc.min_max(dates["created_date"]).as_py()
    return found["min"], found["max"]


@dataclass(frozen=True)
class Receipts:
    """The outcomes of the events of a few outboxes.

    Attributes:
        first, last: their earliest and latest ``created_date``.
        rows: a few of them.
    """

    first: datetime
    last: datetime
    rows: list[dict[str, Any]]


def receipt_preview(paths: Sequence[Path]) -> Receipts:
    """The first receipts, and the earliest and latest time of all of them."""
    dates = [pc.min_max(pq.read_table(path, columns=["created_date"])["created_date"]).as_py() for path in paths]
    rows = _dataset(paths[0], schema=RECEIPT_SCHEMA).head(
        PREVIEW_ROWS, columns=["id", "event_type", "user_id", "created_date", "state", "reason", "request_id"]
    )
    return Receipts(min(bounds["min"] for bounds in dates), max(bounds["max"] for bounds in dates), rows.to_pylist())


def _head(path: Path, schema: pa.Schema, app_id: str, columns: list[str]) -> list[dict[str, Any]]:
    # By today's schema: what a file of an older layout lacks is null.
    file = _dataset(path, schema=schema)
    rows = file.head(PREVIEW_ROWS, columns=columns, filter=pc.field("app_id") == app_id, batch_size=1_024)
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def _dataset(source: Any, schema: pa.Schema) -> Any:
    import pyarrow.dataset as ds  # here, for it imports pandas wherever that is installed

    return ds.dataset(source, schema=schema)
