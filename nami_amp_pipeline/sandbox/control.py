"""The sandbox's own endpoints: the page, what was received, the audit and the faults."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import orjson

from .answers import Answer, json_answer
from .faults import KINDS, FaultError, fault_from_json
from .settings import key_digest
from .validation import stored_id

if TYPE_CHECKING:
    from .core import Sandbox
    from .store import ProjectStore

_ASSETS: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/sandbox/page.css": ("page.css", "text/css; charset=utf-8"),
    "/sandbox/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_PAGE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_DATA_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Type": "application/json",
    "X-Content-Type-Options": "nosniff",
}
_MOST_ROWS: Final = 10_000


class Control:
    """Answers what is not Amplitude's."""

    def __init__(self, sandbox: Sandbox) -> None:
        """Shows and steers this sandbox."""
        self._sandbox = sandbox

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes, query: str) -> Answer | None:
        """Answers a request, or gives None where there is nothing of this path.

        Args:
            method: such as ``GET``.
            path: without the query.
            headers: with lower-case names.
            body: as it came.
            query: without the question mark.
        """
        if path in _ASSETS and method == "GET":
            name, content_type = _ASSETS[path]
            return Answer(200, {**_PAGE_HEADERS, "Content-Type": content_type}, _asset(name))
        if not path.startswith("/sandbox/"):
            return None
        if not _is_own_page(headers):
            # A page of another site that a developer has open could otherwise read and clear the sandbox.
            return json_answer(403, {"error": "a browser may send this from the sandbox's own page only"})
        given = {name: values[0] for name, values in parse_qs(query).items()}
        try:
            return self._route(method, path.removeprefix("/sandbox/"), body, given)
        except FaultError as error:
            return json_answer(400, {"error": str(error)})

    def _route(self, method: str, name: str, body: bytes, given: Mapping[str, str]) -> Answer | None:
        if name == "faults":
            return self._faults(method, body, given)
        if method == "DELETE" and name == "data":
            self._sandbox.clear()
            return Answer(204)
        if method != "GET":
            return None
        if name == "audit":
            with self._sandbox.locked:
                return _data(self._sandbox.audit.to_json())
        if name == "summary":
            return _data(self._summary())
        if name == "events":
            return _data(self._events(given))
        if name == "users":
            return _data(self._users(given))
        return None

    def _summary(self) -> dict[str, Any]:
        with self._sandbox.locked:
            projects = [
                {
                    "project": store.project_id,
                    "name": store.name,
                    "api_key": store.hint,
                    "events": store.accepted,
                    "event_types": dict(sorted(store.by_type.items(), key=lambda pair: (-pair[1], pair[0]))),
                }
                for store in self._sandbox.stores()
            ]
            return {"events": sum(project["events"] for project in projects), "projects": projects}

    def _events(self, given: Mapping[str, str]) -> dict[str, Any]:
        limit = _limit(given, 100)
        with self._sandbox.locked:
            found: list[dict[str, Any]] = [
                {
                    "project": store.project_id,
                    "api_key": store.hint,
                    "number": number,
                    "received_at": batch.received_at,
                    "path": batch.path,
                    "event": event,
                }
                for store in self._chosen(given)
                for batch, number, event in islice((row for row in store.newest() if _is_wanted(row[2], given)), limit)
            ]
        found.sort(key=lambda row: row["received_at"], reverse=True)
        return {"events": found[:limit]}

    def _users(self, given: Mapping[str, str]) -> dict[str, Any]:
        limit = _limit(given, 100)
        wanted = given.get("user_id", "").lower()
        total, rows = 0, []
        self._catch_up()
        with self._sandbox.locked:
            for store in self._chosen(given):
                for profile in store.profiles:
                    total += 1
                    names = [profile.user_id] if profile.user_id is not None else profile.device_ids
                    if not wanted or any(wanted in name.lower() for name in names):
                        rows.append((store, profile))
            matching = len(rows)
            rows.sort(key=lambda row: row[1].last_received, reverse=True)
            shown = [
                {"project": store.project_id, "api_key": store.hint, **profile.to_json()}
                for store, profile in rows[:limit]
            ]
            # Written here, under the lock: the profiles go on changing after it.
            return {"total": total, "matching": matching, "users": orjson.Fragment(orjson.dumps(shown))}

    def _catch_up(self) -> None:
        while True:
            with self._sandbox.locked:
                if all(store.catch_up() for store in self._sandbox.stores()):
                    return

    def _faults(self, method: str, body: bytes, given: Mapping[str, str]) -> Answer | None:
        faults = self._sandbox.faults
        with self._sandbox.locked:
            if method == "POST":
                content = _json(body)
                if isinstance(content, dict):
                    content = content.get("rules", [content])
                if not isinstance(content, list):
                    raise FaultError("send a rule, a list of rules, or an object with a list of rules")
                faults.add(*[fault_from_json(rule) for rule in content])
            elif method == "PATCH":
                content = _json(body)
                enabled = content.get("enabled") if isinstance(content, dict) else None
                if type(enabled) is not bool or not faults.switch(_id(given), enabled):
                    raise FaultError("send enabled as true or false, with the id of a rule")
            elif method == "DELETE":
                faults.remove(_id(given) if "id" in given else None)
            elif method != "GET":
                return None
            return _data({"rules": [rule.to_json() for rule in faults], "kinds": KINDS})

    def _chosen(self, given: Mapping[str, str]) -> list[ProjectStore]:
        stores = self._sandbox.stores()
        if "project" in given:
            return [store for store in stores if str(store.project_id) == given["project"]]
        if "api_key" in given:
            digest = key_digest(given["api_key"])
            return [store for store in stores if digest == store.digest or given["api_key"] == store.hint]
        return stores


@cache
def _asset(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


def _is_own_page(headers: Mapping[str, str]) -> bool:
    """Whether a request is no browser's, or of a page that came from here."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _is_wanted(event: Mapping[str, Any], given: Mapping[str, str]) -> bool:
    if "event_type" in given and event.get("event_type") != given["event_type"]:
        return False
    if "insert_id" in given and event.get("insert_id") != given["insert_id"]:
        return False
    return "user_id" not in given or stored_id(event.get("user_id")) == given["user_id"]


def _limit(given: Mapping[str, str], default: int) -> int:
    text = given.get("limit", str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise FaultError("limit must be a number")
    return min(int(text), _MOST_ROWS)


def _id(given: Mapping[str, str]) -> int:
    text = given.get("id", "")
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise FaultError("id must be the id of a rule")
    return int(text)


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise FaultError("the body is not JSON") from error


def _data(content: Any) -> Answer:
    return Answer(200, _DATA_HEADERS, orjson.dumps(content))
