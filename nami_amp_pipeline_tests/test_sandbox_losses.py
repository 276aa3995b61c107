"""The sandbox loses, cuts and doubles events after a 200; users, search and exports show what is left."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import orjson
import pytest

from nami_amp_pipeline.sandbox import Answer, Fault, FaultError, Options, Sandbox

KEY = "0123456789abcdef0123456789abcdef"
OTHER = "another-project-of-the-sandbox"
JSON = {"Content-Type": "application/json"}
AT_ONCE = Options(export_delay_hours=0, throttle=False)
WEEK = 7 * 24 * 3600


class World:
    """A sandbox with a clock that stands still."""

    def __init__(self, journal: Path | None = None, **rule: Any) -> None:
        self.now = 1_790_000_000.0
        self.sandbox = Sandbox(lambda: self.now, options=AT_ONCE, journal=journal)
        if rule:
            self.sandbox.faults.add(Fault(**rule))

    def post(self, *events: dict[str, Any], key: str = KEY) -> Answer:
        body = orjson.dumps({"api_key": key, "events": events, "options": {"min_id_length": 1}})
        answer = self.sandbox.handle("POST", "/batch", JSON, body)
        assert answer.status == 200, answer.body
        return answer

    def steer(self, method: str, path: str, content: Any) -> Answer:
        return self.sandbox.handle(method, f"/sandbox/{path}", {}, orjson.dumps(content))

    def get(self, path: str, query: str = "") -> Any:
        return orjson.loads(self.sandbox.handle("GET", f"/sandbox/{path}", {}, b"", query).body)

    def user(self, user_id: str = "ada") -> dict[str, Any]:
        users = self.get("users", f"user_id={user_id}")["users"]
        return users[0]["user_properties"] if users else {}

    def exported(self, key: str = KEY) -> list[dict[str, Any]]:
        headers = {"Authorization": "Basic " + base64.b64encode(f"{key}:secret".encode()).decode()}
        answer = self.sandbox.handle("GET", "/api/2/export", headers, b"", "start=20260901T00&end=20261201T00")
        if answer.status == 404:
            return []
        with zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
            return [
                orjson.loads(line)
                for name in archive.namelist()
                for line in gzip.decompress(archive.read(name)).splitlines()
            ]

    def ids(self) -> list[str]:
        return sorted(record["$insert_id"] for record in self.exported())


def event(insert_id: str, user_id: str = "ada", event_type: str = "renewed", **fields: Any) -> dict[str, Any]:
    return {"event_type": event_type, "user_id": user_id, "time": 1, "insert_id": insert_id, **fields}


def test_a_lost_event_is_answered_200_and_held_nowhere() -> None:
    world = World(kind="lost_after_200", insert_id="b")
    answer = world.post(event("a", user_properties={"x": 1}), event("b", user_properties={"x": 2, "y": 2}))
    assert orjson.loads(answer.body)["events_ingested"] == 2
    assert world.ids() == ["a"]
    assert [row["event"]["insert_id"] for row in world.get("events")["events"]] == ["a"]
    assert world.user() == {"x": 1}
    assert world.get("summary")["projects"][0]["event_types"] == {"renewed": 1}
    assert world.get("audit")["lost"] == 1


def test_a_lost_event_can_come_again_and_is_then_held_once() -> None:
    world = World(kind="lost_after_200", insert_id="b", times=1)
    world.post(event("a"), event("b"))
    assert world.post(event("a"), event("b")).accepted == 1
    assert world.post(event("a"), event("b")).accepted == 0
    assert world.ids() == ["a", "b"]
    assert world.sandbox.audit.accepted_more_than_once.count == 0
    assert world.sandbox.audit.changed_repeats.count == 0


def test_a_lost_event_that_comes_again_with_other_content_is_noticed() -> None:
    world = World(kind="lost_after_200", times=1)
    world.post(event("a", event_properties={"n": 1}))
    world.post(event("a", event_properties={"n": 2}))
    assert world.sandbox.audit.changed_repeats.count == 1


def test_a_repeat_is_no_event_to_be_lost() -> None:
    world = World()
    world.post(event("a"))
    world.sandbox.faults.add(Fault("lost_after_200"))
    assert world.post(event("a")).accepted == 0
    assert world.ids() == ["a"]
    assert world.sandbox.audit.lost == 0


def test_of_two_owners_of_an_insert_id_the_other_ones_is_still_recognised() -> None:
    world = World(kind="lost_after_200", user_id="ada", times=1)
    world.post(event("a"))
    world.post(event("a", user_id="bo"))
    assert world.post(event("a", user_id="bo")).accepted == 0
    assert world.post(event("a")).accepted == 1
    assert len(world.ids()) == 2


def test_of_two_owners_the_first_is_lost_later() -> None:
    world = World()
    world.post(event("a"), event("a", user_id="bo"))
    assert world.sandbox.lose_held(Fault("lost_after_200", user_id="ada")) == 1
    assert world.post(event("a", user_id="bo")).accepted == 0
    assert world.post(event("a")).accepted == 1


def test_a_type_is_dropped() -> None:
    world = World(kind="lost_after_200", event_type="renewed")
    world.post(event("a"), event("b", event_type="paused"), event("c"))
    assert world.ids() == ["b"]


def test_times_counts_events_of_the_kinds_that_lose() -> None:
    world = World(kind="lost_after_200", times=20)
    world.post(*(event(str(number)) for number in range(50)))
    world.post(*(event(str(number)) for number in range(50, 100)))
    assert len(world.ids()) == 80
    assert world.get("faults")["rules"][0]["fired"] == 20


def test_probability_is_drawn_for_each_event() -> None:
    world = World(kind="lost_after_200", probability=0.5, seed=1)
    world.post(*(event(str(number)) for number in range(400)))
    assert 150 < len(world.ids()) < 250


@pytest.mark.parametrize(
    ("characters", "value", "kept"),
    [
        (3, "abcdef", "abc"),
        (1024, "a" * 2000, "a" * 1024),
        (10, ["aa", "bb", "cc"], ["aa"]),
        (10, ["aa", "bb"], ["aa"]),
        (11, ["aa", "bb"], ["aa", "bb"]),
        (0, ["aa"], []),
        (3, True, True),
    ],
)
def test_a_property_is_cut(characters: int, value: Any, kept: Any) -> None:
    world = World(kind="cut_property", property_name="x", characters=characters)
    world.post(event("a", user_properties={"x": value, "y": value}, event_properties={"x": value}))
    (record,) = world.exported()
    assert record["user_properties"]["x"] == record["event_properties"]["x"] == world.user()["x"] == kept
    assert record["user_properties"]["y"] == (value[:1024] if isinstance(value, str) else value)


def test_a_property_is_not_stored_at_all_and_a_repeat_is_still_the_same() -> None:
    world = World(kind="cut_property", property_name="x", characters=None)
    sent = event("a", user_properties={"$set": {"x": 1, "y": 2}}, event_properties={"x": 1, "z": 3})
    world.post(sent)
    assert world.post(sent).accepted == 0
    (record,) = world.exported()
    assert record["user_properties"] == world.user() == {"y": 2}
    assert record["event_properties"] == {"z": 3}
    assert world.sandbox.audit.changed_repeats.count == 0
    assert world.sandbox.audit.properties_cut == 1


def test_an_event_is_stored_twice_under_another_uuid() -> None:
    world = World(kind="stored_twice", insert_id="a")
    world.post(event("a"), event("b"))
    records = world.exported()
    assert sorted(record["$insert_id"] for record in records) == ["a", "a", "b"]
    assert len({record["uuid"] for record in records}) == 3
    first, second = (record for record in records if record["$insert_id"] == "a")
    assert first | {"uuid": ""} == second | {"uuid": ""}
    assert world.get("summary")["events"] == 3


def test_what_is_stored_already_is_lost_cut_and_doubled() -> None:
    world = World()
    world.post(*(event(str(number), user_properties={"x": "long text"}) for number in range(50)))
    world.post(event("0"), key=OTHER)
    before = world.exported()

    def damaged(**rule: Any) -> int:
        happened: int = orjson.loads(world.steer("POST", "held", rule).body)["happened"]
        return happened

    assert damaged(kind="lost_after_200", times=20, api_key=KEY) == 20
    assert damaged(kind="cut_property", property_name="x", characters=4, times=5, api_key=KEY) == 5
    assert damaged(kind="stored_twice", times=3, api_key=KEY) == 3
    after = world.exported()
    assert len(after) == 50 - 20 + 3
    known = {record["uuid"]: record for record in before}
    changed = [record for record in after if record["uuid"] in known and record != known[record["uuid"]]]
    assert len(after) - len([record for record in after if record["uuid"] in known]) == 3
    assert {record["user_properties"]["x"] for record in changed} == {"long"}
    assert len(world.exported(OTHER)) == 1
    assert world.post(event("0", user_properties={"x": "long text"})).accepted == 1


def test_only_losses_happen_to_what_is_stored() -> None:
    world = World()
    answer = world.steer("POST", "held", {"kind": "503"})
    assert answer.status == 400
    assert b"lost_after_200" in answer.body


def test_a_sandbox_that_is_started_again_holds_what_it_held(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    world = World(journal)
    world.post(event("early", user_properties={"x": "abcdef"}))
    world.sandbox.faults.add(
        Fault("lost_after_200", insert_id="a"),
        Fault("stored_twice", insert_id="b"),
        Fault("stored_twice", insert_id="b"),
        Fault("cut_property", insert_id="c", property_name="x", characters=2),
    )
    world.post(*(event(name, user_properties={"x": "abcdef"}) for name in "abcd"))
    world.sandbox.lose_held(Fault("lost_after_200", insert_id="early"))
    held = world.exported()
    assert sorted(record["$insert_id"] for record in held) == ["b", "b", "b", "c", "d"]
    world.sandbox.close()
    again = World(journal)
    assert again.exported() == held
    assert again.get("summary") == world.get("summary")
    assert again.post(event("a", user_properties={"x": "abcdef"})).accepted == 1
    assert again.post(event("d", user_properties={"x": "abcdef"})).accepted == 0
    again.sandbox.close()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"kind": "cut_property"}, "property_name"),
        ({"kind": "cut_property", "property_name": "x", "characters": -1}, "characters"),
        ({"kind": "lost_after_200", "share": 0.5, "share_by": "app"}, "share_by"),
    ],
)
def test_an_impossible_rule_says_what_is_wrong(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(FaultError, match=message):
        Fault(**rule)


def test_a_share_by_user_takes_all_events_of_a_user_or_none() -> None:
    world = World(kind="lost_after_200", share=0.5, share_by="user", seed=1)
    world.post(*(event(f"{user}-{number}", user_id=f"user {user}") for user in range(20) for number in range(5)))
    kept = [record["user_id"] for record in world.exported()]
    assert 0 < len(set(kept)) < 20
    assert {kept.count(user) for user in kept} == {5}
