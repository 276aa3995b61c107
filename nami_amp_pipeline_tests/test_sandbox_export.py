"""The Export API of the sandbox gives what Amplitude's gives, and when."""

from __future__ import annotations

import base64
import gzip
import io
import re
import zipfile
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from nami_amp_pipeline.sandbox import Answer, Options, Project, Sandbox

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
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
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
    assert world.export("20260301T10", "20260301T10").status == 200
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
