"""Integrations: what may be added, what is refused and why, and what switching and removing do."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.errors import Busy, Misconfigured
from nami_amp_pipeline.operations.backlog import _starts
from nami_amp_pipeline.operations.trace import _before_outbox
from nami_amp_pipeline.retention.report import RetentionReport
from nami_amp_pipeline.retention.segments import _needed
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import Store, backfills, integrations, tables
from nami_amp_pipeline.state.integration_changes import IntegrationChange, change
from nami_amp_pipeline.state.integration_history import history
from nami_amp_pipeline.state.integration_keys import sharing_a_key
from nami_amp_pipeline.state.integrations import Integration, NewIntegration, check_endpoint
from nami_amp_pipeline.state.migrate import create_or_upgrade

KEY = Secret("the-clear-key")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/state.db", lambda: 1_000.0)
    create_or_upgrade(store)
    yield store
    store.close()


def added(store: Store, tmp_path: Path, app: str = "radio", name: str = "prod", **more: Any) -> Integration:
    new = NewIntegration(app, name, **{"endpoint": "us", "api_key": KEY, "allow_shared_key": True, **more})
    return integrations.add(store, Cipher(None, tmp_path / "key"), new)


def test_defaults_are_those_of_the_contract(store: Store, tmp_path: Path) -> None:
    one = added(store, tmp_path)
    assert one.key == "radio/prod"
    assert one.partition_key == "radio|prod"
    assert one.endpoint == "https://api2.amplitude.com/2/httpapi"
    assert (one.user_id_kind, one.anonymous, one.enabled) == ("external_id", "skip", True)
    assert one.events == contract.event_type_names()
    assert one.created_at == 1_000_000_000


@pytest.mark.contract("2.4", "2.5")
def test_keys_are_kept_encrypted_and_shown_by_nothing(store: Store, tmp_path: Path) -> None:
    one = added(store, tmp_path, secret_key=Secret("the-clear-secret"))
    assert one.secret_key is not None
    assert "the-clear" not in repr(one) + one.api_key + one.secret_key
    assert one.api_key not in repr(one)
    assert Cipher(None, tmp_path / "key").decrypt(one.api_key).reveal() == "the-clear-key"
    store.close()
    assert all(b"the-clear" not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_space_around_a_key_is_not_part_of_it(store: Store, tmp_path: Path) -> None:
    one = added(store, tmp_path, api_key=Secret(" the-clear-key\n"))
    assert Cipher(None, tmp_path / "key").decrypt(one.api_key).reveal() == "the-clear-key"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"app": "ra/dio"}, "app id"),
        ({"app": "ra|dio"}, "app id"),
        ({"app": ""}, "app id"),
        ({"name": "pr od"}, "integration name"),
        ({"name": "pröd"}, "integration name"),
        ({"endpoint": "asia"}, "must be 'us', 'eu'"),
        ({"api_key": Secret("  ")}, "API key is empty"),
        ({"events": ["user.subscription.purchase"]}, "unknown event type"),
        ({"events": ["user.*.renewed"]}, "unknown event type"),
        ({"rename": {"user.login": "Login"}}, "cannot rename"),
        ({"rename": {"device.impression": " "}}, "empty name"),
        ({"rename": {"device.impression": "[Amplitude] Seen"}}, "reserves"),
        ({"rename": {"device.impression": "$seen"}}, "reserves"),
    ],
)
@pytest.mark.contract("2.2")
def test_what_cannot_be_used_is_refused(store: Store, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        added(store, tmp_path, **change)
    assert integrations.all_integrations(store) == []


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        (["all"], 13),
        (["user.subscription.*"], 8),
        (["device.*", "device.impression"], 2),
        (["user.journey.trial.started"], 1),
    ],
)
@pytest.mark.contract("2.8")
def test_event_types_by_prefix(store: Store, tmp_path: Path, patterns: list[str], count: int) -> None:
    assert len(added(store, tmp_path, events=patterns).events) == count


@pytest.mark.contract("2.2")
def test_a_name_can_be_taken_once_in_its_app(store: Store, tmp_path: Path) -> None:
    added(store, tmp_path)
    added(store, tmp_path, app="fit")
    with pytest.raises(Misconfigured, match="exists already"):
        added(store, tmp_path)
    assert [one.key for one in integrations.all_integrations(store)] == ["fit/prod", "radio/prod"]


class TestEndpoints:
    @pytest.mark.parametrize("endpoint", ["us", "eu", *contract.ENDPOINTS.values()])
    def test_amplitudes_own_need_no_leave(self, endpoint: str) -> None:
        assert check_endpoint(endpoint, allow_custom=False) in contract.ENDPOINTS.values()

    @pytest.mark.parametrize("endpoint", ["https://proxy.example.com/2/httpapi", "http://127.0.0.1:8765/2/httpapi"])
    @pytest.mark.contract("2.3")
    def test_others_do(self, endpoint: str) -> None:
        with pytest.raises(Misconfigured, match="--allow-custom-endpoint"):
            check_endpoint(endpoint, allow_custom=False)
        assert check_endpoint(endpoint, allow_custom=True) == endpoint

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]:80"])
    @pytest.mark.contract("2.3")
    def test_plain_http_to_a_loopback_address(self, host: str) -> None:
        assert check_endpoint(f"http://{host}/2/httpapi", allow_custom=True)

    @pytest.mark.parametrize(
        "host", ["example.com", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com", "[::2]"]
    )
    @pytest.mark.contract("2.3")
    def test_but_nowhere_else(self, host: str) -> None:
        with pytest.raises(Misconfigured, match="loopback"):
            check_endpoint(f"http://{host}/2/httpapi", allow_custom=True)

    @pytest.mark.parametrize(
        "endpoint",
        [
            "",
            "US",
            "ftp://h/x",
            "https://",
            "https://h:port/",
            "https://u:p@h/2/httpapi",
            "http://[::1/",
            "https://h/\r\nHost: evil",
            "https://h/2\thttpapi",
            "https://h\n/",
            " https://h/",
            "https://h/a b",
            "https://h/\0",
            "https://a..b/",
            "https://.b/",
            "https://a.b../",
            f"https://{'a' * 64}.test/",
            "https://h\\x/",
            "https://@h/",
            "https://h/\u2028",
            "http://127.0.0.1\t/",
        ],
    )
    def test_what_is_no_url_is_refused(self, endpoint: str) -> None:
        with pytest.raises(Misconfigured) as refused:
            check_endpoint(endpoint, allow_custom=True)
        assert len(str(refused.value).splitlines()) == 1

    def test_a_host_may_end_with_a_dot(self) -> None:
        assert check_endpoint("https://h.test./2/httpapi", allow_custom=True)


class TestPlans:
    @pytest.mark.contract("2.16")
    def test_a_free_app_cannot_enable(self, store: Store, tmp_path: Path) -> None:
        integrations.set_plan(store, "radio", "free")
        with pytest.raises(Misconfigured, match="not on a paid plan"):
            added(store, tmp_path)
        added(store, tmp_path, enabled=False)
        with pytest.raises(Misconfigured, match="not on a paid plan"):
            integrations.set_enabled(store, "radio/prod", enabled=True)
        assert not integrations.get(store, "radio/prod").enabled

    @pytest.mark.contract("2.16")
    def test_a_paid_one_can(self, store: Store, tmp_path: Path) -> None:
        integrations.set_plan(store, "radio", "free")
        added(store, tmp_path, enabled=False)
        integrations.set_plan(store, "radio", "paid")
        assert integrations.set_enabled(store, "radio/prod", enabled=True).enabled


def test_switching_on_forgets_a_halt(store: Store, tmp_path: Path) -> None:
    one = added(store, tmp_path)
    with store.begin() as tx:
        integrations.halt(tx, one.id, "invalid_api_key", 5)
    assert integrations.get(store, one.key).halted_reason == "invalid_api_key"
    integrations.set_enabled(store, one.key, enabled=False)
    assert integrations.get(store, one.key).halted_reason == "invalid_api_key"
    again = integrations.set_enabled(store, one.key, enabled=True)
    assert (again.halted_reason, again.last_error) == (None, None)


def test_removing_leaves_nothing_but_the_app(store: Store, tmp_path: Path) -> None:
    one, other = added(store, tmp_path), added(store, tmp_path, name="other")
    with store.begin() as tx:
        for integration in (one, other):
            tx.execute(
                sa.insert(tables.outboxes).values(
                    integration_id=integration.id,
                    segment_id=1,
                    file="outboxes/shared",
                    rows=1,
                    prepared_at=0,
                    run_id="r",
                    receipts_file=f"receipts/{integration.name}",
                )
            )
        store.count(tx, one.id, "captured", 1)
    assert integrations.remove(store, one.key) == ["receipts/prod"]
    assert integrations.remove(store, other.key) == ["outboxes/shared", "receipts/other"]
    with store.begin() as tx:
        for table in (tables.outboxes, tables.counts, tables.integrations):
            assert tx.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0
    assert added(store, tmp_path).id > other.id, "an id is never used again"


def test_unknown_names_are_said(store: Store) -> None:
    for act in (
        lambda: integrations.get(store, "radio/prod"),
        lambda: integrations.remove(store, "radio/prod"),
        lambda: integrations.set_enabled(store, "radio/prod", enabled=True),
        lambda: integrations.all_integrations(store, ["radio/prod"]),
    ):
        with pytest.raises(Misconfigured, match="no integration radio/prod"):
            act()


def test_an_earlier_start_reads_an_app_again_from_there(store: Store, tmp_path: Path) -> None:
    def frontier() -> int | None:
        with store.begin() as tx:
            frontier: int | None = tx.execute(sa.select(tables.apps.c.frontier)).scalar_one()
            return frontier

    added(store, tmp_path)
    with store.begin() as tx:
        tx.execute(sa.update(tables.apps).values(frontier=100))
    added(store, tmp_path, name="later", start_from=200)
    assert frontier() == 100
    added(store, tmp_path, name="earlier", start_from=50)
    assert frontier() == 50
    added(store, tmp_path, name="beginning")
    assert frontier() is None


class TestFromWhenRowsCount:
    """One rule, whoever asks: an app that is read once more is not sent again to those who had it."""

    @pytest.fixture
    def old(self, store: Store, tmp_path: Path) -> Integration:
        old = added(store, tmp_path, start_from=10)
        with store.begin() as tx:
            tx.execute(sa.update(tables.apps).values(frontier=100))
            tx.execute(
                sa.insert(tables.segments),
                [{"file": f"segments/{number}", "rows": 1, "captured_at": 0, "run_id": "r"} for number in (1, 2)],
            )
        added(store, tmp_path, name="younger", start_from=20)  # read once more from 20, for the younger one
        with store.begin() as tx:
            tx.execute(
                sa.insert(tables.segments),
                [{"id": 3, "file": "segments/3", "rows": 1, "captured_at": 0, "run_id": "r"}],
            )
            tx.execute(
                sa.insert(tables.segment_apps),
                [
                    {
                        "segment_id": 3, "app_id": "radio", "rows": 1, "types": '{"device.impression":1}',
                        "malformed": 0, "min_ingested_at": 50, "max_ingested_at": 60, "min_created_date": 0,
                        "max_created_date": 0, "snapshot_file": "snapshots/3",
                    }
                ],
            )  # fmt: skip
        return integrations.get(store, old.key)

    def test_in_a_segment(self, old: Integration) -> None:
        assert (old.start_in(2), old.start_in(3), old.start_of_new) == (10, 100, 100)
        assert [old.lacks(2, 60), old.lacks(3, 60), old.lacks(3, 100)] == [True, False, True]

    def test_retention_keeps_no_segment_for_those_who_had_its_rows(self, store: Store, old: Integration) -> None:
        report = RetentionReport(dry_run=True)
        with store.begin() as tx:
            assert _needed(tx, [3], report) == {3}
        assert report.held_back == {"radio/younger": 1}
        integrations.remove(store, "radio/younger")
        with store.begin() as tx:
            tx.execute(sa.update(tables.segment_apps).values(max_ingested_at=99))
            assert _needed(tx, [3], RetentionReport(dry_run=True)) == set()
            tx.execute(sa.update(tables.segment_apps).values(max_ingested_at=100))
            assert _needed(tx, [3], RetentionReport(dry_run=True)) == {3}

    def test_trace_says_why(self, old: Integration) -> None:
        capture = {"event_type": "device.impression", "ingested_us": 55, "segment": 3}
        end = _before_outbox(old, capture)
        assert end["state"] == "before_start"
        assert "read once more" in end["reason"]
        assert _before_outbox(old, {**capture, "segment": 2})["state"] == "captured"

    def test_the_backlog_begins_where_new_rows_count(self, old: Integration) -> None:
        assert _starts([old]) == {"radio": 100}


class TestChange:
    def change(self, store: Store, tmp_path: Path, key: str = "radio/prod", **wanted: Any) -> Integration:
        more = {name: wanted.pop(name) for name in ("by", "if_version") if name in wanted}
        return change(store, Cipher(None, tmp_path / "key"), key, IntegrationChange(**wanted), **more)

    @pytest.mark.contract("2.14")
    def test_every_setting_and_what_is_recorded(self, store: Store, tmp_path: Path) -> None:
        added(store, tmp_path, start_from=1_000)
        now = self.change(
            store, tmp_path, by="ann", endpoint="eu", api_key=Secret("the-new-key"), secret_key=Secret("a-secret"),
            user_id_kind="nami_user_id", anonymous="device_id", events=["device.*", "device.*"], start_from=2_000,
            rename={"device.impression": "Seen"}, sandbox="skip", exclude=["sku", "name"], hashed=["locale"],
            revenue="net", store_fees={"Apple": 0.15}, enabled=False,
        )  # fmt: skip
        assert now.version == 2
        assert (now.endpoint, now.user_id_kind, now.anonymous) == (
            contract.ENDPOINTS["eu"],
            "nami_user_id",
            "device_id",
        )
        assert (now.patterns, now.events) == (("device.*",), ("device.impression", "device.transaction"))
        assert (now.exclude, now.hashed, now.sandbox) == (("name", "sku"), ("locale",), "skip")
        assert (now.revenue, now.store_fees, now.start_from, now.enabled) == ("net", {"apple": 0.15}, 2_000, False)
        assert now.hash_salt is not None
        cipher = Cipher(None, tmp_path / "key")
        assert cipher.decrypt(now.api_key).reveal() == "the-new-key"
        first, second = history(store, now.key)
        assert (first.version, first.what) == (1, {"added": (False, True)})
        assert (second.version, second.by, second.at) == (2, "ann", 1_000_000_000)
        assert dict(second.what) == {
            "endpoint": (contract.ENDPOINTS["us"], contract.ENDPOINTS["eu"]),
            "api_key": ("set", "changed"),
            "secret_key": ("not set", "set"),
            "user_id": ("external_id", "nami_user_id"),
            "anonymous": ("skip", "device_id"),
            "events": (["all"], ["device.*"]),
            "rename": ({}, {"device.impression": "Seen"}),
            "start_from": ("1970-01-01T00:00:00.001000Z", "1970-01-01T00:00:00.002000Z"),
            "sandbox": ("send", "skip"),
            "exclude": ([], ["name", "sku"]),
            "hash": ([], ["locale"]),
            "revenue": ("gross", "net"),
            "store_fees": ({}, {"apple": 0.15}),
            "enabled": (True, False),
        }
        back = self.change(store, tmp_path, secret_key=None, exclude=[], hashed=[], rename={}, store_fees={})
        assert (back.secret_key, back.exclude, back.hashed, back.rename, back.store_fees) == (None, (), (), {}, {})
        assert back.hash_salt == now.hash_salt, "a hash means the same for as long as the integration lives"
        assert back.version == 3

    def test_what_is_as_wanted_already_is_no_change(self, store: Store, tmp_path: Path) -> None:
        one = added(store, tmp_path, exclude=["sku"])
        assert self.change(store, tmp_path, exclude=["sku"], events=["all"], endpoint="us", enabled=True) == one
        assert len(history(store, one.key)) == 1

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ({"endpoint": "https://x.test/"}, "allow-custom-endpoint"),
            ({"events": []}, "no event type is selected"),
            ({"events": ["user.nothing"]}, "unknown event type"),
            ({"rename": {"device.impression": ""}}, "empty name"),
            ({"api_key": Secret(" ")}, "API key is empty"),
            ({"secret_key": Secret(" ")}, "secret key is empty"),
            ({"sandbox": "maybe"}, "one of send, skip, only"),
            ({"revenue": "some"}, "one of gross, net, none"),
            ({"exclude": ["user_id"]}, "'user_id' cannot be excluded"),
            ({"hashed": ["id"]}, "'id' cannot be excluded or hashed"),
            ({"exclude": ["a"], "hashed": ["a"]}, "both excluded and hashed"),
            ({"exclude": [" "]}, "must have a name"),
            ({"exclude": ["external_ids"]}, "'external_ids' cannot"),
            ({"store_fees": {"apple": 1.5}}, "share from 0 to 1"),
            ({"store_fees": {"apple": float("nan")}}, "share from 0 to 1"),
            ({"store_fees": {" ": 0.1}}, "PLATFORM=SHARE"),
        ],
    )
    def test_what_cannot_be_used_changes_nothing(
        self, store: Store, tmp_path: Path, wanted: dict[str, Any], message: str
    ) -> None:
        one = added(store, tmp_path)
        with pytest.raises(Misconfigured, match=message):
            self.change(store, tmp_path, anonymous="device_id", **wanted)
        assert integrations.get(store, one.key) == one
        assert len(history(store, one.key)) == 1

    @pytest.mark.contract("2.15")
    def test_a_change_made_for_an_older_version_is_refused_naming_who_changed_what(
        self, store: Store, tmp_path: Path
    ) -> None:
        added(store, tmp_path)
        self.change(store, tmp_path, by="ann", sandbox="skip", if_version=1)
        integrations.set_enabled(store, "radio/prod", enabled=False, by="bob")
        with pytest.raises(Misconfigured, match=r"version 2 by ann at .*: sandbox; version 3 by bob at .*: enabled"):
            self.change(store, tmp_path, by="eve", sandbox="only", if_version=1)
        assert integrations.get(store, "radio/prod").sandbox == "skip"
        assert self.change(store, tmp_path, sandbox="only", if_version=3).version == 4

    def test_many_at_once_lose_no_change(self, state_url: str, tmp_path: Path) -> None:
        store = Store(state_url, lambda: 1_000.0)
        create_or_upgrade(store)
        added(store, tmp_path)
        wanted = [IntegrationChange(exclude=[f"field{number}"]) for number in range(12)]
        cipher = Cipher(None, tmp_path / "key")
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda one: change(store, cipher, "radio/prod", one), wanted))
        records = history(store, "radio/prod")
        assert [record.version for record in records] == list(range(1, 14))
        chain = [record.what["exclude"] for record in records[1:]]
        assert all(before[1] == after[0] for before, after in pairwise(chain))
        store.close()

    def test_a_removed_one_leaves_its_history(self, store: Store, tmp_path: Path) -> None:
        added(store, tmp_path)
        integrations.remove(store, "radio/prod", by="ann")
        assert [dict(record.what) for record in history(store, "radio/prod")] == [
            {"added": (False, True)},
            {"removed": (False, True)},
        ]


class TestAnEarlierStart:
    def moved(self, store: Store, tmp_path: Path, start: int | None) -> Integration:
        wanted = IntegrationChange(start_from=start)
        return change(store, Cipher(None, tmp_path / "key"), "radio/prod", wanted)

    def test_before_anything_came_is_as_if_it_were_added_so(self, store: Store, tmp_path: Path) -> None:
        one = added(store, tmp_path, start_from=100)
        with store.begin() as tx:
            tx.execute(sa.update(tables.apps).values(frontier=90))
            tx.execute(sa.update(tables.integrations).values(prepared_through=7))
        now = self.moved(store, tmp_path, 50)
        assert (now.start_from, now.prepared_through) == (50, 0)
        with store.begin() as tx:
            assert tx.execute(sa.select(tables.apps.c.frontier)).scalar_one() == 50
            assert tx.execute(sa.select(tables.rereads.c.integration_id)).scalar_one() == one.id
        assert self.moved(store, tmp_path, None).start_from is None

    def test_afterwards_it_moves_to_a_later_time_only(self, store: Store, tmp_path: Path) -> None:
        one = added(store, tmp_path, start_from=100)
        with store.begin() as tx:
            store.count(tx, one.id, "captured", 1)
        with pytest.raises(Misconfigured, match="only move to a later time"):
            self.moved(store, tmp_path, 50)
        assert self.moved(store, tmp_path, 150).start_from == 150

    def test_not_beside_a_younger_one(self, store: Store, tmp_path: Path) -> None:
        added(store, tmp_path, start_from=100)
        added(store, tmp_path, name="younger", start_from=10)
        with pytest.raises(Misconfigured, match="remove it and add it again"):
            self.moved(store, tmp_path, 50)

    def test_not_after_a_backfill_which_makes_nothing_younger(self, store: Store, tmp_path: Path) -> None:
        first = added(store, tmp_path, start_from=100)
        with store.begin() as tx:
            number = backfills.add(
                store, tx, first, since=0, until=1, by="created_date", patterns=None, resend=False, created_by="test"
            )
        assert self.moved(store, tmp_path, 50).start_from == 50
        with store.begin() as tx:
            backfills.move(store, tx, number, "running")
        with pytest.raises(Misconfigured, match="'nami-amp backfill radio/prod --from TIME"):
            self.moved(store, tmp_path, 40)

    def test_not_while_a_run_works_for_it(self, store: Store, tmp_path: Path) -> None:
        one = added(store, tmp_path, start_from=100)
        other = Store(store.url, store.clock, owner="elsewhere:1:x")
        lease = other.acquire([f"integration:{one.id}"])
        with pytest.raises(Busy):
            self.moved(store, tmp_path, 50)
        other.release(lease.values())
        other.close()
        assert self.moved(store, tmp_path, 50).start_from == 50


class TestSharedKeys:
    def test_a_second_one_with_events_in_common_is_refused(self, store: Store, tmp_path: Path) -> None:
        added(store, tmp_path, events=["device.*"])
        with pytest.raises(Misconfigured, match=r"radio/prod has the same API key.*--allow-shared-key"):
            added(store, tmp_path, name="b", allow_shared_key=False, api_key=Secret(f" {KEY.reveal()}\n"))
        added(store, tmp_path, name="b", allow_shared_key=False, events=["user.*"])
        added(store, tmp_path, app="fit", allow_shared_key=False)
        added(store, tmp_path, name="c", allow_shared_key=False, api_key=Secret("the-other-key"))

    @pytest.mark.parametrize("wanted", [{"api_key": KEY}, {"events": ["all"]}])
    def test_nor_can_one_become_so(self, store: Store, tmp_path: Path, wanted: dict[str, Any]) -> None:
        cipher = Cipher(None, tmp_path / "key")
        added(store, tmp_path, events=["device.*"])
        second = {"api_key": Secret("the-other-key")} if "api_key" in wanted else {"events": ["user.*"]}
        added(store, tmp_path, name="b", **second)
        with pytest.raises(Misconfigured, match="same API key"):
            change(store, cipher, "radio/b", IntegrationChange(**wanted))
        change(store, cipher, "radio/b", IntegrationChange(**wanted, allow_shared_key=True))
        (pair,) = sharing_a_key(integrations.all_integrations(store), cipher)
        assert {one.name for one in pair} == {"prod", "b"}

    def test_a_key_that_cannot_be_read_hinders_nobody(self, store: Store, tmp_path: Path) -> None:
        added(store, tmp_path)
        with store.begin() as tx:
            tx.execute(sa.update(tables.integrations).values(api_key="no token"))
        added(store, tmp_path, name="b", allow_shared_key=False)
        assert sharing_a_key(integrations.all_integrations(store), Cipher(None, tmp_path / "key")) == []
