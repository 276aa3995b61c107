"""The search of the sandbox finds events, users and requests by an id, and shows no key."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode, urljoin

import orjson
import pytest
import requests

from nami_amp_pipeline.sandbox import Answer, Fault, Options, Project, Sandbox, SandboxServer

KEY = "0123456789abcdef0123456789abcdef"
JSON = {"Content-Type": "application/json"}


def post(sandbox: Sandbox, *events: Any, key: str = KEY) -> Answer:
    return sandbox.handle("POST", "/2/httpapi", JSON, orjson.dumps({"api_key": key, "events": events}))


def event(insert_id: str, user_id: str = "user-1", **fields: Any) -> dict[str, Any]:
    return {"event_type": "renewed", "user_id": user_id, "time": 1, "insert_id": insert_id, **fields}


def search(sandbox: Sandbox, **wanted: Any) -> Any:
    answer = sandbox.handle("GET", "/sandbox/search", {}, b"", urlencode(wanted))
    assert answer.status == 200, answer.body
    assert KEY.encode() not in answer.body
    return orjson.loads(answer.body)


def ids(found: Any) -> list[str]:
    return [row["event"]["insert_id"] for row in found["events"]]


@pytest.fixture
def sandbox() -> Sandbox:
    made = Sandbox(projects={KEY: Project(name="radio/main")}, any_key=True)
    post(made, event("a", user_properties={"x": 1}), event("b", device_id="device-1", user_properties={"x": 2}))
    post(made, event("c", user_id="user-2"))
    return made


def test_an_insert_id_finds_the_event_its_user_and_its_request(sandbox: Sandbox) -> None:
    found = search(sandbox, q="a")
    assert ids(found) == ["a"]
    assert found["events"][0]["name"] == "radio/main"
    assert [(user["user_id"], user["user_properties"]) for user in found["users"]] == [("user-1", {"x": 2})]
    (request,) = found["requests"]
    assert (request["status"], request["events"], request["indexes"]) == ("200", 2, [0])
    assert orjson.loads(request["answer"])["events_ingested"] == 2


@pytest.mark.parametrize(
    ("wanted", "events"),
    [
        ({"q": "user-1"}, ["b", "a"]),
        ({"user_id": "user-1"}, ["b", "a"]),
        ({"q": " device-1 "}, ["b"]),
        ({"device_id": "device-1"}, ["b"]),
        ({"insert_id": "user-1"}, []),
        ({"q": "user"}, []),
        ({"q": "user-1", "limit": 1}, ["b"]),
        ({"q": "c", "project": "radio/main"}, ["c"]),
        ({"q": "c", "project": "another"}, []),
    ],
)
def test_ids_are_exact(sandbox: Sandbox, wanted: dict[str, Any], events: list[str]) -> None:
    assert ids(search(sandbox, **wanted)) == events


def test_requests_that_failed_are_found_with_what_they_said_of_the_event(sandbox: Sandbox) -> None:
    sandbox.faults.add(Fault("poison", insert_id="x"), Fault("throttle_user", user_id="user-9"))
    post(sandbox, event("w"), event("x"), event("y"))
    post(sandbox, event("z", user_id="user-9"))
    (poisoned,) = search(sandbox, q="x")["requests"]
    assert (poisoned["status"], poisoned["indexes"]) == ("400", [1])
    assert poisoned["named_in"] == ["events_with_invalid_fields.event_properties"]
    assert search(sandbox, q="y")["requests"][0]["named_in"] == []
    assert search(sandbox, q="user-9")["requests"][0]["named_in"] == ["throttled_events"]
    assert search(sandbox, q="x")["events"] == []


def test_an_answer_that_holds_the_key_is_shown_without_it() -> None:
    sandbox = Sandbox(refused_keys=[KEY, 'a-"quoted"-key-of-a-project'])
    assert KEY.encode() in post(sandbox, event("a")).body
    (request,) = search(sandbox, q="a")["requests"]
    assert request["api_key"] == "…cdef"
    assert "Invalid API key: …cdef" in request["answer"]
    post(sandbox, event("b"), key='a-"quoted"-key-of-a-project')
    assert "quoted" not in str(search(sandbox, q="b"))


def test_events_that_are_not_good_are_found_too() -> None:
    sandbox = Sandbox()
    post(sandbox, event("a", time="soon"), "no event", {"insert_id": 7}, {"insert_id": "c", "user_id": 3})
    assert search(sandbox, q="a")["requests"][0]["indexes"] == [0]
    assert search(sandbox, q="c")["requests"][0]["status"] == "400"


def test_what_was_lost_is_found_and_said_to_be(sandbox: Sandbox) -> None:
    sandbox.faults.add(
        Fault("lost_after_200", insert_id="l"),
        Fault("stored_twice", insert_id="t"),
        Fault("cut_property", insert_id="u", property_name="x", characters=1),
    )
    post(sandbox, *(event(name, user_properties={"x": "text"}) for name in "ltu"))
    assert search(sandbox, q="l")["events"][0]["damage"]["lost"] is True
    assert search(sandbox, q="t")["events"][0]["damage"]["copies"] == 2
    (cut,) = search(sandbox, q="u")["events"]
    assert cut["event"]["user_properties"] == {"x": "t"}
    assert cut["damage"]["cuts"] == {"x": 1}


@pytest.mark.parametrize("name", ['quote"d', "back\\slash", "snow ☃", "new\nline", "a/b", "\ud800"])
def test_ids_of_any_spelling_are_found(name: str) -> None:
    sandbox = Sandbox()
    text = '{"api_key":"%s","events":[{"event_type":"x","user_id":"user-1","insert_id":%s}]}'
    spellings = [orjson.dumps(name).decode()] if name != "\ud800" else []
    escaped = "".join(f"\\u{ord(character):04x}" for character in name)
    for spelled in [*spellings, f'"{escaped}"']:
        body = (text % (KEY, spelled)).encode()
        if name == "\ud800":
            assert sandbox.handle("POST", "/2/httpapi", JSON, body).status == 400  # no text at all
            continue
        assert sandbox.handle("POST", "/2/httpapi", JSON, body).status == 200
        assert ids(search(sandbox, q=name)) == [name]
        sandbox.clear()


@pytest.mark.parametrize("query", ["", "q=", "q=%20", "limit=x&q=a"])
def test_a_search_for_nothing_says_so(query: str) -> None:
    answer = Sandbox().handle("GET", "/sandbox/search", {}, b"", query)
    assert answer.status == 400


def test_the_requests_are_bounded_by_the_events_they_carried() -> None:
    sandbox = Sandbox(options=Options(keep_request_events=4, throttle=False))
    for number in range(6):
        post(sandbox, event(f"a{number}"), event(f"b{number}"))
    assert search(sandbox, q="b3")["requests"] == []
    assert len(search(sandbox, q="user-1")["requests"]) == 2
    post(sandbox, *(event(f"c{number}") for number in range(9)))
    assert len(search(sandbox, q="c8")["requests"]) == 1


def test_old_events_are_gone_and_new_ones_are_found() -> None:
    sandbox = Sandbox(options=Options(keep_events=1))
    post(sandbox, event("a"))
    post(sandbox, event("b"))
    assert ids(search(sandbox, q="user-1")) == ["b"]


class Page(HTMLParser):
    """A page without its scripts: the text that it shows, its forms, and the elements by id."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.by_id: dict[str, dict[str, str | None]] = {}
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.by_id[given.get("id") or ""] = given

    def handle_data(self, data: str) -> None:
        self.text += data


def searched(server: SandboxServer, wanted: str) -> Page:
    """What a browser without JavaScript shows once the form is sent."""
    form = Page(requests.get(server.url, timeout=10).text).by_id
    assert form["search-form"]["method"] == "get"
    where = urljoin(server.url, form["search-form"]["action"] or "")
    answer = requests.get(where, params={form["search-id"]["name"] or "": wanted}, timeout=10)
    assert answer.status_code == 200
    assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
    assert KEY not in answer.text
    return Page(answer.text)


@pytest.mark.parametrize(
    ("wanted", "counts", "texts"),
    [
        ("a", (1, 1, 1), ["radio/main", "user-1", '"insert_id": "a"', "events_ingested", "event 1 of 2", "x 2"]),
        (" user-1 ", (2, 1, 1), ["2 of 2 events", "2 events", "devices: device-1"]),
        ("device-1", (1, 1, 1), ['"device_id": "device-1"']),
        ("nobody", (0, 0, 0), ["No stored event has this id.", "No user or device has this id."]),
    ],
)
def test_a_search_needs_no_script(sandbox: Sandbox, wanted: str, counts: tuple[int, ...], texts: list[str]) -> None:
    with SandboxServer(sandbox) as server:
        page = searched(server, wanted)
    titles = ("Events", "Users, as Amplitude would hold them now", "Requests that carried it")
    for title, count in zip(titles, counts, strict=True):
        assert f"{title} ({count})" in page.text
    assert [text for text in texts if text not in page.text] == []
    assert page.by_id["search-id"]["value"] == wanted.strip()
    assert "hidden" not in page.by_id["found"]
    assert page.by_id["search-clear"] == {"id": "search-clear", "class": "button", "href": "/"}


def test_without_a_script_what_was_lost_and_rejected_is_said(sandbox: Sandbox) -> None:
    sandbox.faults.add(
        Fault("lost_after_200", insert_id="l"),
        Fault("stored_twice", insert_id="t"),
        Fault("cut_property", insert_id="t", property_name="x", characters=1),
        Fault("poison", insert_id="p"),
    )
    post(sandbox, event("l"), event("t", user_properties={"x": "text"}))
    post(sandbox, event("p"))
    with SandboxServer(sandbox) as server:
        assert "lost after its 200" in searched(server, "l").text
        assert "stored 2 times, x cut after 1 characters" in searched(server, "t").text
        assert "400" in (rejected := searched(server, "p").text)
        assert "named in events_with_invalid_fields" in rejected


def test_hostile_ids_are_text_without_a_script_too() -> None:
    hostile = '<script>alert(1)</script>"\'&<div id="found" class="found-parts" hidden></div>'
    sandbox = Sandbox()
    post(sandbox, event(hostile, user_id=hostile, event_type=hostile, user_properties={hostile: hostile}))
    with SandboxServer(sandbox) as server:
        plain = Page(requests.get(server.url, timeout=10).text)
        page = searched(server, hostile)
    assert "Events (1)" in page.text
    assert "Users, as Amplitude would hold them now (1)" in page.text
    assert page.tags.count("script") == plain.tags.count("script")
    assert page.by_id["search-id"]["value"] == hostile
    assert page.text.count(hostile) >= 4


def test_a_blank_search_is_the_page_as_it_is(sandbox: Sandbox) -> None:
    pages = {sandbox.handle("GET", "/", {}, b"", query).body for query in ("", "q=", "q=%20", "other=a")}
    assert len(pages) == 1
