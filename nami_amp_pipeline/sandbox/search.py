"""Finds an event, a user or a device by its id: what is stored, the users' properties, the requests and answers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from .batches import Batch, Damage, damaged
from .request_log import LoggedRequest
from .store import ProjectStore
from .validation import Event, stored_id

if TYPE_CHECKING:
    from .core import Sandbox

IDS: Final = ("insert_id", "user_id", "device_id")


def newest(batches: list[Batch], given: Mapping[str, str]) -> Iterator[tuple[Batch, int, Event]]:
    """The events that pass the filters, with the batch and the place of each, newest first.

    Args:
        batches: in the order of their receipt.
        given: ``event_type``, ``insert_id``, ``user_id`` and ``device_id``, as far as they matter.
    """
    wanted = {name: given[name] for name in ("event_type", *IDS) if name in given}
    for batch in reversed(batches):
        if not all(batch.may_hold(text) for text in wanted.values()):
            continue
        events = batch.events()
        for place in range(len(events) - 1, -1, -1):
            if _is_wanted(events[place], wanted):
                yield batch, place, events[place]


def row(store: ProjectStore, batch: Batch, place: int, event: Event) -> dict[str, Any]:
    """An event as the control API has it: as it is stored, or as it came if it was lost."""
    damage = batch.damage.get(place)
    found: dict[str, Any] = {
        "project": store.project_id,
        "name": store.name,
        "api_key": store.hint,
        "number": batch.first + place,
        "received_at": batch.received_at,
        "path": batch.path,
        "event": event if damage is None or damage.lost else damaged(event, damage),
    }
    if damage is not None and damage != Damage():
        found["damage"] = damage.to_json()
    return found


def search(
    sandbox: Sandbox, stores: list[ProjectStore], wanted: dict[str, str], limit: int, *, everywhere: bool
) -> dict[str, Any]:
    """All that is known of an id.

    Args:
        sandbox: where to look.
        stores: the projects to look in.
        wanted: ``insert_id``, ``user_id`` and ``device_id``, exact; what has one of those that are given is found.
        limit: events, users and requests, at most so many of each.
        everywhere: whether requests of projects that never took an event are looked through too.
    """
    with sandbox.locked:
        kept = [(store, store.kept()) for store in stores]
    found = [
        row(store, batch, place, event)
        for store, batches in kept
        for batch, place, event in _newest_of_any(batches, wanted, limit)
    ]
    found.sort(key=lambda each: each["received_at"], reverse=True)
    users = {(each["project"], _text(each["event"], "user_id")) for each in found}
    with sandbox.locked:
        # Written under the lock: the profiles go on changing after it.
        profiles = orjson.dumps(_profiles(stores, wanted, users)[:limit])
        requests = list(sandbox.requests.newest())
    return {
        "looked_for": wanted,
        "events": found[:limit],
        "users": orjson.Fragment(profiles),
        "requests": _requests(requests, wanted, None if everywhere else {store.hint for store in stores}, limit),
    }


def _newest_of_any(batches: list[Batch], wanted: Mapping[str, str], limit: int) -> list[tuple[Batch, int, Event]]:
    found = {}
    for name, text in wanted.items():
        for count, (batch, place, event) in enumerate(newest(batches, {name: text})):
            if count == limit:
                break
            found[batch.first + place] = (batch, place, event)
    return [found[number] for number in heapq.nlargest(limit, found)]


def _profiles(
    stores: list[ProjectStore], wanted: Mapping[str, str], users: set[tuple[int, str | None]]
) -> list[dict[str, Any]]:
    """The users that were looked for, and those of the events found."""
    return [
        {"project": store.project_id, "name": store.name, "api_key": store.hint, **profile.to_json()}
        for store in stores
        for profile in store.profiles
        if (profile.user_id is not None and wanted.get("user_id") == profile.user_id)
        or wanted.get("device_id") in profile.device_ids
        or (profile.user_id is not None and (store.project_id, profile.user_id) in users)
    ]


def _requests(
    requests: list[LoggedRequest], wanted: dict[str, str], hints: set[str] | None, limit: int
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for request in requests:
        if len(found) == limit:
            break
        indexes = request.indexes(wanted) if hints is None or request.api_key in hints else []
        if indexes:
            found.append(
                {
                    "number": request.number,
                    "received_at": request.received_at,
                    "path": request.path,
                    "api_key": request.api_key,
                    "events": request.events,
                    "bytes": request.size,
                    "indexes": indexes[:100],
                    "status": request.status,
                    "named_in": request.blamed(indexes[0]),
                    "answer": request.answer,
                }
            )
    return found


def _is_wanted(event: Event, wanted: Mapping[str, str]) -> bool:
    return all(_text(event, name) == text for name, text in wanted.items())


def _text(event: Event, name: str) -> str | None:
    value = event.get(name)
    if not isinstance(value, str):
        return None
    return stored_id(value) if name in ("user_id", "device_id") else value
