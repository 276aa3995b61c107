"""What follows from a change of an integration, for the person who reads a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from nami_amp_pipeline import contract
from nami_amp_pipeline.destinations import destination_of
from nami_amp_pipeline.operations.as_code.document import IntegrationEntry

_OTHER_PROJECT: Final = (
    "what was sent stays in the old project, all that is pending goes to the new one, and what a retry or a backfill "
    "sends again is stored there a second time"
)
_FOLLOWS: Final[Mapping[str, str]] = {
    "api_key": f"a key of another Amplitude project: {_OTHER_PROJECT}",
    "endpoint": f"another endpoint is another Amplitude project: {_OTHER_PROJECT}",
    "user_id": "users are split: Amplitude takes the other ids for new users, and the old ones keep what they have",
    "fields": "holds for what is not prepared yet; in headers, for all that is pending",
    "secret_fields": "holds for all that is pending, too",
    "anonymous": "holds for events that are not prepared yet; events that wait for a login go on waiting for it",
    "rename": "to Amplitude another name is another event: charts and cohorts of the old name get no more of it",
    "exclude": "what was sent before stays in Amplitude as it is",
    "hash": "what was sent before stays in Amplitude as it is, and does not match the hashes",
    "sandbox": "holds for events that are not prepared yet",
    "revenue": "holds for events that are not prepared yet; revenue that was sent stays as it is",
    "store_fees": "holds for events that are not prepared yet; revenue that was sent stays as it is",
}


def of_change(what: Mapping[str, tuple[Any, Any]], file: str) -> list[str]:
    """The consequences of a change, a clause each.

    Args:
        what: by field, the value before and after.
        file: the name of the file that the change comes from.
    """
    found = {name: [_FOLLOWS[name]] for name in what if name in _FOLLOWS}
    if "events" in what:
        found["events"] = _of_events(*what["events"])
    if "enabled" in what:
        found["enabled"] = [
            "goes on where it stopped: all that came meanwhile is sent"
            if what["enabled"][1]
            else "nothing is sent any more, and nothing is lost: events are sent once it is enabled again"
        ]
    if "secret_key" in what and what["secret_key"][1] == "not set":
        found["secret_key"] = ["without a secret key, days are no longer reconciled"]
    if "start_from" in what:
        found["start_from"] = [_of_start(*what["start_from"])]
    if "managed_by" in what:
        found["managed_by"] = [
            f"its settings can only be changed in {file} from then on"
            if what["managed_by"][1]
            else "people can change its settings again"
        ]
    return [f"{name}: {clause}" for name in sorted(found) for clause in found[name]]


def of_addition(entry: IntegrationEntry) -> list[str]:
    """The consequences of adding an integration."""
    found = [
        {
            "now": "sends events that are loaded into the warehouse from now on",
            "beginning": "sends all events that the warehouse has of the app",
        }.get(entry.start_from, f"sends events that were loaded into the warehouse from {entry.start_from} on")
    ]
    if not entry.enabled:
        found = ["sends nothing until it is enabled"]
    host = urlsplit(entry.endpoint).hostname
    target = destination_of(entry.destination)
    if target.endpoints and entry.endpoint not in (*target.endpoints, *target.endpoints.values()) and host:
        found.append(f"endpoint: {host} does not belong to {target.title}, and gets the key and the events")
    elif not target.endpoints:
        found.append(f"endpoint: {host} gets the events")
    return found


def of_plan(after: str) -> list[str]:
    """The consequences of another plan of an app."""
    if after == "free":
        return ["no integration of the app can be enabled; those that are enabled stay so"]
    return ["integrations of the app can be enabled"]


def shared(other: str) -> str:
    """The consequence of one key in two integrations."""
    return f"has the API key of {other}: Amplitude keeps one copy of an event that both send"


def _of_events(before: list[str], after: list[str]) -> list[str]:
    had, has = ({event_type.name for event_type in contract.select_events(some)} for some in (before, after))
    found = []
    if more := sorted(has - had):
        found.append(f"also sends {', '.join(more)} from now on; a backfill sends earlier events of these types")
    if fewer := sorted(had - has):
        found.append(f"no longer sends {', '.join(fewer)}; what was sent stays in Amplitude")
    return found or ["the same types as before"]


def _of_start(before: str, after: str) -> str:
    if after == "beginning" or (before != "beginning" and after < before):
        return "earlier events are read from the warehouse and sent"
    return f"events that were loaded before {after} and are not prepared yet are not sent"
