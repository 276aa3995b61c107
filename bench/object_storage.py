"""The same events with all files in a bucket of moto's S3 server, beside a plain folder, in turns.

``python -m bench.object_storage --rows 200000 --repeats 1``; the server is a process of its own on the same cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from socket import create_server
from statistics import median
from typing import Any

import boto3

from bench.checks import CHECKSUM
from bench.data import expected, sample_warehouse
from bench.part import alone, say, spread, table
from bench.receiver import Receiver
from bench.scene import STAGES, Home, delivered_all, room, summary

TITLE = "A bucket instead of a folder"
GOAL = 0.6
WAYS = ("folder", "bucket")
_START_SECONDS = 30


def measure(*, rows: int = 1_000_000, repeats: int = 3) -> dict[str, Any]:
    """Runs each way in turns, each time in a fresh home; the bucket's cache is empty at its start.

    Args:
        rows: of the warehouse.
        repeats: of each.
    """
    events = sample_warehouse(rows)
    ids = expected(events, CHECKSUM)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    stored = 0
    with Receiver() as receiver, _server() as client:
        for number in range(repeats):
            for way in WAYS:
                more = {"NAMI_AMP_DATA_URL": f"s3://bench-{number}/files"} if way == "bucket" else {}
                if more:
                    client.create_bucket(Bucket=f"bench-{number}")
                with room(f"object-storage-{way}") as folder:
                    home = Home(folder, f"duckdb:///{events}", **more)
                    home.integrate(receiver.url)
                    runs[way].append(delivered_all(home, receiver, ids).to_json())
                say(f"{way} {number + 1}: {runs[way][-1]['events_per_second']:,.0f} events/s")
            stored = _emptied(client, f"bench-{number}")
    ratios = [
        bucket["events_per_second"] / folder["events_per_second"]
        for folder, bucket in zip(runs["folder"], runs["bucket"], strict=True)
    ]
    return {
        "rows": rows,
        "runs": runs,
        "stored_bytes": stored,
        "events_per_second": {way: summary([one["events_per_second"] for one in runs[way]]) for way in WAYS},
        "ratio": summary(ratios),
    }


@contextmanager
def _server() -> Iterator[Any]:
    """A server of moto, which the environment leads to; yields a client of it."""
    with closing(create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    own = {
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        _wait_for(f"{address}/moto-api/")
        yield boto3.client("s3", region_name="us-east-1", endpoint_url=address)
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _wait_for(address: str) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _emptied(client: Any, bucket: str) -> int:
    """Removes all objects, which the server keeps in memory; returns their bytes."""
    size = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", ()):
            size += found["Size"]
            client.delete_object(Bucket=bucket, Key=found["Key"])
    return size


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    ratio = result["ratio"]
    return [("… files in a bucket, against a folder", f"≥ {GOAL} ×", spread(ratio, ".2f"), ratio["median"] >= GOAL)]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    runs = result["runs"]

    def of(way: str, figure: str) -> float:
        return float(median(one[figure] for one in runs[way]))

    rows = [
        [way, spread(result["events_per_second"][way]), f"{of(way, 'cpu'):.1f}"]
        + [f"{median(one['stages'].get(asset, 0.0) for one in runs[way]):.2f}" for asset in STAGES.values()]
        for way in WAYS
    ]
    head = ["", "events/s", "CPU seconds", *(f"`{asset}`, s" for asset in STAGES.values())]
    return (
        f"`nami-amp run` over {result['rows']:,} rows, DuckDB and SQLite, without and with `NAMI_AMP_DATA_URL`, in "
        f"turns: {spread(result['ratio'], '.2f')} × with a bucket. Its server (moto, in Python) works on the same "
        f"cores; what it takes is not in the table. {result['stored_bytes'] / 1e6:,.0f} MB of objects stay.\n\n"
    ) + table(head, rows)


if __name__ == "__main__":
    alone(sys.modules[__name__])
