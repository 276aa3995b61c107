"""The sandbox throttles users and devices by their average rate, and has a daily quota."""

from __future__ import annotations

import random
from typing import Any

import orjson

from nami_amp_pipeline.sandbox import Answer, Options, Sandbox

KEY = "0123456789abcdef0123456789abcdef"
JSON = {"Content-Type": "application/json"}


class Wall:
    """A sandbox with a clock to move."""

    def __init__(self, **options: Any) -> None:
        self.now = 1_700_000_000.0
        self.sandbox = Sandbox(lambda: self.now, options=Options(**options))

    def post(self, *users: str, path: str = "/2/httpapi", **fields: Any) -> Answer:
        events = [{"event_type": "a", "user_id": user, **fields} for user in users]
        return self.sandbox.handle("POST", path, JSON, orjson.dumps({"api_key": KEY, "events": events}))


def test_a_user_over_the_30_second_average_is_throttled_with_the_documented_body() -> None:
    wall = Wall()
    assert wall.post(*["hot-user"] * 900).status == 200
    answer = wall.post("cold-user", "hot-user", "hot-user")
    assert answer.status == 429
    assert orjson.loads(answer.body) == {
        "code": 429,
        "error": "Too many requests for some devices and users",
        "eps_threshold": 30,
        "throttled_devices": {},
        "throttled_users": {"hot-user": 31},
        "throttled_events": [1, 2],
    }
    assert wall.sandbox.audit.accepted == 900
    assert wall.post("cold-user").status == 200


def test_a_throttled_user_is_taken_again_30_seconds_later() -> None:
    wall = Wall()
    wall.post(*["hot-user"] * 900)
    wall.now += 29
    assert wall.post("hot-user").status == 429
    wall.now += 1
    assert wall.post(*["hot-user"] * 900).status == 200


def test_refused_events_do_not_count() -> None:
    wall = Wall()
    for _ in range(5):
        assert wall.post(*["hot-user"] * 901).status == 429
    assert wall.post(*["hot-user"] * 900).status == 200


def test_devices_are_throttled_by_themselves() -> None:
    wall = Wall()
    wall.post(*["user-1"] * 450, *["user-2"] * 450, device_id="shared-device")
    answer = orjson.loads(wall.post("user-3", device_id="shared-device").body)
    assert (answer["throttled_users"], answer["throttled_devices"]) == ({}, {"shared-device": 31})


def test_batch_takes_1000_a_second() -> None:
    wall = Wall()
    for _ in range(15):
        assert wall.post(*["hot-user"] * 2000, path="/batch").status == 200
    answer = orjson.loads(wall.post("hot-user", path="/batch").body)
    assert (answer["code"], answer["eps_threshold"]) == (429, 1000)


def test_the_daily_quota_rolls_over_24_hours_in_steps_of_one() -> None:
    wall = Wall(daily_quota=10)
    wall.post(*["hot-user"] * 10, path="/batch")
    answer = orjson.loads(wall.post("hot-user", path="/batch").body)
    assert answer["exceeded_daily_quota_users"] == {"hot-user": 11}
    assert answer["throttled_events"] == [0]
    wall.now += 22 * 3600
    assert wall.post("hot-user", path="/batch").status == 429
    wall.now += 2 * 3600
    assert wall.post("hot-user", path="/batch").status == 200


def test_throttling_can_be_turned_off() -> None:
    wall = Wall(throttle=False)
    assert wall.post(*["hot-user"] * 2000).status == 200


def test_the_rates_agree_with_a_plain_count_of_every_event() -> None:
    rng = random.Random(5)
    wall = Wall(v2_events_per_second=1)
    taken: list[tuple[int, str]] = []
    outcomes = set()
    for _ in range(400):
        wall.now += rng.choice([0, 0, 1, 2, 5])
        second = int(wall.now)
        users = [f"user-{rng.randrange(4)}" for _ in range(rng.randrange(1, 12))]
        over = {
            user
            for user in users
            if users.count(user) + sum(1 for at, who in taken if who == user and at > second - 30) > 30
        }
        answer = wall.post(*users)
        assert (answer.status == 429) == bool(over)
        outcomes.add(answer.status)
        if over:
            assert set(orjson.loads(answer.body)["throttled_users"]) == over
        else:
            taken += [(second, user) for user in users]
    assert outcomes == {200, 429}
