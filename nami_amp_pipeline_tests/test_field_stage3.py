"""What the field taught about stage 3: ids that Amplitude refuses, sandboxes, fields that must not leave, revenue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.operations import dead_letters
from nami_amp_pipeline.stages.stage import called
from nami_amp_pipeline.stages.table import PREPARE
from nami_amp_pipeline.state import integrations as state
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_changes import IntegrationChange, change
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.harness import START, Pipeline

pytestmark = pytest.mark.slow_cases

SECRET = "Anna Karenina, 1877"
ACCOUNT = [{"key": "external_id", "type": "uuid", "value": "ext-u1"}]
STATE = {
    "active_entitlements": [{"entitlement_ref_id": "premium", "sku_ref_id": "premium_monthly"}],
    "devices": [{"id": "dev-u1", "platform": {"id": "plat-1"}}],
    "customer_journey_state": {"former_subscriber": False, "in_trial_period": True},
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path / "home")
    yield made
    made.close()


def row(ident: str, event_type: str, minute: int = 0, user: str = "u1", **payload: Any) -> dict[str, Any]:
    created = START + timedelta(minutes=minute)
    return {
        "id": ident,
        "app_id": "shop",
        "event_type": event_type,
        "user_id": user,
        "created_date": created,
        "ingested_at": created + timedelta(seconds=30),
        "payload": json.dumps(payload, ensure_ascii=False),
    }


def bought(ident: str, minute: int = 0, user: str = "u1", **payload: Any) -> dict[str, Any]:
    return row(ident, "user.subscription.purchased", minute, user, **{**STATE, "external_ids": ACCOUNT, **payload})


def paid(ident: str, minute: int = 0, **payload: Any) -> dict[str, Any]:
    sale = {"device_id": "d1", "amount": 4.99, "sku": "coins", "currency": "USD", "event_platform": "apple"}
    return row(ident, "device.transaction", minute, **{**sale, **payload})


def tick(pipeline: Pipeline, *rows: dict[str, Any], hours: int = 1) -> None:
    pipeline.insert(rows)
    pipeline.clock.set(START + timedelta(hours=hours))
    pipeline.tick()


def sent(pipeline: Pipeline, one: Integration) -> dict[str, dict[str, Any]]:
    return {event["insert_id"]: event for event in pipeline.sent(one)}


def salted(pipeline: Pipeline, one: Integration, text: str) -> str:
    salt = state.get(pipeline.context.store, one.key).hash_salt
    assert salt is not None
    return hashlib.sha256((pipeline.context.cipher.decrypt(salt).reveal() + text).encode()).hexdigest()


class TestReservedDevices:
    @pytest.mark.parametrize(
        "device", ["00000000-0000-0000-0000-000000000000", "unknown", "NULL", "0", 0, -1, " n/a ", "{}"]
    )
    def test_beside_a_known_user_the_event_goes_without_it(self, pipeline: Pipeline, device: object) -> None:
        one = pipeline.add("shop")
        tick(pipeline, bought("e1"), row("e2", "device.impression", 1, device_id=device, name="Paywall"))
        events = sent(pipeline, one)
        assert events["e2"]["user_id"] == "ext-u1"
        assert "device_id" not in events["e2"]
        assert events["e2"]["event_properties"]["name"] == "Paywall"
        assert len(pipeline.wires[one.id].bodies) == 1, "no more requests than without"

    @pytest.mark.parametrize("device", ["null", "UNDEFINED", "-1"])
    def test_alone_it_is_a_dead_letter_before_posting(self, pipeline: Pipeline, device: str) -> None:
        one = pipeline.add("shop", anonymous="device_id")
        tick(pipeline, row("e1", "device.impression", user="nobody", device_id=device))
        assert pipeline.sent(one) == []
        assert pipeline.status(one).dead_letters == {"reserved_device_id": 1}
        (letter,) = dead_letters.show(pipeline.context.store, "e1")
        assert json.loads(letter.payload or "") == {"device_id": device}

    def test_nobody_is_asked_for_a_device_where_users_go_by_name(self, pipeline: Pipeline) -> None:
        skip, named = pipeline.add("shop"), pipeline.add("shop", "named", anonymous="nami_user_id")
        tick(pipeline, row("e1", "device.impression", user="nobody", device_id="null"))
        assert pipeline.status(skip).skipped == {"no_external_id": 1}
        assert sent(pipeline, named)["e1"]["user_id"] == "nobody"


class TestBlankExternalIds:
    @pytest.mark.parametrize("blank", ["", "   ", "\t", "\u3000", "\0"])
    def test_the_earlier_id_holds(self, pipeline: Pipeline, blank: str) -> None:
        one = pipeline.add("shop")
        tick(pipeline, bought("e1"), bought("e2", 60, external_ids=[{"key": "external_id", "value": blank}]), hours=2)
        assert {event["user_id"] for event in pipeline.sent(one)} == {"ext-u1"}
        assert pipeline.status(one).delivered == 2

    def test_or_the_next_entry(self, pipeline: Pipeline) -> None:
        one = pipeline.add("shop")
        tick(pipeline, bought("e1", external_ids=[{"key": "external_id", "value": " "}, *ACCOUNT]))
        assert sent(pipeline, one)["e1"]["user_id"] == "ext-u1"

    def test_never_anything_else_is_what_anonymous_says(self, pipeline: Pipeline) -> None:
        skipped, named = pipeline.add("shop"), pipeline.add("shop", "named", anonymous="nami_user_id")
        held = pipeline.add("shop", "held", anonymous="wait_for_login")
        tick(pipeline, bought("e1", external_ids=[{"key": "external_id", "value": "   "}]))
        assert pipeline.status(skipped).skipped == {"no_external_id": 1}
        assert sent(pipeline, named)["e1"]["user_id"] == "u1"
        assert pipeline.status(held).pending_by == {"waiting_for_login": 1}


class TestRevenue:
    @pytest.mark.parametrize(
        ("quantity", "expected"), [(2.0, 2), ("2.0", 2), (2, 2), (2.5, 1), (-3.0, -3), (1e3, 1000), ("x", 1), (None, 1)]
    )
    def test_a_whole_quantity_counts_however_it_is_written(
        self, pipeline: Pipeline, quantity: object, expected: int
    ) -> None:
        one = pipeline.add("shop", anonymous="device_id")
        tick(pipeline, paid("t1", quantity=quantity))
        event = sent(pipeline, one)["t1"]
        assert (event["price"], event["quantity"], event["revenueType"]) == (4.99, expected, "purchase")

    @pytest.mark.parametrize("env", ["SANDBOX", "Sandbox", " sandbox "])
    def test_a_sandbox_is_no_revenue_in_any_case(self, pipeline: Pipeline, env: str) -> None:
        one = pipeline.add("shop", anonymous="device_id")
        tick(pipeline, paid("t1", purchase_env=env))
        assert not {"price", "quantity", "productId", "revenueType", "currency"} & sent(pipeline, one)["t1"].keys()

    @pytest.mark.contract("2.12")
    def test_net_is_the_amount_less_the_stores_fee(self, pipeline: Pipeline) -> None:
        gross = pipeline.add("shop", "gross", anonymous="device_id")
        net = pipeline.add("shop", "net", anonymous="device_id", revenue="net", store_fees={"Google": 0.15})
        none = pipeline.add("shop", "none", anonymous="device_id", revenue="none")
        tick(
            pipeline,
            paid("t1", namiml_gross_amount="mine"),
            paid("t2", event_platform="google", amount=10),
            paid("t3", event_platform=None),
            paid("t4", purchase_env="sandbox"),
        )
        prices = {ident: event.get("price") for ident, event in sent(pipeline, net).items()}
        assert prices == {"t1": 3.493, "t2": 8.5, "t3": 3.493, "t4": None}
        amounts = {i: event["event_properties"].get("namiml_gross_amount") for i, event in sent(pipeline, net).items()}
        assert amounts == {"t1": 4.99, "t2": 10, "t3": 4.99, "t4": None}
        assert {event.get("price") for event in pipeline.sent(gross)} == {4.99, 10, None}
        assert sent(pipeline, gross)["t1"]["event_properties"]["namiml_gross_amount"] == "mine"
        assert not any("price" in event or "revenueType" in event for event in pipeline.sent(none))
        assert sent(pipeline, none)["t1"]["event_properties"]["amount"] == 4.99


class TestSandboxEvents:
    ROWS = (
        bought("said", purchase_env="Sandbox"),
        bought("real", 1, purchase_env="PRODUCTION"),
        bought("silent", 2),
        paid("sale", 3, purchase_env="sandbox"),
        bought("odd", 4, purchase_env=7),
    )

    @pytest.mark.contract("2.9")
    def test_each_setting(self, pipeline: Pipeline) -> None:
        send = pipeline.add("shop", "send")
        skip = pipeline.add("shop", "skip", sandbox="skip")
        only = pipeline.add("shop", "only", sandbox="only")
        tick(pipeline, *self.ROWS)
        assert sent(pipeline, send).keys() == {"said", "real", "silent", "sale", "odd"}
        assert sent(pipeline, skip).keys() == {"real", "silent", "odd"}
        assert sent(pipeline, only).keys() == {"said", "silent", "sale", "odd"}
        assert pipeline.status(skip).skipped == {"sandbox": 2}
        assert pipeline.status(only).skipped == {"production": 1}
        for one in (skip, only):
            same = {ident: sent(pipeline, send)[ident] for ident in sent(pipeline, one)}
            assert sent(pipeline, one) == same

    def test_who_has_no_id_is_skipped_for_the_sandbox_first(self, pipeline: Pipeline) -> None:
        one = pipeline.add("shop", sandbox="skip", anonymous="wait_for_login")
        tick(pipeline, bought("e1", external_ids=[], purchase_env="sandbox"))
        assert pipeline.status(one).skipped == {"sandbox": 1}

    def test_an_excluded_environment_still_decides(self, pipeline: Pipeline) -> None:
        one = pipeline.add("shop", sandbox="skip", exclude=["purchase_env"])
        tick(pipeline, *self.ROWS)
        assert sent(pipeline, one).keys() == {"real", "silent", "odd"}
        assert "purchase_env" not in json.dumps(pipeline.sent(one))


HIDING = (
    "name",
    "sku",
    "currency",
    "quantity",
    "amount",
    "device_id",
    "devices",
    "odd",
    "nested",
    "active_entitlements",
)


class TestFieldsThatNeverLeave:
    """Whatever shape the payload has: read as columns, and one by one where a field stands in it twice."""

    ROWS = (
        paid("t1", name=SECRET, sku=SECRET, quantity=2, device_id=SECRET, odd=True, nested={"a": SECRET}),
        bought("e1", 1, name=SECRET, devices=[{"id": SECRET}], odd=1.5),
        {**paid("t2", 2), "payload": json.dumps({"name": SECRET, "amount": 3, "sku": SECRET, "device_id": SECRET})
         .replace("{", '{"name":"' + SECRET + '","kept":"yes",', 1)},
        {**bought("e2", 3), "payload": json.dumps({"name": SECRET, "kept": "yes", "external_ids": ACCOUNT,
                                                    "devices": SECRET})},
    )  # fmt: skip

    @pytest.mark.contract("2.10")
    def test_excluded(self, pipeline: Pipeline) -> None:
        one, other = pipeline.add("shop", exclude=HIDING), pipeline.add("shop", "all")
        tick(pipeline, *self.ROWS)
        events = sent(pipeline, one)
        assert events.keys() == {"t1", "e1", "t2", "e2"}
        assert SECRET not in json.dumps(pipeline.sent(one))
        for event in events.values():
            hidden = {*HIDING, "price", "productId", "quantity", "currency", "revenueType", "device_id"}
            assert not hidden & (event.keys() | event["event_properties"].keys())
            assert not {"namiml_device_ids", "namiml_active_skus"} & event.get("user_properties", {}).keys()
        assert events["t2"]["event_properties"]["kept"] == "yes"
        assert events["e1"]["user_properties"]["namiml_in_trial_period"] is True
        assert sent(pipeline, other)["t1"]["productId"] == SECRET, "what another integration wants is its own affair"

    @pytest.mark.contract("2.10")
    def test_hashed(self, pipeline: Pipeline) -> None:
        one = pipeline.add("shop", hashed=HIDING)
        tick(pipeline, *self.ROWS)
        events, hidden = sent(pipeline, one), salted(pipeline, one, SECRET)
        assert SECRET not in json.dumps(pipeline.sent(one))
        for ident in ("t1", "t2"):
            assert events[ident]["device_id"] == hidden
            assert events[ident]["event_properties"]["name"] == hidden
            assert events[ident]["event_properties"]["sku"] == hidden
            assert not {"price", "quantity", "currency", "revenueType"} & events[ident].keys()
        assert events["t1"]["event_properties"]["amount"] == salted(pipeline, one, "4.99")
        assert events["t1"]["event_properties"]["odd"] == salted(pipeline, one, "true")
        assert events["e1"]["event_properties"]["odd"] == salted(pipeline, one, "1.5")
        assert events["e1"]["user_properties"]["namiml_device_ids"] == [hidden]
        assert events["e2"]["user_properties"]["namiml_device_ids"] == [hidden]
        assert events["e2"]["event_properties"]["devices"] == hidden
        assert "nested" not in events["t1"]["event_properties"]

    def test_a_hashed_sku_is_the_product(self, pipeline: Pipeline) -> None:
        one = pipeline.add("shop", hashed=["sku"])
        tick(pipeline, *self.ROWS)
        for ident in ("t1", "t2"):
            assert sent(pipeline, one)[ident]["productId"] == salted(pipeline, one, SECRET)
            assert sent(pipeline, one)[ident]["revenueType"] == "purchase"

    def test_two_integrations_have_two_salts(self, pipeline: Pipeline) -> None:
        ones = [pipeline.add("shop", name, hashed=["name"]) for name in "ab"]
        tick(pipeline, *self.ROWS)
        first, second = (sent(pipeline, one)["t1"]["event_properties"]["name"] for one in ones)
        assert first != second
        assert len({first, second, hashlib.sha256(SECRET.encode()).hexdigest()}) == 3

    def test_a_user_property_by_its_own_name(self, pipeline: Pipeline) -> None:
        one = pipeline.add("shop", exclude=["namiml_active_skus"], hashed=["namiml_in_trial_period"])
        tick(pipeline, bought("e1"))
        assert sent(pipeline, one)["e1"]["user_properties"] == {
            "namiml_active_entitlements": ["premium"],
            "namiml_device_ids": ["dev-u1"],
            "namiml_device_platforms": ["plat-1"],
            "namiml_former_subscriber": False,
            "namiml_in_trial_period": salted(pipeline, one, "true"),
        }

    def test_many_hashes_fit_into_an_array(self, pipeline: Pipeline) -> None:
        one = pipeline.add("shop", hashed=["devices"])
        tick(pipeline, bought("e1", devices=[{"id": f"d{number}"} for number in range(40)]))
        hashes = sent(pipeline, one)["e1"]["user_properties"]["namiml_device_ids"]
        assert hashes == sorted(hashes)
        assert len(hashes) == 15
        assert len(json.dumps(hashes, separators=(",", ":"))) <= 1024

    @pytest.mark.slow
    def test_nor_do_they_stand_in_dead_letters_or_wait_in_the_store(self, pipeline: Pipeline) -> None:
        hidden = pipeline.add("shop", exclude=["name"], hashed=["sku"], anonymous="wait_for_login")
        shown = pipeline.add("shop", "shown", anonymous="wait_for_login")
        reserved = [{"key": "external_id", "value": "null"}]
        tick(
            pipeline,
            paid("waits", name=SECRET, sku=SECRET),
            bought("dead", 1, user="u2", name=SECRET, sku=SECRET, external_ids=reserved),
            {**bought("broken", 2, user="u3"), "payload": f'{{"name":"{SECRET}",'},
        )
        table = tables.exceptions
        with pipeline.context.store.begin() as tx:
            rows = tx.execute(sa.select(table)).mappings().all()
        texts = {(row["integration_id"], row["event_id"]): f"{row['body']}{row['payload']}" for row in rows}
        assert len(texts) == 6
        for ident in ("waits", "dead", "broken"):
            assert SECRET not in texts[hidden.id, ident]
            assert SECRET in texts[shown.id, ident]
        assert salted(pipeline, hidden, SECRET) in texts[hidden.id, "waits"]
        assert salted(pipeline, hidden, SECRET) in texts[hidden.id, "dead"]
        tick(pipeline, bought("login", 90), hours=2)
        assert SECRET not in json.dumps(pipeline.sent(hidden))
        assert sent(pipeline, hidden)["waits"]["productId"] == salted(pipeline, hidden, SECRET)


class TestChangesHoldForWhatIsInNoOutbox:
    @pytest.mark.slow
    def test_content(self, pipeline: Pipeline) -> None:
        store, cipher = pipeline.context.store, pipeline.context.cipher
        one = pipeline.add("shop")
        tick(pipeline, bought("e1", name=SECRET))
        change(store, cipher, one.key, IntegrationChange(exclude=["name"], rename={"device.impression": "Seen"}))
        tick(pipeline, bought("e2", 90, name=SECRET), row("e3", "device.impression", 91), hours=2)
        events = sent(pipeline, one)
        assert events["e1"]["event_properties"]["name"] == SECRET
        assert "name" not in events["e2"]["event_properties"]
        assert events["e3"]["event_type"] == "Seen"

    @pytest.mark.slow
    def test_who_waits_still_goes_with_the_login(self, pipeline: Pipeline) -> None:
        store, cipher = pipeline.context.store, pipeline.context.cipher
        one = pipeline.add("shop", anonymous="wait_for_login")
        tick(pipeline, paid("e1"))
        assert pipeline.status(one).pending == 1
        change(store, cipher, one.key, IntegrationChange(anonymous="skip"))
        tick(pipeline, row("e2", "device.impression", 90, user="u2"), hours=2)
        assert (pipeline.status(one).pending, pipeline.status(one).skipped) == (1, {"no_external_id": 1})
        tick(pipeline, bought("e3", 150), hours=3)
        assert sent(pipeline, one).keys() == {"e1", "e3"}
        assert pipeline.status(one).pending == 0


def test_the_time_is_rounded_down_in_every_year(pipeline: Pipeline) -> None:
    one = pipeline.add("shop")
    moments = {
        "before": datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
        "long": datetime(1066, 10, 14, 9, 0, 0, 1, UTC),
        "after": datetime(2026, 1, 1, 0, 0, 0, 999_999, UTC),
    }
    tick(pipeline, *({**bought(ident), "created_date": moment} for ident, moment in moments.items()))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert {ident: event["time"] for ident, event in sent(pipeline, one).items()} == {
        ident: (moment - epoch) // timedelta(milliseconds=1) for ident, moment in moments.items()
    }


def test_a_salt_that_cannot_be_read_stops_its_integration_only(pipeline: Pipeline) -> None:
    from nami_amp_pipeline.stages import pipeline as stages

    store = pipeline.context.store
    broken, fine = pipeline.add("shop", hashed=["name"]), pipeline.add("shop", "fine")
    with store.begin() as tx:
        tx.execute(
            sa.update(tables.integrations).where(tables.integrations.c.id == broken.id).values(hash_salt="no token")
        )
    pipeline.insert([bought("e1")])
    pipeline.clock.set(START + timedelta(hours=1))
    stages.capture_apps(pipeline.context)
    stages.snapshot_apps(pipeline.context)
    told: list[tuple[str, str]] = []
    stages.run_stage(
        pipeline.context,
        PREPARE,
        state.all_integrations(store),
        failed=lambda one, error: told.append((called(one), str(error))),
    )
    assert [key for key, _ in told] == [broken.key]
    assert "cannot hash its fields" in told[0][1]
    assert (pipeline.status(fine).pending, pipeline.status(broken).pending) == (1, 1)


@pytest.mark.usefixtures("new_types")
class TestTypesThatAreLearnedLater:
    @pytest.fixture
    def new_types(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        from nami_amp_pipeline import contract

        self.ones = {
            name: pipeline.add("shop", name, events=events, anonymous="nami_user_id")
            for name, events in {
                "all": ["all"],
                "prefix": ["user.subscription.*"],
                "one": ["device.impression"],
            }.items()
        }
        tick(pipeline, row("early", "campaign.sent"), bought("known"))
        assert sent(pipeline, self.ones["all"]).keys() == {"known"}
        added = (contract.EventType("campaign.sent"), contract.EventType("user.subscription.refunded"))
        monkeypatch.setattr(contract, "EVENT_TYPES", (*contract.EVENT_TYPES, *added))

    @pytest.mark.slow
    def test_join_every_integration_whose_choice_covers_them(self, pipeline: Pipeline) -> None:
        tick(
            pipeline,
            row("c1", "campaign.sent", 90, device_id="d9", amount=3, namiml_event_subcategory1="own", note="n"),
            {**bought("r1", 91), "event_type": "user.subscription.refunded"},
            hours=2,
        )
        assert sent(pipeline, self.ones["all"]).keys() == {"known", "c1", "r1"}
        assert sent(pipeline, self.ones["prefix"]).keys() == {"known", "r1"}
        assert sent(pipeline, self.ones["one"]).keys() == set()
        event = sent(pipeline, self.ones["all"])["c1"]
        assert not {"device_id", "user_properties", "price"} & event.keys()
        assert event["event_properties"] == {
            "amount": 3,
            "namiml_event_category": "campaign",
            "namiml_event_subcategory1": "own",
            "note": "n",
        }
        assert sent(pipeline, self.ones["all"])["r1"]["user_properties"]["namiml_active_skus"] == ["premium_monthly"]
