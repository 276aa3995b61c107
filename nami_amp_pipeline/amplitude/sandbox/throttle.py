"""How many events each user and device sent of late, and whom that throttles."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .settings import BATCH_PATH, Options

WINDOW_SECONDS: Final = 30
_DAY_HOURS: Final = 24


class SlidingCount:
    """Events per id over the last slots of time.

    The ids of a slot are kept as they came and only counted again when the slot leaves the window, which keeps adding a
    request cheap.
    """

    def __init__(self, slot_seconds: int, slots: int) -> None:
        """Starts empty.

        Args:
            slot_seconds: the step in which the window moves.
            slots: how many steps the window is long.
        """
        self._slot_seconds = slot_seconds
        self._slots = slots
        self._open: deque[tuple[int, Counter[str]]] = deque()
        self.total: Counter[str] = Counter()

    def advance(self, now: float) -> None:
        """Forgets what is older than the window at ``now`` (seconds since the epoch)."""
        oldest = int(now // self._slot_seconds) - self._slots + 1
        while self._open and self._open[0][0] < oldest:
            _, counts = self._open.popleft()
            total = self.total
            for key, count in counts.items():
                left = total[key] - count
                if left:
                    total[key] = left
                else:
                    del total[key]

    def add(self, now: float, ids: Sequence[str]) -> None:
        """Counts one event for each of the ids."""
        slot = int(now // self._slot_seconds)
        if not self._open or self._open[-1][0] < slot:
            self._open.append((slot, Counter()))
        self._open[-1][1].update(ids)
        self.total.update(ids)


@dataclass
class Verdict:
    """Whom a request's events would take over a limit.

    Attributes:
        threshold: events per second allowed.
        users: throttled user id to its events per second.
        devices: the same for devices.
        quota_users: user id over its daily quota to its events of the day.
        quota_devices: the same for devices.
    """

    threshold: int
    users: dict[str, int] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    quota_users: dict[str, int] = field(default_factory=dict)
    quota_devices: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.users or self.devices or self.quota_users or self.quota_devices)

    def indexes(self, users: Sequence[str | None], devices: Sequence[str | None]) -> list[int]:
        """Every event of the users and devices of this verdict."""
        held_users = self.users.keys() | self.quota_users.keys()
        held_devices = self.devices.keys() | self.quota_devices.keys()
        return [
            index
            for index, (user, device) in enumerate(zip(users, devices, strict=True))
            if user in held_users or device in held_devices
        ]


class Throttle:
    """The rates of one project. Refused events do not count."""

    def __init__(self, options: Options) -> None:
        """Starts with nobody known."""
        self._options = options
        self._recent = {kind: SlidingCount(1, WINDOW_SECONDS) for kind in ("user", "device")}
        self._daily = {kind: SlidingCount(3600, _DAY_HOURS) for kind in ("user", "device")}

    def judge(self, now: float, path: str, users: Sequence[str | None], devices: Sequence[str | None]) -> Verdict:
        """Counts a request's events, unless they take somebody over a limit.

        Args:
            now: seconds since the epoch.
            path: the endpoint, which decides the limit.
            users: each event's user.
            devices: each event's device.
        """
        limit = (
            self._options.batch_events_per_second if path == BATCH_PATH else self._options.v2_events_per_second
        )
        verdict = Verdict(limit)
        named = {"user": _present(users), "device": _present(devices)}
        for kind, over_rate, over_quota in (
            ("user", verdict.users, verdict.quota_users),
            ("device", verdict.devices, verdict.quota_devices),
        ):
            recent, daily = self._recent[kind], self._daily[kind]
            recent.advance(now)
            daily.advance(now)
            counts = Counter(named[kind])
            over_rate |= {
                key: -(-total // WINDOW_SECONDS)
                for key, total in _over(counts, recent.total, limit * WINDOW_SECONDS).items()
            }
            over_quota |= _over(counts, daily.total, self._options.daily_quota)
        if not verdict:
            for kind, ids in named.items():
                if ids:
                    self._recent[kind].add(now, ids)
                    self._daily[kind].add(now, ids)
        return verdict


def _present(ids: Sequence[str | None]) -> list[str]:
    return [key for key in ids if key is not None]


def _over(counts: Mapping[str, int], totals: Mapping[str, int], limit: int) -> dict[str, int]:
    """The ids whose new and earlier events together are over the limit, with that number."""
    earlier = totals.get
    return {key: total for key, count in counts.items() if (total := count + earlier(key, 0)) > limit}
