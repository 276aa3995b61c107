"""Fields that a destination has of its own: how they are given, what is kept of them, and who sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.delivery.destination import Field, Verdict
from nami_amp_pipeline.delivery.json_destination import ENDPOINT, KEY, JsonDestination
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.destinations import DESTINATIONS
from nami_amp_pipeline.errors import Misconfigured, NamiAmpError
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.state import Store, own_fields, tables
from nami_amp_pipeline.state.integrations import NewIntegration, add, all_integrations
from nami_amp_pipeline.state.rotation import forget, rotate
from nami_amp_pipeline.testing import DestinationSuite
from nami_amp_pipeline.testing.receiver import Answer, Posted, Receiver
from nami_amp_pipeline.testing.workbench import Workbench
from nami_amp_pipeline_tests.support.command_line import API_KEY, invoke, load_events, one_line, tick
from nami_amp_pipeline_tests.support.command_line import event as nami_event

TOKEN = "Bearer tok-4f6d1c93ab27e805"
OTHER = "Bearer tok-0a9b8c7d6e5f4132"
ENVIRON = {"TOKEN": TOKEN, "OTHER": OTHER}


class Gate:
    """A receiver behind a gateway that lets in who shows a header."""

    def __init__(self) -> None:
        self.header, self.value = "authorization", TOKEN
        self.posted: list[Posted] = []
        self._receiver = Receiver(self._answer)
        self.url, self.close = self._receiver.url, self._receiver.close

    def _answer(self, posted: Posted) -> Answer:
        self.posted.append(posted)
        shown = posted.headers.get(self.header, "")
        if shown != self.value:
            return Answer(401, f"you showed {shown} for {TOKEN}".encode(), {"X-Shown": shown})
        return Answer()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.close()


def added(folder: Path, url: str, *more: str) -> Any:
    return invoke(
        folder, "integrations", "add", "radio", "shop", "--destination", "http", "--endpoint", url, "--api-key-env",
        "KEY", "--start-from", "beginning", *more, settings=ENVIRON,
    )  # fmt: skip


def updated(folder: Path, *more: str) -> Any:
    return invoke(folder, "integrations", "update", "radio/shop", *more, settings=ENVIRON)


def shown(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(invoke(folder, "integrations", "show", "radio/shop", "--json").stdout)
    return found


def kept(folder: Path) -> bytes:
    """All that is on the disk."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# -- http, by the command line ----------------------------------------------------------------------------------------


@pytest.mark.contract("5.7.5")
@pytest.mark.slow
def test_a_gateway_sees_its_header_and_nobody_else_does(tmp_path: Path, gate: Gate) -> None:
    done = added(tmp_path, gate.url, "--secret-field-env", "auth_value=TOKEN")
    assert done.exit_code == 0, done.output
    load_events(tmp_path, nami_event(1), nami_event(2))
    said = [done.output]
    gate.value = OTHER
    said += [
        invoke(tmp_path, "integrations", *words, "radio/shop").output for words in (("test",), ("send-test-event",))
    ]
    (now,) = tick(tmp_path, "run-1")
    assert now.is_halted
    said.append(invoke(tmp_path, "status").output)
    assert "--secret-field-env auth_value=VAR" in said[-1]
    gate.value = TOKEN
    assert invoke(tmp_path, "integrations", "enable", "radio/shop").exit_code == 0
    ran = invoke(tmp_path, "run", "--json")  # by Dagster, which has a history of its own
    assert ran.exit_code == 0, ran.output
    said.append(ran.output)
    assert orjson.loads(ran.stdout)["integrations"][0]["delivered"] == 2
    assert invoke(tmp_path, "integrations", "test", "radio/shop").exit_code == 0
    for words in (
        ("show", "radio/shop"),
        ("show", "radio/shop", "--json"),
        ("list", "--json"),
        ("history", "radio/shop"),
    ):
        said.append(invoke(tmp_path, "integrations", *words).output)
    said += [
        invoke(tmp_path, *words).output for words in (("deliveries", "--json"), ("doctor",), ("integrations", "export"))
    ]
    for text in (TOKEN, TOKEN.split()[1]):
        assert text not in "\n".join(said)
        assert text.encode() not in kept(tmp_path)
    assert shown(tmp_path)["secret_fields"] == {"auth_value": "set"}
    assert shown(tmp_path)["fields"] == {"auth_header": "Authorization"}
    assert "Authorization header\tAuthorization" in invoke(tmp_path, "integrations", "show", "radio/shop").stdout


@pytest.mark.contract("2.26")
def test_an_update_changes_what_it_names_and_says_so(tmp_path: Path, gate: Gate) -> None:
    assert added(tmp_path, gate.url).exit_code == 0
    assert shown(tmp_path)["secret_fields"] == {"auth_value": "not set"}
    for change, fields, secrets in (
        (("--field", "auth_header=X-Api-Key"), {"auth_header": "X-Api-Key"}, {"auth_value": "not set"}),
        (("--secret-field-env", "auth_value=TOKEN"), {"auth_header": "X-Api-Key"}, {"auth_value": "set"}),
        (("--secret-field-env", "auth_value=OTHER"), {"auth_header": "X-Api-Key"}, {"auth_value": "set"}),
        (("--no-field", "auth_header"), {"auth_header": "Authorization"}, {"auth_value": "set"}),
        (("--no-field", "auth_value"), {"auth_header": "Authorization"}, {"auth_value": "not set"}),
    ):
        done = updated(tmp_path, *change)
        assert done.exit_code == 0, done.output
        assert (shown(tmp_path)["fields"], shown(tmp_path)["secret_fields"]) == (fields, secrets)
    records = orjson.loads(invoke(tmp_path, "integrations", "history", "radio/shop", "--json").stdout)["changes"]
    assert [record["what"] for record in records[1:]] == [
        {"fields": [{}, {"auth_header": "X-Api-Key"}]},
        {"secret_fields": [{"auth_value": "not set"}, {"auth_value": "set"}]},
        {"secret_fields": [{"auth_value": "set"}, {"auth_value": "changed"}]},
        {"fields": [{"auth_header": "X-Api-Key"}, {}]},
        {"secret_fields": [{"auth_value": "set"}, {"auth_value": "not set"}]},
    ]
    nothing = updated(tmp_path, "--no-field", "auth_value")
    assert "nothing changed" in nothing.stdout
    assert "the HTTP endpoint has no field colour" in one_line(updated(tmp_path, "--no-field", "colour").stderr)
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert updated(tmp_path, "--secret-field-file", f"auth_value={file}").exit_code == 0
    assert invoke(tmp_path, "integrations", "test", "radio/shop").exit_code == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--field", f"auth_value={TOKEN}"), "is a secret: give it by --secret-field-env auth_value=VAR"),
        (("--secret-field-env", "auth_header=TOKEN"), "is no secret: give it by --field auth_header=VALUE"),
        (("--field", "auth_heder=X"), "the HTTP endpoint has no field auth_heder: did you mean auth_header"),
        (("--field", "zzz=X"), "the HTTP endpoint has no field zzz: there are auth_value, auth_header"),
        (("--field", f"{TOKEN}=X"), "the HTTP endpoint has no field …"),
        (("--field", "auth_header"), "--field must be NAME=VALUE"),
        (("--field", "auth_header=webhook-id"), "the authorization header cannot be used: the name of that header"),
        (("--field", "auth_header=Content-Type"), "the authorization header cannot be used"),
        (("--field", "auth_header=X\r\nEvil: 1"), "the authorization header must be one line"),
        (("--secret-field-env", "auth_value=NONE"), "environment variable NONE is not set"),
        (("--secret-field-env", "auth_value=LINES"), "the secret field auth_value must be one line"),
        (("--secret-field-env", "auth_value=SNOWMAN"), "the authorization cannot be used: the value of a header"),
        (("--secret-field-env", "auth_value=TOKEN", "--secret-field-file", "auth_value=x"), "is given twice"),
        (("--secret-field-env", f"auth_value={TOKEN}"), "environment variable … is not set"),
    ],
)  # fmt: skip
def test_what_cannot_be_given_is_said_in_a_line_without_it(tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    environ = {**ENVIRON, "LINES": f"{TOKEN}\nX-Evil: 1", "SNOWMAN": f"{TOKEN}\N{SNOWMAN}"}
    done = invoke(
        tmp_path, "integrations", "add", "radio", "shop", "--destination", "http", "--endpoint", "https://shop.test/",
        "--api-key-env", "KEY", *more, settings=environ,
    )  # fmt: skip
    assert done.exit_code == 2
    assert said in one_line(done.stderr)
    assert TOKEN not in done.output


def test_amplitude_has_none(tmp_path: Path) -> None:
    done = invoke(
        tmp_path, "integrations", "add", "radio", "main", "--endpoint", "us", "--api-key-env", "KEY", "--field", "a=b"
    )
    assert "Amplitude has no field a: it has none of its own" in one_line(done.stderr)


def test_they_are_shown_with_the_way_to_give_them(tmp_path: Path) -> None:
    text = " ".join(invoke(tmp_path, "integrations", "destinations").stdout.split())
    assert "authorization (optional):" in text
    assert "By --secret-field-env auth_value=VAR." in text
    assert "By --field auth_header=VALUE." in text


# -- by a file --------------------------------------------------------------------------------------------------------


def test_a_file_plans_and_applies_them(tmp_path: Path, gate: Gate) -> None:
    assert (
        added(tmp_path, gate.url, "--secret-field-env", "auth_value=TOKEN", "--field", "auth_header=X-Key").exit_code
        == 0
    )
    exported = invoke(tmp_path, "integrations", "export").stdout
    assert "auth_header: X-Key" in exported
    file = tmp_path / "integrations.yaml"
    text = exported.replace("env: RADIO_SHOP_API_KEY", "env: KEY").replace("env: RADIO_SHOP_AUTH_VALUE", "env: TOKEN")

    def asked(text: str, *words: str, **environ: str) -> Any:
        file.write_text(text)
        done = invoke(tmp_path, "integrations", *words, str(file), settings={**ENVIRON, **environ})
        assert TOKEN not in done.output
        assert OTHER not in done.output
        return done

    assert asked(text, "apply", "--yes").exit_code == 0
    assert asked(text, "plan", "--detailed-exitcode").exit_code == 0
    assert asked(text.replace("env: TOKEN", "keep: true"), "plan", "--detailed-exitcode").exit_code == 0
    moved = asked(
        text.replace("env: TOKEN", "env: OTHER").replace("X-Key", "X-Other"), "plan", "--out", str(tmp_path / "p")
    )
    assert "fields: auth_header=X-Key -> auth_header=X-Other" in moved.stdout
    assert "from environment variable OTHER" in moved.stdout
    stale = invoke(tmp_path, "integrations", "apply", str(tmp_path / "p"), settings={**ENVIRON, "OTHER": TOKEN})
    assert "the secret_fields.auth_value of radio/shop is another one now" in stale.stderr
    gone = text[: text.index("        fields:")]
    assert asked(gone + text[text.index("        start_from") :], "apply", "--yes").exit_code == 0
    assert (shown(tmp_path)["fields"], shown(tmp_path)["secret_fields"]) == (
        {"auth_header": "Authorization"},
        {"auth_value": "not set"},
    )
    pasted = TOKEN.replace(" ", "-")
    for wrong, said in (
        (
            f"fields: {{auth_value: {pasted}}}",
            "give it by secret_fields: {auth_value: {env: VARIABLE}}",
        ),
        (f"secret_fields: {{auth_value: {pasted}}}", "must say where the key is"),
        ("secret_fields: {auth_value: {keep: true}}", "there is no stored secret to keep"),
        ("secret_fields: {auth_value: {env: NONE}}", "environment variable NONE is not set"),
        ("fields: {auth_header: 5}", "must be text"),
        ("fields: {colour: red}", "has no field colour"),
    ):
        done = asked(gone + f"        {wrong}\n" + text[text.index("        start_from") :], "plan")
        assert done.exit_code == 2
        assert said in done.stderr, done.stderr
        assert pasted not in done.output
    assert TOKEN.encode() not in kept(tmp_path)


# -- a destination of one's own ----------------------------------------------------------------------------------------

REGION = Field("region", "region", "Where it keeps events.", False, default="north", choices=("north", "south"))
TENANT = Field("tenant", "tenant", "Small letters.", False, pattern="[a-z]+")
PIN = Field("pin", "PIN", "Four digits.", is_secret=True, pattern="[0-9]{4}")


class Vault(JsonDestination):
    """Its fields are in bodies, headers and verdicts."""

    name = "vault"
    title = "the vault"
    fields: Sequence[Field] = (ENDPOINT, KEY, REGION, TENANT, PIN)
    seen: list[Any] = []  # noqa: RUF012

    def bodies(self, events: pa.RecordBatch) -> pa.Array:
        self.seen.append(dict(self.secrets))
        made = [{"insert_id": ident, **self.values} for ident in events["id"].to_pylist()]
        return pa.array([orjson.dumps(one).decode() for one in made], pa.string())

    def headers(self, api_key: Secret, body: bytes, now: float) -> dict[str, str]:
        pin = self.secrets["pin"].reveal()
        return {**super().headers(api_key, body, now), "X-Pin": pin, "X-Tenant": self.values["tenant"]}

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Any, *, now: float) -> Verdict:
        assert self.values["tenant"]
        return super().judge(answer, identities, now=now)


@pytest.mark.slow
class TestVault(DestinationSuite):
    """The suite gives its own fields values, and looks for the secrets among them."""

    destination = Vault()
    values = {"tenant": "acme", "pin": "4711"}  # noqa: RUF012

    def test_each_request_has_what_its_fields_say(self) -> None:
        self.load(3)
        self.deliver()
        self._all_is_well()
        assert {body: b'"tenant":"acme"' in body and b'"region":"north"' in body for body in self.memory.bodies}
        assert Vault.seen[-1] == {}, "what bodies make is kept in files"


def vault(name: str = "main", **more: Any) -> NewIntegration:
    fields: dict[str, Any] = {"fields": {"tenant": "acme"}, "secret_fields": {"pin": Secret("4711")}} | more
    return NewIntegration(
        "app", name, "https://vault.test/", Secret(name * 8), destination="vault", user_id_kind="nami_user_id", **fields
    )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workbench]:
    monkeypatch.setitem(DESTINATIONS, "vault", Vault())
    bench = Workbench(integration=vault())
    yield bench
    bench.close()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"fields": {}}, "the vault needs the tenant: give it by --field tenant=VALUE"),
        ({"secret_fields": {}}, "the vault needs the PIN: give it by --secret-field-env pin=VAR"),
        ({"fields": {"tenant": "ACME"}}, "the tenant cannot be used: small letters"),
        ({"fields": {"tenant": "a" * 1_001}}, "at most 1,000 characters"),
        ({"fields": {"tenant": " acme"}}, "has space around it"),
        ({"fields": {"tenant": "acme", "region": "east"}}, "the region must be one of north, south"),
        ({"secret_fields": {"pin": Secret("99999")}}, "the PIN cannot be used: four digits"),
    ],
)
def test_values_are_held_to_what_is_declared(bench: Workbench, more: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured, match=said) as error:
        add(bench.context.store, bench.context.cipher, vault("second", **more))
    assert "99999" not in str(error.value)
    assert len(all_integrations(bench.context.store)) == 1


@pytest.mark.slow
def test_a_field_that_came_with_a_newer_version_keeps_nobody_else_waiting(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    us = NewIntegration("app", "second", "us", Secret("1" * 32), user_id_kind="nami_user_id")
    add(bench.context.store, bench.context.cipher, us)
    bench.load("a", {})
    newer = Vault()
    newer.fields = (*Vault.fields, Field("colour", "colour", "Any.", is_secret=False))
    monkeypatch.setitem(DESTINATIONS, "vault", newer)
    failures: dict[str, NamiAmpError] = {}
    bench.prepare(lambda subject, error: failures.update({getattr(subject, "key", ""): error}))
    assert str(failures["app/main"]) == "app/main: the vault needs the colour: give it by --field colour=VALUE"
    assert len(bench.bodies()) == 1
    monkeypatch.setitem(DESTINATIONS, "vault", Vault())
    bench.prepare()
    assert sum('"tenant":"acme"' in body for body in bench.bodies().values()) >= 1


def test_what_is_stored_stays_if_it_is_not_declared_for_a_while(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nami_amp_pipeline.state.integration_changes import IntegrationChange, change

    store, cipher = bench.context.store, bench.context.cipher
    older = Vault()
    older.fields = (ENDPOINT, KEY, TENANT)
    monkeypatch.setitem(DESTINATIONS, "vault", older)
    changed = change(store, cipher, "app/main", IntegrationChange(fields={"tenant": "other"}))
    assert (changed.fields, set(changed.secret_fields)) == ({"tenant": "other"}, {"pin"})
    assert own_fields.secrets_of(older, changed, cipher) == {}
    with pytest.raises(Misconfigured, match="the vault has no field pin"):
        change(store, cipher, "app/main", IntegrationChange(secret_fields={"pin": Secret("1234")}))
    gone = change(store, cipher, "app/main", IntegrationChange(secret_fields={"pin": None}))
    assert gone.secret_fields == {}


def test_a_rotation_takes_them_along(bench: Workbench) -> None:
    store, cipher = bench.context.store, bench.context.cipher
    (before,) = all_integrations(store)
    done = rotate(store, cipher)
    assert (done.encrypted, done.current) == (2, 0)
    assert rotate(store, cipher).encrypted == 2, "one that has ended begins anew"
    assert forget(store, cipher) == 2
    (after,) = all_integrations(store)
    assert after.secret_fields != before.secret_fields
    assert cipher.decrypt(after.secret_fields["pin"]).reveal() == "4711"
    with pytest.raises(Misconfigured):
        cipher.decrypt(before.secret_fields["pin"])


def test_a_secret_whose_encryption_key_is_lost_can_be_given_again(bench: Workbench) -> None:
    from nami_amp_pipeline.state.integration_changes import IntegrationChange, change

    store, cipher = bench.context.store, bench.context.cipher
    with store.begin() as tx:
        tx.execute(sa.update(tables.integrations).values(secret_fields='{"pin": "gAAAAA"}'))
    (found,) = all_integrations(store)
    with pytest.raises(Misconfigured):
        own_fields.as_set(found, cipher)
    change(store, cipher, "app/main", IntegrationChange(secret_fields={"pin": Secret("0815")}))
    (found,) = all_integrations(store)
    assert own_fields.secrets_of(DESTINATIONS["vault"], found, cipher)["pin"].reveal() == "0815"


def test_an_integration_tells_nobody(bench: Workbench) -> None:
    (found,) = all_integrations(bench.context.store)
    assert "4711" not in repr(found)
    assert found.secret_fields["pin"] not in repr(found)
    assert "4711" not in repr(vault())
    assert replace(found, fields={}).secret_fields == found.secret_fields
    assert isinstance(bench.context.store, Store)
    assert API_KEY not in repr(found)
