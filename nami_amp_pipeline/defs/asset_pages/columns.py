"""The columns of each asset, and which columns they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dagster as dg
import pyarrow as pa

from nami_amp_pipeline import contract
from nami_amp_pipeline.defs.ours import DEFAULT, Place
from nami_amp_pipeline.stages.stage import Stage

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
    "reason": "why it was skipped or rejected",
    "body": "the event as it is posted, behind a comma",
    "request_id": "the request that brought it to Amplitude, in the store's requests",
    "truncated_arrays": f"arrays cut to the {contract.ARRAY_CHARACTERS:,} characters that Amplitude keeps",
    "former_subscriber": "Nami's flag; the property also needs that no entitlement is active",
    "has_entitlements": "the event itself carries entitlements; otherwise they are those of an earlier one",
    "has_devices": "the event itself carries devices",
    "has_journey": "the event itself carries the customer journey",
    **{prop.name: prop.means for prop in contract.PROPERTIES},
}


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """The columns of an Arrow schema for people."""
    return dg.TableSchema([dg.TableColumn(field.name, str(field.type), _MEANINGS.get(field.name)) for field in schema])


def definition_metadata(stage: Stage, place: Place = DEFAULT) -> dict[str, Any]:
    """Columns and where they come from, as an asset's definition shows them."""
    found: dict[str, Any] = {}
    if stage.schema is not None:
        found["dagster/column_schema"] = column_schema(stage.schema)
    if stage.lineage:
        found["dagster/column_lineage"] = dg.TableColumnLineage(
            {
                name: [dg.TableColumnDep(place.key(asset), column) for asset, column in sources]
                for name, sources in stage.lineage.items()
            }
        )
    return found
