"""The Amplitude form and what belongs to it: adds, changes, tries, switches, removes; and what it must refuse."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from cryptography.fernet import Fernet
from starlette.testclient import TestClient

from nami_amp_pipeline import contract
from nami_amp_pipeline.control_center.guard import MOST_BYTES
from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import everything
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.integrations import Integration, IntegrationChange, NewIntegration
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Sandbox, SandboxServer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.storage.duckdb_engine import execute
from nami_amp_pipeline_tests.support.control_center import client

KEY = "0123456789abcdef0123456789abcdef"
OTHER_KEY = "fedcba9876543210fedcba9876543210"
WRONG_KEY = "99999999999999999999999999999999"
SECRET_KEY = "5ec2e75ec2e75ec2e75ec2e75ec2e75e"
HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"
NEW = "/apps/radio/integrations/amplitude/new"
MAIN = "/apps/radio/integrations/main"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox(refused_keys=[WRONG_KEY])) as server:
        yield server


@pytest.fixture
def standard(sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> SandboxServer:
    """The local Amplitude in the place of the Standard endpoint."""
    monkeypatch.setitem(contract.ENDPOINTS, "us", sandbox.endpoint)
    return sandbox


@pytest.fixture
def pages(tmp_path: Path, standard: SandboxServer) -> TestClient:
    return client(tmp_path, http_timeout_seconds=5.0)


def filled(**changes: Any) -> dict[str, Any]:
    """A form as a browser sends it; None leaves a field out."""
    form = {
        "enabled": "on", "name": "main", "endpoint": "us", "api_key": KEY, "user_id": "external_id",
        "anonymous": "skip", "event": list(contract.event_type_names()), "later": "on", "sandbox": "send",
        "revenue": "gross", "start": "now", "version": "0", "act": "save", **changes,
    }  # fmt: skip
    return {name: value for name, value in form.items() if value is not None}


def stored(tmp_path: Path, name: str = "main") -> Integration:
    with Operations(Settings(home=tmp_path)) as operations:
        return operations.integrations([f"radio/{name}"])[0]


def keys_of(tmp_path: Path) -> tuple[str, str | None]:
    """The stored keys in clear."""
    with Operations(Settings(home=tmp_path)) as operations:
        integration, cipher = operations.integrations(["radio/main"])[0], operations._cipher()
        secret = integration.secret_key
        return cipher.decrypt(integration.api_key).reveal(), cipher.decrypt(secret).reveal() if secret else None


def errors_of(text: str) -> dict[str, str]:
    """The summary at the top: by field, what is wrong."""
    summary = text.partition('class="errors"')[2].partition("</ul>")[0]
    return dict(re.findall(r'<li><a href="#(\w+)">(.*?)</a></li>', summary))


def test_every_field_is_stored(tmp_path: Path, pages: TestClient) -> None:
    form = filled(
        name="growth", enabled=None, user_id="nami_user_id", anonymous="device_id", secret_key=f" {SECRET_KEY} ",
        event=["device.impression", "user.subscription.renewed"], later=None, sandbox="only", revenue="net",
        store_fees="Apple=0.15\ngoogle=0.2", exclude="locale\nidfa", hashed="ip", start="day", start_day="2026-11-03",
        **{"rename.user.subscription.renewed": "Renewed"},
    )  # fmt: skip
    answer = pages.post(NEW, data=form)
    assert answer.url.path == "/apps/radio/integrations"
    assert "Integration added, switched off" in answer.text
    added = stored(tmp_path, "growth")
    assert (added.enabled, added.user_id_kind, added.anonymous) == (False, "nami_user_id", "device_id")
    assert added.patterns == ("device.impression", "user.subscription.renewed")
    assert (added.sandbox, added.revenue) == ("only", "net")
    assert added.store_fees == {"apple": 0.15, "google": 0.2}
    assert (added.exclude, added.hashed) == (("idfa", "locale"), ("ip",))
    assert added.rename == {"user.subscription.renewed": "Renewed"}
    assert added.start_from == 1_793_664_000_000_000
    assert added.secret_key is not None
    page = pages.get("/apps/radio/integrations/growth").text
    for shown in ("Renewed", "idfa\nlocale", "apple=0.15\ngoogle=0.2", "3 Nov 2026, 00:00 UTC"):
        assert shown in page


@pytest.mark.parametrize(
    ("chosen", "patterns"),
    [
        (contract.event_type_names(), ("all",)),
        ([name for name in contract.event_type_names() if "device" not in name],
         ("user.journey.trial.*", "user.subscription.*")),
        (["device.impression"], ("device.impression",)),
    ],
)  # fmt: skip
def test_whole_groups_are_kept_as_such(
    tmp_path: Path, pages: TestClient, chosen: list[str], patterns: tuple[str, ...]
) -> None:
    pages.post(NEW, data=filled(event=list(chosen)))
    assert stored(tmp_path).patterns == patterns
    version = stored(tmp_path).version
    pages.post(MAIN, data=filled(event=list(chosen), api_key="", version=str(version), start="keep"))
    assert stored(tmp_path).version == version  # saving what there is changes nothing


def test_what_is_wrong_stands_beside_its_field_and_nothing_typed_is_lost(tmp_path: Path, pages: TestClient) -> None:
    form = filled(
        name="my app", endpoint="moon", api_key="two words", secret_key="a b", user_id="x", anonymous="y", event=[],
        sandbox="z", revenue="w", exclude="user_id", hashed="kept as typed", store_fees="apple=15", start="day",
        start_day="tomorrow", **{"rename.device.impression": "$reserved"},
    )  # fmt: skip
    answer = pages.post(NEW, data=form)
    assert answer.status_code == 422
    assert "<title>Error: Add Amplitude" in answer.text
    errors = errors_of(answer.text)
    assert list(errors) == [
        "name", "endpoint", "api_key", "secret_key", "user_id", "anonymous", "sandbox", "revenue", "events",
        "renames", "exclude", "store_fees", "start",
    ]  # fmt: skip
    assert errors["name"] == "Use letters, digits, - and _: “my app” has a space"
    assert errors["events"] == "Choose at least one event"
    for field in errors:
        assert f'id="{field}"' in answer.text, f"{field} leads nowhere"
        assert f'id="{field}-error"' in answer.text, f"{field} says nothing"
    for typed in ("my app", "kept as typed", "apple=15", "tomorrow", "$reserved"):
        assert typed in answer.text
    assert "two words" not in answer.text
    with Operations(Settings(home=tmp_path)) as operations:
        assert operations.integrations() == []


@pytest.mark.parametrize("act", ["forecast", "save"])
def test_a_quota_without_end_is_no_bug(pages: TestClient, act: str) -> None:
    answer = pages.post(NEW, data=filled(quota="9" * 5_000, act=act))
    assert answer.status_code == 422
    assert "Write the quota as a number" in answer.text


def test_everything_there_is_says_how_many_events_that_is(tmp_path: Path, pages: TestClient) -> None:
    assert "The warehouse has" not in pages.get(NEW).text
    assert "Not counted: " in pages.post(NEW, data=filled(act="count")).text  # there is no warehouse yet
    with duckdb.connect(str(tmp_path / "warehouse.duckdb")) as connection:
        execute(connection, "nami_events")
        connection.register("sample", pa.Table.from_batches(generate(20, apps=["radio"])))
        connection.execute("INSERT INTO nami_events BY NAME FROM sample")
        rows = connection.execute("SELECT count(*) FROM nami_events WHERE app_id = 'radio'").fetchall()[0][0]
    text = pages.post(NEW, data=filled(act="count", quota="1,000,000", start="beginning")).text
    assert f"<strong>{rows:,} events</strong> of this app" in text
    assert "of a month&#39;s quota" in text or "of a month's quota" in text
    assert 'value="beginning" checked' in text
    with Operations(Settings(home=tmp_path)) as operations:
        assert operations.integrations() == []


def test_a_count_that_takes_long_is_had_by_asking_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun = threading.Event(), []

    def slow(_context: object, app_id: str) -> everything.Everything:
        begun.append(app_id)
        go_on.wait(10)
        return everything.Everything(7, 1)

    monkeypatch.setattr(everything, "_counted", slow)
    with Operations(Settings(home=tmp_path)) as operations:
        context = operations._whole()
        assert everything.everything(context, "slow", patience=0.01).rows is None
        assert everything.everything(context, "slow", patience=0.01).rows is None
        go_on.set()
        assert everything.everything(context, "slow").rows == 7
        assert everything.everything(context, "slow").rows == 7
    assert begun == ["slow"]


def quota_of(tmp_path: Path) -> int | None:
    with Operations(Settings(home=tmp_path)) as operations:
        app = operations.app("radio")
        return None if app is None else app.quota


@pytest.mark.parametrize("act", ["forecast", "save"])
def test_the_quota_is_kept_for_the_app_and_shown(tmp_path: Path, pages: TestClient, act: str) -> None:
    pages.post(NEW, data=filled(quota="10,000,000", act=act))
    assert quota_of(tmp_path) == 10_000_000
    text = pages.get(NEW).text
    assert 'name="quota" value="10,000,000"' in text
    assert "0.00 %" in text
    pages.post(NEW, data=filled(name="growth", api_key=OTHER_KEY, quota="", quota_was="10,000,000", act=act))
    assert quota_of(tmp_path) is None


def test_the_share_of_the_quota_is_also_that_of_all_integrations_that_are_on(tmp_path: Path, pages: TestClient) -> None:
    for name, enabled in (("main", True), ("growth", True), ("old", False)):
        with Operations(Settings(home=tmp_path)) as operations:
            key = Secret(name * 5)
            operations.add(NewIntegration("radio", name, "us", key, enabled=enabled))
            operations.set_quota("radio", 1_000_000)
    assert "With the 1 other integration of this app that is on" in pages.get(MAIN).text
    assert "With the 2 other integrations of this app that are on" in pages.get(NEW).text
    assert "With the 2 other integrations of this app that are on" in pages.get("/apps/radio/integrations/old").text


def test_a_quota_that_nobody_touched_does_not_overwrite_a_newer_one(tmp_path: Path, pages: TestClient) -> None:
    pages.post(NEW, data=filled(quota="1,000"))
    with Operations(Settings(home=tmp_path), by="Bo") as operations:
        operations.set_quota("radio", 2_000)
    version = str(stored(tmp_path).version)
    pages.post(MAIN, data=filled(api_key="", start="keep", version=version, quota="1,000", quota_was="1,000"))
    assert quota_of(tmp_path) == 2_000


def test_a_form_without_anything_says_what_is_missing(pages: TestClient) -> None:
    answer = pages.post(NEW, data={"act": "save"})
    assert answer.status_code == 422
    assert errors_of(answer.text)["name"] == "Enter a name"
    assert errors_of(answer.text)["api_key"] == "Enter the API key"


def test_a_name_that_is_taken(pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    answer = pages.post(NEW, data=filled(api_key=OTHER_KEY))
    assert errors_of(answer.text) == {"name": "There is an integration “main” already in this app"}
    assert 'value="main-2"' in pages.get(NEW).text


def test_a_key_that_amplitude_does_not_know_is_not_stored(tmp_path: Path, pages: TestClient) -> None:
    answer = pages.post(NEW, data=filled(api_key=WRONG_KEY))
    assert answer.status_code == 422
    assert "does not know this key at the endpoint Standard" in errors_of(answer.text)["api_key"]
    assert WRONG_KEY not in answer.text
    pages.post(NEW, data=filled())
    answer = pages.post(MAIN, data=filled(api_key=WRONG_KEY, version="1", start="keep"))
    assert answer.status_code == 422
    assert keys_of(tmp_path) == (KEY, None)  # it was tested before it could replace


def test_a_key_of_the_other_region_is_recognised(
    tmp_path: Path, pages: TestClient, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SandboxServer(Sandbox()) as europe:
        monkeypatch.setitem(contract.ENDPOINTS, "eu", europe.endpoint)
        for act in ("test", "save"):
            answer = pages.post(NEW, data=filled(api_key=WRONG_KEY, act=act))
            assert "but does at EU Residency" in answer.text
            assert 'value="use:eu"' in answer.text
        answer = pages.post(NEW, data=filled(act="use:eu"))
        assert re.search(r'id="endpoint-eu" value="eu" checked', answer.text)
        assert pages.post(NEW, data=filled(api_key=WRONG_KEY, endpoint="eu")).status_code == 200
    assert stored(tmp_path).endpoint == europe.endpoint


def test_a_test_stores_nothing(tmp_path: Path, pages: TestClient, sandbox: SandboxServer) -> None:
    sandbox.sandbox.clear()
    answer = pages.post(NEW, data=filled(act="test"))
    assert re.search(r"✓ Amplitude takes this key \(\d+ ms\). Nothing was stored.", answer.text)
    answer = pages.post(NEW, data=filled(act="test", api_key=WRONG_KEY))
    assert "✗ Amplitude does not know this key at Standard" in answer.text
    answer = pages.post(NEW, data=filled(act="test", api_key=""))
    assert "Not tested: Enter the API key." in answer.text
    assert all(not store.kept() for store in sandbox.sandbox.stores())
    with Operations(Settings(home=tmp_path)) as operations:
        assert operations.integrations() == []


def test_the_test_of_an_integration_uses_its_stored_key(pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    answer = pages.post(MAIN, data=filled(act="test", api_key="", version="1"))
    assert "✓ Amplitude takes this key" in answer.text


def test_where_nothing_answers_a_key_can_be_saved_all_the_same(
    tmp_path: Path, pages: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(contract.ENDPOINTS, "us", "http://127.0.0.1:1/2/httpapi")
    answer = pages.post(NEW, data=filled())
    assert answer.status_code == 422
    assert 'name="untested"' in answer.text
    assert "no server listens there" in answer.text
    assert pages.post(NEW, data=filled(untested="on")).status_code == 200
    assert stored(tmp_path).endpoint == "http://127.0.0.1:1/2/httpapi"


def test_keys_are_kept_replaced_and_removed(tmp_path: Path, pages: TestClient) -> None:
    pages.post(NEW, data=filled(secret_key=SECRET_KEY))
    page = pages.get(MAIN).text
    assert "•••••" not in page
    assert 'placeholder="••••cdef"' in page
    assert f'placeholder="••••{SECRET_KEY[-4:]}"' in page
    edit = filled(api_key="", secret_key="", revenue="none", version="1", start="keep")
    assert "Saved." in pages.post(MAIN, data=edit).text
    assert keys_of(tmp_path) == (KEY, SECRET_KEY)
    assert "Saved." in pages.post(MAIN, data={**edit, "api_key": OTHER_KEY, "version": "2"}).text
    assert keys_of(tmp_path) == (OTHER_KEY, SECRET_KEY)
    both = {**edit, "secret_key": "x", "remove_secret_key": "on", "version": "3"}
    assert "secret_key" in errors_of(pages.post(MAIN, data=both).text)
    assert "Saved." in pages.post(MAIN, data={**edit, "remove_secret_key": "on", "version": "3"}).text
    assert keys_of(tmp_path) == (OTHER_KEY, None)


@pytest.mark.contract("6.16")
def test_two_people_do_not_overwrite_each_other(tmp_path: Path, pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    with Operations(Settings(home=tmp_path), by="ana") as operations:
        operations.change("radio/main", IntegrationChange(revenue="none"))
    edit = filled(api_key="", sandbox="skip", version="1", start="keep")
    answer = pages.post(MAIN, data=edit)
    assert answer.status_code == 409
    assert stored(tmp_path).sandbox == "send"
    assert re.search(r"<li>ana, .*: Revenue</li>", answer.text)
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', answer.text)
    assert rows == [("Sandbox purchases", "skip", "send"), ("Revenue", "gross", "none")]
    assert 'name="version" value="2"' in answer.text
    assert "Saved." in pages.post(MAIN, data={**edit, "version": "2"}).text
    assert (stored(tmp_path).sandbox, stored(tmp_path).revenue) == ("skip", "gross")


def test_the_form_opens_although_its_key_cannot_be_read(tmp_path: Path, pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    (tmp_path / "encryption.key").write_text(Fernet.generate_key().decode())
    fresh = client(tmp_path)
    page = fresh.get(MAIN)
    assert page.status_code == 200
    assert KEY[-4:] not in page.text.partition("api_key-help")[2].partition("</p>")[0]
    answer = fresh.post(MAIN, data=filled(api_key=OTHER_KEY, version="1", start="keep"))
    assert "Saved." in answer.text
    assert keys_of(tmp_path) == (OTHER_KEY, None)


def test_one_key_for_two_integrations_has_to_be_meant(tmp_path: Path, pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    answer = pages.post(NEW, data=filled(name="growth"))
    assert answer.status_code == 422
    assert "radio/main has the same API key" in errors_of(answer.text)["api_key"]
    assert "--" not in errors_of(answer.text)["api_key"]
    assert 'name="allow_shared"' in answer.text
    assert pages.post(NEW, data=filled(name="growth", allow_shared="on")).status_code == 200
    assert stored(tmp_path, "growth").name == "growth"


def test_what_a_file_manages_is_only_shown(tmp_path: Path, pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    with Operations(Settings(home=tmp_path)) as operations:
        operations.change("radio/main", IntegrationChange(managed_by="live.yaml"))
    for path in (MAIN, f"{MAIN}/switch", f"{MAIN}/remove"):
        assert "come from the file <strong>live.yaml</strong>" in pages.get(path).text
    assert "<fieldset disabled>" in pages.get(MAIN).text
    for path, form in (
        (MAIN, filled(api_key="", revenue="none", version="2", start="keep")),
        (f"{MAIN}/switch", {"to": "off"}),
        (f"{MAIN}/remove", {"name": "main"}),
    ):
        answer = pages.post(path, data=form)
        assert answer.status_code in (400, 422)
        assert "managed by live.yaml" in answer.text
    assert (stored(tmp_path).revenue, stored(tmp_path).enabled) == ("gross", True)


@pytest.mark.parametrize(
    ("act", "chosen"),
    [("none:every", []), ("all:device", ["device.impression", "device.transaction"]), ("all:every", 13)],
)
def test_all_and_none_without_script(pages: TestClient, act: str, chosen: list[str] | int) -> None:
    answer = pages.post(NEW, data=filled(act=act, event=[], name="kept"))
    boxes = re.findall(r'name="event" value="([\w.]+)"[^>]* checked', answer.text)
    assert (len(boxes) if isinstance(chosen, int) else boxes) == chosen
    assert 'value="kept"' in answer.text
    assert KEY not in answer.text


@pytest.mark.parametrize("contact", ["", "mailto:sales@example.com?subject=Plan", "https://example.com/plans"])
def test_the_free_plan_says_whom_to_contact(tmp_path: Path, contact: str) -> None:
    with Operations(Settings(home=tmp_path)) as operations:
        key = Secret(OTHER_KEY)
        operations.add(NewIntegration("radio", "main", "us", key, enabled=False))
        operations.set_plan("radio", "free")
    pages = client(tmp_path, control_center_contact=contact)
    for path in (NEW, "/apps/radio/integrations", f"{MAIN}/switch"):
        text = pages.get(path).text
        assert (f'<a href="{contact}"' in text) == bool(contact), path
        assert ("Contact us" in text) == bool(contact), path
        assert ("Contact Nami" in text) == (not contact), path


@pytest.mark.parametrize("contact", ["javascript:alert(1)", "http://example.com", "mailto:nobody", "https://", "x y"])
def test_a_contact_that_leads_nowhere_is_refused(contact: str) -> None:
    with pytest.raises(Misconfigured, match="CONTROL_CENTER_CONTACT"):
        Settings.load({"NAMI_AMP_CONTROL_CENTER_CONTACT": contact})


def test_the_free_plan_shows_the_form_and_takes_nothing(tmp_path: Path, pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    with Operations(Settings(home=tmp_path)) as operations:
        operations.set_plan("radio", "free")
    page = pages.get(NEW).text
    assert "Amplitude is part of paid plans" in page
    assert "<fieldset disabled>" in page
    assert pages.post(NEW, data=filled(name="growth", api_key=OTHER_KEY)).status_code == 403
    assert "Integrations that are on stay on" in pages.get("/apps/radio/integrations").text
    pages.post(f"{MAIN}/switch", data={"to": "off"})
    answer = pages.post(f"{MAIN}/switch", data={"to": "on"})
    assert answer.status_code == 400
    assert "not on a paid plan" in answer.text
    assert not stored(tmp_path).enabled


@pytest.mark.contract("6.15")
@pytest.mark.parametrize(
    "endpoint",
    ["http://169.254.169.254/latest/meta-data", "http://localhost:8770/", "https://evil.example/2/httpapi", "file:///"],
)
@pytest.mark.parametrize("act", ["test", "save"])
def test_no_other_host_can_be_chosen(
    tmp_path: Path, pages: TestClient, endpoint: str, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be asked")

    monkeypatch.setattr(Operations, "try_key", never)
    answer = pages.post(NEW, data=filled(endpoint=endpoint, act=act, allow_custom_endpoint="on"))
    assert answer.status_code == 422
    assert "Choose Standard or EU Residency" in answer.text


def test_an_address_that_the_operator_allowed_can_be_chosen(tmp_path: Path, sandbox: SandboxServer) -> None:
    pages = client(tmp_path, Options(endpoints=(sandbox.endpoint,)))
    assert sandbox.endpoint in pages.get(NEW).text
    assert pages.post(NEW, data=filled(endpoint=sandbox.endpoint)).status_code == 200
    assert stored(tmp_path).endpoint == sandbox.endpoint
    # Once it is there it may stay, also where no new one may be chosen.
    strict = client(tmp_path)
    assert (
        "Saved."
        in strict.post(
            MAIN, data=filled(endpoint=sandbox.endpoint, api_key="", revenue="none", version="1", start="keep")
        ).text
    )


@pytest.mark.contract("6.13")
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://other.localhost"},
        {"Sec-Fetch-Site": "none", "Origin": ""},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://[::"},
        {"Sec-Fetch-Site": "", "Origin": "http://localhost:81"},
    ],
)
def test_a_form_of_another_site_does_nothing(tmp_path: Path, pages: TestClient, headers: dict[str, str]) -> None:
    pages.post(NEW, data=filled())
    for path, form in (
        (NEW, filled(name="forged", api_key=OTHER_KEY)),
        (f"{MAIN}/switch", {"to": "off"}),
        (f"{MAIN}/remove", {"name": "main"}),
        ("/sign-out", {}),
    ):
        assert pages.post(path, data=form, headers=headers).status_code == 403
    assert stored(tmp_path).enabled
    with Operations(Settings(home=tmp_path)) as operations:
        assert len(operations.integrations()) == 1


def test_a_form_of_this_site_may_have_no_origin(tmp_path: Path, pages: TestClient) -> None:
    assert pages.post(NEW, data=filled(), headers={"Origin": "null"}).status_code == 200
    assert stored(tmp_path).enabled


def test_who_says_nothing_of_where_a_form_comes_from_is_no_browser(tmp_path: Path, pages: TestClient) -> None:
    del pages.headers["Sec-Fetch-Site"]
    assert pages.post(NEW, data=filled()).status_code == 200  # an older browser sends Origin alone
    del pages.headers["Origin"]
    assert pages.post(NEW, data=filled(name="growth", api_key=OTHER_KEY)).status_code == 403


def test_a_huge_form_is_refused(tmp_path: Path, pages: TestClient) -> None:
    assert pages.post(NEW, data=filled(exclude="x" * MOST_BYTES)).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield b"name="
        for _ in range(2 * MOST_BYTES // 65_536):
            yield b"x" * 65_536

    endless = pages.post(NEW, content=chunks(), headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert endless.status_code == 413
    assert pages.post(NEW, data={f"field-{n}": "x" for n in range(1_000)}).status_code == 400
    with Operations(Settings(home=tmp_path)) as operations:
        assert operations.integrations() == []


@pytest.mark.parametrize("length", ["-1", "many", "99999999999999999999"])
def test_an_odd_length_is_no_bug(pages: TestClient, length: str) -> None:
    answer = pages.post(NEW, content=b"name=x", headers={"Content-Length": length})
    assert answer.status_code in (400, 413)


def test_script_in_every_field_stays_text(tmp_path: Path, pages: TestClient) -> None:
    texts = ("name", "endpoint", "user_id", "anonymous", "sandbox", "revenue", "exclude", "hashed", "store_fees",
             "start", "start_day", "quota", "version", "rename.device.impression")  # fmt: skip
    form = filled(**dict.fromkeys(texts, HOSTILE), event=[HOSTILE, "device.impression"])
    for act in ("save", "test", "forecast", f"all:{HOSTILE}", HOSTILE):
        text = pages.post(NEW, data={**form, "act": act}).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
    pages.post(NEW, data=filled(exclude=HOSTILE, **{"rename.device.impression": HOSTILE}))
    assert stored(tmp_path).rename == {"device.impression": HOSTILE}
    for path in (MAIN, f"{MAIN}/preview", f"{MAIN}/switch", "/apps/radio/history", f"/?q={HOSTILE}",
                 f"/apps/radio/integrations?service={HOSTILE}&done={HOSTILE}",
                 f"{MAIN}/preview?user={HOSTILE}"):  # fmt: skip
        text = pages.get(path).text
        assert "<script>alert" not in text, path
        assert "<img src=x" not in text, path


@pytest.mark.contract("6.14")
def test_a_key_is_found_nowhere_afterwards(
    tmp_path: Path, pages: TestClient, caplog: pytest.LogCaptureFixture, standard: SandboxServer
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [pages.post(NEW, data=filled(secret_key=SECRET_KEY, act=act)).text for act in ("test", "forecast", "save")]
    texts.append(pages.post(MAIN, data=filled(api_key=OTHER_KEY, version="1", start="keep")).text)
    texts.append(pages.post(MAIN, data=filled(api_key=WRONG_KEY, version="2", start="keep")).text)
    texts.append(pages.post(f"{MAIN}/test-event", data={"event_type": "user.subscription.renewed"}).text)
    texts += [pages.get(MAIN + path).text for path in ("", "/preview", "/switch", "/remove", "/test-event")]
    texts += [pages.get(path).text for path in ("/", "/apps/radio/integrations", "/apps/radio/history")]
    texts += [record.getMessage() for record in caplog.records]
    for key in (KEY, OTHER_KEY, WRONG_KEY, SECRET_KEY):
        assert all(key not in text for text in texts)
        assert all(key[:12] not in text for text in texts)
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or key.encode() not in file.read_bytes()
    assert keys_of(tmp_path) == (OTHER_KEY, SECRET_KEY)


def test_a_preview_without_events_shows_a_made_up_one(pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    assert "No event of this app was read yet" in pages.get(f"{MAIN}/preview").text
    page = pages.get(f"{MAIN}/preview?event=user.subscription.renewed").text
    assert "Made up: no such event has happened" in page
    assert "namiml_active_entitlements" in page
    assert "Made up" not in pages.get(f"{MAIN}/preview?event={HOSTILE}").text


def test_a_test_event_arrives(tmp_path: Path, pages: TestClient, standard: SandboxServer) -> None:
    pages.post(NEW, data=filled(**{"rename.user.subscription.renewed": "Renewed"}))
    standard.sandbox.clear()
    page = pages.get(f"{MAIN}/test-event").text
    assert "counts as one event" in page
    answer = pages.post(f"{MAIN}/test-event", data={"event_type": "user.subscription.renewed"}).text
    assert "✓ Amplitude took it" in answer
    user = re.search(r"search <code>(nami-test-\w+)</code>", answer)
    assert user is not None
    (event,) = [event for store in standard.sandbox.stores() for batch in store.kept() for event in batch.events()]
    assert (event["event_type"], event["user_id"]) == ("Renewed", user[1])
    with Operations(Settings(home=tmp_path)) as operations:
        operations.change("radio/main", IntegrationChange(api_key=_secret(WRONG_KEY)))
    answer = pages.post(f"{MAIN}/test-event", data={"event_type": "device.impression"}).text
    assert "✗ Amplitude did not take it" in answer
    assert "Invalid API key" in answer
    assert pages.post(f"{MAIN}/test-event", data={"event_type": HOSTILE}).status_code == 200


def _secret(text: str) -> Any:
    from nami_amp_pipeline.secrets import Secret

    return Secret(text)


def test_switching_and_removing_ask_first(tmp_path: Path, pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    assert "Switch off main?" in pages.get(f"{MAIN}/switch").text
    assert stored(tmp_path).enabled
    assert "Switched off." in pages.post(f"{MAIN}/switch", data={"to": "off"}).text
    assert not stored(tmp_path).enabled
    assert "Switch on main?" in pages.get(f"{MAIN}/switch").text
    assert "Switched on." in pages.post(f"{MAIN}/switch", data={"to": "on"}).text
    answer = pages.post(f"{MAIN}/remove", data={"name": "mian"})
    assert (answer.status_code, errors_of(answer.text)) == (422, {"name": "Type main to remove it"})
    assert "Integration removed." in pages.post(f"{MAIN}/remove", data={"name": "main"}).text
    assert pages.get(MAIN).status_code == 404
    history = pages.get("/apps/radio/history").text
    assert (
        history.index("Integration removed") < history.index("Enable Integration") < history.index("Integration added")
    )
    assert "off</span> → <span" in history


def test_history_says_who_changed_what_and_is_cut(tmp_path: Path, pages: TestClient) -> None:
    pages.post(NEW, data=filled())
    with Operations(Settings(home=tmp_path), by="ana") as operations:
        for number in range(60):
            operations.change("radio/main", IntegrationChange(exclude=[f"field-{number}"]))
    page = pages.get("/apps/radio/history").text
    assert page.count('class="soft small">version') == 50
    assert "field-59" in page
    assert "ana" in page
    older = re.search(r'href="(/apps/radio/history\?[^"]*after=\d+\.c\.\d+)"', page)
    assert older is not None
    rest = pages.get(older[1].replace("&amp;", "&")).text
    assert rest.count('class="soft small">version') == 11
    assert "Integration added" in rest
    for after in ("x", "-1", "9" * 30, "1.c", "1.c.x", "²".join("123")):
        assert pages.get(f"/apps/radio/history?after={after}").status_code == 404
    assert pages.get("/apps/radio/history?kind=nothing").status_code == 404
