"""Loads Nami's webhook events (NDJSON, plain or gzip) into the embedded DuckDB warehouse, strictly and in blocks.

A file is loaded in one transaction, completely or not at all, except for its bad lines, which are reported. Loading the
same file again adds its rows again, as any at-least-once loader would; the pipeline delivers each event once all the
same.
"""

from __future__ import annotations

import gzip
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import Clock, micros, system_clock
from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.storage.duckdb_engine import compute, sql
from nami_amp_pipeline.storage.json_text import DOUBTFUL, SURROGATE, is_json, with_whole_characters
from nami_amp_pipeline.warehouse.base import DUCKDB_TYPES, Kind, check_columns
from nami_amp_pipeline.warehouse.duckdb_attach import attach, quoted

if TYPE_CHECKING:
    from nami_amp_pipeline.settings import Settings

BLOCK_BYTES = 16 * 2**20
"""Bytes read at once; memory is a few times this."""

MAX_LINE_BYTES = 16 * 2**20
"""A longer line cannot be an event of Nami's."""

MAX_BAD_LINES = 1_000
"""Bad lines that are reported; further lines are only counted."""

_BOM = b"\xef\xbb\xbf"

_TYPES: Mapping[Kind, tuple[str, ...]] = {**DUCKDB_TYPES, "text": ("VARCHAR",)}
"""The column types that can hold the events' texts."""

_PARSE = r"""
CREATE OR REPLACE TEMP TABLE parsed AS
WITH checked AS (
    SELECT *, CASE WHEN json_valid(whole) THEN whole END AS json FROM lines
),
extracted AS (
    SELECT number, payload, whole, is_doubtful, json IS NOT NULL AS is_json,
        json_extract(json, ['$.id', '$.event_type', '$.user_id', '$.created_date']) AS found
    FROM checked
),
named AS (
    SELECT
        number, payload, whole, is_doubtful, is_json, found,
        CASE WHEN starts_with(found[1], '"') THEN trim(found[1]->>'$') END AS id,
        CASE WHEN starts_with(found[2], '"') THEN trim(found[2]->>'$') END AS event_type,
        CASE WHEN starts_with(found[3], '"') THEN found[3]->>'$' END AS user_id,
        CASE WHEN starts_with(found[4], '"') THEN trim(found[4]->>'$') END AS created_text
    FROM extracted
),
timed AS (
    SELECT
        *,
        CASE WHEN regexp_full_match(created_text, '\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)')
            THEN try_cast(created_text AS TIMESTAMPTZ) END AS created_date
    FROM named
)
SELECT
    number, payload, whole, is_doubtful, id, event_type, user_id, created_date,
    CASE
        WHEN NOT is_json THEN 'not JSON'
        WHEN NOT starts_with(payload, '{') THEN 'not a JSON object'
        WHEN coalesce(found[1], 'null') = 'null' OR id = '' THEN 'no id'
        WHEN id IS NULL THEN 'id is not a text'
        WHEN coalesce(found[2], 'null') = 'null' OR event_type = '' THEN 'no event_type'
        WHEN event_type IS NULL THEN 'event_type is not a text'
        WHEN coalesce(found[3], 'null') = 'null' OR trim(user_id) = '' THEN 'no user_id'
        WHEN user_id IS NULL THEN 'user_id is not a text'
        WHEN coalesce(found[4], 'null') = 'null' OR created_text = '' THEN 'no created_date'
        WHEN created_text IS NULL THEN 'created_date is not a text'
        WHEN created_date IS NULL THEN
            concat('created_date ', to_json(created_text[:40]), ' is not a time such as 2026-09-01T12:00:00Z')
    END AS why
FROM timed
"""


@dataclass(frozen=True)
class BadLine:
    """A line that was not loaded, or a whole file.

    Attributes:
        file: as it was given.
        line: counted from 1; None for the whole file.
        why: for people.
    """

    file: Path
    line: int | None
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}" if self.line is not None else f"{self.file}: {self.why}"


@dataclass
class LoadReport:
    """The result of a load.

    Attributes:
        rows: loaded.
        bad: lines and files that were not loaded, at most :data:`MAX_BAD_LINES`.
        bad_lines: how many lines in all.
        bad_files: files of which nothing was loaded.
        bytes: read, after decompression.
    """

    rows: int = 0
    bad: list[BadLine] = field(default_factory=list)
    bad_lines: int = 0
    bad_files: int = 0
    bytes: int = 0

    def add(self, bad: BadLine) -> None:
        """Notes a line or file that was not loaded."""
        if bad.line is None:
            self.bad_files += 1
        else:
            self.bad_lines += 1
        if len(self.bad) < MAX_BAD_LINES:
            self.bad.append(bad)


class _UnreadableError(Exception):
    """The file cannot be read to its end."""


def load(
    settings: Settings,
    files: Sequence[Path],
    app_id: str,
    *,
    clock: Clock = system_clock,
    progress: Callable[[int], None] = lambda _bytes: None,
    sleep: Callable[[float], None] = time.sleep,
) -> LoadReport:
    """Appends the events of the files to the events table, which is made where it is missing.

    Args:
        settings: what was set; the warehouse must be a DuckDB file.
        files: NDJSON; gzip is detected by content, not by name.
        app_id: the Nami app whose events they are; a webhook's payload does not say.
        clock: gives the one ``ingested_at`` of all rows.
        progress: called with the bytes of the files that were read since the last call.
        sleep: waits so many seconds, for a lock on the DuckDB file.

    Raises:
        Misconfigured: a file is not there, the app id cannot be used, or the warehouse is not a DuckDB file. Nothing
            was loaded.
        WarehouseUnavailable: the DuckDB file cannot be opened or written; files before the one at work are loaded.
    """
    if not contract.APP_ID.fullmatch(app_id):
        raise Misconfigured(f"app id {app_id!r} must consist of letters, digits, '.', '_' and '-'")
    if not settings.warehouse_url.startswith("duckdb:///"):
        raise Misconfigured(
            "load fills the embedded DuckDB warehouse only: fill the table of NAMI_AMP_WAREHOUSE_URL with the "
            "database's own tools (COPY), or unset NAMI_AMP_WAREHOUSE_URL"
        )
    for file in files:
        _check_readable(file)
    report = LoadReport()
    now = micros(clock)
    with compute(settings) as connection, _opened(connection, settings, sleep) as table:
        for file in files:
            _load_file(connection, table, file, app_id, now, report, progress)
    return report


def _check_readable(file: Path) -> None:
    """Without opening it: a pipe can be opened once only."""
    if file.is_dir():
        raise Misconfigured(f"{file} is a folder: name the files in it")
    if not file.exists():
        raise Misconfigured(f"there is no file {file}")
    if not os.access(file, os.R_OK):
        raise Misconfigured(f"cannot read {file}: permission denied")


@contextmanager
def _opened(connection: duckdb.DuckDBPyConnection, settings: Settings, sleep: Callable[[float], None]) -> Iterator[str]:
    """Opens the DuckDB file for writing and gives the quoted name of its events table."""
    path = Path(settings.warehouse_url.removeprefix("duckdb:///"))
    schema, name = settings.warehouse_schema or "main", settings.warehouse_table
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WarehouseUnavailable(f"cannot create the folder of {path}: {error.strerror}") from None
    attach(connection, path, sleep, read_only=False, locked=": stop it, or load again when it has finished")
    with _writing(path):
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS warehouse.{quoted(schema)}")
        connection.execute(f"USE warehouse.{quoted(schema)}")
        connection.execute(sql("nami_events").replace("nami_events", quoted(name)))
        found = connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() "
            "WHERE database_name = 'warehouse' AND schema_name = ? AND table_name = ?",
            [schema, name],
        ).fetchall()
        check_columns(dict(found), name, _TYPES)
        connection.execute("USE memory.main")
        yield f"warehouse.{quoted(schema)}.{quoted(name)}"
        connection.execute("DETACH warehouse")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        duckdb.IOException,
        duckdb.TransactionException,
        duckdb.ConstraintException,
        duckdb.FatalException,
    ) as error:
        raise WarehouseUnavailable(f"cannot write to {path}: {str(error).splitlines()[0][:200]}") from None


def _load_file(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    file: Path,
    app_id: str,
    now: int,
    report: LoadReport,
    progress: Callable[[int], None],
) -> None:
    mine = LoadReport()
    connection.execute("BEGIN")
    try:
        for first, block in _blocks(file, mine, progress):
            mine.bytes += len(block)
            mine.rows += _load_block(connection, table, file, app_id, now, first, block, mine)
    except _UnreadableError as error:
        connection.execute("ROLLBACK")
        report.add(BadLine(file, None, f"{error}; nothing of this file was loaded"))
        report.bytes += mine.bytes
        return
    connection.execute("COMMIT")
    report.rows += mine.rows
    report.bytes += mine.bytes
    report.bad_lines += mine.bad_lines - len(mine.bad)
    for bad in sorted(mine.bad, key=lambda line: line.line or 0):
        report.add(bad)


def _blocks(file: Path, report: LoadReport, progress: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """Whole lines, as (number of the first, text that ends with a newline)."""
    number, rest, overlong = 1, b"", False
    for chunk in _chunks(file, progress):
        end = chunk.rfind(b"\n") + 1
        if overlong:
            start = chunk.find(b"\n") + 1
            if not start:
                continue
            overlong, number = False, number + 1
            chunk, end = chunk[start:], end - start
        if end:
            block = rest + chunk[:end]
            yield number, block
            number += block.count(b"\n")
            rest = chunk[end:]
        else:
            rest += chunk
        if len(rest) > MAX_LINE_BYTES:
            report.add(BadLine(file, number, f"longer than {MAX_LINE_BYTES // 2**20} MB"))
            rest, overlong = b"", True
    if rest:
        yield number, rest + b"\n"


def _chunks(file: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    try:
        with file.open("rb") as raw:
            is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
            text: IO[bytes] = gzip.GzipFile(fileobj=raw) if is_gzip else raw  # type: ignore[assignment]
            at, is_first = 0, True
            while chunk := text.read(BLOCK_BYTES):
                now = raw.tell() if raw.seekable() else at + len(chunk)
                progress(now - at)
                at = now
                yield chunk.removeprefix(_BOM) if is_first else chunk
                is_first = False
    except EOFError:
        raise _UnreadableError("the gzip file is cut off") from None
    except (zlib.error, gzip.BadGzipFile):
        raise _UnreadableError("the gzip file is damaged") from None
    except OSError as error:
        raise _UnreadableError(f"cannot read it completely: {error.strerror}") from None


def _load_block(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    file: Path,
    app_id: str,
    now: int,
    first: int,
    block: bytes,
    report: LoadReport,
) -> int:
    """Loads the good lines of a block; returns how many."""
    lines = _lines(file, first, block, report)
    connection.register("lines", lines)
    connection.execute(_PARSE)
    connection.unregister("lines")
    doubtful = connection.execute("SELECT number, whole FROM parsed WHERE is_doubtful AND why IS NULL").fetchall()
    wrong = [number for number, text in doubtful if not is_json(connection, text)]
    for number in wrong:
        connection.execute("UPDATE parsed SET why = 'not JSON' WHERE number = ?", [number])
    for number, why in connection.execute(
        "SELECT number, why FROM parsed WHERE why IS NOT NULL ORDER BY number"
    ).fetchall():
        report.add(BadLine(file, number, why))
    ((rows,),) = connection.execute(
        f"INSERT INTO {table} BY NAME SELECT id, ? AS app_id, event_type, user_id, created_date, "  # noqa: S608
        "make_timestamptz(?::BIGINT) AS ingested_at, payload FROM parsed WHERE why IS NULL",
        [app_id, now],
    ).fetchall()
    return int(rows)


def _lines(file: Path, first: int, block: bytes, report: LoadReport) -> pa.Table:
    """The lines of a block as a column of texts, without a copy; those that are not UTF-8 are left out."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    offsets = np.concatenate(([0], ends + 1)).astype(np.int32)
    lines = pa.Array.from_buffers(pa.string(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(block)])
    numbers = np.arange(first, first + len(ends), dtype=np.int64)
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        texts = []
        for number, line in zip(numbers.tolist(), block.split(b"\n"), strict=False):
            try:
                texts.append(line.decode())
            except UnicodeDecodeError:
                texts.append("")
                report.add(BadLine(file, number, "not UTF-8"))
        lines = pa.array(texts, pa.string())
    payloads = pc.ascii_trim(lines, " \t\r\n")
    doubtful = pc.match_substring_regex(payloads, DOUBTFUL)
    table = pa.table({"number": numbers, "payload": payloads, "whole": _whole(payloads), "is_doubtful": doubtful})
    return table.filter(pc.greater(pc.binary_length(payloads), 0))


def _whole(payloads: pa.Array) -> pa.Array:
    """The lines ready to parse: half a surrogate pair becomes U+FFFD, as in capture."""
    odd = pc.indices_nonzero(pc.match_substring_regex(payloads, SURROGATE)).to_pylist()
    if not odd:
        return payloads
    texts = payloads.to_pylist()
    for row in odd:
        texts[row], _ = with_whole_characters(texts[row])
    return pa.array(texts, pa.string())
