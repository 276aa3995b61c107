"""Fuzzing of payloads: bytes changed at random, a few events whole among them. Each row ends by itself.

Every row is delivered or is a dead letter, rows that were not touched are delivered, and what is posted is JSON by the
letter of RFC 8259.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from nami_amp_pipeline_tests.simulation.world import Facts
from nami_amp_pipeline_tests.support.fast_start import shared_engine, work_folder
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.odd_values import odd_field

_TYPES = ("user.subscription.renewed", "device.impression", "device.transaction")
_BITS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\\ud83d", b"\\udc00", b"\\u0000", b"null", b"NaN",
    b"1e999", b"-", b"0", b"9" * 400, b"\0", b"\x01", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b" ", b"\n", b"\xef\xbb\xbf",
    b"[" * 500,
    b'"external_ids":[{"key":"external_id","value":"x"}],', b'"device_id":"null",', b'"amount":"1",',
)  # fmt: skip


def simulate(seed: int) -> Facts:
    """Runs one batch of mutated payloads through all stages.

    Raises:
        AssertionError: a row did not have an end of its own.
    """
    rng = random.Random(seed)
    folder = work_folder()
    try:
        with shared_engine():
            return _one(rng, Pipeline(folder, {"NAMI_AMP_DUCKDB_THREADS": "1"}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _one(rng: random.Random, scene: Pipeline) -> Facts:
    try:
        rows = [_row(rng, number) for number in range(rng.choice((3, 20, 60)))]
        one = scene.add("app", user_id_kind="nami_user_id")
        other = scene.add("app", "other", anonymous="device_id")
        with duckdb.connect(str(scene.warehouse)) as connection:
            connection.register("rows", pa.Table.from_pylist(rows))
            connection.execute("INSERT INTO nami_events BY NAME SELECT * EXCLUDE (touched) FROM rows")
        scene.tick()
        scene.tick()
        facts = Facts()
        facts.events = len(rows)
        for each in (one, other):
            numbers = scene.status(each)
            ends = numbers.delivered + sum(numbers.skipped.values()) + sum(numbers.dead_letters.values())
            assert (numbers.captured, numbers.pending, ends) == (len(rows), 0, len(rows)), numbers
            for body in scene.wires[each.id].bodies if each.id in scene.wires else ():
                orjson.loads(body)
            facts.met.update({f"answer {reason}": count for reason, count in numbers.dead_letters.items()})
        sent = Counter(event["insert_id"] for event in scene.sent(one))
        assert set(sent.values()) <= {1}, sent
        missing = {row["id"] for row in rows if not row["touched"]} - sent.keys()
        assert not missing, f"not touched, yet not delivered: {missing}"
        return facts
    finally:
        scene.close()


def _row(rng: random.Random, number: int) -> dict[str, Any]:
    kind = rng.choice(_TYPES)
    payload: dict[str, Any] = {"id": f"e{number}", "n": number, "note": "plain, 'quoted' and \U0001f600"}
    if kind.startswith("device."):
        payload |= {"device_id": "d", "amount": 9.99, "quantity": 1, "sku": "s", "currency": "USD"}
    else:
        payload |= {
            "active_entitlements": [{"entitlement_ref_id": "pro", "sku_ref_id": "s"}],
            "devices": [{"id": "d", "platform": {"id": "p"}}],
            "customer_journey_state": {"former_subscriber": False},
            "external_ids": [{"key": "external_id", "value": f"x{number}"}],
        }
    text = orjson.dumps(payload)
    touched = rng.random() < 0.7
    if touched:
        text = _mutated(rng, text)
    return {
        "id": f"e{number}",
        "app_id": "app",
        "event_type": kind,
        "user_id": f"u{number % 5}",
        "created_date": START,
        "ingested_at": START,
        "payload": text.decode(errors="replace"),
        "touched": touched,
    }


def _mutated(rng: random.Random, text: bytes) -> bytes:
    if rng.random() < 0.2:
        return b"{" + odd_field(rng).encode(errors="replace") + b"," + text[1:]
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        at, kind = rng.randrange(len(text) + 1), rng.randrange(5)
        end = min(len(text), at + rng.choice((1, 1, 3, 30)))
        if kind == 0:
            text = text[:at] + rng.choice(_BITS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[end:]
        elif kind == 2:
            text = text[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + text[end:]
        elif kind == 3:
            text = text[:at] + text[at:end] * rng.choice((2, 3, 200)) + text[end:]
        else:
            text = text[:at] + rng.choice(_BITS) + text[end:]
    return text
