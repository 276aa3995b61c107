"""The sandbox drops repeats, holds users and audits senders as a strict Amplitude would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from nami_amp_pipeline.sandbox import Answer, Options, Project, Sandbox
from nami_amp_pipeline.sandbox.profiles import apply_properties, cut_value

KEY = "0123456789abcdef0123456789abcdef"
JSON = {"Content-Type": "application/json"}
WEEK = 7 * 24 * 3600


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def post(sandbox: Sandbox, *events: Any, key: str = KEY) -> Answer:
    return sandbox.handle("POST", "/2/httpapi", JSON, orjson.dumps({"api_key": key, "events": events}))


def get(sandbox: Sandbox, path: str, query: str = "") -> Any:
    return orjson.loads(sandbox.handle("GET", path, {}, b"", query).body)


def event(insert_id: str | None = None, user_id: str = "user-1", **fields: Any) -> dict[str, Any]:
    return {"event_type": "renewed", "user_id": user_id, "time": 1_700_000_000_000, "insert_id": insert_id, **fields}


def properties(sandbox: Sandbox, user_id: str = "user-1") -> Any:
    return get(sandbox, "/sandbox/users", f"user_id={user_id}")["users"][0]["user_properties"]


def test_a_repeat_is_dropped_for_seven_days_from_the_first_receipt_and_the_first_one_stays() -> None:
    clock = Clock()
    sandbox = Sandbox(clock)
    post(sandbox, event("a", event_properties={"n": 1}))
    clock.now += WEEK - 0.001
    assert post(sandbox, event("a", event_properties={"n": 1})).accepted == 0
    assert len(get(sandbox, "/sandbox/events")["events"]) == 1
    clock.now += 0.001
    assert post(sandbox, event("a", event_properties={"n": 1})).accepted == 1
    assert sandbox.audit.accepted_more_than_once.count == 1
    assert sandbox.audit.duplicates == 1
    clock.now += 10
    assert post(sandbox, event("a", event_properties={"n": 1})).accepted == 0


def test_a_repeat_is_of_the_same_device_or_user_and_project() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a"))
    assert post(sandbox, event("a", user_id="user-2")).accepted == 1
    assert post(sandbox, event("a", device_id="device-1")).accepted == 1
    assert post(sandbox, event("a", user_id="user-3", device_id="device-1")).accepted == 0
    assert post(sandbox, event("a", user_id="user-2")).accepted == 0
    assert post(sandbox, event("a"), key="another-key-1").accepted == 1


def test_the_strict_variant_knows_a_repeat_by_its_insert_id_alone() -> None:
    sandbox = Sandbox(options=Options(dedup="insert_id"))
    post(sandbox, event("a"))
    assert post(sandbox, event("a", user_id="user-2", device_id="device-1")).accepted == 0


def test_repeats_within_one_request_are_dropped() -> None:
    sandbox = Sandbox()
    answer = post(sandbox, event("a"), event("b"), event("a"))
    assert answer.accepted == 2
    assert orjson.loads(answer.body)["events_ingested"] == 3
    assert [row["event"]["insert_id"] for row in get(sandbox, "/sandbox/events")["events"]] == ["b", "a"]


def test_events_ingested_can_leave_repeats_out() -> None:
    sandbox = Sandbox(options=Options(dup_counts_in_events_ingested=False))
    assert orjson.loads(post(sandbox, event("a"), event("a")).body)["events_ingested"] == 1


def test_events_without_insert_id_are_always_new() -> None:
    sandbox = Sandbox()
    assert post(sandbox, event(), event()).accepted == 2


def test_the_same_event_id_time_and_device_is_a_repeat() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a", device_id="device-1", event_id=7))
    assert post(sandbox, event("b", device_id="device-1", event_id=7)).accepted == 0
    assert post(sandbox, event("c", device_id="device-1", event_id=8)).accepted == 1


def test_padded_ids_are_the_same_user() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a", user_id="  user-1 "))
    assert post(sandbox, event("a")).accepted == 0


def test_plain_properties_set_and_skip_leaves_the_profile_alone() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a", user_properties={"x": 1, "flags": [True], "gone": None}))
    post(sandbox, {**event("b", user_properties={"x": 2, "y": 3}), "$skip_user_properties_sync": True})
    assert properties(sandbox) == {"x": 1, "flags": [True]}


def test_operations_are_applied_in_amplitudes_order() -> None:
    held: dict[str, Any] = {"a": 1, "list": ["x", "y", "x"], "once": 1, "gone": 1}
    sent = {
        "$remove": {"list": "x"},
        "$add": {"a": 2, "fresh": 4},
        "$set": {"a": 10},
        "$setOnce": {"once": 2, "first": 3},
        "$unset": {"gone": "-"},
        "$append": {"list": ["z"], "new": 1},
        "$prepend": {"list": "w"},
        "$preInsert": {"list": ["w", "v"]},
        "$postInsert": {"list": ["z", "u"]},
        "plain": True,
    }
    apply_properties(held, sent)
    assert held == {
        "a": 12,
        "fresh": 4,
        "list": ["v", "w", "y", "z", "u"],
        "once": 1,
        "first": 3,
        "new": [1],
        "plain": True,
    }
    apply_properties(held, {"$clearAll": "-", "$set": {"b": 1}})
    assert held == {"b": 1}


def test_long_strings_and_arrays_are_cut() -> None:
    assert cut_value("ä" * 1025) == "ä" * 1024
    exact = ["a" * 97] * 10 + ["b" * 20]
    assert len(orjson.dumps(exact)) == 1024
    assert cut_value(exact) == exact
    assert cut_value([*exact[:-1], "b" * 21]) == exact[:-1]
    held: dict[str, Any] = {}
    for _ in range(30):
        apply_properties(held, {"$append": {"grown": ["c" * 500]}})
    assert 9_000 < len(orjson.dumps(held["grown"])) <= 10_000


def test_property_updates_over_the_hourly_limit_are_dropped_silently() -> None:
    clock = Clock()
    sandbox = Sandbox(clock, options=Options(property_updates_per_hour=2))
    for number in range(3):
        assert post(sandbox, event(str(number), user_properties={"n": number})).status == 200
    assert properties(sandbox) == {"n": 1}
    clock.now += 3600
    post(sandbox, event("later", user_properties={"n": 9}))
    assert properties(sandbox) == {"n": 9}


def test_one_device_or_location_field_resets_its_group() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a", os_name="iOS", os_version="17", country="DE", city="Berlin"))
    post(sandbox, event("b", platform="Web"))
    user = get(sandbox, "/sandbox/users")["users"][0]
    assert (user["platform"], user["os_name"], user["os_version"]) == ("Web", None, None)
    assert (user["country"], user["city"]) == ("DE", "Berlin")


def test_an_event_without_user_belongs_to_the_last_user_of_its_device() -> None:
    sandbox = Sandbox()
    device_only = {"event_type": "impression", "device_id": "device-1"}
    post(sandbox, device_only)
    assert [user["user_id"] for user in get(sandbox, "/sandbox/users")["users"]] == [None]
    post(sandbox, event("a", device_id="device-1"))
    post(sandbox, device_only)
    users = get(sandbox, "/sandbox/users")["users"]
    assert [(user["user_id"], user["events"]) for user in users] == [("user-1", 3)]


def test_an_event_older_than_one_taken_before_is_an_order_violation_unless_it_skips_the_profile() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a", time=20), event("b", time=20), event("c", user_id="user-2", time=5))
    assert sandbox.audit.order_violations.count == 0
    post(sandbox, {**event("d", time=10), "$skip_user_properties_sync": True})
    assert sandbox.audit.order_violations.count == 0
    post(sandbox, event("e", time=19))
    assert sandbox.audit.order_violations.count == 1
    assert sandbox.audit.order_violations.examples[0]["insert_id"] == "e"
    post(sandbox, event("f", user_id="user-9", time=2), event("g", user_id="user-9", time=1))
    assert sandbox.audit.order_violations.count == 2


def test_a_repeat_with_other_content_is_noticed_even_if_the_first_was_refused() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a"))
    post(sandbox, event("a"))
    assert sandbox.audit.changed_repeats.count == 0
    post(sandbox, event("a", time=1))
    assert sandbox.audit.changed_repeats.count == 1
    post(sandbox, event("b"), event("bad", time="x"))
    post(sandbox, event("b"))
    assert sandbox.audit.changed_repeats.count == 1
    post(sandbox, event("c"), event("bad", time="x"))
    post(sandbox, event("c", time=2))
    assert sandbox.audit.changed_repeats.count == 2


def test_two_requests_with_one_user_in_flight_at_once_are_noticed() -> None:
    sandbox = Sandbox()

    def answer(flight: Any, *users: str) -> None:
        body = orjson.dumps({"api_key": KEY, "events": [event(user_id=user) for user in users]})
        sandbox.answer(flight, "POST", "/2/httpapi", JSON, body)

    first, second = sandbox.arrive(), sandbox.arrive()
    answer(first, "user-1", "user-2")
    sandbox.depart(first)
    answer(second, "user-2", "user-3")
    assert sandbox.audit.concurrent_same_user.count == 1
    third = sandbox.arrive()
    answer(third, "user-1")
    sandbox.depart(third)
    sandbox.depart(second)
    fourth = sandbox.arrive()
    answer(fourth, "user-1", "user-2", "user-3")
    sandbox.depart(fourth)
    assert sandbox.audit.concurrent_same_user.count == 1


def test_a_request_whose_client_gave_up_is_not_in_flight() -> None:
    sandbox = Sandbox()
    waits = [True]
    body = orjson.dumps({"api_key": KEY, "events": [event()]})
    sandbox.answer(sandbox.arrive(lambda: waits[0]), "POST", "/2/httpapi", JSON, body)
    waits[0] = False
    post(sandbox, event())
    assert sandbox.audit.concurrent_same_user.count == 0


def test_a_restart_with_the_journal_shows_and_drops_the_same(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.ndjson"
    first = Sandbox(journal=path)
    post(first, event("a", user_properties={"x": 1}), event("b"))
    post(first, event("a", user_properties={"x": 1}))
    first.close()
    with path.open("ab") as torn:
        torn.write(b'{"key_digest":"half a li')
    second = Sandbox(journal=path)
    assert get(second, "/sandbox/summary") == get(first, "/sandbox/summary")
    assert get(second, "/sandbox/users") == get(first, "/sandbox/users")
    assert get(second, "/sandbox/events") == get(first, "/sandbox/events")
    assert post(second, event("b"), event("c")).accepted == 1
    second.close()
    third = Sandbox(journal=path)
    assert get(third, "/sandbox/summary")["events"] == 3
    third.clear()
    third.close()
    assert path.read_bytes() == b""


def test_no_endpoint_and_no_journal_holds_a_whole_api_key(tmp_path: Path) -> None:
    path = tmp_path / "journal.ndjson"
    sandbox = Sandbox(journal=path, projects={KEY: Project(7, "shop"), "short": Project(8)})
    rule = orjson.dumps([{"kind": "500", "api_key": KEY, "times": 1}])
    sandbox.handle("POST", "/sandbox/faults", JSON, rule)
    for _ in range(2):
        post(sandbox, event("a"))
    post(sandbox, event("a", time=1))
    post(sandbox, event("a"), key="short")
    sandbox.close()
    shown = [
        sandbox.handle("GET", f"/sandbox/{name}", {}).body for name in ["faults", "audit", "summary", "users", "events"]
    ]
    for text in (*shown, path.read_bytes()):
        assert KEY.encode() not in text
        assert b"short" not in text
    assert get(sandbox, "/sandbox/summary")["projects"][0]["api_key"] == "…cdef"


def test_only_the_newest_events_are_kept_but_all_count_and_are_recognised() -> None:
    sandbox = Sandbox(options=Options(keep_events=2))
    for name in "abcd":
        post(sandbox, event(name, user_properties={name: 1}))
    assert [row["event"]["insert_id"] for row in get(sandbox, "/sandbox/events")["events"]] == ["d", "c"]
    assert get(sandbox, "/sandbox/summary")["events"] == 4
    assert properties(sandbox) == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert post(sandbox, event("a")).accepted == 0


def test_events_and_users_can_be_filtered() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a"), event("b", user_id="user-2"), event("c", event_type="other"))
    post(sandbox, event("d"), key="another-key-1")

    def found(query: str) -> list[str]:
        return sorted(row["event"]["insert_id"] for row in get(sandbox, "/sandbox/events", query)["events"])

    assert found("user_id=user-2") == ["b"]
    assert found("event_type=other") == ["c"]
    assert found(f"api_key={KEY}") == ["a", "b", "c"]
    assert found("api_key=%E2%80%A6ey-1") == ["d"]
    assert len(found("limit=2")) == 2
    assert get(sandbox, "/sandbox/users", "user_id=USER-2")["matching"] == 1


def test_clearing_forgets_everything_received() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a"))
    assert sandbox.handle("DELETE", "/sandbox/data", {}).status == 204
    assert get(sandbox, "/sandbox/summary") == {"events": 0, "projects": []}
    assert get(sandbox, "/sandbox/audit")["accepted"] == 0
    assert post(sandbox, event("a")).accepted == 1


def test_an_identify_sets_properties_and_is_no_event_of_its_user() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a", user_properties={"plan": "silver"}))
    later = 1_700_000_900_000
    post(sandbox, event("b", event_type="$identify", time=later, user_properties={"$set": {"plan": "gold"}}))
    post(sandbox, event("c", "silent", event_type="$identify", time=later, user_properties={"$set": {"plan": "gold"}}))
    (user,) = get(sandbox, "/sandbox/users", "user_id=user-1")["users"]
    assert user["user_properties"] == {"plan": "gold"}
    assert (user["events"], user["identifies"], user["last_time"]) == (1, 1, 1_700_000_000_000)
    (silent,) = get(sandbox, "/sandbox/users", "user_id=silent")["users"]
    assert (silent["events"], silent["identifies"], silent["last_time"]) == (0, 1, None)
    assert silent["user_properties"] == {"plan": "gold"}
