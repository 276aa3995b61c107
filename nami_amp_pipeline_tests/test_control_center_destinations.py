"""The form of an integration of another destination than Amplitude: made of the fields that it declares."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from nami_amp_pipeline import contract
from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.control_center.typed import TYPED, pack, unpack
from nami_amp_pipeline.delivery.destination import Field
from nami_amp_pipeline.destinations import DESTINATIONS
from nami_amp_pipeline.http_endpoint.target import HttpEndpoint
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.integrations import Integration, IntegrationChange
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.testing.receiver import Answer, Posted, Receiver
from nami_amp_pipeline_tests.support.control_center import client

KEY = "signing-secret-0123456789"
TOKEN = "Bearer tok-77aa88bb99cc"
OTHER = "Bearer tok-11dd22ee33ff"
HOSTILE = "<script>alert('x')</script>\"'>"
NEW = "/apps/radio/integrations/http/new"
SHOP = "/apps/radio/integrations/shop"


class Gate:
    """Answers 401 to whoever does not show a token, and repeats what was shown."""

    def __init__(self) -> None:
        self.token = TOKEN
        self.seen: list[Posted] = []
        self._receiver = Receiver(self._answer)
        self.url, self.close = self._receiver.url, self._receiver.close

    def _answer(self, posted: Posted) -> Answer:
        self.seen.append(posted)
        shown = posted.headers.get("authorization", posted.headers.get("x-key", ""))
        return Answer() if shown == self.token else Answer(401, shown.encode())


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.close()


@pytest.fixture
def pages(tmp_path: Path) -> TestClient:
    return client(tmp_path, http_timeout_seconds=5.0)


def filled(**changes: Any) -> dict[str, Any]:
    """The form as a browser sends it; None leaves a field out."""
    form = {
        "enabled": "on", "name": "shop", "api_key": KEY, "user_id": "external_id", "anonymous": "skip",
        "event": list(contract.event_type_names()), "later": "on", "sandbox": "send", "revenue": "gross",
        "start": "now", "version": "0", "act": "save", "field.auth_header": "Authorization",
        "secret.auth_value": TOKEN, **changes,
    }  # fmt: skip
    return {name: value for name, value in form.items() if value is not None}


def stored(tmp_path: Path, name: str = "shop") -> tuple[Integration, dict[str, str]]:
    """An integration, and its secrets in clear."""
    with Operations(Settings(home=tmp_path)) as operations:
        found, cipher = operations.integrations([f"radio/{name}"])[0], operations._cipher()
        secrets = {name: cipher.decrypt(token).reveal() for name, token in found.secret_fields.items()}
        return found, secrets | {"api_key": cipher.decrypt(found.api_key).reveal()}


def errors_of(text: str) -> dict[str, str]:
    """The summary at the top; what is said there is said beside its field too."""
    found = dict(re.findall(r'<li><a href="#([\w.]+)">(.*?)</a></li>', text.partition('class="errors"')[2]))
    for name, said in found.items():
        assert f'<p class="error" id="{name}-error"><span class="hidden">Error:</span> {said}</p>' in text
    return found


def test_one_is_added_and_changed_and_its_secrets_are_in_no_page(tmp_path: Path, pages: TestClient, gate: Gate) -> None:
    tiles = pages.get("/apps/radio/integrations").text
    assert f'<a href="{NEW}">HTTP endpoint</a>' in tiles
    read = [pages.get(NEW).text]
    for label in ("Address", "Signing secret", "Authorization (optional)", "Authorization header (optional)"):
        assert f">{label}</label>" in read[0]
    assert 'id="secret_key"' not in read[0]
    assert "quota" not in read[0]
    tested = pages.post(NEW, data=filled(endpoint=gate.url, act="test"))
    assert "The HTTP endpoint takes this key" in tested.text
    added = pages.post(NEW, data=filled(endpoint=gate.url, exclude="email", event=["device.impression"], later=None))
    assert added.url.path == "/apps/radio/integrations", errors_of(added.text)
    found, secrets = stored(tmp_path)
    assert (found.destination, found.endpoint, found.exclude) == ("http", gate.url, ("email",))
    assert found.patterns == ("device.impression",)
    assert secrets == {"api_key": KEY, "auth_value": TOKEN}
    assert found.fields == {}, "a default is not stored"
    read += [tested.text, added.text, pages.get(SHOP).text]
    assert "Leave empty to keep" in read[-1]
    assert f'value="{gate.url}"' in read[-1]

    kept = {"endpoint": gate.url, "api_key": None, "secret.auth_value": "", "start": "keep", "name": None}
    saved = pages.post(SHOP, data=filled(version="1", **kept))
    assert "Saved" in saved.text
    assert stored(tmp_path)[1] == {"api_key": KEY, "auth_value": TOKEN}
    gate.token = OTHER
    moved = kept | {"secret.auth_value": OTHER, "field.auth_header": "X-Key"}
    changed = pages.post(SHOP, data=filled(version="2", **moved))
    found, secrets = stored(tmp_path)
    assert (secrets["auth_value"], found.fields, found.version) == (OTHER, {"auth_header": "X-Key"}, 3)
    assert gate.seen[-1].headers["x-key"] == OTHER
    gate.token = ""
    removed = pages.post(SHOP, data=filled(version="3", **kept, **{"remove.auth_value": "on"}))
    found, secrets = stored(tmp_path)
    assert (secrets, found.fields) == ({"api_key": KEY}, {})
    read += [saved.text, changed.text, removed.text, pages.get("/apps/radio/history").text]
    for said in ("Secret field auth_value replaced", "Secret field auth_value not set", "auth_header: X-Key"):
        assert said in read[-1]
    for page in read:
        assert not [secret for secret in (KEY, TOKEN, OTHER, TOKEN.split()[1], OTHER.split()[1]) if secret in page]


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"endpoint": ""}, "endpoint", "Enter the address"),
        ({"endpoint": "us"}, "endpoint", "The endpoint must be a URL such as https://host/events"),
        ({"endpoint": "http://shop.test/"}, "endpoint", "Plain http is only allowed for loopback addresses"),
        ({"api_key": None}, "api_key", "Enter the signing secret"),
        ({"field.auth_header": "Content-Type"}, "field.auth_header", "The authorization header cannot be used"),
        ({"field.auth_header": HOSTILE}, "field.auth_header", "The authorization header cannot be used"),
        ({"secret.auth_value": "snow \N{SNOWMAN}"}, "secret.auth_value", "The authorization cannot be used"),
        ({"secret.auth_value": "x" * 1_001}, "secret.auth_value", "at most 1,000 characters"),
        ({"event": []}, "events", "Choose at least one event"),
    ],
)
def test_what_is_wrong_is_said_beside_its_field(
    tmp_path: Path, pages: TestClient, changes: dict[str, Any], field: str, said: str
) -> None:
    page = pages.post(NEW, data=filled(**{"endpoint": "https://shop.test/", **changes}))
    assert page.status_code == 422
    assert said in errors_of(page.text)[field]
    assert not [text for text in (KEY, TOKEN, HOSTILE, "snow") if text in page.text]
    with Operations(Settings(home=tmp_path)) as operations:
        assert operations.integrations() == []


def test_a_key_or_a_token_that_is_not_taken_is_not_saved(tmp_path: Path, pages: TestClient, gate: Gate) -> None:
    wrong = pages.post(NEW, data=filled(endpoint=gate.url, **{"secret.auth_value": OTHER}))
    assert wrong.status_code == 422
    assert "does not accept the key (401)" in errors_of(wrong.text)["api_key"]
    assert OTHER not in wrong.text
    assert pages.post(NEW, data=filled(endpoint=gate.url)).url.path == "/apps/radio/integrations"
    kept = {"endpoint": gate.url, "api_key": None, "secret.auth_value": "", "start": "keep", "name": None}
    gone = pages.post(SHOP, data=filled(version="1", **kept, **{"remove.auth_value": "on"}))
    assert gone.status_code == 422
    both = pages.post(
        SHOP, data=filled(version="1", **kept | {"secret.auth_value": TOKEN}, **{"remove.auth_value": "on"})
    )
    assert errors_of(both.text)["secret.auth_value"] == "Either enter another one, or remove the one that is there"
    assert stored(tmp_path)[0].version == 1


def test_who_was_quicker_is_shown_beside_what_was_typed(tmp_path: Path, pages: TestClient, gate: Gate) -> None:
    pages.post(NEW, data=filled(endpoint=gate.url))
    with Operations(Settings(home=tmp_path), by="bo") as operations:
        operations.change("radio/shop", IntegrationChange(fields={"auth_header": "X-Bo"}))
    kept = {"endpoint": gate.url, "api_key": None, "secret.auth_value": "", "start": "keep", "name": None}
    page = pages.post(SHOP, data=filled(version="1", exclude="email", **kept))
    assert page.status_code == 409
    assert "<td>none</td><td>auth_header: X-Bo</td>" in page.text
    assert 'name="version" value="2"' in page.text


def test_with_a_sign_in_only_addresses_that_the_operator_allows_can_be_given(tmp_path: Path, gate: Gate) -> None:
    folder = gate.url.removesuffix("events")
    closed = Options(sign_in="proxy")
    assert not closed.allows(gate.url)
    assert "has allowed none" in closed.allowed_addresses
    some = Options(
        sign_in="proxy", proxies=(ipaddress.ip_network("10.0.0.7/32"),), editors=frozenset({"ana"}),
        endpoints=("https://shop.test/in", f"{folder}*"),
    )  # fmt: skip
    assert some.allows("https://shop.test/in")
    assert some.addresses == ["https://shop.test/in"]
    for outside in ("https://shop.test/in/2", "https://shop.test.evil.test/", "http://127.0.0.1:1/"):
        assert not some.allows(outside)
    assert not Options(sign_in="proxy", endpoints=("https://shop.test*",)).allows("https://shop.test.evil.test/")

    pages = client(tmp_path, some)
    pages._transport.client = ("10.0.0.7", 1)  # type: ignore[attr-defined]
    pages.headers["X-Forwarded-User"] = "ana"
    assert f"The operator allows https://shop.test/in, {folder}*." in pages.get(NEW).text
    for act in ("test", "save"):
        page = pages.post(NEW, data=filled(endpoint="https://evil.test/", act=act))
        assert errors_of(page.text)["endpoint"].startswith("This address is not allowed here. The operator allows")
    assert pages.post(NEW, data=filled(endpoint=gate.url)).url.path == "/apps/radio/integrations"


class Vault(HttpEndpoint):
    """A choice, and a field that it cannot do without."""

    name = "vault"
    title = "the vault"
    fields = (
        *HttpEndpoint.fields[:2],
        Field("region", "region", "Where it keeps events.", False, choices=("north", "south")),
        Field("tenant", "tenant", "Small letters.", False, pattern="[a-z]+"),
        Field("pin", "PIN", "Four digits.", is_secret=True, pattern="[0-9]{4}"),
    )


def test_a_destination_of_a_package_has_its_form_too(
    tmp_path: Path, pages: TestClient, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DESTINATIONS, "vault", Vault())
    gate.token = ""
    new = NEW.replace("http", "vault")
    assert '<option value="">Choose</option>' in pages.get(new).text
    empty = pages.post(new, data=filled(endpoint=gate.url))
    assert errors_of(empty.text) == {
        "field.region": "The vault needs the region",
        "field.tenant": "The vault needs the tenant",
        "secret.pin": "The vault needs the PIN",
    }
    given = {"field.region": "south", "field.tenant": "acme", "secret.pin": "4711"}
    assert pages.post(new, data=filled(endpoint=gate.url, **given)).url.path == "/apps/radio/integrations"
    found, secrets = stored(tmp_path)
    assert (found.fields, secrets["pin"]) == ({"region": "south", "tenant": "acme"}, "4711")
    page = pages.get(SHOP).text
    assert "<option selected>south</option>" in page
    assert "remove.pin" not in page, "it cannot do without it"
    assert "Vault, 127.0.0.1" in pages.get("/apps/radio/integrations").text

    monkeypatch.delitem(DESTINATIONS, "vault")
    page = pages.get(SHOP).text
    assert "cannot be used here: the package that adds it is missing, or fails" in page
    assert "4711" not in page
    assert pages.post(SHOP, data=filled(version="1")).status_code == 403
    assert pages.get(new).status_code == 404


def test_what_was_typed_comes_back_after_a_sign_in_without_the_secrets(pages: TestClient, gate: Gate) -> None:
    from starlette.datastructures import FormData

    packed = pack(FormData([("field.auth_header", "X-Key"), ("secret.auth_value", TOKEN), ("api_key", KEY)]))
    assert unpack(packed) == [("field.auth_header", "X-Key")]
    page = pages.post(NEW, data=filled(endpoint=gate.url, act=TYPED, **{"field.auth_header": "X-Key"})).text
    assert 'value="X-Key"' in page
    assert TOKEN not in page
    assert gate.seen == []
