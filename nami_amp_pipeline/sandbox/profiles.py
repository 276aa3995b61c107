"""The users as Amplitude would hold them after the events that it took: operations, cuts, fields that go together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final, cast

import orjson

from .settings import MAX_TEXT, Options
from .validation import OPERATIONS, Event, stored_id

DEVICE_GROUP: Final = (
    "platform",
    "os_name",
    "os_version",
    "device_brand",
    "device_manufacturer",
    "device_model",
    "carrier",
)
"""Setting one of these resets the others (https://amplitude.com/docs/faq/unexpected-values-in-user-counts)."""

LOCATION_GROUP: Final = ("country", "region", "city", "dma")
"""Setting one of these resets the others (https://amplitude.com/docs/data/understand-ip-address-and-location)."""

MAX_GROWN_ARRAY: Final = 10_000
"""Characters that an array can reach by ``$append`` and ``$prepend`` (https://amplitude.com/docs/faq/limits)."""

NOT_EVENTS: Final = frozenset({"$identify", "$groupidentify"})
"""They change properties, and no chart counts them (https://amplitude.com/docs/apis/analytics/identify)."""

_GROUPED: Final = frozenset(DEVICE_GROUP + LOCATION_GROUP)
_OPERATIONS: Final = frozenset(OPERATIONS)
_FIRST_AMPLITUDE_ID: Final = 100_000_000_001


@dataclass
class Profile:
    """What is known of one user, or of one device nobody has logged in on.

    Attributes:
        amplitude_id: number of the profile in its project.
        device_ids: every device it was seen on, in the order of first sight.
        group_values: the last device and location fields.
        events: how many; ``$identify`` is none, as Amplitude's charts see it.
        identifies: how many of those.
        first_time: the earliest event time, ms.
        last_time: the latest event time, ms.
        last_received: when its newest event was received, seconds since the epoch.
        updates_dropped: property updates over the hourly limit.
        values_cut: property values that were cut to Amplitude's lengths.
        merged_into: the profile that took over, for an anonymous one whose device logged in.
    """

    amplitude_id: int
    user_id: str | None
    device_ids: list[str] = field(default_factory=list)
    user_properties: dict[str, Any] = field(default_factory=dict)
    group_values: dict[str, Any] = field(default_factory=dict)
    app_version: str | None = None
    events: int = 0
    identifies: int = 0
    first_time: int | None = None
    last_time: int | None = None
    last_received: float = 0.0
    updates_dropped: int = 0
    values_cut: int = 0
    merged_into: int | None = None
    recent_updates: deque[float] = field(default_factory=deque, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The profile as the page and the users endpoint show it."""
        return {
            "amplitude_id": self.amplitude_id,
            "user_id": self.user_id,
            "device_ids": self.device_ids,
            "user_properties": self.user_properties,
            **self.group_values,
            "app_version": self.app_version,
            "events": self.events,
            "identifies": self.identifies,
            "first_time": self.first_time,
            "last_time": self.last_time,
            "updates_dropped": self.updates_dropped,
            "values_cut": self.values_cut,
            "merged_into": self.merged_into,
        }


class Profiles:
    """The profiles of one project."""

    def __init__(self, options: Options) -> None:
        """Starts with no profiles."""
        self._updates_per_hour = options.property_updates_per_hour
        self._users: dict[str, Profile] = {}
        self._anonymous: dict[str, Profile] = {}
        self._last_user_of_device: dict[str, str] = {}
        self._next_id = _FIRST_AMPLITUDE_ID

    def __iter__(self) -> Iterator[Profile]:
        yield from self._users.values()
        yield from self._anonymous.values()

    def copy(self) -> Profiles:
        """The same users, to go on from on their own."""
        return deepcopy(self)

    def get(self, user_id: str) -> Profile | None:
        """The profile of a user, if it has one."""
        return self._users.get(user_id)

    def apply(self, event: Event, received_at: float) -> Profile:
        """Takes in one event and returns the profile that it belongs to.

        Args:
            event: an event that was accepted.
            received_at: when, in seconds since the epoch.
        """
        profile = self._profile_of(stored_id(event.get("user_id")), stored_id(event.get("device_id")))
        time = event.get("time")
        moment = int(received_at * 1000) if time is None else cast("int", time)
        profile.last_received = received_at
        if event.get("event_type") in NOT_EVENTS:
            profile.identifies += 1
        else:
            profile.events += 1
            profile.first_time = moment if profile.first_time is None else min(profile.first_time, moment)
            profile.last_time = moment if profile.last_time is None else max(profile.last_time, moment)
        if event.get("$skip_user_properties_sync"):
            return profile
        if not _GROUPED.isdisjoint(event):
            for group in (DEVICE_GROUP, LOCATION_GROUP):
                if any(event.get(name) is not None for name in group):
                    profile.group_values |= {name: event.get(name) for name in group}
        version = event.get("app_version") or event.get("version_name")
        if version is not None:
            profile.app_version = version
        properties = event.get("user_properties")
        if properties:
            if self._may_update(profile, received_at):
                profile.values_cut += apply_properties(profile.user_properties, properties)
            else:
                profile.updates_dropped += 1
        return profile

    def _may_update(self, profile: Profile, received_at: float) -> bool:
        recent = profile.recent_updates
        while recent and recent[0] <= received_at - 3600:
            recent.popleft()
        if len(recent) >= self._updates_per_hour:
            return False
        recent.append(received_at)
        return True

    def _profile_of(self, user: str | None, device: str | None) -> Profile:
        if user is None and device is not None:
            user = self._last_user_of_device.get(device)
        if user is None:
            key = device or ""
            profile = self._anonymous.get(key)
            if profile is None:
                profile = self._anonymous[key] = self._new(None)
        else:
            profile = self._users.get(user) or self._log_in(user, device)
        if device is not None:
            if device not in profile.device_ids:
                profile.device_ids.append(device)
            if user is not None:
                self._merge_anonymous(device, profile)
                self._last_user_of_device[device] = user
        return profile

    def _log_in(self, user: str, device: str | None) -> Profile:
        """A new user takes over the anonymous profile of the device it is first seen on."""
        profile = self._anonymous.pop(device, None) if device is not None else None
        if profile is None:
            profile = self._new(user)
        profile.user_id = user
        self._users[user] = profile
        return profile

    def _merge_anonymous(self, device: str, profile: Profile) -> None:
        """The anonymous profile of a device on which a known user logs in stays, marked as merged."""
        anonymous = self._anonymous.get(device)
        if anonymous is not None and anonymous.merged_into is None:
            anonymous.merged_into = profile.amplitude_id

    def _new(self, user: str | None) -> Profile:
        profile = Profile(self._next_id, user)
        self._next_id += 1
        return profile


def apply_properties(held: dict[str, Any], sent: dict[str, Any]) -> int:
    """Applies an event's ``user_properties`` to a profile's.

    Operations go in Amplitude's own order, plain keys after them as sets (order as quoted in Amplitude's SDKs,
    https://github.com/amplitude/Amplitude-TypeScript).

    Args:
        held: changed in place.
        sent: operations, plain keys, or both.

    Returns:
        How many values were cut to Amplitude's lengths.
    """
    cut = 0
    for operation in () if _OPERATIONS.isdisjoint(sent) else OPERATIONS:
        if operation not in sent:
            continue
        values = sent[operation]
        if operation == "$clearAll":
            held.clear()
            continue
        for name, value in values.items():
            cut += _apply_one(held, operation, name, value)
    for name, value in sent.items():
        if name not in _OPERATIONS:
            cut += _apply_one(held, "$set", name, value)
    return cut


def _apply_one(held: dict[str, Any], operation: str, name: str, value: Any) -> int:
    if operation == "$unset":
        held.pop(name, None)
        return 0
    if value is None or (operation == "$setOnce" and name in held):
        return 0
    limit = MAX_TEXT
    if operation == "$add":
        before = held.get(name)
        value = value + before if type(before) in (int, float) else value
    elif operation not in ("$set", "$setOnce"):
        before = _as_list(held.get(name))
        given = _as_list(value)
        limit = MAX_GROWN_ARRAY
        if operation == "$append":
            value = before + given
        elif operation == "$prepend":
            value = given + before
        elif operation == "$remove":
            value = [item for item in before if item not in given]
        else:
            fresh = [item for index, item in enumerate(given) if item not in before and item not in given[:index]]
            value = fresh + before if operation == "$preInsert" else before + fresh
    kept = cut_value(value, limit)
    held[name] = kept
    return int(kept != value)


def cut_texts(value: Any) -> Any:
    """A value of an event property as Amplitude keeps it: every text in it cut after 1,024 characters."""
    if type(value) is str:
        return value[:MAX_TEXT]
    if type(value) is dict:
        if len(orjson.dumps(value)) <= MAX_TEXT:
            return value  # Short enough as a whole, hence in every part of it.
        return {name: cut_texts(inner) for name, inner in value.items()}
    return [cut_texts(inner) for inner in value] if type(value) is list else value


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if type(value) is list else [value]


def cut_value(value: Any, array_characters: int = MAX_TEXT) -> Any:
    """A property value as Amplitude keeps it.

    Args:
        value: any JSON value; not changed.
        array_characters: how long the compact JSON text of an array may be.

    Returns:
        Strings cut after 1,024 characters; an array as its longest beginning that fits.
    """
    if type(value) is str:
        return value[:MAX_TEXT]
    if type(value) is dict:
        return {name: cut_value(inner) for name, inner in value.items()}
    if type(value) is list:
        if len(orjson.dumps(value)) <= MAX_TEXT:
            return value  # Short enough as a whole, hence in every part of it.
        return fitting(map(cut_value, value), array_characters)
    return value


def fitting(items: Iterable[Any], characters: int) -> list[Any]:
    """The longest beginning of an array whose compact JSON text has so many characters."""
    kept: list[Any] = []
    length = 1
    for item in items:
        length += len(orjson.dumps(item).decode()) + 1
        if length > characters:
            break
        kept.append(item)
    return kept
