"""The commands about integrations, apps and dead letters, as a person types them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa

import nami_amp_pipeline.commands
from nami_amp_pipeline.operations.doctor import check_shared_keys
from nami_amp_pipeline.sandbox import Fault, FaultKind, Options, Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store, tables
from nami_amp_pipeline_tests.support.command_line import API_KEY, add, event, invoke, load_events, one_line, tick

ADD = ("integrations", "add", "radio", "prod", "--endpoint", "us", "--api-key-env", "KEY")


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox()) as server:
        yield server


def test_add_list_show_switch_remove(tmp_path: Path) -> None:
    added = invoke(
        tmp_path, *ADD, "--secret-key-env", "SECRET", "--user-id", "nami_user_id", "--anonymous", "device_id",
        "--events", "device.*,user.subscription.purchased", "--rename", "user.subscription.purchased=Bought a=b",
        "--start-from", "2026-09-01T02:00:00+02:00", settings={"SECRET": "another-secret"},
    )  # fmt: skip
    assert added.exit_code == 0, added.output
    assert "radio/prod" in invoke(tmp_path, "integrations", "list").stdout
    shown = orjson.loads(invoke(tmp_path, "integrations", "show", "radio/prod", "--json").stdout)
    assert shown.pop("created_at").endswith("Z")
    assert shown == {
        "integration": "radio/prod",
        "state": "enabled",
        "error": None,
        "destination": "amplitude",
        "endpoint": "https://api2.amplitude.com/2/httpapi",
        "api_key": "set",
        "secret_key": "set",
        "fields": {},
        "secret_fields": {},
        "user_id": "nami_user_id",
        "anonymous": "device_id",
        "version": 1,
        "selection": ["device.*", "user.subscription.purchased"],
        "events": ["device.impression", "device.transaction", "user.subscription.purchased"],
        "sandbox": "send",
        "exclude": [],
        "hash": [],
        "revenue": "gross",
        "store_fees": {},
        "rename": {"user.subscription.purchased": "Bought a=b"},
        "start_from": "2026-09-01T00:00:00Z",
        "managed_by": None,
    }
    table = invoke(tmp_path, "integrations", "show", "radio", "prod").stdout
    assert "user.subscription.purchased as Bought" in table
    for text in (added.output, table):
        assert API_KEY not in text
        assert API_KEY[:6] not in text
    for command, state in (("disable", "disabled"), ("enable", "enabled")):
        assert invoke(tmp_path, "integrations", command, "radio/prod").exit_code == 0
        (one,) = orjson.loads(invoke(tmp_path, "integrations", "list", "--json").stdout)["integrations"]
        assert one["state"] == state
    asked = invoke(tmp_path, "integrations", "remove", "radio/prod")
    assert asked.exit_code == 2
    assert "--yes" in one_line(asked.stderr)
    assert invoke(tmp_path, "integrations", "remove", "radio/prod", "--yes").exit_code == 0
    assert orjson.loads(invoke(tmp_path, "integrations", "list", "--json").stdout) == {"integrations": []}


@pytest.mark.contract("2.11")
def test_a_new_integration_starts_now_unless_told_otherwise(tmp_path: Path) -> None:
    invoke(tmp_path, *ADD)
    shown = orjson.loads(invoke(tmp_path, "integrations", "show", "radio/prod", "--json").stdout)
    assert shown["start_from"] <= shown["created_at"]
    assert shown["start_from"] > "2026"
    assert len(shown["events"]) == 13


def test_keys_may_stand_in_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MY_KEY=from-dotenv\nNAMI_AMP_HOME=elsewhere\n")
    arguments = [*ADD[:-1], "MY_KEY"]
    assert invoke(tmp_path, *arguments).exit_code == 0
    assert (tmp_path / "elsewhere" / "state.db").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*ADD[:-1], "NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
        ((*ADD[:-1], "EMPTY"), "EMPTY is not set"),
        ((*ADD, "--secret-key-env", "EMPTY"), "EMPTY is not set"),
        ((*ADD, "--start-from", "2026-09-01T00:00:00"), "has no time zone"),
        ((*ADD, "--start-from", "soon"), "is not a time"),
        ((*ADD, "--events", "user.nothing"), "unknown event type"),
        ((*ADD, "--events", "user.subscripton.*"), "did you mean user.subscription.*?"),
        ((*ADD, "--rename", "device.impression"), "must be OLD=NEW"),
        ((*ADD, "--user-id", "email"), "'--user-id'"),
        ((*ADD, "--anonymous", "guess"), "'--anonymous'"),
        (ADD[:-2], "--api-key-env"),
        ((*ADD[:4], "--endpoint", "https://x.test/2/httpapi", "--api-key-env", "KEY"), "--allow-custom-endpoint"),
        (
            (*ADD[:4], "--endpoint", "http://x.test/", "--allow-custom-endpoint", "--api-key-env", "KEY"),
            "loopback",
        ),
        (("integrations", "add", "ra/dio", *ADD[3:]), "app id"),
        (("integrations", "show", "radio"), "write APP/NAME"),
        (("integrations", "show", "radio/none"), "no integration radio/none"),
        (("integrations", "enable", "radio", "none"), "no integration radio/none"),
        (("integrations", "test", "radio/none"), "no integration radio/none"),
        (("integrations", "remove", "radio/none", "--yes"), "no integration radio/none"),
        (("apps", "plan", "ra/dio", "free"), "app id"),
        (("apps", "plan", "radio", "gold"), "'paid', 'free'"),
        (("dead-letters", "list", "--integration", "radio/none"), "no integration radio/none"),
        (("dead-letters", "list", "--since", "last week"), "is not a time"),
        (("dead-letters", "list", "--since", "2026-11-31"), "--since '2026-11-31' is not a time"),
        (("dead-letters", "list", "--since", "1h", "--until", "2d"), "--until must be later than --since"),
        (("trace", " "), "give an event id, an External ID or a Nami user"),
        (("dead-letters", "list", "--reason", "rejcted"), "did you mean rejected?"),
        (("dead-letters", "list", "--reason", "zzz"), "no reason of a dead letter: there are bad_date, "),
        (("dead-letters", "show", "1"), "no dead letter"),
        (("dead-letters", "retry", "1"), "no dead letter"),
        (("dead-letters", "retry"), "--all"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = invoke(tmp_path, *arguments, settings={"EMPTY": " "})
    assert done.exit_code == 2, done.output
    assert message in one_line(done.stderr)
    assert done.stdout == ""


def test_a_state_url_with_two_slashes_is_no_bug(tmp_path: Path) -> None:
    done = invoke(tmp_path, "status", settings={"NAMI_AMP_STATE_URL": "sqlite://state.db"})
    assert (done.exit_code, one_line(done.stderr)) == (
        2, "nami-amp: NAMI_AMP_STATE_URL must be sqlite:///PATH, with three slashes\n"
    )  # fmt: skip


def test_a_free_app_cannot_enable(tmp_path: Path) -> None:
    assert invoke(tmp_path, "apps", "plan", "radio", "free").exit_code == 0
    refused = invoke(tmp_path, *ADD)
    assert refused.exit_code == 2
    assert "not on a paid plan" in one_line(refused.stderr)
    assert invoke(tmp_path, *ADD, "--disabled").exit_code == 0
    assert invoke(tmp_path, "integrations", "enable", "radio/prod").exit_code == 2
    assert invoke(tmp_path, "apps", "plan", "radio", "paid").exit_code == 0
    assert invoke(tmp_path, "integrations", "enable", "radio/prod").exit_code == 0
    (app,) = orjson.loads(invoke(tmp_path, "apps", "list", "--json").stdout)["apps"]
    assert app == {"app_id": "radio", "plan": "paid", "integrations": 1, "watermark": None, "monthly_quota": None}


class TestConnection:
    def test_a_good_key_is_told_without_storing_anything(self, tmp_path: Path, server: SandboxServer) -> None:
        add(tmp_path, server.endpoint)
        done = invoke(tmp_path, "integrations", "test", "radio/prod")
        assert (done.exit_code, done.stderr) == (0, "")
        assert "accepts the API key" in done.stdout
        assert server.sandbox.audit.accepted == 0

    @pytest.mark.parametrize("index_mode", ["first", "all", "none"])
    def test_however_amplitude_names_the_event(self, tmp_path: Path, index_mode: str) -> None:
        with SandboxServer(Sandbox(options=Options(index_mode=index_mode))) as server:  # type: ignore[arg-type]
            add(tmp_path, server.endpoint)
            assert invoke(tmp_path, "integrations", "test").exit_code == 0

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("invalid_key", "does not know the API key"),
            ("redirect", "redirect"),
            ("403", "blocks requests from this machine"),
            ("project_429", "throttles requests"),
            ("503", "answered 503"),
            ("html_400", "not an answer of Amplitude"),
            ("closed_without_answer", "the connection broke"),
        ],
    )
    def test_trouble_is_told_apart(self, tmp_path: Path, server: SandboxServer, kind: FaultKind, message: str) -> None:
        add(tmp_path, server.endpoint)
        server.sandbox.faults.add(Fault(kind))
        done = invoke(tmp_path, "integrations", "test", "radio/prod")
        assert done.exit_code == 1
        assert message in one_line(done.stderr)
        assert API_KEY not in done.output

    def test_all_are_tested_one_line_each(self, tmp_path: Path, server: SandboxServer) -> None:
        add(tmp_path, server.endpoint)
        add(tmp_path, "http://127.0.0.1:9/2/httpapi", name="gone")
        done = invoke(tmp_path, "integrations", "test", "--json")
        assert done.exit_code == 1
        assert "radio/gone: cannot reach http://127.0.0.1:9/2/httpapi: no server listens there" in one_line(done.stderr)
        found = {one["integration"]: one["ok"] for one in orjson.loads(done.stdout)["integrations"]}
        assert found == {"radio/prod": True, "radio/gone": False}


def test_a_lost_encryption_key_is_said(tmp_path: Path, server: SandboxServer) -> None:
    add(tmp_path, server.endpoint)
    (tmp_path / ".nami-amp" / "encryption.key").unlink()
    done = invoke(tmp_path, "integrations", "test")
    assert done.exit_code == 2
    assert "encryption.key is missing" in one_line(done.stderr)


@pytest.mark.slow
def test_removing_takes_its_files_along(tmp_path: Path, server: SandboxServer) -> None:
    add(tmp_path, server.endpoint)
    load_events(tmp_path, event(1))
    tick(tmp_path, "first")
    receipts = tmp_path / ".nami-amp" / "data" / "receipts"
    assert list(receipts.iterdir())
    other = Store(f"sqlite:///{tmp_path}/.nami-amp/state.db", lambda: 9e9, owner="elsewhere:1:x")
    lease = other.acquire(["integration:1"])
    refused = invoke(tmp_path, "integrations", "remove", "radio/prod", "--yes")
    assert refused.exit_code == 1
    assert "a run is delivering for radio/prod" in one_line(refused.stderr)
    other.release(lease.values())
    other.close()
    assert invoke(tmp_path, "integrations", "remove", "radio/prod", "--yes").exit_code == 0
    assert not list(receipts.iterdir())


@pytest.mark.slow
def test_dead_letters_from_list_to_delivery(tmp_path: Path, server: SandboxServer) -> None:
    assert "There is no integration in " in invoke(tmp_path, "dead-letters", "list").stdout
    add(tmp_path, server.endpoint)
    load_events(tmp_path, event(1), event(2, "u2", "e2"), event(3, "u3", "none"))
    server.sandbox.faults.add(Fault("poison", insert_id="event-2"))
    tick(tmp_path, "first")
    server.sandbox.faults.remove()
    listed = invoke(tmp_path, "dead-letters", "list")
    assert "event-2" in listed.stdout
    assert "reserved_user_id" in listed.stdout
    cut = invoke(tmp_path, "dead-letters", "list", "--limit", "1")
    assert len(cut.stdout.splitlines()) == 2
    assert "there are more: 1 older dead letter (--limit)" in one_line(cut.stderr)
    found = orjson.loads(invoke(tmp_path, "dead-letters", "list", "--reason", "rejected", "--json").stdout)
    assert found["total"] == 1
    (letter,) = found["dead_letters"]
    assert letter["event_id"] == "event-2"
    shown = invoke(tmp_path, "dead-letters", "show", str(letter["id"]))
    assert '"insert_id":"event-2"' in shown.stdout.replace("\n", "").replace(" ", "")
    assert "insert_id" in orjson.loads(invoke(tmp_path, "dead-letters", "show", "event-2", "--json").stdout)["body"]
    retried = invoke(tmp_path, "dead-letters", "retry", "--all", "--json")
    assert retried.exit_code == 1
    assert orjson.loads(retried.stdout)["retried"] == 1
    assert "1 not retried: no Amplitude event was made from it" in one_line(retried.stderr)
    (after,) = tick(tmp_path, "second")
    assert (after.delivered, after.dead_letters) == (2, {"reserved_user_id": 1})


@pytest.mark.contract("5.1.6")
@pytest.mark.slow
def test_dismissed_dead_letters_ask_for_nobody_and_can_still_go(tmp_path: Path, server: SandboxServer) -> None:
    add(tmp_path, server.endpoint)
    load_events(tmp_path, event(1), event(2, "u2", "e2"), event(3, "u3", "e3"))
    for number in (2, 3):
        server.sandbox.faults.add(Fault("poison", insert_id=f"event-{number}"))
    tick(tmp_path, "first")
    server.sandbox.faults.remove()
    assert invoke(tmp_path, "run").exit_code == 0
    assert invoke(tmp_path, "status", "--check").exit_code == 1
    chosen = ("dead-letters", "dismiss", "--integration", "radio/prod", "--reason", "rejected")
    asked = invoke(tmp_path, *chosen)
    assert asked.exit_code == 2
    assert "give --yes to dismiss 2 dead letters (2 rejected of radio/prod)" in one_line(asked.stderr)
    assert invoke(tmp_path, "dead-letters", "dismiss").exit_code == 2
    assert "0 dead letters" in invoke(tmp_path, *chosen, "--since", "2099-01-01", "--yes").stdout
    assert orjson.loads(invoke(tmp_path, *chosen, "--yes", "--json").stdout) == {"dismissed": 2}

    done = invoke(tmp_path, "status", "--check")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "Nobody is needed: 1 of 1 is at work.")
    assert "2 rejected, (2 dismissed)" in done.stdout
    (numbers,) = orjson.loads(invoke(tmp_path, "status", "--json").stdout)["integrations"]
    assert (numbers["dead_letters"], numbers["rejected"], numbers["dismissed"]) == ({"rejected": 2}, 0, 2)
    assert numbers["captured"] == numbers["delivered"] + 2
    listed = invoke(tmp_path, "dead-letters", "list")
    assert "2 dismissed dead letters not shown (--dismissed)." in listed.stdout
    found = orjson.loads(invoke(tmp_path, "dead-letters", "list", "--dismissed", "--json").stdout)
    assert {letter["event_id"] for letter in found["dead_letters"]} == {"event-2", "event-3"}
    assert found["dead_letters"][0]["dismissed_at"]
    assert "Dismissed\t20" in invoke(tmp_path, "dead-letters", "show", "event-2").stdout
    assert invoke(tmp_path, "trace", "event-2").exit_code == 4  # it did not arrive, whoever has seen it

    assert "0 dead letters" in invoke(tmp_path, "dead-letters", "retry", "--all").stdout
    assert invoke(tmp_path, "dead-letters", "dismiss", "event-3", "--undo", "--yes").exit_code == 0
    assert invoke(tmp_path, "status", "--check").exit_code == 1
    assert "2 dead letters" in invoke(tmp_path, "dead-letters", "retry", "event-2", "event-3").stdout
    (after,) = tick(tmp_path, "second")
    assert (after.delivered, after.dead_letters) == (3, {})


@pytest.mark.slow
def test_old_dead_letters_go_only_by_force(tmp_path: Path, server: SandboxServer) -> None:
    add(tmp_path, server.endpoint)
    load_events(tmp_path, event(1))
    server.sandbox.faults.add(Fault("poison", insert_id="event-1"))
    tick(tmp_path, "first")
    server.sandbox.faults.remove()
    store = Store(f"sqlite:///{tmp_path}/.nami-amp/state.db", lambda: 0.0)
    with store.begin() as tx:
        tx.execute(sa.update(tables.exceptions).values(at=tables.exceptions.c.at - 8 * 86_400_000_000))
    store.close()
    refused = invoke(tmp_path, "dead-letters", "retry", "event-1")
    assert refused.exit_code == 1
    assert "more than 7 days ago" in one_line(refused.stderr)
    assert invoke(tmp_path, "dead-letters", "retry", "event-1", "--force").exit_code == 0
    assert tick(tmp_path, "second")[0].delivered == 1


class TestUpdate:
    def shown(self, folder: Path) -> dict[str, object]:
        found: dict[str, object] = orjson.loads(invoke(folder, "integrations", "show", "radio/prod", "--json").stdout)
        return found

    def test_takes_every_option_of_add(self, tmp_path: Path) -> None:
        assert invoke(tmp_path, *ADD).exit_code == 0
        done = invoke(
            tmp_path, "integrations", "update", "radio/prod", "--endpoint", "eu", "--user-id", "nami_user_id",
            "--anonymous", "device_id", "--events", "device.*", "--start-from", "2030-01-01T00:00:00Z",
            "--rename", "device.impression=Seen", "--sandbox", "skip", "--exclude", "a", "--exclude", "b,c",
            "--hash", "d", "--revenue", "net", "--store-fee", "apple=0.15", "--store-fee", "Google=.2", "--disabled",
            "--if-version", "1", settings={"NAMI_AMP_ACTOR": "ann"},
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert done.stdout.endswith("changed, version 2.\n")
        shown = self.shown(tmp_path)
        assert shown | {"created_at": ""} == {
            "integration": "radio/prod", "state": "disabled", "error": None, "version": 2, "created_at": "",
            "destination": "amplitude", "endpoint": "https://api.eu.amplitude.com/2/httpapi", "api_key": "set",
            "secret_key": "not set", "fields": {}, "secret_fields": {},
            "user_id": "nami_user_id", "anonymous": "device_id", "selection": ["device.*"],
            "events": ["device.impression", "device.transaction"], "rename": {"device.impression": "Seen"},
            "sandbox": "skip", "exclude": ["a", "b,c"], "hash": ["d"], "revenue": "net",
            "store_fees": {"apple": 0.15, "google": 0.2}, "start_from": "2030-01-01T00:00:00Z", "managed_by": None,
        }  # fmt: skip
        told = invoke(tmp_path, "integrations", "history", "radio/prod", "--json")
        added, changed = orjson.loads(told.stdout)["changes"]
        assert (added["version"], added["what"]) == (1, {"added": [False, True]})
        assert (changed["version"], changed["by"], changed["what"]["sandbox"]) == (2, "ann", ["send", "skip"])
        assert "sandbox: send -> skip" in invoke(tmp_path, "integrations", "history", "radio", "prod").stdout

    def test_lists_can_be_cleared_and_keys_forgotten(self, tmp_path: Path) -> None:
        more = ("--exclude", "a", "--hash", "b", "--rename", "device.impression=Seen", "--store-fee", "apple=0.1")
        assert invoke(tmp_path, *ADD, "--secret-key-env", "SECRET", *more, settings={"SECRET": "s3cr3t"}).exit_code == 0
        clear = ("--no-exclude", "--no-hash", "--no-rename", "--no-store-fees", "--no-secret-key")
        done = invoke(tmp_path, "integrations", "update", "radio/prod", *clear)
        assert done.exit_code == 0, done.output
        shown = self.shown(tmp_path)
        assert [shown[name] for name in ("exclude", "hash", "rename", "store_fees", "secret_key")] == [
            [], [], {}, {}, "not set",
        ]  # fmt: skip

    def test_an_older_version_is_refused_in_one_line(self, tmp_path: Path) -> None:
        invoke(tmp_path, *ADD)
        update = ("integrations", "update", "radio/prod", "--if-version", "1")
        assert invoke(tmp_path, *update, "--sandbox", "skip", settings={"NAMI_AMP_ACTOR": "ann"}).exit_code == 0
        refused = invoke(tmp_path, *update, "--sandbox", "only")
        assert refused.exit_code == 2
        assert "version 2, not 1 (version 2 by ann" in one_line(refused.stderr)
        assert self.shown(tmp_path)["sandbox"] == "skip"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "nothing to change"),
            (("--if-version", "1"), "nothing to change"),
            (("--exclude", "a", "--no-exclude"), "not both"),
            (("--secret-key-env", "KEY", "--no-secret-key"), "not both"),
            (("--store-fee", "apple"), "PLATFORM=SHARE"),
            (("--store-fee", "apple=much"), "PLATFORM=SHARE"),
            (("--store-fee", "apple=2"), "share from 0 to 1"),
            (("--hash", "user_id"), "cannot be excluded or hashed"),
            (("--sandbox", "perhaps"), "'--sandbox'"),
            (("--start-from", "beginning"), ""),
            (("--endpoint", "https://a..b/", "--allow-custom-endpoint"), "empty or too long"),
            (("--endpoint", "https://a/\nb", "--allow-custom-endpoint"), "line ends"),
        ],
    )
    def test_what_cannot_be_used(self, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
        invoke(tmp_path, *ADD)
        done = invoke(tmp_path, "integrations", "update", "radio/prod", *arguments)
        if not message:  # nothing was captured yet, so it may begin earlier
            assert done.exit_code == 0
            return
        assert done.exit_code == 2
        assert message in one_line(done.stderr)
        assert self.shown(tmp_path)["version"] == 1


def test_a_shared_key_is_refused_and_doctor_warns_of_it(tmp_path: Path) -> None:
    assert invoke(tmp_path, *ADD).exit_code == 0
    second = ("integrations", "add", "radio", "again", *ADD[4:])
    refused = invoke(tmp_path, *second)
    assert refused.exit_code == 2
    assert "--allow-shared-key" in one_line(refused.stderr)
    assert invoke(tmp_path, *second, "--disabled", "--allow-shared-key").exit_code == 0
    found = check_shared_keys(Settings.load({"NAMI_AMP_HOME": str(tmp_path / ".nami-amp")}, tmp_path / "none"))
    assert [one.level for one in found] == ["warning"]
    assert "radio/again and radio/prod have the same API key" in found[0].message
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nami_amp_pipeline.operations.doctor._PAIRS", 0)
        (cut,) = check_shared_keys(Settings.load({"NAMI_AMP_HOME": str(tmp_path / ".nami-amp")}, tmp_path / "none"))
    assert cut.message == "1 more pair of integrations do so"


def test_commands_see_no_table() -> None:
    """The command line is a front on the operations: it imports neither tables nor SQL."""
    folder = Path(nami_amp_pipeline.commands.__file__).parent
    for file in folder.glob("*.py"):
        for line in file.read_text("utf-8").splitlines():
            if re.match(r"\s*(from|import) ", line):
                assert not re.search(
                    r"sqlalchemy|nami_amp_pipeline\.(state|stages|delivery|storage|amplitude)\b", line
                ), f"{file.name}: {line}"
