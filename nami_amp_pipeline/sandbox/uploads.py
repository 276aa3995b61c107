"""Reading an upload request as far as its events: type, compression, size, JSON and the fields of the request."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from .answers import Answer, refusal
from .hosts import region_of
from .settings import MAX_BYTES, MAX_EVENTS, Region

_DEFAULT_MIN_ID_LENGTH: Final = 5
_GZIP: Final = 31
"""``wbits`` of zlib for a gzip header."""


@dataclass(frozen=True)
class Upload:
    """An upload request whose JSON could be read.

    Attributes:
        path: the endpoint.
        api_key: None where it is missing or no text.
        events: None where they are missing or no array.
        min_id_length: characters that an id must have; None where the option is no positive integer.
        client_upload_time: where it is text.
        body: the decompressed JSON.
        region: of the host that it was sent to, where that is one of Amplitude's.
    """

    path: str
    api_key: str | None
    events: list[Any] | None
    min_id_length: int | None
    client_upload_time: str | None
    body: bytes
    region: Region | None = None


def too_large(reason: str) -> Answer:
    """Amplitude's 413."""
    return refusal(413, "Payload too large", reason)


def read_upload(path: str, headers: Mapping[str, str], body: bytes) -> Upload | Answer:
    """Reads an upload, or gives the answer that refuses it.

    Args:
        path: the endpoint, which decides the size limit.
        headers: with lower-case names.
        body: as it came.
    """
    if not body:
        return refusal(400, "Missing request body")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return refusal(400, "Invalid JSON request body", "Content-Type must be application/json")
    limit = MAX_BYTES[path]
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding == "gzip":
        unpacked = _gunzip(body, limit)
        if unpacked is None:
            return refusal(400, "Invalid JSON request body", "the body is not valid gzip")
        body = unpacked
    elif encoding != "identity":
        return refusal(400, "Invalid JSON request body", "gzip is the only supported Content-Encoding")
    if len(body) > limit:
        return too_large(f"over {limit} bytes, counted after decompression")
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return refusal(400, "Invalid JSON request body", "not JSON in UTF-8")
    if type(content) is not dict:
        return refusal(400, "Invalid JSON request body", "not a JSON object")
    events = content.get("events")
    if type(events) is list and len(events) > MAX_EVENTS:
        return too_large(f"over {MAX_EVENTS} events")
    api_key, uploaded = content.get("api_key"), content.get("client_upload_time")
    return Upload(
        path,
        api_key if type(api_key) is str and api_key else None,
        events if type(events) is list else None,
        _min_id_length(content.get("options")),
        uploaded if type(uploaded) is str else None,
        body,
        region_of(headers),
    )


def _min_id_length(options: object) -> int | None:
    if options is None:
        return _DEFAULT_MIN_ID_LENGTH
    if type(options) is not dict:
        return None
    length = options.get("min_id_length", _DEFAULT_MIN_ID_LENGTH)
    return length if type(length) is int and length >= 1 else None


def _gunzip(body: bytes, limit: int) -> bytes | None:
    """The unpacked body, at most one byte over the limit of it; None where it is no whole gzip."""
    unpacker = zlib.decompressobj(_GZIP)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        return None
    if len(unpacked) > limit:
        return unpacked
    return unpacked if unpacker.eof and not unpacker.unused_data else None
