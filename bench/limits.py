"""What the machine itself can do of each thing that a run is made of, in the same units as the run.

``python -m bench.limits --rows 100000``
"""

from __future__ import annotations

import http.client
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import orjson
import sqlalchemy as sa

from bench.data import sample_warehouse
from bench.part import alone, say, table
from bench.receiver import Receiver
from bench.scene import Home, room
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.storage.data_folder import DataFolder
from nami_amp_pipeline.storage.duckdb_engine import compute

TITLE = "What the machine can do"

_STATE = (
    '{"active_entitlements": [{"entitlement_ref_id": "VARCHAR", "sku_ref_id": "VARCHAR"}], '
    '"devices": [{"id": "VARCHAR", "platform": {"id": "VARCHAR"}}], '
    '"external_ids": [{"key": "VARCHAR", "value": "VARCHAR"}], '
    '"customer_journey_state": {"former_subscriber": "BOOLEAN", "in_grace_period": "BOOLEAN", '
    '"in_trial_period": "BOOLEAN", "in_intro_offer_period": "BOOLEAN"}}'
)


def measure(*, rows: int = 1_000_000, requests: int = 1_000, commits: int = 300) -> dict[str, Any]:
    """Each thing by itself, with nothing else going on.

    Args:
        rows: of the warehouse that is read.
        requests: posted with nothing behind them.
        commits: to the state store.
    """
    events = sample_warehouse(rows)
    with room("limits") as folder, Receiver() as receiver:
        home = Home(folder, f"duckdb:///{events}")
        home.integrate(receiver.url)
        found = _computing(home, events, rows)
        found |= _posting(receiver, requests)
        found |= _recording(home, folder, commits)
    return {"rows": rows, "limits": found}


def _computing(home: Home, events: Path, rows: int) -> dict[str, dict[str, Any]]:
    """Reading, parsing, writing, with the compute engine as the pipeline sets it up."""
    with compute(home.settings) as connection:
        connection.execute(f"ATTACH '{events}' AS warehouse (READ_ONLY)")
        source = "warehouse.nami_events"
        size = _scalar(connection, f"SELECT sum(strlen(payload)) FROM {source}")
        users = f"{source} WHERE starts_with(event_type, 'user.')"

        def drain(query: str) -> Callable[[], object]:
            return lambda: sum(batch.num_rows for batch in connection.sql(query).to_arrow_reader(50_000))

        found = {
            "read": _rate("reading the table into Arrow (DuckDB)", rows, size, drain(f"SELECT * FROM {source}")),
            "parse": _rate(
                "parsing the state out of `user.*` payloads (DuckDB's `from_json`)",
                _scalar(connection, f"SELECT count(*) FROM {users}"),
                _scalar(connection, f"SELECT sum(strlen(payload)) FROM {users}"),
                lambda: _scalar(connection, f"SELECT count(from_json(payload, '{_STATE}')) FROM {users}"),
            ),
        }
        # As many columns and as much text as an Amplitude event has.
        write = (
            "SELECT concat('{\"event_type\":', to_json(event_type), ',\"user_id\":', to_json(user_id), "
            "',\"time\":', epoch_ms(created_date), ',\"insert_id\":', to_json(id), "
            f"',\"event_properties\":', payload[:400], '}}') AS body FROM {source}"
        )
        written = _scalar(connection, f"SELECT sum(strlen(body)) FROM ({write})")
        found["write"] = _rate("writing events as JSON (DuckDB)", rows, written, drain(write))
        batch = connection.sql(f"SELECT payload FROM {source} LIMIT 100000").to_arrow_table()
        texts = [text.encode() for text in batch["payload"].to_pylist()]
        found["orjson"] = _rate(
            "parsing payloads one by one in Python (orjson)",
            len(texts),
            sum(map(len, texts)),
            lambda: [orjson.loads(text) for text in texts],
        )
        whole = connection.sql(f"SELECT * FROM {source} LIMIT 200000").to_arrow_table()
    data = DataFolder(home.folder / "limits")

    def file() -> None:
        with data.parquet("segments/limit.parquet", whole.schema) as writer:
            writer.write_table(whole)

    found["file"] = _rate("writing a segment, synced (Parquet, LZ4)", whole.num_rows, whole.nbytes, file)
    return found


def _posting(receiver: Receiver, requests: int) -> dict[str, dict[str, Any]]:
    """Bodies of 1,000 events to the receiver, as fast as a socket takes them: what the receiver is good for."""
    event = (
        b'{"event_type":"user.subscription.renewed","user_id":"%s","time":1756684800000,"insert_id":"%s","pad":"%s"}'
    )
    one = event % (b"u" * 36, b"i" * 36, b"x" * 480)
    body = b'{"api_key":"' + b"0" * 32 + b'","events":[' + b",".join([one] * 1_000) + b"]}"

    def blast(connections: int) -> Callable[[], object]:
        def post() -> None:
            parts = urlsplit(receiver.url)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
            for _ in range(requests // connections):
                connection.request("POST", parts.path, body, {"Content-Type": "application/json"})
                connection.getresponse().read()
            connection.close()

        def run() -> None:
            threads = [threading.Thread(target=post) for _ in range(connections)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return run

    found = {}
    for connections in (1, 4):
        many = requests // connections * connections
        receiver.reset()
        found[f"post_{connections}"] = _rate(
            f"posting bodies of 1,000 events over {connections} connection{'s' if connections > 1 else ''}",
            many * 1_000,
            many * len(body),
            blast(connections),
        )
    receiver.reset()
    return found


def _recording(home: Home, folder: Path, commits: int) -> dict[str, dict[str, Any]]:
    """Commits of the state store as the last stage makes them, and what the disk allows."""
    context = Context.open(home.settings)
    row = {
        "integration_id": 1, "events": 1_000, "bytes": 600_000, "status": 200, "outcome": "delivered", "sent_at": 0,
        "answered_at": 0, "run_id": "limits",
    }  # fmt: skip

    def commit() -> None:
        for _ in range(commits):
            with context.store.begin() as tx:
                tx.execute(sa.insert(tables.requests), row)
                context.store.count(tx, 1, "delivered", 1_000)

    def sync() -> None:
        with (folder / "synced").open("wb") as file:
            for _ in range(commits):
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())

    found = {
        "commit": _rate("commits of the state store (SQLite, its default durability)", commits, None, commit),
        "sync": _rate("4 KB to the disk, synced", commits, None, sync),
    }
    context.store.close()
    return found


def _rate(what: str, things: int, size: int | None, act: Callable[[], object]) -> dict[str, Any]:
    """The better of two tries: this is what the machine can do, not what it did."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - began)
    best = min(seconds)
    say(f"{what}: {things / best:,.0f}/s")
    return {
        "what": what,
        "per_second": things / best,
        "bytes_per_second": size / best if size is not None else None,
        "seconds_per_million": 1e6 / (things / best),
    }


def _scalar(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    ((value,),) = connection.execute(query).fetchall()
    return int(value)


def verdicts(_result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Nothing is promised here."""
    return []


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    rows = [
        [
            one["what"],
            f"{one['per_second']:,.0f}",
            f"{one['bytes_per_second'] / 1e6:,.0f}" if one["bytes_per_second"] else "",
            f"{one['seconds_per_million']:.2f}" if name not in ("commit", "sync") else "",
        ]
        for name, one in result["limits"].items()
    ]
    return (
        f"Each by itself with nothing else running, the better of two tries over {result['rows']:,} rows. The posting "
        "is the receiver's own limit too.\n\n" + table(["", "a second", "MB/s", "seconds a million"], rows)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
