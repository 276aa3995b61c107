"""Scenes: each does what its sentence says, over HTTP; ``--scene`` starts them; the documentation lists them."""

from __future__ import annotations

import http.client
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from nami_amp_pipeline.sandbox import (
    SCENES,
    FaultError,
    Options,
    Sandbox,
    SandboxServer,
    fault_kinds,
    scenes,
    start_scene,
)
from nami_amp_pipeline.sandbox.fault_kinds import KINDS
from nami_amp_pipeline_tests.support.command_line import PROGRAM, environment, invoke, nami_amp, one_line

KEY = "0123456789abcdef0123456789abcdef"
PAGE = Path(__file__).parents[1] / "docs" / "sandbox.md"


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    options = Options(throttle=False, export_delay_hours=0)
    with SandboxServer(Sandbox(lambda: 1_790_000_000.0, options=options)) as running:
        yield running


def events(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"event_type": "renewed", "user_id": f"user-{number}", "time": 1, "insert_id": f"id-{number}", **fields}
        for number in range(count)
    ]


def post(server: SandboxServer, *sent: dict[str, Any]) -> requests.Response:
    return requests.post(server.batch_endpoint, json={"api_key": KEY, "events": sent}, timeout=5, allow_redirects=False)


def scene(server: SandboxServer, name: str, value: str = "") -> None:
    answer = requests.post(f"{server.url}/sandbox/scenes", json={"scene": name, "value": value}, timeout=5)
    assert answer.status_code == 200, answer.text
    assert [found["name"] for found in answer.json()["scenes"] if found["on"]] == [name]


def held(server: SandboxServer) -> int:
    events: int = requests.get(f"{server.url}/sandbox/summary", timeout=5).json()["events"]
    return events


def export(server: SandboxServer, start: str, end: str) -> requests.Response:
    return requests.get(
        f"{server.url}/api/2/export", params={"start": start, "end": end}, auth=(KEY, "secret"), timeout=5
    )


@pytest.mark.parametrize(
    ("name", "status", "kept"),
    [
        ("wrong-key", 400, 0),
        ("project-throttled", 429, 0),
        ("outage", 503, 0),
        ("outage-after-storing", 500, 3),
        ("forbidden", 403, 0),
        ("redirect", 302, 0),
        ("nothing-kept", 200, 0),
    ],
)
def test_scenes_of_every_request(server: SandboxServer, name: str, status: int, kept: int) -> None:
    scene(server, name)
    assert post(server, *events(3)).status_code == status
    assert held(server) == kept
    stopped = requests.delete(f"{server.url}/sandbox/scenes", params={"scene": name}, timeout=5).json()
    assert not any(found["on"] for found in stopped["scenes"])
    assert post(server, *events(3)).status_code == 200
    assert held(server) == 3


def test_scenes_of_a_user(server: SandboxServer) -> None:
    scene(server, "throttled-user", "user-1")
    assert post(server, *events(3)).json()["throttled_users"].keys() == {"user-1"}
    assert post(server, events(1)[0]).status_code == 200
    requests.delete(f"{server.url}/sandbox/scenes", timeout=5)
    scene(server, "daily-quota")
    named = post(server, *events(400)).json()["exceeded_daily_quota_users"]
    assert 5 < len(named) < 50
    assert post(server, *events(400)).json()["exceeded_daily_quota_users"] == named


def test_one_in_fifty_is_rejected_and_named(server: SandboxServer) -> None:
    scene(server, "one-in-fifty-rejected")
    sent = events(1000)
    named = post(server, *sent).json()["events_with_invalid_fields"]["event_properties"]
    assert 8 <= len(named) <= 40
    assert post(server, *(event for index, event in enumerate(sent) if index not in named)).status_code == 200


def test_some_are_rejected_and_not_named(server: SandboxServer) -> None:
    scene(server, "rejected-without-names", "10")
    answer = post(server, *events(100))
    assert answer.status_code == 400
    assert answer.json().keys() == {"code", "error"}


def test_devices_are_silenced(server: SandboxServer) -> None:
    scene(server, "silenced-devices")
    sent = [{"event_type": "x", "device_id": f"device-{number}", "insert_id": str(number)} for number in range(200)]
    answer = post(server, *sent).json()
    assert 0 < len(answer["silenced_devices"]) < 40


def test_large_requests_are_too_large(server: SandboxServer) -> None:
    scene(server, "too-large", "10")
    assert post(server, *events(11)).status_code == 413
    assert post(server, *events(10)).status_code == 200


def test_half_of_the_answers_are_a_gateways_pages(server: SandboxServer) -> None:
    scene(server, "gateway-pages")
    found = [post(server, *events(1)) for _ in range(20)]
    assert {answer.status_code for answer in found} == {200, 502}
    assert any(answer.headers["Content-Type"] == "text/html" for answer in found)


@pytest.mark.parametrize(("name", "least"), [("lost-connections", 0), ("half-answers", 1)])
def test_connections_that_break(server: SandboxServer, name: str, least: int) -> None:
    scene(server, name)
    broken = 0
    for _ in range(20):
        try:
            post(server, *events(1))
        except requests.RequestException:
            broken += 1
    assert 0 < broken < 20
    assert held(server) >= least


@pytest.mark.slow
def test_slow_answers_and_none(server: SandboxServer) -> None:
    scene(server, "slow-answers", "1")
    assert post(server, *events(1)).elapsed.total_seconds() >= 1
    requests.delete(f"{server.url}/sandbox/scenes", timeout=5)
    scene(server, "no-answers", "1")
    with pytest.raises(requests.ConnectionError):
        post(server, *events(2))
    assert held(server) == 2


def test_interim_answers_come_before_the_final_one(server: SandboxServer) -> None:
    scene(server, "interim-answers")
    connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
    content = orjson.dumps({"api_key": KEY, "events": events(1)})
    connection.request("POST", "/batch", content, {"Content-Type": "application/json", "Connection": "close"})
    assert connection.sock is not None
    answer = b"".join(iter(lambda: connection.sock.recv(65_536), b""))
    connection.close()
    lines = [line.split(b" ")[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert lines == [b"102", b"103", b"200"]


@pytest.mark.parametrize("name", ["lost-after-200", "stored-twice"])
def test_scenes_of_one_event_in_so_many(server: SandboxServer, name: str) -> None:
    scene(server, name, "10")
    assert post(server, *events(500)).json()["events_ingested"] == 500
    off = abs(held(server) - 500)
    assert 20 <= off <= 90
    assert (held(server) < 500) == (name == "lost-after-200")


def test_a_type_is_dropped(server: SandboxServer) -> None:
    scene(server, "dropped-type", "paused")
    post(server, *events(2), *events(1, event_type="paused", insert_id="p"))
    assert held(server) == 2


@pytest.mark.parametrize(("name", "left"), [("cut-property", {"x": "t" * 20}), ("removed-property", {})])
def test_a_property_is_cut_or_removed(server: SandboxServer, name: str, left: dict[str, Any]) -> None:
    scene(server, name, "x")
    post(server, *events(1, user_properties={"x": "t" * 50}))
    (user,) = requests.get(f"{server.url}/sandbox/users", timeout=5).json()["users"]
    assert user["user_properties"] == left


@pytest.mark.parametrize(("name", "status"), [("export-too-large", 400), ("export-timeout", 504)])
def test_exports_of_many_hours_fail(server: SandboxServer, name: str, status: int) -> None:
    post(server, *events(1))
    scene(server, name, "2")
    assert export(server, "20260101T00", "20260101T02").status_code == status
    assert export(server, "20260101T00", "20260101T01").status_code == 404
    assert post(server, *events(1)).status_code == 200


def test_exports_break_off(server: SandboxServer) -> None:
    post(server, *events(50))
    scene(server, "broken-exports")
    broken = 0
    for _ in range(10):
        try:
            assert export(server, "20260901T00", "20261001T00").content[:2] == b"PK"
        except requests.RequestException:
            broken += 1
    assert 0 < broken < 10


def test_all_scenes_are_tried_above_and_their_rules_are_possible() -> None:
    text = Path(__file__).read_text()
    sandbox = Sandbox()
    for name in SCENES:
        assert text.count(f'"{name}"'), name
        start_scene(sandbox.faults, name)
    assert {rule.scene for rule in sandbox.faults} == SCENES.keys()
    unused = set(KINDS) - {rule.kind for rule in sandbox.faults}
    assert unused == {
        "500", "502", "html_400", "closed_without_answer", "stored_then_502", "stored_then_504", "empty_body",
        "trickle",
    }  # fmt: skip


def test_a_scene_that_is_on_begins_anew_with_another_value() -> None:
    sandbox = Sandbox()
    start_scene(sandbox.faults, "throttled-user", "user-1")
    start_scene(sandbox.faults, "throttled-user", "user-2")
    assert [rule.user_id for rule in sandbox.faults] == ["user-2"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("outtage", "", "did you mean outage"),
        ("nothing like it", "", "no scene"),
        ("outage", "5", "no value"),
        ("lost-after-200", "some", "'some' is not a number"),
        ("lost-after-200", "0", "not a number"),
        ("slow-answers", "9" * 30, "not a number"),
        ("slow-answers", "4000", "seconds"),
    ],
)
def test_what_is_no_scene_says_why_and_stops_nothing(name: str, value: str, message: str) -> None:
    sandbox = Sandbox()
    start_scene(sandbox.faults, "lost-after-200", "5")
    with pytest.raises(FaultError, match=message):
        start_scene(sandbox.faults, name, value)
    assert len(sandbox.faults) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"scene": 1}', b'{"scene": "outage", "value": 1}'])
def test_what_names_no_scene_is_a_400(body: bytes) -> None:
    sandbox = Sandbox()
    assert sandbox.handle("POST", "/sandbox/scenes", {}, body).status == 400
    assert sandbox.handle("DELETE", "/sandbox/scenes", {}, b"", "scene=unknown").status == 400


def test_the_documentation_lists_the_scenes() -> None:
    for made, name in ((scenes.table, "scenes"), (fault_kinds.table, "kinds")):
        text = (
            PAGE.read_text().partition(f"<!-- {name}: ")[2].partition("\n")[2].partition(f"<!-- end of {name} -->")[0]
        )
        assert text == made()


@contextmanager
def started(folder: Path, *words: str, **settings: str) -> Iterator[tuple[str, list[str]]]:
    """``nami-amp sandbox`` in a process of its own: its address and what it said."""
    process = subprocess.Popen(
        [PROGRAM, "sandbox", "--port", "0", *words],
        cwd=folder,
        env=environment(folder, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        assert "Local Amplitude at http" in said[0], said[0] + process.stdout.read()
        yield said[0].split()[3], said
    finally:
        process.terminate()
        assert process.stdout is not None
        said += process.stdout.read().splitlines()
        process.stdout.close()
        process.wait(20)


@pytest.mark.slow
def test_the_command_starts_with_scenes_and_projects(tmp_path: Path) -> None:
    words = (
        "--scene",
        "throttled-user=user-1",
        "--scene",
        "outage",
        "--project",
        "radio=KEY,SECRET",
        "--only-projects",
    )
    with started(tmp_path, *words, KEY=KEY, SECRET="a-secret") as (url, said):
        on = [
            found["name"] for found in requests.get(f"{url}/sandbox/scenes", timeout=5).json()["scenes"] if found["on"]
        ]
        assert on == ["throttled-user", "outage"]
        (project,) = requests.get(f"{url}/sandbox/summary", timeout=5).json()["projects"]
        assert (project["name"], project["api_key"], project["events"]) == ("radio", "…cdef", 0)
        sent = {"api_key": KEY, "events": events(1)}
        assert requests.post(f"{url}/batch", json=sent, timeout=5).status_code == 503
        requests.delete(f"{url}/sandbox/scenes", timeout=5)
        assert requests.post(f"{url}/batch", json=sent, timeout=5).status_code == 200
        other = requests.post(f"{url}/batch", json={**sent, "api_key": "another-key"}, timeout=5)
        assert other.json()["error"].startswith("Invalid API key")
        (project,) = requests.get(f"{url}/sandbox/summary", timeout=5).json()["projects"]
        assert (project["name"], project["api_key"], project["events"]) == ("radio", "…cdef", 1)
        asked = {"start": "20260601T00", "end": "20260601T00"}
        for secret, status in (("wrong", 403), ("a-secret", 404)):
            answer = requests.get(f"{url}/api/2/export", params=asked, auth=(KEY, secret), timeout=5)
            assert answer.status_code == status
    assert KEY not in "".join(said)
    assert any("Scenes that are on: throttled-user=user-1, outage" in line for line in said)


@pytest.mark.slow
def test_projects_have_the_names_of_the_integrations(tmp_path: Path) -> None:
    with started(tmp_path, KEY=KEY) as (url, _):
        assert not (tmp_path / ".nami-amp").exists()
        assert requests.post(f"{url}/batch", json={"api_key": KEY, "events": events(1)}, timeout=5).status_code == 200
        (project,) = requests.get(f"{url}/sandbox/summary", timeout=5).json()["projects"]
        assert project["name"] == ""
        assert not (tmp_path / ".nami-amp").exists()
        for name in ("one", "two"):
            added = nami_amp(
                tmp_path, "integrations", "add", "radio", name, "--endpoint", f"{url}/2/httpapi", "--api-key-env",
                "KEY", "--allow-custom-endpoint", "--allow-shared-key", KEY=KEY,
            )  # fmt: skip
            assert added.returncode == 0, added.stderr

        def named() -> bool:
            (found,) = requests.get(f"{url}/sandbox/summary", timeout=5).json()["projects"]
            return bool(found["name"] == "radio/one, radio/two")

        deadline = 200
        while not named():
            deadline -= 1
            assert deadline, "the names did not come"
            threading.Event().wait(0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--scene", "outtage"), "did you mean outage"),
        (("--scene", "lost-after-200=x"), "not a number"),
        (("--project", "radio"), "NAME=VAR"),
        (("--project", "radio=KEY,KEY,KEY"), "NAME=VAR"),
        (("--project", "radio=UNSET_VARIABLE"), "never on the command line"),
        (("--only-projects",), "needs a --project"),
        (("--export-delay", "-1"), "--export-delay"),
    ],
)
def test_a_mistake_is_said_in_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = invoke(tmp_path, "sandbox", "--port", "0", *words)
    assert done.exit_code == 2
    assert message in one_line(done.stderr)


def test_the_command_lists_the_scenes(tmp_path: Path) -> None:
    lines = invoke(tmp_path, "sandbox", "--list-scenes").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == list(SCENES)
