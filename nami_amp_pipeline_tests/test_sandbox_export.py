"""The Export API of the sandbox gives what Amplitude's gives, and when."""

from __future__ import annotations

import base64
import gzip
import io
import re
import tracemalloc
import zipfile
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from nami_amp_pipeline.sandbox import Answer, Fault, Options, Project, Sandbox

KEY, SECRET = "0123456789abcdef0123456789abcdef", "secret"
JSON = {"Content-Type": "application/json"}
TEN = datetime(2026, 3, 1, 10, 0, 0, tzinfo=UTC).timestamp()


class World:
    """A sandbox with one project and a clock to move."""

    def __init__(self, **options: Any) -> None:
        self.now = TEN
        self.sandbox = Sandbox(lambda: self.now, {KEY: Project(187520, "shop", SECRET)}, options=Options(**options))

    def post(self, *events: dict[str, Any], **request: Any) -> None:
        body = orjson.dumps({"api_key": KEY, "events": events, **request})
        assert self.sandbox.handle("POST", "/2/httpapi", JSON, body).status == 200

    def export(self, start: str, end: str, key: str = KEY, secret: str = SECRET) -> Answer:
        token = base64.b64encode(f"{key}:{secret}".encode()).decode()
        headers = {"Authorization": f"Basic {token}"}
        return self.sandbox.handle("GET", "/api/2/export", headers, b"", f"start={start}&end={end}")


def event(insert_id: str, **fields: Any) -> dict[str, Any]:
    return {"event_type": "renewed", "user_id": "user-1", "time": 1_700_000_000_123, "insert_id": insert_id, **fields}


def files(answer: Answer) -> dict[str, list[dict[str, Any]]]:
    assert answer.status == 200
    with zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
        return {
            name: [orjson.loads(line) for line in gzip.decompress(archive.read(name)).splitlines()]
            for name in archive.namelist()
        }


def ids(answer: Answer) -> list[str]:
    return [record["$insert_id"] for records in files(answer).values() for record in records]


def test_the_zip_has_a_gzip_per_hour_in_a_folder_named_after_the_project() -> None:
    world = World(export_partition=2)
    world.now = TEN - 3600
    world.post(event("a"), event("b"), event("c"))
    world.now = TEN
    world.post(event("d"))
    world.now += 3 * 3600
    found = files(world.export("20260301T00", "20260301T23"))
    assert {name: [record["$insert_id"] for record in records] for name, records in found.items()} == {
        "187520/187520_2026-03-01_9#0.json.gz": ["a", "b"],
        "187520/187520_2026-03-01_9#1.json.gz": ["c"],
        "187520/187520_2026-03-01_10#0.json.gz": ["d"],
    }


def test_hours_are_inclusive_and_by_upload_time() -> None:
    world = World(export_delay_hours=0)
    for name, offset in (("before", -0.001), ("first", 0), ("last", 7199.999), ("after", 7200)):
        world.now = TEN + offset
        world.post(event(name))
    assert ids(world.export("20260301T10", "20260301T11")) == ["first", "last"]


def test_an_hour_can_be_exported_two_hours_after_its_end() -> None:
    world = World()
    world.post(event("a"))
    world.now = TEN + 3 * 3600 - 0.001
    assert world.export("20260301T10", "20260301T10").status == 404
    world.now = TEN + 3 * 3600
    assert ids(world.export("20260301T10", "20260301T10")) == ["a"]


def test_records_have_the_exports_names_and_times() -> None:
    world = World(export_delay_hours=0)
    world.now = TEN + 0.5
    world.post(event("a", app_version="1.2", carrier="T", ip="1.2.3.4", user_properties={"x": 1}, device_id="device-1"))
    world.post(event("b", user_properties={"y": 2}))
    world.post(event("c", user_properties={"x": 9}, **{"$skip_user_properties_sync": True}))
    first, second, third = next(iter(files(world.export("20260301T10", "20260301T10")).values()))
    assert first["server_upload_time"] == "2026-03-01 10:00:00.500000"
    assert first["event_time"] == first["client_event_time"] == "2023-11-14 22:13:20.123000"
    assert (first["version_name"], first["device_carrier"], first["ip_address"]) == ("1.2", "T", "1.2.3.4")
    assert {"insert_id", "app_version", "time", "carrier", "ip", "api_key"}.isdisjoint(first)
    assert second["user_properties"] == {"x": 1, "y": 2}
    assert third["user_properties"] == {"x": 9}
    assert len({first["uuid"], second["uuid"], third["uuid"]}) == 3
    assert first["amplitude_id"] == second["amplitude_id"]
    documented = (
        "$insert_id $schema adid amplitude_attribution_ids amplitude_event_type amplitude_id app city "
        "client_event_time client_upload_time country data device_brand device_carrier device_family "
        "device_id device_manufacturer device_model device_type dma event_id event_properties event_time "
        "event_type group_properties groups idfa ip_address is_attribution_event language library "
        "location_lat location_lng os_name os_version paying platform processed_time region sample_rate "
        "server_received_time server_upload_time session_id start_version user_id user_properties uuid "
        "version_name"
    )
    assert set(first) == set(documented.split())


def test_a_client_clock_that_is_wrong_by_a_minute_moves_the_event_time() -> None:
    world = World(export_delay_hours=0)
    world.post(event("a"), client_upload_time="2026-03-01T09:58:00Z")
    world.post(event("b"), client_upload_time="2026-03-01T09:59:01Z")
    first, second = next(iter(files(world.export("20260301T10", "20260301T10")).values()))
    assert first["event_time"] == "2023-11-14 22:15:20.123000"
    assert second["event_time"] == second["client_event_time"]


def test_repeats_and_identify_calls_are_not_exported_and_no_time_is_too_far() -> None:
    world = World(export_delay_hours=0)
    world.post(event("a", time=2**62), event("a", time=2**62), event("b", event_type="$identify"))
    assert ids(world.export("20260301T10", "20260301T10")) == ["a"]


def test_nothing_in_the_range_is_a_404() -> None:
    assert World().export("20260301T00", "20260301T01").status == 404


def test_too_much_is_a_400() -> None:
    world = World(export_delay_hours=0, export_max_bytes=2_000)
    world.post(event("a"))
    assert ids(world.export("20260301T10", "20260301T10")) == ["a"]
    world.post(event("b"))
    assert world.export("20260301T10", "20260301T10").status == 400


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("", "20260301T00"),
        ("2026-03-01", "20260301T00"),
        ("20260301T02", "20260301T01"),
        ("20240301T00", "20260301T00"),
    ],
)
def test_an_impossible_range_is_a_400(start: str, end: str) -> None:
    assert World().export(start, end).status == 400


def test_the_secret_key_is_needed() -> None:
    world = World(export_delay_hours=0)
    world.post(event("a"))
    assert world.export("20260301T10", "20260301T10", secret="wrong").status == 403
    assert world.export("20260301T10", "20260301T10", key="wrong").status == 403
    answer = world.sandbox.handle("GET", "/api/2/export", {}, b"", "start=20260301T10&end=20260301T10")
    assert answer.status == 401
    assert re.match("Basic ", answer.headers["WWW-Authenticate"])


def test_an_event_without_device_gets_one_that_is_made_of_its_user() -> None:
    world = World(export_delay_hours=0)
    world.post(
        event("a", user_id=" user-1 "), event("b"), event("c", user_id="user-2"), event("d", device_id="device-1")
    )
    records = next(iter(files(world.export("20260301T10", "20260301T10")).values()))
    first, second, third, fourth = records
    assert first["device_id"] == second["device_id"] != third["device_id"]
    assert first["user_id"] == "user-1"
    assert fourth["device_id"] == "device-1"


def test_values_are_exported_as_amplitude_keeps_them() -> None:
    world = World(export_delay_hours=0)
    long = "x" * 2_000
    world.post(
        event(
            "a",
            event_properties={"text": long, "list": [long], "n": 1},
            user_properties={"t": long},
            adid="ad",
            idfa="i",
        ),
        event("b", user_properties={"$set": {"t": long}}, **{"$skip_user_properties_sync": True}),
    )
    first, second = next(iter(files(world.export("20260301T10", "20260301T10")).values()))
    assert first["event_properties"] == {"text": long[:1024], "list": [long[:1024]], "n": 1}
    assert first["user_properties"] == second["user_properties"] == {"t": long[:1024]}
    assert (first["adid"], first["idfa"]) == (None, None)


def test_identify_calls_can_be_exported_as_nobody_documents_it() -> None:
    world = World(export_delay_hours=0, export_identify=True)
    world.post(event("a", event_type="$identify", user_properties={"$set": {"x": 1}}), event("b"))
    assert ids(world.export("20260301T10", "20260301T10")) == ["a", "b"]


def test_the_delay_can_be_set_in_parts_of_hours_and_while_it_runs() -> None:
    world = World(export_delay_hours=2.5)
    world.post(event("a"))
    world.now = TEN + 3.5 * 3600 - 0.001
    assert world.export("20260301T10", "20260301T10").status == 404
    world.now += 0.001
    assert ids(world.export("20260301T10", "20260301T10")) == ["a"]
    world.now = TEN
    answer = world.sandbox.handle("PATCH", "/sandbox/options", {}, b'{"export_delay_hours": 0}')
    assert orjson.loads(answer.body)["export_delay_hours"] == 0
    assert ids(world.export("20260301T10", "20260301T10")) == ["a"]


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"throttle": false}', b'{"export_delay_hours": "2"}', b'{"latency_ms": -1}']
)
def test_an_impossible_option_is_a_400(content: bytes) -> None:
    assert World().sandbox.handle("PATCH", "/sandbox/options", {}, content).status == 400


def hour_by_hour(world: World, hours: range) -> list[dict[str, Any]]:
    found = []
    for hour in hours:
        answer = world.export(f"20260301T{hour:02}", f"20260301T{hour:02}")
        if answer.status == 200:
            found += [record for records in files(answer).values() for record in records]
    return found


@pytest.mark.parametrize("keep_events", [1_000_000, 7])
def test_hours_one_by_one_in_any_order_are_what_all_at_once_is(keep_events: int) -> None:
    """An export goes on from where the one before ended; the users have what they had then in any case."""
    world = World(export_delay_hours=0, keep_events=keep_events)
    for number in range(24):
        world.now = TEN + number * 1800
        world.post(event(str(number), user_id=f"user-{number % 3}", user_properties={f"p{number % 5}": number}))
    kept = range(10, 22) if keep_events > 24 else range(19, 22)
    at_once = files(world.export(f"20260301T{kept[0]:02}", "20260301T23"))
    whole = [record for records in at_once.values() for record in records]
    assert len(whole) == 2 * len(kept)
    assert hour_by_hour(world, kept) == whole
    assert hour_by_hour(world, kept) == whole
    backwards = [record for hour in reversed(kept) for record in hour_by_hour(world, range(hour, hour + 1))]
    assert sorted(backwards, key=lambda record: record["uuid"]) == sorted(whole, key=lambda record: record["uuid"])
    last = whole[-1]
    assert last["user_properties"] == {
        f"p{number % 5}": max(other for other in range(24) if other % 3 == 2 and other % 5 == number % 5)
        for number in range(24)
        if number % 3 == 2
    }
    if keep_events < 24:
        answer = world.export("20260301T10", "20260301T23")
        assert answer.status == 504
        assert "keep" in answer.headers["X-Sandbox-Reason"]


def test_a_change_of_what_is_stored_is_seen_by_the_hours_after_it() -> None:
    world = World(export_delay_hours=0)
    world.post(event("a", user_properties={"x": "long"}))
    world.now += 3600
    world.post(event("b", user_properties={"y": 1}))
    assert ids(world.export("20260301T10", "20260301T10")) == ["a"]
    world.sandbox.lose_held(Fault("cut_property", property_name="x", characters=1))
    (record,) = next(iter(files(world.export("20260301T11", "20260301T11")).values()))
    assert record["user_properties"] == {"x": "l", "y": 1}


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        ({"kind": "export_too_large", "min_hours": 2}, 400),
        ({"kind": "504", "path": "/api/2/export", "min_hours": 2}, 504),
        ({"kind": "project_429", "path": "/api/2/export", "min_hours": 2}, 429),
        ({"kind": "403", "path": "/api/2/export", "min_hours": 2}, 403),
    ],
)
def test_exports_of_many_hours_fail_and_those_of_fewer_do_not(rule: dict[str, Any], status: int) -> None:
    world = World(export_delay_hours=0)
    world.post(event("a"))
    world.sandbox.faults.add(Fault(**rule))
    assert world.export("20260301T10", "20260301T11").status == status
    assert ids(world.export("20260301T10", "20260301T10")) == ["a"]
    world.post(event("b"))


def test_a_rule_about_uploads_does_nothing_to_exports() -> None:
    world = World(export_delay_hours=0)
    world.post(event("a"))
    world.sandbox.faults.add(Fault("503"))
    assert ids(world.export("20260301T10", "20260301T10")) == ["a"]


def test_each_of_amplitudes_hosts_serves_its_own_api_and_region() -> None:
    sandbox = Sandbox(
        lambda: TEN,
        {KEY: Project(1, secret_key=SECRET, region="eu"), "key-of-anywhere": Project(2)},
        options=Options(export_delay_hours=0),
    )

    def post(host: str, key: str = KEY) -> int:
        body = orjson.dumps({"api_key": key, "events": [event(host + key)]})
        return sandbox.handle("POST", "/2/httpapi", {**JSON, "Host": host}, body).status

    def export(host: str) -> int:
        token = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Host": host}
        answer = sandbox.handle("GET", "/api/2/export", headers, b"", "start=20260301T10&end=20260301T10")
        answer.close()
        return answer.status

    assert [post(host) for host in ("127.0.0.1:8765", "api.eu.amplitude.com", "API.EU.amplitude.com:443")] == [200] * 3
    assert post("api2.amplitude.com") == 400
    assert post("api2.amplitude.com", "key-of-anywhere") == 200
    assert [post(host) for host in ("amplitude.com", "analytics.eu.amplitude.com")] == [404, 404]
    assert [export(host) for host in ("localhost", "analytics.eu.amplitude.com")] == [200, 200]
    assert [export(host) for host in ("amplitude.com", "api.eu.amplitude.com")] == [403, 404]


@pytest.mark.slow
def test_an_export_of_any_size_takes_little_memory() -> None:
    world = World(export_delay_hours=0, throttle=False)

    def post(batches: range) -> None:
        for batch in batches:
            filler = {"filler": f"{batch} " * 200}
            events = [event(f"{batch}-{number}", event_properties=filler) for number in range(1_000)]
            body = orjson.dumps({"api_key": KEY, "events": events})
            assert world.sandbox.handle("POST", "/batch", JSON, body).status == 200

    def peak() -> int:
        tracemalloc.start()
        try:
            world.export("20260301T10", "20260301T10").close()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    post(range(3))
    few = peak()
    post(range(3, 18))
    assert peak() < 2 * few
    assert len(ids(world.export("20260301T10", "20260301T10"))) == 18_000
