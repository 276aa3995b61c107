"""Single rules of docs/contract.md, each on a few rows that one can check by eye."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nami_amp_pipeline.cli import cli
from nami_amp_pipeline.contract import MAX_REQUEST_BYTES, MAX_REQUEST_EVENTS
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.harness import Pipeline
from nami_amp_pipeline_tests.support.reference import Row
from nami_amp_pipeline_tests.support.rows import ACCOUNT, row

pytestmark = pytest.mark.slow_cases


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path)
    yield made
    made.close()


def deliver(pipe: Pipeline, *rows: Row, **settings: Any) -> dict[str, dict[str, Any]]:
    """What a new integration is sent of these rows, by event id."""
    one = pipe.add("app", **settings)
    pipe.insert(rows)
    pipe.tick()
    return {event["insert_id"]: event for event in pipe.sent(one)}


@pytest.mark.contract("1.5", "4.6")
def test_columns_win_over_the_copies_in_the_payload(pipe: Pipeline) -> None:
    other = {"id": "other", "event_type": "user.subscription.paused", "user_id": "other", "created_date": "1999-01-01"}
    whole = row("1", 1, external_ids=ACCOUNT)
    whole = {**whole, "payload": json.dumps({**json.loads(whole["payload"]), **other})}
    (event,) = deliver(pipe, whole, user_id_kind="nami_user_id").values()
    assert (event["insert_id"], event["event_type"], event["user_id"]) == ("1", "user.subscription.renewed", "u")
    assert event["time"] == int(whole["created_date"].timestamp() * 1000)


@pytest.mark.contract("1.6", "4.7")
def test_unknown_fields_and_types_are_allowed(pipe: Pipeline) -> None:
    rows = (
        row("1", 1, "user.unheard.of", external_ids=ACCOUNT),
        row("2", 2, new_text="a", new_number=1.5, new_flag=True, new_list=[1], new_object={"a": 1}, new_null=None),
    )
    sent = deliver(pipe, *rows)
    assert sent.keys() == {"2"}, "a type that nobody can select is not sent, but its login counts"
    properties = sent["2"]["event_properties"]
    assert {name: value for name, value in properties.items() if name.startswith("new")} == {
        "new_text": "a", "new_number": 1.5, "new_flag": True,
    }  # fmt: skip


@pytest.mark.contract("1.8")
@pytest.mark.parametrize("payload", ["", "null", "[]", "{'a': 1}", '{"a": 1,}', '{"a": NaN}', None])
def test_a_payload_that_is_no_object_is_a_dead_letter_and_changes_no_state(pipe: Pipeline, payload: str | None) -> None:
    good = row("1", 1, devices=[{"id": "d1"}], external_ids=ACCOUNT)
    bad = {**row("2", 2), "payload": payload}
    one = pipe.add("app")
    pipe.insert([good, bad, row("3", 3)])
    pipe.tick()
    assert pipe.status(one).dead_letters == {"malformed_payload": 1}
    sent = {event["insert_id"]: event for event in pipe.sent(one)}
    assert sent.keys() == {"1", "3"}
    assert sent["3"]["user_properties"] == sent["1"]["user_properties"]


@pytest.mark.contract("1.9", "4.2")
@pytest.mark.parametrize(
    ("entries", "user_id"),
    [
        ([{"key": "other", "value": "x"}, {"key": "external_id", "value": "a"}], "a"),
        ([{"key": "external_id", "value": None}, {"key": "external_id", "value": "b"}], "b"),
        ([{"key": "external_id", "value": "c"}, {"key": "external_id", "value": "d"}], "c"),
        ([{"key": "external_id", "value": 17}], "17"),
        ([{"key": "external_id", "value": " \u00a0spaced out\t"}], "spaced out"),
    ],
)
def test_external_id_is_the_first_usable_one_without_surrounding_space(
    pipe: Pipeline, entries: list[dict[str, Any]], user_id: str
) -> None:
    assert deliver(pipe, row("1", 1, external_ids=entries))["1"]["user_id"] == user_id


@pytest.mark.contract("2.6", "2.13", "4.1", "4.8")
def test_user_id_and_names_are_as_the_integration_says(pipe: Pipeline) -> None:
    sent = deliver(
        pipe,
        row("1", 1, "user.journey.trial.started"),
        row("2", 2, "device.impression", device_id="d"),
        user_id_kind="nami_user_id",
        rename={"user.journey.trial.started": "Trial Started"},
    )
    assert {ident: (event["user_id"], event["event_type"]) for ident, event in sent.items()} == {
        "1": ("u", "Trial Started"),
        "2": ("u", "device.impression"),
    }
    first, second = sent["1"]["event_properties"], sent["2"]["event_properties"]
    assert (first["namiml_event_category"], first["namiml_event_subcategory1"]) == ("user", "journey")
    assert second["namiml_event_category"] == "device"
    assert "namiml_event_subcategory1" not in second


@pytest.mark.contract("3.3", "3.4", "3.5", "3.6", "4.9")
def test_the_snapshot_by_its_rules(pipe: Pipeline) -> None:
    many = [{"id": f"device-{number:04d}"} for number in range(200)]
    journey = {"former_subscriber": True, "in_trial_period": "yes", "in_grace_period": False}
    sent = deliver(
        pipe,
        row(
            "1",
            1,
            external_ids=ACCOUNT,
            devices=[{"id": "b"}, {"id": 7}, {"id": "b"}, {"id": None}, {"id": "a"}],
            active_entitlements=[{"entitlement_ref_id": "gold", "sku_ref_id": "gold_1"}],
            customer_journey_state=journey,
        ),
        row("2", 2, devices=many, active_entitlements=[]),
    )
    first, second = sent["1"]["user_properties"], sent["2"]["user_properties"]
    assert first["namiml_device_ids"] == ["7", "a", "b"]
    assert first["namiml_device_platforms"] == []
    assert "namiml_in_trial_period" not in first
    assert (first["namiml_in_grace_period"], first["namiml_former_subscriber"]) == (False, False)
    assert second["namiml_former_subscriber"] is True
    kept = second["namiml_device_ids"]
    assert kept == [device["id"] for device in many[: len(kept)]]
    longer = json.dumps([device["id"] for device in many[: len(kept) + 1]], separators=(",", ":"))
    assert len(json.dumps(kept, separators=(",", ":"))) <= 1024 < len(longer)


@pytest.mark.contract("4.4", "4.12", "4.13")
def test_fields_that_are_never_sent(pipe: Pipeline) -> None:
    more = {"ip": "192.0.2.1", "event_id": 5, "country": "DE", "city": "Berlin", "carrier": "c", "device_brand": "b"}
    sent = deliver(
        pipe,
        row("1", 1, external_ids=ACCOUNT, device_id="d", **more),
        row("2", 2, "device.impression", device_id="d", **more),
    )
    for event in sent.values():
        assert not event.keys() & more.keys()
    assert "device_id" not in sent["1"]
    assert sent["2"]["device_id"] == "d"
    (wire,) = pipe.wires.values()
    assert [json.loads(body)["options"] for body in wire.bodies] == [{"min_id_length": 1}] * len(wire.bodies)


@pytest.mark.contract("4.3")
@pytest.mark.parametrize("value", ["null", "NULL", " none ", "0", "-1", "Anonymous", "{}"])
def test_reserved_ids_are_dead_letters(pipe: Pipeline, value: str) -> None:
    one = pipe.add("app")
    pipe.insert([row("1", 1, external_ids=[{"key": "external_id", "value": value}])])
    pipe.tick()
    assert pipe.status(one).dead_letters == {"reserved_user_id": 1}
    assert pipe.sent(one) == []


@pytest.mark.contract("4.10")
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"amount": 9.99, "quantity": "2", "sku": "gold", "currency": "EUR"}, (9.99, 2, "gold", "purchase", "EUR")),
        ({"amount": 5, "sku": "gold", "currency": "USD"}, (5, 1, "gold", "purchase", "USD")),
        ({"amount": 5, "sku": "gold", "currency": "USD", "purchase_env": "sandbox"}, (None,) * 5),
        ({"amount": "5", "sku": "gold"}, (None,) * 5),
        ({"sku": "gold"}, (None,) * 5),
    ],
)
def test_revenue_is_that_of_transactions_with_an_amount(
    pipe: Pipeline, more: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    event = deliver(pipe, row("1", 1, "device.transaction", **more), user_id_kind="nami_user_id")["1"]
    fields = ("price", "quantity", "productId", "revenueType", "currency")
    assert tuple(event.get(field) for field in fields) == expected


@pytest.mark.contract("5.2.3")
def test_two_nami_users_with_one_external_id_are_in_order_within_a_segment(pipe: Pipeline) -> None:
    rows = [{**row(str(number), number, external_ids=ACCOUNT), "user_id": f"u{number % 2}"} for number in range(40)]
    sent = list(deliver(pipe, *reversed(rows)).values())
    assert [event["time"] for event in sent] == sorted(event["time"] for event in sent)


@pytest.mark.contract("5.4.1")
def test_a_request_cannot_be_set_above_amplitudes_limit(tmp_path: Path) -> None:
    most = {"NAMI_AMP_HOME": str(tmp_path), "NAMI_AMP_BATCH_EVENTS": str(MAX_REQUEST_EVENTS)}
    assert Settings.load(most).batch_events == MAX_REQUEST_EVENTS
    with pytest.raises(Misconfigured, match="NAMI_AMP_BATCH_EVENTS"):
        Settings.load({**most, "NAMI_AMP_BATCH_EVENTS": str(MAX_REQUEST_EVENTS + 1)})
    assert Settings.load({"NAMI_AMP_HOME": str(tmp_path)}).batch_bytes < MAX_REQUEST_BYTES


@pytest.mark.contract("5.4.1")
def test_requests_keep_to_their_limits(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, {"NAMI_AMP_BATCH_EVENTS": "7", "NAMI_AMP_BATCH_BYTES": "10000"})
    rows = [row(str(number), number, external_ids=ACCOUNT, text="x" * (number * 60)) for number in range(60)]
    assert len(deliver(pipe, *rows)) == 60
    (wire,) = pipe.wires.values()
    assert max(len(body) for body in wire.bodies) <= 10_000
    events = [len(json.loads(body)["events"]) for body in wire.bodies]
    assert max(events) == 7
    pipe.close()


@pytest.mark.contract("6.1")
def test_the_command_line_is_a_front_on_the_library() -> None:
    """Its commands are those that the contract, README and the pages name."""
    done = CliRunner().invoke(cli, ["--help"])
    assert done.exit_code == 0
    for command in ("demo", "load", "integrations", "run", "status", "dead-letters", "trace", "sandbox"):
        assert f"  {command} " in done.stdout
