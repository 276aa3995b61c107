"""The sandbox's own endpoints: the page, what was received, search, the audit, faults and scenes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import orjson

from . import found_page, scenes
from .answers import Answer, json_answer
from .batches import Batch, Damage
from .fault_kinds import KINDS, FaultError
from .faults import fault_from_json
from .search import IDS, newest, row, search
from .settings import key_digest
from .validation import Event

if TYPE_CHECKING:
    from .core import Sandbox
    from .store import ProjectStore

_ASSETS: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/sandbox/page.css": ("page.css", "text/css; charset=utf-8"),
    **{
        f"/sandbox/{name}": (name, "text/javascript; charset=utf-8")
        for name in ("page.js", "dom.js", "controls.js", "search.js")
    },
}
_PAGE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
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
_OPTIONS: Final = {"export_delay_hours": 48, "export_max_bytes": 4_000_000_000, "latency_ms": 600_000}
"""What can be changed while it runs, with the most that each may be."""


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
        given = {name: values[0] for name, values in parse_qs(query).items()}
        if path in _ASSETS and method == "GET":
            name, content_type = _ASSETS[path]
            wanted = given.get("q", "").strip() if path == "/" else ""
            body = self._page_with(wanted) if wanted else _asset(name)
            return Answer(200, {**_PAGE_HEADERS, "Content-Type": content_type}, body)
        if not path.startswith("/sandbox/"):
            return None
        if not _is_own_page(headers):
            # A page of another site that a developer has open could otherwise read and clear the sandbox.
            return json_answer(403, {"error": "a browser may send this from the sandbox's own page only"})
        try:
            return self._route(method, path.removeprefix("/sandbox/"), body, given)
        except FaultError as error:
            return json_answer(400, {"error": str(error)})

    def _route(self, method: str, name: str, body: bytes, given: Mapping[str, str]) -> Answer | None:
        if name == "faults":
            return self._faults(method, body, given)
        if name == "scenes":
            return self._scenes(method, body, given)
        if name == "options":
            return self._options(method, body)
        if method == "POST" and name == "held":
            return _data({"happened": self._sandbox.lose_held(fault_from_json(_json(body)))})
        if method == "DELETE" and name == "data":
            self._sandbox.clear()
            return Answer(204)
        if method != "GET":
            return None
        self._sandbox.learn_names()
        if name == "audit":
            with self._sandbox.locked:
                return _data(self._sandbox.audit.to_json())
        if name == "summary":
            return _data(self._summary())
        if name == "events":
            return _data(self._events(given))
        if name == "users":
            return _data(self._users(given))
        if name == "search":
            return _data(self._search(given))
        return None

    def _summary(self) -> dict[str, Any]:
        with self._sandbox.locked:
            projects = [
                {
                    "project": store.project_id,
                    "name": store.name,
                    "api_key": store.hint,
                    "events": store.held,
                    "event_types": dict(sorted((+store.by_type).items(), key=lambda pair: (-pair[1], pair[0]))),
                }
                for store in self._sandbox.stores()
            ]
            projects += [
                {"project": number, "name": project.name, "api_key": hint, "events": 0, "event_types": {}}
                for number, project, hint in self._sandbox.empty_projects()
            ]
            return {"events": sum(project["events"] for project in projects), "projects": projects}

    def _events(self, given: Mapping[str, str]) -> dict[str, Any]:
        limit = _limit(given, 100)
        with self._sandbox.locked:
            kept = [(store, store.kept()) for store in self._chosen(given)]
        found = [
            row(store, batch, place, event)
            for store, batches in kept
            for batch, place, event in islice(_held(newest(batches, given)), limit)
        ]
        found.sort(key=lambda each: each["received_at"], reverse=True)
        return {"events": found[:limit]}

    def _search(self, given: Mapping[str, str]) -> dict[str, Any]:
        wanted = {name: given[name] for name in IDS if given.get(name)}
        if given.get("q", "").strip():
            wanted = dict.fromkeys(IDS, given["q"].strip())
        if not wanted:
            raise FaultError(f"give q, or one of {', '.join(IDS)}")
        self._catch_up()
        with self._sandbox.locked:
            stores = self._chosen(given)
        everywhere = not {"project", "api_key"} & given.keys()
        return search(self._sandbox, stores, wanted, _limit(given, 20), everywhere=everywhere)

    def _page_with(self, wanted: str) -> bytes:
        """The page with what a search found, for browsers without JavaScript."""
        self._sandbox.learn_names()
        found = orjson.loads(orjson.dumps(self._search({"q": wanted, "limit": str(found_page.LIMIT)})))
        return found_page.page_with(_asset("page.html").decode(), wanted, found).encode()

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
                {"project": store.project_id, "name": store.name, "api_key": store.hint, **profile.to_json()}
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

    def _scenes(self, method: str, body: bytes, given: Mapping[str, str]) -> Answer | None:
        faults = self._sandbox.faults
        with self._sandbox.locked:
            if method == "POST":
                content = _json(body)
                name, value = (
                    (content.get("scene"), content.get("value", "")) if isinstance(content, dict) else (None, None)
                )
                if not isinstance(name, str) or not isinstance(value, str):
                    raise FaultError("send the name of a scene, and its value as text if it takes one")
                scenes.start(faults, name, value.strip())
            elif method == "DELETE":
                faults.end_scene(scenes.scene_named(given["scene"]).name if "scene" in given else None)
            elif method != "GET":
                return None
            return _data({"scenes": scenes.listed(faults)})

    def _options(self, method: str, body: bytes) -> Answer | None:
        if method not in ("GET", "PATCH"):
            return None
        with self._sandbox.locked:
            if method == "PATCH":
                content = _json(body)
                if not isinstance(content, dict) or not content.keys() <= _OPTIONS.keys():
                    raise FaultError(f"send some of {', '.join(_OPTIONS)}")
                for name, value in content.items():
                    if type(value) not in (int, float) or not 0 <= value <= _OPTIONS[name]:
                        raise FaultError(f"{name} must be a number from 0 to {_OPTIONS[name]}")
                self._sandbox.options = replace(self._sandbox.options, **content)
            return _data({name: getattr(self._sandbox.options, name) for name in _OPTIONS})

    def _chosen(self, given: Mapping[str, str]) -> list[ProjectStore]:
        stores = self._sandbox.stores()
        if "project" in given:
            return [store for store in stores if given["project"] in (str(store.project_id), store.name)]
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


def _held(rows: Iterator[tuple[Batch, int, Event]]) -> Iterator[tuple[Batch, int, Event]]:
    return (found for found in rows if not found[0].damage.get(found[1], Damage()).lost)


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
