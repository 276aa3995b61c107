"""How many events each user and device sent of late, and whom that throttles."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .settings import BATCH_PATH, Options

WINDOW_SECONDS: Final = 30
_DAY_HOURS: Final = 24


@dataclass
class _Slot:
    """The events of one step of time.

    Attributes:
        number: which step since the epoch.
        counts: events by id.
        most: no id has more than so many.
    """

    number: int
    counts: Counter[str] = field(default_factory=Counter)
    most: int = 0


class SlidingCount:
    """Events per id over the last steps of time.

    Totals are only added up when some id could be over the limit at all, which keeps a request of many ids cheap.
    """

    def __init__(self, slot_seconds: int, slots: int) -> None:
        """Starts empty.

        Args:
            slot_seconds: the step in which the window moves.
            slots: how many steps the window is long.
        """
        self._slot_seconds = slot_seconds
        self._length = slots
        self._slots: deque[_Slot] = deque()

    def over(self, now: float, counts: Counter[str], most: int, limit: int) -> dict[str, int]:
        """The ids that more events would take over a limit, with their totals including those.

        Args:
            now: seconds since the epoch.
            counts: the events to come, by id.
            most: the highest of the counts.
            limit: events in the window.
        """
        current = self._advance(now)
        if most + sum(slot.most for slot in self._slots) <= limit:
            return {}
        for slot in self._slots:
            slot.most = max(slot.counts.values(), default=0)
        if most + sum(slot.most for slot in self._slots) <= limit:
            return {}
        tallies = [slot.counts for slot in self._slots if slot.number <= current]
        totals = {key: count + sum(tally.get(key, 0) for tally in tallies) for key, count in counts.items()}
        return {key: total for key, total in totals.items() if total > limit}

    def add(self, now: float, ids: Sequence[str], most: int) -> None:
        """Counts one event for each of the ids, of which none is there more than ``most`` times."""
        number = self._advance(now)
        if not self._slots or self._slots[-1].number != number:
            self._slots.append(_Slot(number))
        slot = self._slots[-1]
        slot.counts.update(ids)
        slot.most += most

    def _advance(self, now: float) -> int:
        """Forgets what is older than the window; returns the number of the current step."""
        number = int(now // self._slot_seconds)
        while self._slots and self._slots[0].number <= number - self._length:
            self._slots.popleft()
        return number


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
        limit = self._options.batch_events_per_second if path == BATCH_PATH else self._options.v2_events_per_second
        verdict = Verdict(limit)
        counted: list[tuple[str, list[str], int]] = []
        for kind, ids, over_rate, over_quota in (
            ("user", _present(users), verdict.users, verdict.quota_users),
            ("device", _present(devices), verdict.devices, verdict.quota_devices),
        ):
            if not ids:
                continue
            counts = Counter(ids)
            most = max(counts.values())
            totals = self._recent[kind].over(now, counts, most, limit * WINDOW_SECONDS)
            over_rate |= {key: -(-total // WINDOW_SECONDS) for key, total in totals.items()}
            over_quota |= self._daily[kind].over(now, counts, most, self._options.daily_quota)
            counted.append((kind, ids, most))
        if not verdict:
            for kind, ids, most in counted:
                self._recent[kind].add(now, ids, most)
                self._daily[kind].add(now, ids, most)
        return verdict


def _present(ids: Sequence[str | None]) -> list[str]:
    return list(ids) if None not in ids else [key for key in ids if key is not None]  # type: ignore[arg-type]
