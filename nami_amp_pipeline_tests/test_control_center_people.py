"""Who comes into the Control Center: sessions, roles, passwords, proxies; and who does not."""

from __future__ import annotations

import html
import ipaddress
import re
from pathlib import Path

import pytest
from click.testing import Result
from starlette.testclient import TestClient

from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.control_center.pages import PAGES
from nami_amp_pipeline.control_center.pages.sign_in import local_path
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import people
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.integrations import NewIntegration
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.command_line import invoke
from nami_amp_pipeline_tests.support.control_center import SAME_ORIGIN, client

PASSWORD = "correct horse battery"
BY_PASSWORD = Options(sign_in="password")


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes as weak as they can be, for a test needs none that take time."""
    from argon2 import PasswordHasher

    weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(people, "_hasher", lambda: weak)
    monkeypatch.setattr(people, "_of_nobody", lambda: weak.hash("nobody"))


NEW = "/apps/radio/integrations/amplitude/new"
KEY = "0123456789abcdef0123456789abcdef"
HOSTILE = "<script>alert('x')</script>\"'>"


def hidden(text: str) -> dict[str, str]:
    """The hidden fields of a page."""
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', text)
    return {name: html.unescape(value) for name, value in found}


@pytest.mark.parametrize("path", [NEW, "/apps/radio/backfills/new"])
def test_a_session_that_ended_does_not_lose_what_was_typed(tmp_path: Path, pages: TestClient, path: str) -> None:
    with Operations(Settings(home=tmp_path)) as operations:
        key = Secret("f" * 32)
        operations.add(NewIntegration("radio", "main", "us", key))
    typed = {"name": "growth", "api_key": KEY, "secret_key": KEY, "act": "save", "exclude": HOSTILE, "from": HOSTILE}
    asked = pages.post(path, data=typed)
    assert (asked.status_code, KEY in asked.text, HOSTILE in asked.text) == (401, False, False)
    form = hidden(asked.text)
    wrong = pages.post("/sign-in", data={**form, "name": "ana", "password": "wrong password"})
    assert "The name or the password is wrong" in wrong.text
    assert hidden(wrong.text) == form
    again = pages.post("/sign-in", data={**form, "name": "ana", "password": PASSWORD})
    assert (again.status_code, KEY in again.text, HOSTILE in again.text) == (200, False, False)
    assert f'<form method="post" action="{path}">' in again.text
    assert "password" not in hidden(again.text)
    back = pages.post(path, data=hidden(again.text))
    assert back.status_code == 200
    assert html.escape(HOSTILE, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in back.text
    assert 'value="growth"' in back.text or path != NEW
    with Operations(Settings(home=tmp_path)) as operations:
        assert len(operations.integrations()) == 1
        assert operations.backfills.listed() == []


@pytest.mark.parametrize("typed", ["[", "{}", "[1]", '[["a"]]', '[["a", 1]]', "x" * 10_000, "null"])
def test_what_is_no_form_is_no_form_after_the_sign_in(pages: TestClient, typed: str) -> None:
    form = {"name": "ana", "password": PASSWORD, "then": "/", "typed": typed}
    assert pages.post("/sign-in", data=form, follow_redirects=False).status_code == 303


def test_what_was_typed_comes_back_by_no_other_sites_form(pages: TestClient) -> None:
    form = {"name": "ana", "password": PASSWORD, "then": NEW, "typed": '[["name", "growth"]]'}
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    assert pages.post("/sign-in", data=form, headers=foreign).status_code == 403
    assert 'action="/"' in pages.post("/sign-in", data={**form, "then": "https://evil.example"}).text


def test_a_part_of_a_page_says_that_the_session_has_ended(pages: TestClient) -> None:
    answer = pages.post(NEW, data={"api_key": KEY, "act": "test"}, headers={"HX-Request": "true"})
    assert answer.status_code == 401
    assert '<div id="trial"' in answer.text
    assert KEY not in answer.text


def test_a_new_sign_in_ends_the_old_session_of_the_browser(pages: TestClient) -> None:
    sign_in(pages)
    old = pages.cookies["nami-amp"]
    sign_in(pages, "vic")
    assert pages.cookies["nami-amp"] != old
    assert pages.get("/", follow_redirects=False).status_code == 200
    pages.cookies.clear()
    pages.cookies.set("nami-amp", old)
    assert pages.get("/", follow_redirects=False).status_code == 303


@pytest.mark.parametrize(
    ("proxies", "said", "counted"),
    [
        ("", "203.0.113.9", "testclient"),
        ("10.0.0.7", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.7", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.7,203.0.113.9", "198.51.100.1, 203.0.113.9", "198.51.100.1"),
        ("10.0.0.7", "::ffff:203.0.113.9", "203.0.113.9"),
        ("10.0.0.7", "unknown", "10.0.0.7"),
        ("10.0.0.7", "", "10.0.0.7"),
        ("10.0.0.8", "203.0.113.9", "10.0.0.7"),
    ],
)
def test_failed_sign_ins_count_by_the_address_that_a_listed_proxy_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxies: str, said: str, counted: str
) -> None:
    seen = []

    def sign_in_from(_people: object, _name: str, _password: str, address: str, **_more: str) -> str:
        seen.append(address)
        raise people.SignInRefused("no")

    monkeypatch.setattr(people.People, "sign_in", sign_in_from)
    listed = tuple(ipaddress.ip_network(text) for text in proxies.split(",") if text)
    app = create_app(Settings(home=tmp_path), Options(sign_in="password", proxies=listed))
    peer = ("testclient" if counted == "testclient" else "10.0.0.7", 50_000)
    pages = TestClient(app, base_url="http://localhost", headers=SAME_ORIGIN, client=peer)
    pages.post("/sign-in", data={"name": "ana", "password": "x"}, headers={"X-Forwarded-For": said})
    assert seen == [counted]


@pytest.fixture
def pages(tmp_path: Path) -> TestClient:
    with Operations(Settings(home=tmp_path)) as operations:
        operations.people.add("ana", "editor", PASSWORD)
        operations.people.add("vic", "viewer", PASSWORD)
    return client(tmp_path, BY_PASSWORD)


def sign_in(pages: TestClient, name: str = "ana", password: str = PASSWORD, then: str = "/") -> int:
    """The status of the answer to the form."""
    form = {"name": name, "password": password, "then": then}
    return pages.post("/sign-in", data=form, follow_redirects=False).status_code


def test_without_a_session_every_page_leads_to_the_form(pages: TestClient) -> None:
    for path in ("/", "/apps/radio/integrations", "/apps/radio/integrations/amplitude/new", "/apps/radio/trace"):
        answer = pages.get(path, follow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/sign-in")
    answer = pages.post("/apps/radio/integrations/main/switch", data={"to": "off"}, follow_redirects=False)
    assert answer.headers["location"] == "/sign-in?then=%2Fapps%2Fradio%2Fintegrations%2Fmain%2Fswitch"
    answer = pages.post("/apps/radio/integrations/amplitude/new", data={"name": "main"}, follow_redirects=False)
    assert answer.status_code == 401
    assert "Your session has ended" in answer.text


def test_a_session_begins_and_ends_at_once(pages: TestClient) -> None:
    assert sign_in(pages) == 303
    token = pages.cookies["nami-amp"]
    assert "ana" in pages.get("/").text
    assert "signed out" in pages.post("/sign-out").text
    pages.cookies.set("nami-amp", token)
    assert pages.get("/", follow_redirects=False).status_code == 303


def test_the_cookie_is_for_this_host_and_no_script(tmp_path: Path) -> None:
    with Operations(Settings(home=tmp_path)) as operations:
        operations.people.add("ana", "editor", PASSWORD)
    plain = client(tmp_path, BY_PASSWORD)
    form = {"name": "ana", "password": PASSWORD, "then": "/"}
    said = plain.post("/sign-in", data=form, follow_redirects=False).headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=lax" in said
    assert "secure" not in said
    secure = client(tmp_path, Options(sign_in="password", url="https://amp.example.com"))
    headers = {"Host": "amp.example.com", "Origin": "https://amp.example.com"}
    answer = secure.post("/sign-in", data=form, headers=headers, follow_redirects=False)
    said = answer.headers["set-cookie"]
    assert said.startswith("__Host-nami-amp=")
    assert "; Secure" in said
    assert "Domain" not in said
    assert "Path=/" in said
    assert "strict-transport-security" in answer.headers


def test_a_wrong_password_and_a_wrong_name_look_the_same(pages: TestClient) -> None:
    texts = {
        re.sub(r'value="\w*"', "", pages.post("/sign-in", data={"name": name, "password": password}).text)
        for name, password in (("ana", "wrong" * 4), ("nobody", PASSWORD), ("ana", ""), ("", ""))
    }
    assert len(texts) == 1
    assert "The name or the password is wrong" in texts.pop()


@pytest.mark.slow
def test_many_sign_ins_are_refused_and_hash_nothing(pages: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {sign_in(pages, password=f"guess number {n}") for n in range(10)} == {401}

    def never(*_: object) -> bool:
        raise AssertionError("a refused sign-in checks no password")

    monkeypatch.setattr(people, "_is_right", never)
    for _ in range(1_000):
        assert sign_in(pages) == 401
    assert (
        "Too many sign-ins failed: try again in 15 minutes"
        in pages.post("/sign-in", data={"name": "ana", "password": PASSWORD}).text
    )


@pytest.mark.slow
def test_many_names_from_one_address_are_refused(pages: TestClient) -> None:
    for number in range(50):
        assert sign_in(pages, name=f"name-{number}") == 401
    assert sign_in(pages, name="vic") == 401


def test_after_a_while_one_may_try_again(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    with Operations(Settings(home=tmp_path), clock=lambda: now[0]) as operations:
        operations.people.add("ana", "editor", PASSWORD)
        for _ in range(10):
            with pytest.raises(people.SignInRefused):
                operations.people.sign_in("ana", "wrong" * 4, "::1")
        with pytest.raises(people.SignInRefused, match="Too many"):
            operations.people.sign_in("ana", PASSWORD, "::1")
        assert operations.people.sign_in("ana", PASSWORD, "10.0.0.1")
        now[0] += 15 * 60
        token = operations.people.sign_in("ana", PASSWORD, "::1")
        assert operations.people.session(token) == ("ana", "editor")
        now[0] += people.SESSION_HOURS * 3_600
        assert operations.people.session(token) is None


@pytest.mark.contract("6.13")
def test_pages_that_act_tell_a_viewer_why_they_do_not(tmp_path: Path, pages: TestClient) -> None:
    with Operations(Settings(home=tmp_path)) as operations:
        operations.add(NewIntegration("radio", "main", "us", Secret("0" * 32)))
    sign_in(pages, "vic")
    of = "/apps/radio/integrations/main"
    for path in (f"{of}/switch", f"{of}/remove", f"{of}/test-event", "/apps/radio/backfills/new"):
        assert "To change something, ask an editor." in pages.get(path).text, path


def test_a_viewer_sees_and_changes_nothing(pages: TestClient) -> None:
    sign_in(pages, "vic")
    page = pages.get("/apps/radio/integrations/amplitude/new")
    assert page.status_code == 200
    assert "<fieldset disabled>" in page.text
    answer = pages.post("/apps/radio/integrations/amplitude/new", data={"name": "main", "api_key": "x", "act": "save"})
    assert answer.status_code == 403
    assert "ask an editor" in answer.text


def test_another_role_another_password_and_a_removal_count_at_once(tmp_path: Path, pages: TestClient) -> None:
    sign_in(pages, "vic")
    with Operations(Settings(home=tmp_path)) as operations:
        operations.people.set_role("vic", "editor")
        assert "<fieldset disabled>" not in pages.get("/apps/radio/integrations/amplitude/new").text
        operations.people.set_password("vic", "another password")
        assert pages.get("/", follow_redirects=False).status_code == 303
        assert sign_in(pages, "vic", "another password") == 303
        operations.people.remove("vic")
        assert pages.get("/", follow_redirects=False).status_code == 303
        with pytest.raises(Misconfigured, match="nobody called vic"):
            operations.people.set_role("vic", "viewer")


def test_the_store_holds_neither_password_nor_session(tmp_path: Path, pages: TestClient) -> None:
    sign_in(pages)
    token = pages.cookies["nami-amp"]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert PASSWORD.encode() not in content
            assert token.encode() not in content


@pytest.mark.parametrize(
    "there", ["//evil.example", "https://evil.example", "/\\evil.example", "/a\\b", "javascript:alert(1)", "/a\nb", ""]
)
def test_no_link_leads_elsewhere_from_the_sign_in(pages: TestClient, there: str) -> None:
    assert local_path(there) == "/"
    form = {"name": "ana", "password": PASSWORD, "then": there}
    assert pages.post("/sign-in", data=form, follow_redirects=False).headers["location"] == "/"


def test_after_the_sign_in_one_is_where_one_wanted_to_be(pages: TestClient) -> None:
    assert 'name="then" value="/apps/radio/trace"' in pages.get("/apps/radio/trace").text
    form = {"name": "ana", "password": PASSWORD, "then": "/apps/radio/trace"}
    assert pages.post("/sign-in", data=form).url.path == "/apps/radio/trace"


def test_after_the_sign_in_what_was_asked_for_is_still_asked_for(pages: TestClient) -> None:
    assert (
        'name="then" value="/apps/radio/trace?q=user%207&amp;as=user"'
        in pages.get("/apps/radio/trace?q=user%207&as=user").text
    )
    form = {"name": "ana", "password": PASSWORD, "then": "/apps/radio/trace?q=user%207&as=user"}
    assert pages.post("/sign-in", data=form).url.query == b"q=user%207&as=user"


def changing() -> list[str]:
    """An address of each route of the site that takes a form, without those of signing in and out."""
    values = {"app": "radio", "integration": "main", "number": "1", "act": "run", "destination": "amplitude"}
    routes = [route for module in PAGES for route in module.routes if "POST" in (route.methods or ())]
    paths = [re.sub(r"{(\w+)(?::\w+)?}", lambda match: values[match[1]], route.path) for route in routes]
    return [path for path in paths if path not in ("/sign-in", "/sign-out")]


@pytest.mark.contract("6.13")
@pytest.mark.parametrize("path", changing())
def test_each_form_is_for_editors(pages: TestClient, path: str) -> None:
    nobody = pages.post(path, follow_redirects=False)
    assert (nobody.status_code, nobody.headers["location"].partition("?")[0]) == (303, "/sign-in")
    sign_in(pages, "vic")
    assert pages.post(path, follow_redirects=False).status_code == 403
    pages.post("/sign-out")
    sign_in(pages)
    assert pages.post(path, follow_redirects=False).status_code != 403


def test_a_session_of_another_way_to_sign_in_does_not_count(tmp_path: Path, pages: TestClient) -> None:
    with Operations(Settings(home=tmp_path)) as operations:
        vouched = operations.people.open_session("ana", "editor")
        assert operations.people.session(vouched) is None
        assert operations.people.session(vouched, is_vouched=True) == ("ana", "editor")
        own = operations.people.sign_in("ana", PASSWORD, "::1")
        assert operations.people.session(own, is_vouched=True) is None
    pages.cookies["nami-amp"] = vouched
    assert pages.get("/", follow_redirects=False).status_code == 303


def proxied(tmp_path: Path, peer: str, **options: object) -> TestClient:
    given = Options(sign_in="proxy", proxies=(ipaddress.ip_network("10.0.0.0/28"),), **options)  # type: ignore[arg-type]
    pages = client(tmp_path, given)
    pages._transport.client = (peer, 1)  # type: ignore[attr-defined]
    return pages


def test_a_proxy_says_who_it_is(tmp_path: Path) -> None:
    pages = proxied(tmp_path, "10.0.0.7", editors=frozenset({"ana"}))
    assert "ana" in pages.get("/", headers={"X-Forwarded-User": "ana"}).text
    page = pages.get("/apps/radio/integrations/amplitude/new", headers={"X-Forwarded-User": "vic"}).text
    assert "<fieldset disabled>" in page


@pytest.mark.parametrize("peer", ["10.0.0.16", "127.0.0.1", "not an address"])
def test_nobody_else_does(tmp_path: Path, peer: str) -> None:
    headers = {"X-Forwarded-User": "ana", "X-Forwarded-For": "10.0.0.7", "Forwarded": "for=10.0.0.7"}
    answer = proxied(tmp_path, peer).get("/", headers=headers)
    assert answer.status_code == 401
    assert "ana" not in answer.text


def test_a_proxy_that_says_nothing_or_two_things_lets_nobody_in(tmp_path: Path) -> None:
    pages = proxied(tmp_path, "10.0.0.7")
    assert pages.get("/").status_code == 401
    assert pages.get("/", headers=[("X-Forwarded-User", "ana"), ("X-Forwarded-User", "eve")]).status_code == 401


@pytest.mark.contract("6.12")
@pytest.mark.parametrize(
    ("options", "host", "said"),
    [
        (Options(), "0.0.0.0", "this machine only"),
        (Options(url="https://amp.example.com"), "127.0.0.1", "this machine only"),
        (Options(sign_in="proxy", url="https://amp.example.com"), "127.0.0.1", "PROXIES"),
        (Options(sign_in="password"), "0.0.0.0", "CONTROL_CENTER_URL"),
        (Options(sign_in="password", url="http://amp.example.com"), "127.0.0.1", "https://"),
    ],
)
def test_where_somebody_could_come_in_unasked_it_does_not_start(options: Options, host: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        options.check(host)


def test_where_nobody_can_it_starts() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        Options().check(host)
        Options(sign_in="password").check(host)
    Options(sign_in="password", url="https://amp.example.com").check("0.0.0.0")


def test_users_on_the_command_line(tmp_path: Path) -> None:
    def users(*arguments: str, typed: str | None = None) -> Result:
        return invoke(tmp_path, "control-center", "users", *arguments, typed=typed)

    added = users("add", "ana", "--role", "editor", typed=f"{PASSWORD}\n")
    assert (added.exit_code, added.stdout) == (0, "ana may sign in as editor.\n")
    assert "at least 12 characters" in users("add", "bo", typed="short\n").stderr
    assert "there is a ana already" in users("add", "ana", typed=f"{PASSWORD}\n").stderr
    assert "is empty" in users("add", "bo", typed="").stderr
    assert '"name": "ana"' in users("list", "--json").stdout
    assert users("role", "ana", "viewer").exit_code == 0
    assert users("password", "ana", typed="another password\n").exit_code == 0
    with Operations(Settings(home=tmp_path / ".nami-amp")) as operations:
        token = operations.people.sign_in("ana", "another password", "::1")
        assert operations.people.session(token) == ("ana", "viewer")
    assert "give --yes" in users("remove", "ana").stderr
    assert users("remove", "ana", "--yes").exit_code == 0
    assert "Nobody yet" in users("list").stdout
