"""The sample histories: the same for the same arguments, in loading order, and with everything in them that happens."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from nami_amp_pipeline.sample import SCHEMA, generate, personas_of, to_webhook_ndjson
from nami_amp_pipeline_tests.support.reference import RESERVED, SELECTABLE, Settings, json_object, run

APP = "radio-nami"
DAY = timedelta(days=1)


def rows_of(batches: Iterator[pa.RecordBatch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.fixture(scope="module")
def month() -> list[dict[str, Any]]:
    return rows_of(generate(1_500))


@pytest.fixture(scope="module")
def payloads(month: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(row["payload"]) for row in month]


def test_same_arguments_give_the_same_bytes() -> None:
    def once(seed: int, batch_rows: int) -> bytes:
        table = pa.Table.from_batches(list(generate(40, seed=seed, batch_rows=batch_rows))).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    assert once(7, 50_000) == once(7, 50_000) == once(7, 11)
    assert once(7, 50_000) != once(8, 50_000)


@pytest.mark.parametrize("rows", [0, 1, 999, 1_000, 20_001])
def test_rows_bounds_the_number_of_rows_exactly(rows: int) -> None:
    sizes = [batch.num_rows for batch in generate(5, rows=rows, batch_rows=1_000)]
    assert sum(sizes) == rows
    assert sizes == [1_000] * (rows // 1_000) + [rows % 1_000] * (rows % 1_000 > 0)


def test_rows_are_in_loading_order_and_of_the_table() -> None:
    batches = list(generate(100, batch_rows=100))
    assert all(batch.schema == SCHEMA for batch in batches)
    loaded = [row["ingested_at"] for row in rows_of(iter(batches))]
    assert loaded == sorted(loaded)
    start = datetime(2026, 9, 1, tzinfo=UTC)
    assert start <= loaded[0] <= loaded[-1] < start + 30 * DAY


@pytest.mark.slow
def test_every_row_but_a_repeat_has_an_id_of_its_own(month: list[dict[str, Any]]) -> None:
    content = defaultdict(set)
    for row in month:
        content[row["app_id"], row["id"]].add((row["event_type"], row["user_id"], row["created_date"], row["payload"]))
    assert all(len(versions) == 1 for versions in content.values())
    assert 0.005 < 1 - len(content) / len(month) < 0.03


def test_every_type_happens(month: list[dict[str, Any]]) -> None:
    counts = Counter(row["event_type"] for row in month)
    assert all(counts[event_type] >= 20 for event_type in SELECTABLE)
    assert all(counts[kind] for kind in ("device.session.start", "purchase.updated", "user.entitlement.transferred"))
    assert {row["app_id"] for row in month} == {"radio-nami", "fit-nami"}


def test_payload_tells_what_the_columns_tell(month: list[dict[str, Any]], payloads: list[dict[str, Any]]) -> None:
    spellings: Counter[int] = Counter()
    for row, payload in zip(month, payloads, strict=True):
        assert (payload["id"], payload["event_type"]) == (row["id"], row["event_type"])
        assert payload["user_id"] == row["user_id"]
        assert datetime.fromisoformat(payload["created_date"]) == row["created_date"]
        spellings[len(payload["created_date"])] += 1
        if "active_entitlements" in payload and payload["event_type"].startswith("user."):
            assert "original_transaction_id" in {entry["key"] for entry in payload["external_ids"]}
    assert set(spellings) == {20, 27, 32}


def test_user_payloads_are_as_long_as_in_life(month: list[dict[str, Any]]) -> None:
    lengths = [len(row["payload"]) for row in month if row["event_type"].startswith("user.")]
    assert 900 < sum(lengths) / len(lengths) < 1_400


def test_some_rows_are_late_by_hours_and_some_by_days(month: list[dict[str, Any]]) -> None:
    delays = [row["ingested_at"] - row["created_date"] for row in month]
    assert min(delays) > timedelta(0)
    assert sum(delay > timedelta(hours=1) for delay in delays) > len(delays) / 200
    assert any(delay > DAY for delay in delays)


def test_some_users_log_in_later_and_some_never(month: list[dict[str, Any]]) -> None:
    logins: defaultdict[str, list[bool]] = defaultdict(list)
    for row in sorted(month, key=lambda row: row["created_date"]):
        if row["event_type"].startswith("user.") and "external_ids" in (payload := json.loads(row["payload"])):
            logins[row["user_id"]].append("external_id" in {entry["key"] for entry in payload["external_ids"]})
    kinds = Counter((told[0], told[-1]) for told in logins.values())
    assert set(kinds) == {(True, True), (False, False), (False, True)}
    assert all(count > 30 for count in kinds.values())


def test_groups_are_missing_at_times(payloads: list[dict[str, Any]]) -> None:
    about_users = [payload for payload in payloads if payload["event_type"].startswith("user.")]
    without = [p for p in about_users if None in (p.get("active_entitlements"), p.get("devices"))]
    assert 0 < len(without) < 0.03 * len(about_users)


def test_money_comes_in_all_its_forms(payloads: list[dict[str, Any]]) -> None:
    sales = [payload for payload in payloads if payload["event_type"] == "device.transaction"]
    assert {type(sale.get("quantity")) for sale in sales} == {int, str, type(None)}
    assert {type(sale["amount"]) for sale in sales} == {int, float}
    assert {sale["purchase_env"] for sale in sales} == {"production", "sandbox"}
    assert {"USD", "EUR", "JPY"} <= {sale["currency"] for sale in sales}


def test_users_own_devices_of_every_store_and_a_few_own_forty(payloads: list[dict[str, Any]]) -> None:
    owned = [payload["devices"] for payload in payloads if payload.get("devices")]
    stores = {device["platform"]["platform_type"] for devices in owned for device in devices}
    assert stores == {"apple", "google", "amazon", "roku", "web"}
    sizes = {len(devices) for devices in owned}
    assert {1, 2} <= sizes
    assert max(sizes) >= 40


def test_texts_need_quoting_and_utf8(payloads: list[dict[str, Any]]) -> None:
    assert {"Été", 'Upsell "50%"'} <= {str(payload.get("name")) for payload in payloads}


def test_clean_history_has_nothing_to_refuse(month: list[dict[str, Any]]) -> None:
    outcome = run([[row for row in month[:1_000] if row["app_id"] == APP]], Settings())
    assert outcome.dead_letters == {}
    assert outcome.delivered
    assert outcome.skipped


def test_hostile_history_has_broken_payloads_and_reserved_ids() -> None:
    rows = rows_of(generate(300, hostile=0.1))
    payloads = [json_object(row["payload"]) for row in rows]
    assert 0.02 < payloads.count(None) / len(rows) < 0.08
    accounts = {
        entry["value"]
        for payload in payloads
        if payload
        for entry in payload.get("external_ids") or ()
        if entry["key"] == "external_id"
    }
    assert any(account.strip().lower() in RESERVED for account in accounts)


def test_cast_is_the_same_whatever_the_seed() -> None:
    members = {member.user_id: member for member in personas_of(APP)}
    stories = []
    for seed in (1, 2):
        rows = [row for row in rows_of(generate(30, seed=seed)) if row["user_id"] in members]
        stories.append(rows)
        assert {row["user_id"] for row in rows} == set(members)
    assert stories[0] == stories[1]
    accounts = run([stories[0]], Settings()).external_ids
    assert accounts == {ident: member.external_id for ident, member in members.items() if member.external_id}


def test_cast_tells_its_stories() -> None:
    rows = rows_of(generate(6))
    told: dict[str, list[str]] = {}
    for member in personas_of(APP):
        mine = sorted((row for row in rows if row["user_id"] == member.user_id), key=lambda row: row["created_date"])
        told[member.name] = [row["event_type"].split(".")[-1] for row in mine if row["event_type"].startswith("user.")]
    assert told == {
        "ada": ["purchased", "started", "converted", "purchased", "purchased", "renewed", "renewed"],
        "bo": ["purchased", "paused", "resumed", "in_grace_period", "renewal_in_grace_period", "renewed"],
        "cleo": [
            "purchased",
            "started",
            "cancelled",
            "did_not_convert",
            "expired",
            "purchased",
            "cancelled",
            "expired",
        ],
    }


def test_webhook_lines_are_the_payloads_of_the_app() -> None:
    batch = next(generate(20, hostile=0.2))
    rows = batch.to_pylist()
    sent = [row["payload"] for row in rows if row["payload"] and not row["payload"].isspace()]
    assert to_webhook_ndjson(batch).decode().split("\n") == [*sent, ""]
    mine = to_webhook_ndjson(next(generate(20)), app_id=APP).decode().splitlines()
    assert {json.loads(line)["user_id"] for line in mine} >= {member.user_id for member in personas_of(APP)}
    assert len(mine) == sum(row["app_id"] == APP for row in rows_of(generate(20)))


def test_arguments_that_make_no_sense_are_refused() -> None:
    for arguments in ({"start": datetime(2026, 9, 1)}, {"apps": ()}, {"days": 0}, {"batch_rows": 0}, {"rows": -1}):  # noqa: DTZ001
        with pytest.raises(ValueError):
            generate(1, **arguments)
