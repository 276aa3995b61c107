"""The plain reading of the rules: against the fixed cases, and rule by rule on histories that one can check by eye."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from nami_amp_pipeline_tests.support.histories import History, histories, integrations, times
from nami_amp_pipeline_tests.support.reference import RESERVED, Outcome, Row, Settings, is_readable, run
from nami_amp_pipeline_tests.support.rows import ACCOUNT, NOON, row

GOLDEN = Path(__file__).parent / "cases" / "golden"


def canonical(events: list[dict[str, Any]]) -> list[str]:
    """The events as texts in a fixed order: unlike `==` on dicts, this tells 1 from 1.0 and from true."""
    return sorted(json.dumps(event, sort_keys=True) for event in events)


def by_id(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {event["insert_id"]: event for event in outcome.delivered}


@pytest.mark.parametrize("name", ["external_id_skip", "anonymous_nami_user_id", "anonymous_device_id", "nami_user_id"])
def test_reproduces_the_fixed_cases(name: str) -> None:
    rows = [json.loads(line) for line in (GOLDEN / "nami_events.ndjson").read_text("utf-8").splitlines()]
    case = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    outcome = run([rows], Settings(**case["integration"]))
    assert canonical(outcome.delivered) == canonical(case["delivered"])
    assert outcome.skipped == case["skipped"]
    assert outcome.dead_letters == case["dead_letters"]
    assert outcome.pending == set()
    ends = [*by_id(outcome), *outcome.skipped, *outcome.dead_letters]
    assert len(ends) == len(set(ends))
    assert outcome.captured == set(ends)


def test_missing_group_comes_from_the_newest_earlier_event() -> None:
    ticks = [
        [
            row("1", 1, devices=[{"id": "d1"}], external_ids=ACCOUNT),
            row("2", 2, "user.made.up", devices=[{"id": "d2"}, {"id": "d1"}]),
            row("3", 3, devices=None),
            row("4", 4, devices=[]),
        ]
    ]
    outcome = run(ticks, Settings())
    assert by_id(outcome)["3"]["user_properties"] == {
        "namiml_device_ids": ["d1", "d2"],
        "namiml_device_platforms": [],
    }
    assert by_id(outcome)["4"]["user_properties"]["namiml_device_ids"] == []
    assert "2" not in outcome.captured
    assert outcome.current["u"].properties == by_id(outcome)["4"]["user_properties"]


def test_late_event_takes_its_own_past_and_does_not_overwrite_the_profile() -> None:
    ticks = [
        [row("1", 1, devices=[{"id": "old"}], external_ids=ACCOUNT), row("9", 9, devices=[{"id": "new"}])],
        [row("5", 5), row("6", 6, "device.impression"), row("10", 10)],
    ]
    events = by_id(run(ticks, Settings()))
    assert events["5"]["user_properties"]["namiml_device_ids"] == ["old"]
    assert events["5"]["$skip_user_properties_sync"] is True
    assert all("$skip_user_properties_sync" not in events[ident] for ident in ("1", "9", "6", "10"))
    assert "user_properties" not in events["6"]
    assert events["10"]["user_properties"]["namiml_device_ids"] == ["new"]


def test_order_in_a_tick_is_by_created_date_then_id() -> None:
    outcome = run([[row("b", 1, external_ids=ACCOUNT), row("a", 1), row("c", 0)]], Settings())
    assert [event["insert_id"] for event in outcome.delivered] == ["c", "a", "b"]
    assert not any("$skip_user_properties_sync" in event for event in outcome.delivered)


def test_first_row_of_an_id_wins() -> None:
    again: Row = {**row("1", 1, note="again"), "ingested_at": NOON + timedelta(days=2)}
    ticks = [[again, row("1", 1, note="first", external_ids=ACCOUNT)], [again]]
    outcome = run(ticks, Settings())
    assert [event["event_properties"]["note"] for event in outcome.delivered] == ["first"]


def test_login_read_in_the_same_tick_counts_for_earlier_events() -> None:
    ticks = [[row("1", 1, "device.impression")], [row("2", 2, "device.impression"), row("3", 3, external_ids=ACCOUNT)]]
    outcome = run(ticks, Settings())
    assert outcome.skipped == {"1": "no_external_id"}
    assert {ident: event["user_id"] for ident, event in by_id(outcome).items()} == {"2": "account-1", "3": "account-1"}


def test_external_id_is_that_of_the_newest_event_whenever_read() -> None:
    newer = [{"key": "external_id", "value": " account-2\n"}]
    entries = [7, {"key": "other", "value": "x"}, {"key": "external_id", "value": None}, *newer, *ACCOUNT]
    outcome = run([[row("2", 2, external_ids=entries)], [row("1", 1, external_ids=ACCOUNT)]], Settings())
    assert [event["user_id"] for event in outcome.delivered] == ["account-2", "account-2"]
    assert outcome.external_ids == {"u": "account-2"}


def test_external_id_that_is_a_number_becomes_text() -> None:
    outcome = run([[row("1", 1, external_ids=[{"key": "external_id", "value": 2087}])]], Settings())
    assert outcome.delivered[0]["user_id"] == "2087"


@pytest.mark.parametrize("value", ["", "   ", "\t\n"])
def test_a_blank_external_id_is_none(value: str) -> None:
    blank = {"key": "external_id", "value": value}
    outcome = run([[row("1", 1, external_ids=[blank])]], Settings())
    assert outcome.skipped == {"1": "no_external_id"}
    outcome = run([[row("1", 1, external_ids=ACCOUNT), row("2", 2, external_ids=[blank])]], Settings())
    assert [event["user_id"] for event in outcome.delivered] == ["account-1", "account-1"]
    outcome = run([[row("1", 1, external_ids=[blank, *ACCOUNT])]], Settings())
    assert outcome.delivered[0]["user_id"] == "account-1"


@pytest.mark.parametrize("value", ["NULL", " none ", "0", 0, -1, "{}", "N/A", "LMY47D", "Anonymous"])
def test_reserved_external_id_is_a_dead_letter(value: object) -> None:
    outcome = run([[row("1", 1, external_ids=[{"key": "external_id", "value": value}])]], Settings())
    assert outcome.dead_letters == {"1": "reserved_user_id"}


def test_reserved_nami_user_id_is_a_dead_letter() -> None:
    reserved = {**row("1", 1), "user_id": "Undefined"}
    for settings in (Settings(user_id="nami_user_id"), Settings(anonymous="nami_user_id")):
        assert run([[reserved]], settings).dead_letters == {"1": "reserved_user_id"}


@pytest.mark.parametrize("payload", [None, "", "null", "[]", '"text"', '{"a":1', "NaN", '{"a":NaN}', '{"a":1,}', "{}x"])
def test_payload_that_is_no_object_is_a_dead_letter_and_carries_no_state(payload: str | None) -> None:
    outcome = run([[{**row("1", 1), "payload": payload}]], Settings(user_id="nami_user_id"))
    assert outcome.dead_letters == {"1": "malformed_payload"}
    assert outcome.current == {}


def test_anonymous_device_is_enough_only_where_there_is_one() -> None:
    ticks = [
        [
            row("1", 1, "device.impression", device_id="d"),
            row("2", 2, "device.impression", device_id=" "),
            row("3", 3, "device.impression"),
            row("4", 4, device_id="d"),
        ]
    ]
    outcome = run(ticks, Settings(anonymous="device_id"))
    assert [(event["insert_id"], event["device_id"], "user_id" in event) for event in outcome.delivered] == [
        ("1", "d", False)
    ]
    assert outcome.skipped == dict.fromkeys(("2", "3", "4"), "no_external_id")


def test_wait_for_login_holds_until_the_login_is_read() -> None:
    ticks = [[row("1", 1, devices=[])], [row("2", 2, devices=[{"id": "d"}])], [row("0", 0, external_ids=ACCOUNT)]]
    settings = Settings(anonymous="wait_for_login")
    assert run(ticks[:2], settings).pending == {"1", "2"}
    outcome = run(ticks, settings)
    assert [event["insert_id"] for event in outcome.delivered] == ["0", "1", "2"]
    assert outcome.delivered[1]["user_properties"]["namiml_device_ids"] == []
    assert outcome.pending == set()


def test_wait_for_login_ends() -> None:
    times = [NOON, NOON + timedelta(days=29), NOON + timedelta(days=30), NOON + timedelta(days=31)]
    ticks = [[row("1", 1)], [], [], [row("2", 2, external_ids=ACCOUNT)]]
    settings = Settings(anonymous="wait_for_login")
    assert run(ticks[:2], settings, times=times[:2]).pending == {"1"}
    outcome = run(ticks, settings, times=times)
    assert outcome.skipped == {"1": "no_external_id"}
    assert [event["insert_id"] for event in outcome.delivered] == ["2"]


def test_snapshot_of_awkward_groups() -> None:
    devices = [
        {"id": 7, "platform": {"id": "b"}},
        {"id": True, "platform": {"id": None}},
        {"id": "7", "platform": [{"id": "x"}]},
        {"id": "é"},
        {"id": "Z", "platform": {"id": "b"}},
        None,
        "d",
    ]
    journey = {"former_subscriber": True, "in_grace_period": "true", "in_trial_period": False}
    snapshot = run(
        [[row("1", 1, devices=devices, customer_journey_state=journey, active_entitlements={})]], Settings()
    ).current["u"]
    assert snapshot.properties == {
        "namiml_device_ids": ["7", "Z", "é"],
        "namiml_device_platforms": ["b"],
        "namiml_former_subscriber": True,
        "namiml_in_trial_period": False,
    }


def test_former_subscriber_is_false_while_an_entitlement_is_active() -> None:
    ticks = [
        [
            row("1", 1, active_entitlements=[{"entitlement_ref_id": "premium"}]),
            row("2", 2, customer_journey_state={"former_subscriber": True}),
            row("3", 3, active_entitlements=[None]),
        ]
    ]
    events = by_id(run(ticks, Settings(user_id="nami_user_id")))
    assert events["2"]["user_properties"]["namiml_former_subscriber"] is False
    assert events["3"]["user_properties"]["namiml_former_subscriber"] is True


def test_long_array_keeps_its_longest_sorted_prefix() -> None:
    # Compact JSON of n texts of 6 characters: 9 characters each with quotes and comma, and one more bracket.
    devices = [{"id": f"{number:06d}"} for number in reversed(range(200))]
    outcome = run([[row("1", 1, devices=devices)]], Settings(user_id="nami_user_id"))
    kept = outcome.delivered[0]["user_properties"]["namiml_device_ids"]
    assert kept == [f"{number:06d}" for number in range(113)]
    assert outcome.cuts == {"1": ("namiml_device_ids",)}
    assert outcome.current["u"].cut == ("namiml_device_ids",)


def test_event_properties_are_the_top_level_scalars_but_six() -> None:
    payload = {
        "id": "other",
        "event_type": "other",
        "created_date": "other",
        "user_id": "other",
        "device_id": "d",
        "external_id": "e",
        "text": "",
        "whole": 2**63,
        "part": -0.5,
        "flag": False,
        "nothing": None,
        "list": [1],
        "object": {},
        "namiml_event_category": "mine",
    }
    event = run([[row("1", 1, **payload)]], Settings(user_id="nami_user_id")).delivered[0]
    assert event["event_properties"] == {
        "text": "",
        "whole": 2**63,
        "part": -0.5,
        "flag": False,
        "namiml_event_category": "user",
        "namiml_event_subcategory1": "subscription",
    }
    assert (event["insert_id"], event["event_type"]) == ("1", "user.subscription.renewed")
    assert "device_id" not in event


@pytest.mark.parametrize(
    ("quantity", "sent"), [(3, 3), ("2", 2), ("-1", -1), (2.0, 2), ("2.5", 1), ("", 1), (None, 1), (True, 1), ("x", 1)]
)
def test_quantity_is_an_integer(quantity: object, sent: int) -> None:
    sale = row("1", 1, "device.transaction", amount=9.99, quantity=quantity, sku="s", currency="USD")
    event = run([[sale]], Settings(user_id="nami_user_id")).delivered[0]
    assert {key: event[key] for key in ("price", "quantity", "productId", "revenueType", "currency")} == {
        "price": 9.99,
        "quantity": sent,
        "productId": "s",
        "revenueType": "purchase",
        "currency": "USD",
    }


@pytest.mark.parametrize(
    "payload", [{}, {"amount": None}, {"amount": "9.99"}, {"amount": 9.99, "purchase_env": "sandbox"}]
)
def test_no_revenue_without_an_amount_or_in_the_sandbox(payload: dict[str, Any]) -> None:
    event = run([[row("1", 1, "device.transaction", **payload)]], Settings(user_id="nami_user_id")).delivered[0]
    assert not event.keys() & {"price", "quantity", "productId", "revenueType", "currency"}


def test_time_is_rounded_down_also_before_1970() -> None:
    early = {**row("1", 1), "created_date": "1969-12-31T23:59:59.999999+00:00"}
    later = {**row("2", 1), "created_date": "2026-09-01T12:00:00.000999Z"}
    outcome = run([[early, later]], Settings(user_id="nami_user_id"))
    assert [event["time"] for event in outcome.delivered] == [-1, int(NOON.timestamp()) * 1000]


def test_selection_rename_and_start() -> None:
    ticks = [
        [
            row("1", 1),
            row("2", 2),
            row("3", 3, "user.journey.trial.started"),
            row("4", 4, "device.impression"),
            row("5", 5, "user.subscription.transferred"),
        ]
    ]
    settings = Settings(
        user_id="nami_user_id",
        events=("user.subscription.*", "device.impression"),
        rename={"device.impression": "Paywall Shown"},
        start_from=NOON + timedelta(minutes=2),
    )
    outcome = run(ticks, settings)
    assert {ident: event["event_type"] for ident, event in by_id(outcome).items()} == {
        "2": "user.subscription.renewed",
        "4": "Paywall Shown",
    }
    assert outcome.captured == {"2", "4"}


def test_rows_of_other_apps_are_left_aside() -> None:
    other = {**row("1", 1, external_ids=ACCOUNT), "app_id": "other"}
    outcome = run([[other, row("2", 2)]], Settings(), app_id="app")
    assert outcome.skipped == {"2": "no_external_id"}
    assert outcome.captured == {"2"}


@given(histories(nul=True), integrations())
@pytest.mark.slow
def test_every_selected_event_has_one_end_whatever_the_history(history: History, integration: Settings) -> None:
    outcome = run(history, integration, app_id="app", times=times(history))
    ends = [*(event["insert_id"] for event in outcome.delivered), *outcome.skipped, *outcome.dead_letters]
    assert len(ends) == len(set(ends))
    assert outcome.captured == {*ends, *outcome.pending}
    assert len(ends) + len(outcome.pending) == len(outcome.captured)
    for event in outcome.delivered:
        assert event.get("user_id", "device").strip().lower() not in RESERVED
        json.dumps(event, ensure_ascii=False, allow_nan=False).encode()


@given(histories())
@pytest.mark.slow
def test_what_is_known_in_the_end_does_not_depend_on_the_ticks(history: History) -> None:
    """But for rows that repeat an id with other content, of which the first read counts."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for tick in history:
        for item in sorted(filter(is_readable, tick), key=lambda item: item["ingested_at"]):
            first.setdefault((item["app_id"], item["id"]), item)
    by_ticks = run(history, Settings(), app_id="app")
    at_once = run([list(first.values())], Settings(), app_id="app")
    assert by_ticks.current == at_once.current
    assert by_ticks.external_ids == at_once.external_ids
    assert by_ticks.captured == at_once.captured
