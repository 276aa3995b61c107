"""Integrations: what may be added, what is refused and why, and what switching and removing do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import Store, integrations, tables
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
def test_event_types_by_prefix(store: Store, tmp_path: Path, patterns: list[str], count: int) -> None:
    assert len(added(store, tmp_path, events=patterns).events) == count


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
    def test_others_do(self, endpoint: str) -> None:
        with pytest.raises(Misconfigured, match="--allow-custom-endpoint"):
            check_endpoint(endpoint, allow_custom=False)
        assert check_endpoint(endpoint, allow_custom=True) == endpoint

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]:80"])
    def test_plain_http_to_a_loopback_address(self, host: str) -> None:
        assert check_endpoint(f"http://{host}/2/httpapi", allow_custom=True)

    @pytest.mark.parametrize(
        "host", ["example.com", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com", "[::2]"]
    )
    def test_but_nowhere_else(self, host: str) -> None:
        with pytest.raises(Misconfigured, match="loopback"):
            check_endpoint(f"http://{host}/2/httpapi", allow_custom=True)

    @pytest.mark.parametrize(
        "endpoint", ["", "US", "ftp://h/x", "https://", "https://h:port/", "https://u:p@h/2/httpapi", "http://[::1/"]
    )
    def test_what_is_no_url_is_refused(self, endpoint: str) -> None:
        with pytest.raises(Misconfigured):
            check_endpoint(endpoint, allow_custom=True)


class TestPlans:
    def test_a_free_app_cannot_enable(self, store: Store, tmp_path: Path) -> None:
        integrations.set_plan(store, "radio", "free")
        with pytest.raises(Misconfigured, match="not on a paid plan"):
            added(store, tmp_path)
        added(store, tmp_path, enabled=False)
        with pytest.raises(Misconfigured, match="not on a paid plan"):
            integrations.set_enabled(store, "radio/prod", enabled=True)
        assert not integrations.get(store, "radio/prod").enabled

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
