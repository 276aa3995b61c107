"""Bodies in the form of another destination: made once, with the outbox, so that a repeat is the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from nami_amp_pipeline.delivery.destination import Destination, Encoder
from nami_amp_pipeline.errors import Blocked, Misconfigured
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.own_fields import as_set
from nami_amp_pipeline.storage.row_faults import MOST_ODD, find_odd, may_be_a_rows, words_of

COLUMNS: Final = ("id", "event_type", "user_id", "identity", "created_date", "body")
"""What an encoder is given; ``body`` is the JSON of the event as it would be posted to Amplitude."""


def encoders_of(integrations: Iterable[Integration]) -> dict[int, Encoder]:
    """The encoders, by integration id, of those whose destination has one.

    Raises:
        Blocked: a destination is unknown, or lacks a field; in another form its events would be wrong for ever.
    """
    found = {}
    for integration in integrations:
        try:
            encoder = as_set(integration, None).bodies
        except Misconfigured as error:
            raise Blocked(str(error)) from None
        if encoder is not None:
            found[integration.id] = encoder
    return found


class OddBodies(Exception):
    """An encoder cannot make the bodies of some events.

    Attributes:
        integration_id: whose.
        rows: of the segment, each with the error in words.
    """

    def __init__(self, integration_id: int, rows: Mapping[int, str]) -> None:
        super().__init__(f"events cannot be encoded: {', '.join(rows.values())}")
        self.integration_id = integration_id
        self.rows = rows


def encoded(batch: pa.RecordBatch, encoder: Encoder, integration_id: int) -> pa.RecordBatch:
    """Rows of an outbox that will be posted, with the bodies that an encoder makes.

    Raises:
        OddBodies: it fails for a few of them.
        Blocked: it fails for many, or what it makes are no texts of JSON, one for each event.
    """
    body = COLUMNS.index("body")
    plain = batch.select(COLUMNS).set_column(body, "body", pc.utf8_slice_codeunits(batch["body"], 1))
    try:
        texts = _texts(encoder, plain)
    except Blocked:
        raise
    except Exception as error:
        if not may_be_a_rows(error):
            raise
        raise _blamed(batch, plain, encoder, error, integration_id) from None
    at = batch.schema.get_field_index("body")
    return batch.set_column(at, batch.schema.field(at), pc.binary_join_element_wise(",", texts, ""))


def _texts(encoder: Encoder, plain: pa.RecordBatch) -> pa.Array:
    made = encoder(plain)
    if isinstance(made, pa.ChunkedArray):
        made = made.combine_chunks()
    if not isinstance(made, pa.Array) or len(made) != plain.num_rows or made.null_count:
        raise Blocked(f"{_called(encoder)} must give an Arrow array with a text for each of its events")
    try:
        texts = made.cast(pa.string())
        if len(texts):
            orjson.loads(texts[0].as_py())
    except (pa.ArrowException, orjson.JSONDecodeError) as error:
        raise Blocked(f"{_called(encoder)} must give texts of JSON: {error}") from None
    return texts


def _blamed(
    batch: pa.RecordBatch, plain: pa.RecordBatch, encoder: Encoder, error: Exception, integration_id: int
) -> Exception:
    """The rows that fail alone; of too many, or of an event that waited for a login, the integration waits."""

    def failure(first: int, end: int) -> str | None:
        try:
            encoder(plain.slice(first, end - first))
        except Exception as own:
            if not may_be_a_rows(own):
                raise
            return words_of(own)
        return None

    odd = find_odd(0, plain.num_rows, failure, MOST_ODD)
    rows = {batch["row"][place].as_py(): why for place, why in odd.items()}
    waited = any(batch["exception_id"][place].is_valid for place in odd)
    if not odd or len(odd) > MOST_ODD or waited:
        return Blocked(f"{_called(encoder)} fails: {words_of(error)}")
    return OddBodies(integration_id, rows)


def encoded_alone(destination: Destination, fields: Mapping[str, object], event: bytes) -> bytes:
    """One event that is in no outbox.

    Args:
        destination: whose.
        fields: the other columns of :data:`COLUMNS`.
        event: as it would be posted to Amplitude.
    """
    if destination.bodies is None:
        return event
    row = {**fields, "body": f",{event.decode()}"}
    kinds = pa.schema(
        [(name, pa.timestamp("us", tz="UTC") if name == "created_date" else pa.string()) for name in COLUMNS]
    )
    body: str = encoded(pa.RecordBatch.from_pylist([row], kinds), destination.bodies, 0)["body"][0].as_py()
    return body[1:].encode()


def _called(encoder: Encoder) -> str:
    return getattr(encoder, "__qualname__", type(encoder).__name__)
