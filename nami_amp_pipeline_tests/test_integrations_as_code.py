"""Integrations as code: what is planned, what is applied, what is told, and that no key gets out."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
import yaml
from click.testing import Result

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import micros, system_clock
from nami_amp_pipeline.errors import Busy, Misconfigured, Mistakes, StoreUnavailable
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.as_code import applying
from nami_amp_pipeline.operations.as_code.operations import as_yaml
from nami_amp_pipeline.operations.as_code.plan import Plan
from nami_amp_pipeline.operations.integrations import IntegrationChange
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store, Transaction, tables
from nami_amp_pipeline.state.integration_rows import find
from nami_amp_pipeline.state.integrations import Integration, NewIntegration, halt
from nami_amp_pipeline_tests.support.command_line import PROGRAM, environment, invoke, one_line
from nami_amp_pipeline_tests.support.postgres import Postgres

KEYS = {"ONE": "key-one-0123456789abcdef", "TWO": "key-two-fedcba9876543210", "THREE": "key-three-0f1e2d3c4b5a69"}
FILE = "integrations.yaml"


class Home:
    """A folder with an installation, a file of integrations, and the keys in the environment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, state_url: str | None = None) -> None:
        self.folder = folder
        for name, key in KEYS.items():
            monkeypatch.setenv(name, key)
        monkeypatch.chdir(folder)
        url = {"NAMI_AMP_STATE_URL": state_url} if state_url else {}
        self.settings = Settings.load({"NAMI_AMP_HOME": str(folder / ".nami-amp"), **url})
        self.operations = Operations(self.settings, by="ana")

    def write(self, apps: dict[str, Any], file: str = FILE, **more: Any) -> Path:
        """Writes a file."""
        path = self.folder / file
        path.write_text(yaml.safe_dump({"version": 1, "apps": apps, **more}))
        return path

    def one(self, **more: Any) -> Path:
        """Writes a file with radio/main."""
        return self.write({"radio": {"integrations": {"main": entry(**more)}}})

    def plan(self, file: str = FILE, *, prune: bool = False) -> Plan:
        return self.operations.as_code.plan(self.folder / file, prune=prune)

    def apply(self, file: str = FILE, *, prune: bool = False) -> Plan:
        return self.operations.as_code.apply(self.plan(file, prune=prune))

    def said(self, file: str = FILE) -> list[str]:
        """What is wrong with the file."""
        with pytest.raises(Mistakes) as found:
            self.plan(file)
        return found.value.lines

    def contents(self) -> dict[str, list[Any]]:
        """All rows of the store."""
        store = Store(self.settings.state_url, lambda: 0.0)
        try:
            with store.reading() as tx:
                return {
                    table.name: [tuple(row) for row in tx.execute(sa.select(table))]
                    for table in tables.metadata.sorted_tables
                }
        finally:
            store.close()

    def run(self, *arguments: str, **settings: str) -> Result:
        """A command of ``nami-amp integrations``."""
        return invoke(self.folder, "integrations", *arguments, settings={**KEYS, **settings})


def entry(**more: Any) -> dict[str, Any]:
    return {"endpoint": "us", "api_key": {"env": "ONE"}, **more}


def fields(plan: Plan, subject: str = "radio/main") -> dict[str, tuple[Any, Any]]:
    (change,) = (change for change in plan.changes if change.subject == subject)
    return {field.name: (field.before, field.after) for field in change.fields}


def follows(plan: Plan, subject: str = "radio/main") -> str:
    (change,) = (change for change in plan.changes if change.subject == subject)
    return "\n".join(change.consequences)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    home = Home(tmp_path, monkeypatch)
    yield home
    home.operations.close()


def test_a_plan_needs_the_right_to_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    url = postgres.fresh_database()
    home = Home(tmp_path, monkeypatch, url)
    home.write({"radio": {"plan": "free"}, "tv": {"integrations": {"main": entry(api_key={"env": "TWO"})}}})
    home.operations.add(NewIntegration("radio", "main", "us", Secret(KEYS["THREE"])))
    home.operations.close()
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        name = connection.execute(sa.text("SELECT current_database()")).scalar_one()
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    engine.dispose()
    try:
        plan = home.plan()
        assert [(change.subject, change.action) for change in plan.changes] == [
            ("radio", "set plan"), ("tv/main", "add"),
        ]  # fmt: skip
        done = home.run(
            "plan", FILE, "--detailed-exitcode", NAMI_AMP_STATE_URL=url, NAMI_AMP_HOME=str(tmp_path / ".nami-amp")
        )
        assert done.exit_code == 2, done.output
        with pytest.raises(StoreUnavailable):
            home.operations.as_code.apply(plan)
    finally:
        home.operations.close()


class TestPlan:
    @pytest.mark.contract("2.19")
    def test_it_shows_each_field_before_and_after_and_changes_nothing(self, home: Home) -> None:
        home.one()
        home.apply()
        before = home.contents()
        home.one(events=["device.*"], user_id="nami_user_id", api_key={"env": "TWO"}, hash=["sku"])
        plan = home.plan()
        assert fields(plan) == {
            "api_key": ("set", "from environment variable TWO"),
            "events": (["all"], ["device.*"]),
            "hash": ([], ["sku"]),
            "user_id": ("external_id", "nami_user_id"),
        }
        assert home.contents() == before

    @pytest.mark.contract("2.18", "2.19")
    def test_it_is_quiet_when_nothing_changed(self, home: Home) -> None:
        settings: dict[str, Any] = {
            "events": ["device.*", "user.subscription.renewed"], "exclude": ["b", "a"], "secret_key": {"env": "TWO"},
            "rename": {"device.impression": "A", "device.transaction": "B"},
            "store_fees": {"google": 0.2, "Apple": 0.15}, "start_from": "2026-09-01T02:00:00+02:00",
        }  # fmt: skip
        home.one(**settings)
        home.apply()
        assert home.plan().changes == ()
        (home.folder / "key.txt").write_text(f" {KEYS['ONE']}\n")
        home.one(
            **settings
            | {
                "api_key": {"file": "key.txt"}, "secret_key": {"keep": True}, "start_from": "now",
                "exclude": ["a", "b"], "events": settings["events"][::-1],
                "rename": {"device.transaction": "B", "device.impression": "A"},
                "endpoint": contract.ENDPOINTS["us"], "store_fees": {"apple": 0.15, "google": 0.2},
            }
        )  # fmt: skip
        plan = home.plan()
        assert (plan.changes, plan.unchanged) == ((), 1)

    @pytest.mark.contract("2.18")
    def test_it_stays_quiet_when_the_encryption_key_is_rotated(self, home: Home) -> None:
        home.one()
        home.apply()
        home.operations.rotate_keys()
        assert home.plan().changes == ()

    def test_what_is_not_given_has_its_default(self, home: Home) -> None:
        home.one(secret_key={"env": "TWO"}, enabled=False, rename={"device.impression": "Seen"})
        home.apply()
        home.one()
        assert fields(home.plan()) == {
            "enabled": (False, True), "rename": ({"device.impression": "Seen"}, {}), "secret_key": ("set", "not set"),
        }  # fmt: skip

    @pytest.mark.contract("2.19")
    @pytest.mark.parametrize(
        ("before", "after", "said"),
        [
            ({}, {"api_key": {"env": "TWO"}}, "api_key: a key of another Amplitude project: what was sent"),
            ({}, {"endpoint": "eu"}, "stored there a second time"),
            ({}, {"user_id": "nami_user_id"}, "user_id: users are split"),
            ({}, {"anonymous": "wait_for_login"}, "anonymous: "),
            ({"events": ["device.*"]}, {}, "also sends user.journey.trial.converted, "),
            ({}, {"events": ["device.*"]}, "no longer sends user.journey.trial.converted, "),
            ({"events": ["all"]}, {"events": ["device.*", "user.*"]}, "the same types as before"),
            ({}, {"enabled": False}, "enabled: nothing is sent any more, and nothing is lost"),
            ({"enabled": False}, {}, "enabled: goes on where it stopped"),
            ({}, {"rename": {"device.impression": "Seen"}}, "rename: to Amplitude another name is another event"),
            ({}, {"exclude": ["sku"]}, "exclude: what was sent before stays in Amplitude"),
            ({}, {"hash": ["sku"]}, "does not match the hashes"),
            ({"secret_key": {"env": "TWO"}}, {}, "secret_key: without a secret key, days are no longer reconciled"),
            ({}, {"revenue": "net"}, "revenue: "),
            ({}, {"sandbox": "only"}, "sandbox: "),
            ({}, {"store_fees": {"apple": 0.1}}, "store_fees: "),
            ({"start_from": "beginning"}, {"start_from": "2026-09-01"}, "before 2026-09-01T00:00:00Z and"),
            ({"start_from": "2026-09-01"}, {"start_from": "beginning"}, "earlier events are read from the warehouse"),
        ],
    )  # fmt: skip
    def test_it_says_what_follows(self, home: Home, before: dict[str, Any], after: dict[str, Any], said: str) -> None:
        home.one(**before)
        home.apply()
        home.one(**after)
        assert said in follows(home.plan())

    def test_it_says_what_follows_from_what_is_new(self, home: Home) -> None:
        for more, said in (
            ({}, "loaded into the warehouse from now on"),
            ({"start_from": "beginning"}, "all events that the warehouse has"),
            ({"start_from": "2026-09-01"}, "from 2026-09-01 on"),
            ({"enabled": False}, "sends nothing until it is enabled"),
            ({"endpoint": "https://x.test/a", "allow_custom_endpoint": True}, "x.test does not belong to Amplitude"),
        ):
            home.one(**more)
            assert said in follows(home.plan())

    @pytest.mark.contract("2.19")
    def test_its_exit_status_says_what_it_found(self, home: Home) -> None:
        home.one()
        assert home.run("plan", FILE).exit_code == 0
        found = home.run("plan", FILE, "--detailed-exitcode", "--json")
        assert found.exit_code == 2
        assert [change["action"] for change in orjson.loads(found.stdout)["changes"]] == ["add"]
        assert home.run("apply", FILE, "--yes").exit_code == 0
        assert home.run("plan", FILE, "--detailed-exitcode").exit_code == 0
        for arguments in (("none.yaml",), (FILE, "--out", "no/such/folder"), (FILE, "--no-such-option"), ()):
            assert home.run("plan", *arguments).exit_code == 2
            assert home.run("plan", *arguments, "--detailed-exitcode").exit_code == 1
        (home.folder / FILE).write_text("version: 1\napps: {}\nx: 1\ny: 2\n")
        wrong = home.run("plan", FILE, "--detailed-exitcode", "--json")
        assert wrong.exit_code == 1
        assert wrong.stderr.splitlines() == [
            f"nami-amp: {FILE}:{line}: unknown field {name}: there are version, name, apps"
            for line, name in ((3, "x"), (4, "y"))
        ]
        assert len(orjson.loads(wrong.stdout)["mistakes"]) == 2

    def test_it_is_shown_to_people(self, home: Home) -> None:
        home.one()
        home.apply()
        home.write(
            {
                "fit": {"plan": "free"},
                "radio": {"integrations": {"main": entry(enabled=False), "new": entry(api_key={"env": "TWO"})}},
            }
        )
        shown = home.run("plan", FILE).stdout
        assert shown.splitlines()[0] == f"{FILE}: 1 to add, 2 to change; 0 unchanged."
        assert "~ app fit\n    plan: paid -> free\n" in shown
        assert "~ radio/main (version 1)\n    enabled: true -> false\n  ! enabled: nothing is sent" in shown
        assert "+ radio/new\n    api_key: from environment variable TWO\n    endpoint: us\n" in shown


class TestApply:
    def test_a_new_integration_begins_now_or_where_the_file_says(self, home: Home) -> None:
        home.write(
            {"radio": {"integrations": {"a": entry(), "b": entry(api_key={"env": "TWO"}, start_from="2026-09-01")}}}
        )
        plan_time = micros(system_clock)
        assert home.apply().count("add") == 2
        a, b = home.operations.integrations()
        assert a.start_from is not None
        assert plan_time <= a.start_from <= a.created_at
        assert b.start_from == 1_788_220_800_000_000
        assert {a.managed_by, b.managed_by} == {FILE}
        (record,) = home.operations.history("radio/a")
        assert (record.by, record.what) == ("ana", {"added": (False, True), "managed_by": (None, FILE)})

    @pytest.mark.contract("2.20")
    def test_all_of_it_or_nothing(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        home.write({"radio": {"integrations": {"a": entry()}}})
        home.apply()
        before = home.contents()
        home.write(
            {
                "radio": {"plan": "free", "integrations": {"a": entry(revenue="net"), "b": entry(), "c": entry()}},
                "fit": {"integrations": {"a": entry(api_key={"keep": True})}},
            }
        )
        said = home.said()
        assert len(said) == 3
        assert [line for line in said if "radio is not on a paid plan" in line]
        assert [line for line in said if "fit.integrations.a.api_key: there is no stored key" in line]
        assert home.contents() == before

        home.write({"radio": {"integrations": {"a": entry(revenue="net"), "b": entry(api_key={"env": "TWO"})}}})
        plan = home.plan()

        def broken(*_args: object, **_more: object) -> str:
            raise OSError("the disk is full")

        monkeypatch.setattr(applying, "insert", broken)
        with pytest.raises(OSError, match="disk is full"):
            home.operations.as_code.apply(plan)
        assert home.contents() == before

    @pytest.mark.contract("2.20")
    def test_two_at_once_do_not_overwrite_each_other(
        self, tmp_path: Path, state_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = Home(tmp_path, monkeypatch, state_url)
        home.one()
        home.apply()
        files = {}
        for revenue in ("net", "none"):
            wanted = {"main": entry(revenue=revenue), f"only-{revenue}": entry(api_key={"env": "TWO"})}
            files[revenue] = home.write({"radio": {"integrations": wanted}}, f"{revenue}.yaml", name=FILE)
        barrier = Barrier(2)

        def apply(revenue: str) -> str:
            with Operations(home.settings, by=revenue) as operations:
                plan = operations.as_code.plan(files[revenue])
                barrier.wait()
                try:
                    operations.as_code.apply(plan)
                except Misconfigured as error:
                    return str(error)
                return revenue

        with ThreadPoolExecutor(2) as pool:
            said = list(pool.map(apply, files))
        home.operations.close()
        (won,) = (text for text in said if text in files)
        (lost,) = (text for text in said if text not in files)
        assert "nothing was changed, because things have moved since the plan: " in lost
        assert f"radio/main has version 2, not 1 (version 2 by {won} at " in lost
        with Operations(home.settings) as operations:
            found = {integration.key: integration.revenue for integration in operations.integrations()}
        assert found == {"radio/main": won, f"radio/only-{won}": "gross"}

    @pytest.mark.contract("2.20")
    @pytest.mark.parametrize("prune", [False, True])
    def test_a_change_that_comes_between_is_not_overwritten(
        self, home: Home, monkeypatch: pytest.MonkeyPatch, prune: bool
    ) -> None:
        home.one()
        home.apply()
        home.write({"radio": {}}) if prune else home.one(revenue="net")
        plan = home.plan(prune=prune)

        def just_changed(tx: Transaction, key: str, *, lock: bool = False) -> Integration | None:
            """What PostgreSQL returns when the row was changed while this transaction waited for it."""
            found = find(tx, key, lock=lock)
            return found and replace(found, version=found.version + 1)

        monkeypatch.setattr(applying, "find", just_changed)
        with pytest.raises(Mistakes, match="radio/main has version 2, not 1"):
            home.operations.as_code.apply(plan)
        assert home.operations.integrations()[0].version == 1

    def test_the_command_asks_first(self, home: Home) -> None:
        home.one()
        asked = home.run("apply", FILE)
        assert asked.exit_code == 2
        assert "give --yes to make 1 change" in one_line(asked.stderr)
        assert "+ radio/main" in asked.stdout
        assert home.run("list", "--json").stdout == '{\n  "integrations": []\n}\n'
        assert "Applied: 1 change made." in home.run("apply", FILE, "--yes").stdout
        again = home.run("apply", FILE)
        assert (again.exit_code, again.stdout) == (0, f"{FILE}: nothing to change; 1 unchanged.\n")
        applied = orjson.loads(home.run("apply", FILE, "--json").stdout)
        assert applied == {"file": FILE, "prune": False, "changes": [], "unchanged": 1, "left": [], "applied": True}

    def test_keys_may_change_places_and_events_may_move(self, home: Home) -> None:
        two = {"api_key": {"env": "TWO"}}
        home.write({"radio": {"integrations": {"a": entry(), "b": entry(**two)}}})
        home.apply()
        home.write({"radio": {"integrations": {"a": entry(**two), "b": entry()}}})
        assert {change.subject for change in home.apply().changes} == {"radio/a", "radio/b"}
        home.write(
            {"radio": {"integrations": {"a": entry(events=["device.*"]), "b": entry(events=["user.journey.*"])}}}
        )
        home.apply()
        home.write(
            {"radio": {"integrations": {"a": entry(events=["user.journey.*"]), "b": entry(events=["device.*"])}}}
        )
        home.apply()
        home.write({"radio": {"integrations": {"a": entry(events=["device.*"]), "b": entry()}}})
        (said,) = home.said()
        assert "has the API key of radio/a: Amplitude keeps one copy of an event that both send. Select other" in said
        home.write({"radio": {"integrations": {"a": entry(events=["device.*"]), "b": entry(allow_shared_key=True)}}})
        assert "has the API key of radio/a" in follows(home.plan(), "radio/b")
        home.apply()
        assert home.plan().changes == ()

    def test_a_lost_encryption_key_is_mended_by_the_file(self, home: Home) -> None:
        home.one()
        home.apply()
        (home.folder / ".nami-amp" / "encryption.key").unlink()
        with Operations(home.settings) as operations:
            assert fields(operations.as_code.plan(home.folder / FILE)) == {
                "api_key": ("set", "from environment variable ONE")
            }

    def test_what_is_halted_stays_so_and_is_told(self, home: Home) -> None:
        home.one()
        home.apply()
        stop(home)
        home.one(api_key={"env": "TWO"})
        done = home.run("apply", FILE, "--yes")
        assert "radio/main is still halted: run 'nami-amp integrations test radio/main', then" in done.stdout
        assert home.run("enable", "radio/main").exit_code == 0
        assert home.operations.integrations()[0].halted_reason is None


def stop(home: Home) -> None:
    """Halts radio/main, as a wrong key does."""
    (main,) = home.operations.integrations(["radio/main"])
    store = Store(home.settings.state_url, lambda: 1.0)
    with store.begin() as tx:
        halt(tx, main.id, "invalid_api_key", 1)
    store.close()


class TestSavedPlans:
    @pytest.fixture
    def saved(self, home: Home) -> Path:
        """A plan that changes radio/main and adds radio/new."""
        home.one()
        home.apply()
        two = entry(api_key={"env": "TWO"}, start_from="beginning")
        home.write({"radio": {"integrations": {"main": entry(revenue="net"), "new": two}}})
        home.operations.as_code.save(home.plan(), home.folder / "plan.json")
        return home.folder / "plan.json"

    def test_it_is_applied_as_it_is_and_once(self, home: Home, saved: Path) -> None:
        first = saved.read_bytes()
        home.operations.as_code.save(home.plan(), saved)
        assert saved.read_bytes() == first, "the same plan is the same file"
        (home.folder / FILE).unlink()
        done = home.run("apply", "plan.json")
        assert done.exit_code == 0, done.output
        assert "Applied: 2 changes made." in done.stdout
        assert {one.key: one.revenue for one in home.operations.integrations()} == {
            "radio/main": "net", "radio/new": "gross",
        }  # fmt: skip
        again = home.run("apply", "plan.json")
        assert again.exit_code == 2
        assert "radio/main has version 2, not 1 (version 2 by " in one_line(again.stderr)
        assert "radio/new was added by somebody else" in again.stderr

    @pytest.mark.contract("2.20")
    @pytest.mark.parametrize("moved", ["changed", "added", "gone", "key", "plan", "disabled by release"])
    def test_nothing_is_applied_if_anything_moved(
        self, home: Home, saved: Path, moved: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operations = home.operations
        if moved != "key":
            operations.as_code.release("radio/main")
        said = "radio/main has version 2, not 1 (version 2 by ana at "
        if moved == "changed":
            operations.change("radio/main", IntegrationChange(sandbox="skip"))
            said = "radio/main has version 3, not 1 ("
        elif moved == "added":
            operations.add(NewIntegration("radio", "new", "us", Secret(KEYS["THREE"])))
            said = "radio/new was added by somebody else"
        elif moved == "gone":
            operations.remove("radio/main")
            said = "radio/main is gone"
        elif moved == "key":
            monkeypatch.setenv("TWO", KEYS["THREE"])
            said = "the api_key of radio/new is another one now"
        before = home.contents()
        with pytest.raises(Misconfigured) as refused:
            operations.as_code.apply_saved(saved)
        assert said in str(refused.value)
        assert home.contents() == before

    def test_the_plan_of_an_app_counts_too(self, home: Home) -> None:
        home.write({"radio": {"plan": "free"}})
        home.operations.as_code.save(home.plan(), home.folder / "plan.json")
        home.operations.set_plan("radio", "free")
        with pytest.raises(Misconfigured, match="the store has changed since"):
            home.operations.as_code.apply_saved(home.folder / "plan.json")

    @pytest.mark.parametrize("damage", ["edited", "cut", "no seal", "another version", "another installation"])
    def test_a_plan_that_was_not_made_here_is_told(
        self, home: Home, saved: Path, damage: str, tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        text = saved.read_text()
        saved.write_text(
            {
                "edited": text.replace('"net"', '"none"'),
                "cut": text[: len(text) // 2],
                "no seal": text.replace('"seal"', '"sael"'),
                "another version": text.replace("integrations plan 1", "integrations plan 9"),
                "another installation": text,
            }[damage]
        )
        where = home
        if damage == "another installation":
            where = Home(tmp_path_factory.mktemp("other"), monkeypatch)
            where.operations.add(NewIntegration("radio", "main", "us", Secret(KEYS["ONE"])))
        before = where.contents()
        with pytest.raises(Misconfigured, match="plan again"):
            where.operations.as_code.apply_saved(saved)
        assert where.contents() == before
        where.operations.close()

    def test_it_overwrites_nothing_but_a_plan(self, home: Home, saved: Path) -> None:
        before = (home.folder / FILE).read_bytes()
        done = home.run("plan", FILE, "--out", FILE)
        assert done.exit_code == 2
        assert f"{FILE} exists and is no plan" in one_line(done.stderr)
        assert (home.folder / FILE).read_bytes() == before
        assert home.run("plan", FILE, "--out", str(saved)).exit_code == 0

    def test_it_says_by_itself_whether_it_prunes(self, home: Home, saved: Path) -> None:
        assert saved.exists()
        home.write({"radio": {}})
        assert home.run("plan", FILE, "--prune", "--out", "plan.json").exit_code == 0
        said = home.run("apply", "plan.json", "--prune")
        assert said.exit_code == 2
        assert "give --prune to 'plan'" in one_line(said.stderr)
        assert home.run("apply", "plan.json").exit_code == 0
        assert not home.operations.integrations()[0].enabled


class TestManaged:
    @pytest.mark.contract("2.22")
    def test_what_a_file_manages_is_changed_nowhere_else(self, home: Home) -> None:
        home.one()
        home.apply()
        before = home.contents()
        for arguments in (
            ("update", "radio/main", "--events", "device.*"), ("update", "radio/main", "--enabled"),
            ("disable", "radio/main"), ("remove", "radio/main", "--yes"),
        ):  # fmt: skip
            done = home.run(*arguments)
            assert done.exit_code == 2, done.output
            assert one_line(done.stderr) == (
                f"nami-amp: radio/main is managed by {FILE}: change it there, or end that with "
                "'nami-amp integrations release radio/main'\n"
            )
        operations = home.operations
        for act in (
            lambda: operations.change("radio/main", IntegrationChange(sandbox="skip")),
            lambda: operations.disable("radio/main"),
            lambda: operations.remove("radio/main"),
        ):
            with pytest.raises(Misconfigured, match=f"is managed by {FILE}"):
                act()
        assert {name: rows for name, rows in home.contents().items() if name != "leases"} == {
            name: rows for name, rows in before.items() if name != "leases"
        }
        assert f"Managed by\t{FILE}\n" in home.run("show", "radio/main").stdout
        assert f"\t{FILE}\n" in home.run("list").stdout

    @pytest.mark.contract("2.22")
    def test_a_halt_can_be_ended_by_hand_but_what_the_file_disables_stays_off(self, home: Home) -> None:
        home.one()
        home.apply()
        stop(home)
        assert home.operations.enable("radio/main").halted_reason is None
        home.one(enabled=False)
        home.apply()
        with pytest.raises(Misconfigured, match="is managed by"):
            home.operations.enable("radio/main")

    @pytest.mark.contract("2.22")
    def test_release_ends_it(self, home: Home) -> None:
        home.one()
        home.apply()
        assert home.run("release", "radio/main").stdout == f"radio/main is no longer managed by {FILE}.\n"
        assert home.run("release", "radio/main").stdout == "radio/main is managed by no file.\n"
        assert home.run("disable", "radio/main").exit_code == 0
        assert [list(record.what) for record in home.operations.history("radio/main")] == [
            ["added", "managed_by"], ["managed_by"], ["enabled"],
        ]  # fmt: skip
        assert fields(home.plan()) == {"enabled": (False, True), "managed_by": (None, FILE)}
        done = home.run("release", "radio/none")
        assert done.exit_code == 2
        assert "there is no integration radio/none" in one_line(done.stderr)

    def test_a_file_takes_nothing_from_another_file(self, home: Home) -> None:
        home.one()
        home.apply()
        home.write({"radio": {"integrations": {"main": entry()}}}, "other.yaml")
        (said,) = home.said("other.yaml")
        assert f"other.yaml:4: apps.radio.integrations.main: radio/main is managed by {FILE}" in said
        home.write({"radio": {"integrations": {"main": entry()}}}, "moved.yaml", name=FILE)
        assert home.plan("moved.yaml").changes == ()

    def test_two_files_of_one_name_are_two_files(self, home: Home) -> None:
        for folder, key in (("radio", "ONE"), ("tv", "TWO")):
            (home.folder / folder).mkdir()
            home.write({folder: {"integrations": {"main": entry(api_key={"env": key})}}}, f"{folder}/{FILE}")
            done = home.run("apply", f"{folder}/{FILE}", "--prune", "--yes")
            assert done.exit_code == 0, done.output
        managed = {one.key: (one.managed_by, one.enabled) for one in home.operations.integrations()}
        assert managed == {"radio/main": (f"radio/{FILE}", True), "tv/main": (f"tv/{FILE}", True)}
        home.write({"tv": {"integrations": {"main": entry(api_key={"env": "TWO"})}}}, FILE)
        (said,) = home.said()
        assert f"tv/main is managed by tv/{FILE}" in said

    def test_a_file_of_another_folder_has_its_name_only(
        self, home: Home, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "those.yaml"
        home.one().rename(elsewhere)
        assert home.operations.as_code.plan(elsewhere).given.name == "those.yaml"

    @pytest.mark.contract("2.23")
    def test_what_is_no_longer_in_the_file_stays_without_prune(self, home: Home) -> None:
        home.write({"radio": {"integrations": {"main": entry(), "old": entry(api_key={"env": "TWO"})}}})
        home.apply()
        home.operations.add(NewIntegration("radio", "by-hand", "us", Secret(KEYS["THREE"])))
        home.one()
        plan = home.plan()
        assert (plan.changes, plan.left) == ((), ("radio/old",))
        assert home.run("plan", FILE, "--detailed-exitcode").exit_code == 0
        assert "radio/old is managed by" in home.run("plan", FILE).stdout
        home.apply()
        assert all(integration.enabled for integration in home.operations.integrations())
        pruned = home.apply(prune=True)
        assert [(change.subject, change.action) for change in pruned.changes] == [("radio/old", "switch off")]
        assert fields(pruned, "radio/old") == {"enabled": (True, False), "managed_by": (FILE, None)}
        assert {one.key: (one.enabled, one.managed_by) for one in home.operations.integrations()} == {
            "radio/by-hand": (True, None), "radio/main": (True, FILE), "radio/old": (False, None),
        }  # fmt: skip
        assert home.plan(prune=True).changes == ()


class TestStart:
    def test_it_moves_back_only_where_nothing_was_captured(self, home: Home) -> None:
        home.one()
        home.apply()
        home.one(start_from="beginning")
        home.apply()
        assert home.operations.integrations()[0].start_from is None
        home.one(start_from="2026-09-01")
        home.apply()
        (main,) = home.operations.integrations()
        store = Store(home.settings.state_url, lambda: 1.0)
        with store.begin() as tx:
            store.count(tx, main.id, "captured", 1)
        store.close()
        home.one(start_from="beginning")
        assert "has events already, so its start can only move to a later time" in home.said()[0]

    def test_not_while_a_run_works_for_it(self, home: Home) -> None:
        home.one()
        home.apply()
        home.one(start_from="beginning")
        plan = home.plan()
        other = Store(home.settings.state_url, lambda: 9e9, owner="elsewhere:1:x")
        lease = other.acquire([f"integration:{home.operations.integrations()[0].id}"])
        before = home.contents()["integrations"]
        with pytest.raises(Busy, match="apply the file when it has ended"):
            home.operations.as_code.apply(plan)
        assert home.contents()["integrations"] == before
        other.release(lease.values())
        other.close()
        home.operations.as_code.apply(plan)


def anything(chance: random.Random, number: int) -> NewIntegration:
    """An integration with settings of any kind."""
    some = chance.sample(contract.event_type_names(), 3)
    hidden = chance.sample(["sku", "locale", "app_env", "yes", "0123", "a: b", "Été"], 4)
    url, custom = chance.choice([("us", False), ("eu", False), ("https://x.test/2/httpapi", True)])
    return NewIntegration(
        chance.choice(["radio", "7.5", "no", "0123", "a.b-c_d"]),
        f"{chance.choice(['main', 'null', '1_0', 'on'])}-{number}",
        url,
        Secret(f"api-key-{number}-0123456789"),
        secret_key=chance.choice([None, Secret(f"secret-{number}-0123456789")]),
        user_id_kind=chance.choice(contract.USER_ID_KINDS),
        anonymous=chance.choice(contract.ANONYMOUS_POLICIES),
        events=chance.choice([["all"], some, ["user.subscription.*", some[0]]]),
        rename={name: chance.choice(["Bought: it", "true", "12", "Été #1", " x "]) for name in some[:2]},
        start_from=chance.choice([None, 1_788_220_800_000_001, -1_000_000]),
        enabled=chance.random() < 0.7,
        sandbox=chance.choice(contract.SANDBOX_POLICIES),
        exclude=hidden[:2],
        hashed=hidden[2:],
        revenue=chance.choice(contract.REVENUE_KINDS),
        store_fees=chance.choice([{}, {"apple": 0.15, "yes": 1.0}]),
        allow_custom_endpoint=custom,
    )


class TestExport:
    @pytest.mark.contract("2.17")
    @pytest.mark.parametrize("seed", range(3))
    def test_what_is_exported_changes_nothing_but_who_manages_it(
        self, home: Home, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chance = random.Random(seed)
        for number in range(8):
            home.operations.add(anything(chance, number))
        (home.folder / FILE).write_text(as_yaml(home.operations.as_code.export()), "utf-8")
        with pytest.raises(Mistakes, match=r"environment variable .* is not set"):
            home.plan()
        before = {one.key: one for one in home.operations.integrations()}
        for app, content in yaml.safe_load((home.folder / FILE).read_text("utf-8"))["apps"].items():
            for name, settings in content["integrations"].items():
                number = name.rpartition("-")[2]
                assert before[f"{app}/{name}"]
                monkeypatch.setenv(settings["api_key"]["env"], f"api-key-{number}-0123456789")
                if "secret_key" in settings:
                    monkeypatch.setenv(settings["secret_key"]["env"], f"secret-{number}-0123456789")
        plan = home.apply()
        assert len(plan.changes) == 8
        assert all([field.name for field in change.fields] == ["managed_by"] for change in plan.changes)
        assert home.plan().changes == ()

    def test_variables_are_named_once(self, home: Home) -> None:
        for number, (app, name) in enumerate((("a.b", "c"), ("a-b", "c"), ("7", "c"), ("-", "_"))):
            home.operations.add(NewIntegration(app, name, "us", Secret(f"key-{number}-0123456789")))
        apps = home.operations.as_code.export()["apps"]
        assert [apps[app]["integrations"][name]["api_key"]["env"] for app, name in (
            ("-", "_"), ("7", "c"), ("a-b", "c"), ("a.b", "c")
        )] == ["APP_API_KEY", "APP_7_C_API_KEY", "A_B_C_API_KEY", "A_B_C_API_KEY_2"]  # fmt: skip

    def test_the_command_writes_a_file_and_overwrites_none(self, home: Home) -> None:
        assert home.run("export").stdout.endswith("version: 1\napps: {}\n")
        home.operations.add(NewIntegration("radio", "main", "us", Secret(KEYS["ONE"])))
        home.operations.add(NewIntegration("fit", "main", "us", Secret(KEYS["ONE"])))
        home.operations.add(NewIntegration("fit", "twin", "us", Secret(KEYS["ONE"]), allow_shared_key=True))
        home.operations.set_plan("rest", "free")
        assert home.run("export", "out.yaml").stdout == "out.yaml written.\n"
        again = home.run("export", "out.yaml")
        assert again.exit_code == 2
        assert "--overwrite" in one_line(again.stderr)
        assert home.run("export", "out.yaml", "--overwrite").exit_code == 0
        found = yaml.safe_load((home.folder / "out.yaml").read_text())
        assert found == orjson.loads(home.run("export", "--json").stdout)
        assert found["apps"]["rest"] == {"plan": "free"}
        assert found["apps"]["fit"]["integrations"]["twin"]["allow_shared_key"] is True
        assert list(orjson.loads(home.run("export", "--app", "fit", "--json").stdout)["apps"]) == ["fit"]
        unknown = home.run("export", "--app", "ft")
        assert "there is no app ft: did you mean fit?" in one_line(unknown.stderr)


def test_the_plan_of_an_app(home: Home) -> None:
    home.write({"radio": {"plan": "paid"}, "fit": {}})
    assert home.apply().changes == ()
    home.write({"radio": {"plan": "free"}})
    plan = home.apply()
    assert fields(plan, "radio") == {"plan": ("paid", "free")}
    assert "those that are enabled stay so" in follows(plan, "radio")
    assert {app.app_id: app.plan for app in home.operations.apps()} == {"radio": "free"}
    home.write({"radio": {"plan": "paid", "integrations": {"main": entry()}}})
    assert [change.action for change in home.apply().changes] == ["set plan", "add"]


@pytest.mark.contract("2.4", "2.18")
@pytest.mark.slow
def test_no_key_is_in_anything_that_is_said_or_written(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    key_file = home.folder / "key.txt"
    key_file.write_text(KEYS["TWO"])
    said: list[str] = []

    def run(*arguments: str, **settings: str) -> None:
        for more in ((), ("--json",)):
            done = home.run(*arguments, *more, **settings)
            said.extend((done.output, repr(done.exception)))

    home.one(secret_key={"file": "key.txt"})
    run("plan", FILE, "--out", "plan.json")
    run("apply", "plan.json")
    run("apply", "plan.json")
    home.one(api_key={"env": "THREE"}, secret_key={"env": "ONE"})
    run("plan", FILE, "--out", "plan-2.json")
    run("apply", FILE, "--yes", "--prune")
    run("export")
    run("history", "radio/main")
    for wrong in (
        {"api_key": KEYS["ONE"]}, {"api_key": {"env": KEYS["ONE"]}}, {"api_key": {"file": KEYS["ONE"]}},
        {"api_key": {"file": f"./{KEYS['ONE']}"}}, {KEYS["ONE"]: 1}, {"events": [KEYS["ONE"]]},
        {"endpoint": KEYS["ONE"]}, {"api_key": {"env": "TWO_WORDS"}}, {"api_key": {KEYS["ONE"]: 1}},
    ):  # fmt: skip
        home.one(**wrong)
        run("plan", FILE, TWO_WORDS=f"{KEYS['ONE']} {KEYS['TWO']}")
        run("apply", FILE, "--yes")
    (home.folder / FILE).unlink()
    key_file.unlink()
    files = b"".join(path.read_bytes() for path in home.folder.rglob("*") if path.is_file()).decode("latin-1")
    everything = "".join(said) + files + caplog.text
    assert "radio/main" in everything
    assert "Traceback" not in everything
    for key in KEYS.values():
        for start in range(len(key) - 9):
            assert key[start : start + 10] not in everything, key[start : start + 10]


@pytest.mark.slow
def test_the_recipe_for_ci_plans_and_applies(home: Home) -> None:
    page = (Path(__file__).parents[1] / "docs" / "integrations-as-code.md").read_text()
    (recipe,) = re.findall(r"```yaml\n(name: integrations\n.*?)```", page, re.DOTALL)
    steps = {step.get("name"): step["run"] for step in yaml.safe_load(recipe)["jobs"]["integrations"]["steps"][1:]}

    def step(name: str) -> subprocess.CompletedProcess[str]:
        """A step as a runner runs it, with ``shell: bash``."""
        (home.folder / "output").write_text("")
        where = {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary"}
        wanted = environment(home.folder, **KEYS, **where)
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", steps[name]], cwd=home.folder, text=True,
            env={**wanted, "PATH": f"{PROGRAM.parent}:{wanted['PATH']}"}, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    home.one()
    planned = step("Plan")
    assert planned.returncode == 0, planned.stderr
    assert (home.folder / "output").read_text() == "status=2\n"
    assert "+ radio/main" in (home.folder / "summary").read_text()
    assert step("Apply").returncode == 0
    assert step("Plan").returncode == 0
    assert (home.folder / "output").read_text() == "status=0\n"
    home.one(evnts=["all"])
    failed = step("Plan")
    assert failed.returncode == 1
    assert "unknown field evnts: did you mean events?" in failed.stderr
