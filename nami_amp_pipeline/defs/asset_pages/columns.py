"""The columns of each asset, and which columns they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dagster as dg
import pyarrow as pa

from nami_amp_pipeline import contract
from nami_amp_pipeline.delivery.receipts import RECEIPT_SCHEMA
from nami_amp_pipeline.stages.prepare import OUTBOX_SCHEMA
from nami_amp_pipeline.stages.snapshot_sql import snapshot_schema
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA

_MEANINGS: Final[Mapping[str, str]] = {
    "id": "Nami's event id; becomes Amplitude's insert_id",
    "app_id": "the Nami app",
    "event_type": "Nami's name of the event",
    "user_id": "Nami's user id",
    "created_date": "when Nami created the event; the order of a user's life",
    "ingested_at": "when the row was loaded; the order in which rows are read",
    "payload": "the whole event as Nami's webhook sends it",
    "well_formed": "whether the payload is a JSON object; if not, the event becomes a dead letter",
    "row": "the event's number in its segment",
    "identity": "whom Amplitude sees: u: and a user id, or d: and a device id",
    "state": "what became, or is to become, of the event",
    "reason": "why it was skipped or refused",
    "body": "the event as it is posted, behind a comma",
    "request_id": "the request that brought it to Amplitude, in the store's requests",
    "truncated_arrays": f"arrays cut to the {contract.ARRAY_CHARACTERS:,} characters that Amplitude keeps",
    "former_subscriber": "Nami's flag; the property also needs that no entitlement is active",
    "has_entitlements": "the event itself carries entitlements; otherwise they are those of an earlier one",
    "has_devices": "the event itself carries devices",
    "has_journey": "the event itself carries the customer journey",
    **{one.name: one.means for one in contract.PROPERTIES},
}


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """The columns of an Arrow schema for people."""
    return dg.TableSchema([dg.TableColumn(field.name, str(field.type), _MEANINGS.get(field.name)) for field in schema])


def _lineage(columns: Mapping[str, tuple[tuple[str, str], ...]]) -> dg.TableColumnLineage:
    return dg.TableColumnLineage(
        {
            name: [dg.TableColumnDep(dg.AssetKey(asset), column) for asset, column in sources]
            for name, sources in columns.items()
        }
    )


def _same(asset: str, *names: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {name: ((asset, name),) for name in names}


SCHEMAS: Final[Mapping[str, pa.Schema]] = {
    "nami_events": SEGMENT_SCHEMA,
    "user_property_snapshots": snapshot_schema(),
    "amplitude_events": OUTBOX_SCHEMA,
    "amplitude_deliveries": RECEIPT_SCHEMA,
}

_LINEAGE: Final[Mapping[str, dg.TableColumnLineage]] = {
    "user_property_snapshots": _lineage(
        {
            **_same("nami_events", "app_id", "id", "user_id", "created_date"),
            **dict.fromkeys((one.name for one in contract.PROPERTIES), (("nami_events", "payload"),)),
        }
    ),
    "amplitude_events": _lineage(
        {
            **_same("nami_events", "id", "event_type", "user_id", "created_date"),
            "identity": (("nami_events", "user_id"), ("nami_events", "payload")),
            "body": (
                ("nami_events", "payload"),
                *(("user_property_snapshots", one.name) for one in contract.PROPERTIES),
            ),
        }
    ),
    "amplitude_deliveries": _lineage(
        _same("amplitude_events", "id", "event_type", "user_id", "identity", "created_date", "state", "reason")
    ),
}


def definition_metadata(asset: str) -> dict[str, Any]:
    """Columns and where they come from, as an asset's definition shows them."""
    found: dict[str, Any] = {"dagster/column_schema": column_schema(SCHEMAS[asset])}
    if asset in _LINEAGE:
        found["dagster/column_lineage"] = _LINEAGE[asset]
    return found
