"""Renders sample events as the JSON texts that Nami's webhook sends.

Pieces that many events share (a user's devices, the entitlements between two changes) are rendered once, joined late,
so that a pending event costs references, not text.
"""

from __future__ import annotations

import json
import random
import uuid
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

SECOND: Final = 1_000_000
"""Microseconds in a second; all times in this package are whole microseconds since 1970, UTC."""
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

STORES: Final = {
    "apple": "App Store",
    "google": "Google Play",
    "amazon": "Amazon Appstore",
    "roku": "Roku Channel Store",
    "web": "Web",
}
"""Nami's `event_platform` of each store, with the store's name."""

JOURNEY_FLAGS: Final = (
    "former_subscriber",
    "in_account_hold",
    "in_grace_period",
    "in_trial_period",
    "in_intro_offer_period",
    "in_pause",
    "is_cancelled",
)

_NAMESPACE: Final = uuid.UUID("6d1c8a0e-3f0e-5a55-9f0b-1f1f6f0a7a11")


class Event(NamedTuple):
    """One row to be, ordered by when it is loaded.

    `body` holds the payload's text after the five fields that every event has: pieces such as `,"name":"Été"`.
    `broken` replaces the whole payload when `has_broken` is set (a hostile row).
    """

    ingested_us: int
    number: int
    app_id: str
    event_type: str
    user_id: str
    created_us: int
    event_id: str
    platform: str
    spelling: int
    body: tuple[str, ...]
    has_broken: bool = False
    broken: str | None = None


def stable_uuid(*parts: str) -> str:
    """A UUID that depends on nothing but `parts`."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(parts)))


def random_uuid(rng: random.Random) -> str:
    """A random UUID, version 4 to the eye."""
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def text(value: object) -> str:
    """`value` as compact JSON, characters outside ASCII as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@lru_cache(maxsize=4096)
def _date(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")


def timestamp(us: int, spelling: int) -> str:
    """The time `us` in one of Nami's spellings: 0 `+00:00` with µs, 1 `Z` with µs, 2 `Z` with whole seconds."""
    day, rest = divmod(us, DAY)
    seconds, micros = divmod(rest, SECOND)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    if spelling == 0:
        return f"{_date(day)}T{hour:02d}:{minute:02d}:{second:02d}.{micros:06d}+00:00"
    if spelling == 1:
        return f"{_date(day)}T{hour:02d}:{minute:02d}:{second:02d}.{micros:06d}Z"
    return f"{_date(day)}T{hour:02d}:{minute:02d}:{second:02d}Z"


def payload(event: Event) -> str | None:
    """The event as the webhook sends it: JSON text, about 1,200 characters for a `user.*` event."""
    if event.has_broken:
        return event.broken
    return (
        f'{{"id":"{event.event_id}","event_type":"{event.event_type}","event_platform":"{event.platform}",'
        f'"created_date":"{timestamp(event.created_us, event.spelling)}","user_id":"{event.user_id}"'
        f"{''.join(event.body)}}}"
    )


def journey(flags: frozenset[str]) -> str:
    """The group `customer_journey_state`, with the named flags true."""
    return _journey(flags)


@lru_cache(maxsize=128)
def _journey(flags: frozenset[str]) -> str:
    return ',"customer_journey_state":' + text({name: name in flags for name in JOURNEY_FLAGS})


def platform_id(app_id: str, store: str) -> str:
    """The app platform's id: one for each store of an app."""
    return _platform(app_id, store)[0]


@lru_cache(maxsize=1024)
def _platform(app_id: str, store: str) -> tuple[str, str]:
    ident = stable_uuid("platform", app_id, store)
    marketplace = "com.example." + app_id.replace("-", "")
    return ident, text({"id": ident, "name": STORES[store], "platform_type": store, "marketplace_app_id": marketplace})


def devices(app_id: str, owned: list[tuple[str, str]]) -> str:
    """The group `devices` of a user who owns these (device id, store) pairs."""
    entries = ",".join(f'{{"id":"{ident}","platform":{_platform(app_id, store)[1]}}}' for ident, store in owned)
    return f',"devices":[{entries}]'


def external_ids(transaction_id: str, external: object, kind: str) -> str:
    """The group `external_ids`: the store's transaction id, and the app's own id of the user once there is one."""
    entry = {"key": "original_transaction_id", "type": "original_transaction_id", "value": transaction_id}
    entries: list[dict[str, object]] = [{**entry}]
    if external is not None:
        entries.append({"key": "external_id", "type": kind, "value": external})
    return ',"external_ids":' + text(entries)
