"""Destinations of other packages: how they come, what is said of those that cannot be used, and bodies of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
import sqlalchemy as sa

from nami_amp_pipeline import destinations
from nami_amp_pipeline.defs.component import NamiAmplitude
from nami_amp_pipeline.destinations import DESTINATIONS, destination_of
from nami_amp_pipeline.errors import Misconfigured, NamiAmpError
from nami_amp_pipeline.http_endpoint.target import HttpEndpoint
from nami_amp_pipeline.operations.dead_letters import Filter, retry
from nami_amp_pipeline.operations.preview import preview
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages.encoding import COLUMNS
from nami_amp_pipeline.stages.pipeline import run_stage
from nami_amp_pipeline.stages.table import PREPARE
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import NewIntegration, add, all_integrations
from nami_amp_pipeline.testing.workbench import Workbench
from nami_amp_pipeline_tests.support.command_line import invoke, one_line

GOOD = "from nami_amp_pipeline.delivery.json_destination import JsonDestination\n"
MINE = GOOD + "class Mine(JsonDestination):\n    name = 'mine'\n    title = 'mine'\nMINE = Mine()\n"


# -- how they come -----------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a test installs packages."""
    monkeypatch.syspath_prepend(str(tmp_path))
    destinations._added.cache_clear()
    known = dict(DESTINATIONS._loaded)
    yield tmp_path
    destinations._added.cache_clear()
    DESTINATIONS._loaded.clear()
    DESTINATIONS._loaded.update(known)


def install(site: Path, package: str, points: str, source: str) -> None:
    (site / f"{package}.py").write_text(source)
    info = site / f"{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[nami_amp_pipeline.destinations]\n{points}\n")


@pytest.mark.contract("2.24")
@pytest.mark.parametrize("what", ["MINE", "Mine"])
def test_a_package_adds_one_by_entry_point(site: Path, what: str) -> None:
    install(site, "good_" + what.lower(), f"mine = good_{what.lower()}:{what}", MINE)
    assert destination_of("mine").title == "mine"
    assert list(DESTINATIONS)[:2] == ["amplitude", "http"]
    assert "mine" in DESTINATIONS


@pytest.mark.parametrize(
    ("point", "source", "said"),
    [
        ("mine = bad_a:NONE", MINE, "cannot be loaded from bad_a:NONE: AttributeError"),
        ("mine = bad_b:MINE", "import there_is_no_such_module", "ModuleNotFoundError"),
        ("mine = bad_c:MINE", "1 / 0", "ZeroDivisionError"),
        ("mine = bad_d:MINE", "MINE = 3", "is no destination: it has no name, title, fields, limits, judge, frame"),
        ("mine = bad_e:Mine", MINE.replace("'mine'", "'other'"), "calls itself other, but its entry point mine"),
    ],
)
def test_one_that_cannot_be_used_says_why_in_a_line(site: Path, point: str, source: str, said: str) -> None:
    install(site, point.partition(" = ")[2].partition(":")[0], point, source)
    with pytest.raises(Misconfigured) as error:
        destination_of("mine")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    install(site, "first_mine", "mine = first_mine:MINE", MINE)
    install(site, "second_mine", "mine = second_mine:MINE", MINE)
    with pytest.raises(Misconfigured, match="several packages add the destination mine: first_mine, second_mine"):
        destination_of("mine")


def test_ours_cannot_be_replaced_by_a_package(site: Path) -> None:
    install(site, "other_http", "http = other_http:MINE", MINE.replace("'mine'", "'http'"))
    assert type(destination_of("http")).__name__ == "HttpEndpoint"


def test_a_command_shows_those_that_there_are(site: Path, tmp_path: Path) -> None:
    shown = invoke(tmp_path, "integrations", "destinations")
    assert shown.exit_code == 0
    assert "signing secret: Batches are signed with it" in shown.stdout
    install(site, "mine_too", "mine = mine_too:MINE", MINE)
    install(site, "broken_one", "broken = broken_one:MINE", "1 / 0")
    done = invoke(tmp_path, "integrations", "destinations", "--json")
    assert done.exit_code == 1
    found = {row["destination"]: row for row in orjson.loads(done.stdout)["destinations"]}
    assert list(found) == ["amplitude", "http", "mine"]
    assert found["amplitude"]["abilities"] == ["identify", "reconcile"]
    assert found["http"]["answers"]["429"] == "again"
    assert found["http"]["limits"]["events"] == 2_000
    assert [field["name"] for field in found["http"]["fields"] if field["is_secret"]] == ["api_key", "auth_value"]
    assert "the destination broken cannot be loaded" in one_line(done.stderr)


def test_an_unknown_one_is_told_with_those_that_there_are() -> None:
    with pytest.raises(Misconfigured, match="unknown destination 'pigeon': there are amplitude, http; another one"):
        destination_of("pigeon")


@pytest.mark.contract("2.24")
def test_a_setting_and_the_component_name_what_no_package_adds(site: Path, tmp_path: Path) -> None:
    (site / "my_place.py").write_text(MINE)
    add_it = (
        "integrations", "add", "radio", "shop", "--destination", "mine", "--endpoint", "https://mine.test/",
        "--api-key-env", "KEY",
    )  # fmt: skip
    unknown = one_line(invoke(tmp_path, *add_it).stderr)
    assert "another one needs the package that adds it, or NAMI_AMP_EXTENSIONS" in unknown
    done = invoke(tmp_path, *add_it, settings={"NAMI_AMP_EXTENSIONS": "my_place:Mine, my_place:MINE"})
    assert done.exit_code == 0, done.output
    del DESTINATIONS["mine"]
    listed = invoke(tmp_path, "integrations", "destinations", settings={"NAMI_AMP_EXTENSIONS": "my_place:Mine"})
    assert "mine" in listed.stdout
    del DESTINATIONS["mine"]
    NamiAmplitude(destinations=["my_place:MINE"]).definitions()
    assert destination_of("mine").title == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_place:NONE", "the destination my_place:NONE cannot be loaded: AttributeError"),
        ("my_place:THREE", "my_place:THREE is no destination"),
        ("my_place:HALF", "my_place:HALF is no destination: it has no title, fields, limits, frame"),
        ("my_place:OTHER", "my_place:OTHER calls itself http, as a destination that ships does"),
        ("my_place:STIFF", "has fields of its own, but no with_fields"),
    ],
)
def test_what_a_component_names_wrongly_is_told_in_one_line(site: Path, name: str, said: str) -> None:
    (site / "my_place.py").write_text(
        f"{MINE}THREE = 3\nclass HALF:\n    name = 'half'\n    judge = frame = None\ndel HALF.frame\n"
        "class OTHER(JsonDestination):\n    name = title = 'http'\n"
        "class Own:\n    name = 'x'\nclass STIFF(HALF):\n    name = title = 'stiff'\n"
        "    limits = frame = None\n    fields = (Own(),)\n"
    )
    sys.modules.pop("my_place", None)
    with pytest.raises(Misconfigured) as error:
        NamiAmplitude(destinations=[name]).definitions()
    assert said in one_line(f"nami-amp: {error.value}\n")


def test_the_registry_is_light_to_import() -> None:
    code = (
        "import sys\nfrom nami_amp_pipeline.destinations import DESTINATIONS\nlist(DESTINATIONS)\n"
        "print([name for name in ('requests', 'pyarrow', 'duckdb', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- bodies of their own form ------------------------------------------------------------------------------------------


class Short(HttpEndpoint):
    """Its events have a key, a time and a type."""

    name = "short"
    title = "short"
    seen: list[Any]

    def bodies(self, events: pa.RecordBatch) -> pa.Array:
        self.seen.append(events.schema.names)
        return pa.array([self.one_body(row) for row in events.to_pylist()])

    def one_body(self, row: dict[str, Any]) -> str:
        event = orjson.loads(row["body"])
        assert event["insert_id"] == row["id"]
        assert row["identity"] == f"u:{event['user_id']}"
        return orjson.dumps({"key": row["id"], "kind": row["event_type"], "late": "$skip" in row["body"]}).decode()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Short:
    short = Short()
    short.seen = []
    monkeypatch.setitem(DESTINATIONS, "short", short)
    return short


def integration(name: str = "main", **more: Any) -> NewIntegration:
    return NewIntegration(
        "app", name, "https://short.test/", Secret("0" * 32), destination="short",
        **{"user_id_kind": "nami_user_id", **more},
    )  # fmt: skip


@pytest.fixture
def bench(short: Short) -> Iterator[Workbench]:
    bench = Workbench(integration=integration())
    yield bench
    bench.close()


def skipped_and_dead(bench: Workbench) -> dict[str, str]:
    table = tables.exceptions
    with bench.context.store.reading() as tx:
        return dict(tx.execute(sa.select(table.c.event_id, table.c.reason)).tuples().all())


@pytest.mark.contract("5.7.4")
def test_its_bodies_are_in_outboxes_and_in_previews(bench: Workbench, short: Short) -> None:
    bench.load("a", {})
    assert preview(bench.context, "app/main", 5) == []
    bench.prepare()
    wanted = '{"key":"a","kind":"user.subscription.renewed","late":false}'
    assert bench.bodies() == {"a": wanted}
    assert preview(bench.context, "app/main", 5) == [wanted]
    assert short.seen[0] == list(COLUMNS)


@pytest.mark.slow
def test_a_body_sees_that_its_event_is_history(bench: Workbench) -> None:
    bench.load("new", {}, minutes=10)
    bench.prepare()
    bench.load("old", {}, minutes=5)
    bench.prepare()
    assert [orjson.loads(body)["late"] for body in bench.bodies().values()] == [False, True]


@pytest.mark.contract("5.7.4")
@pytest.mark.slow
def test_an_event_that_it_cannot_encode_is_a_dead_letter(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Short.one_body

    def picky(self: Short, row: dict[str, Any]) -> str:
        if row["id"] in ("b", "d"):
            raise KeyError("sku")
        return whole(self, row)

    monkeypatch.setattr(Short, "one_body", picky)
    for number, ident in enumerate("abcde"):
        bench.load(ident, {}, minutes=number)
    bench.prepare()
    assert bench.bodies().keys() == {"a", "c", "e"}
    assert skipped_and_dead(bench) == {"b": "odd_row", "d": "odd_row"}


@pytest.mark.contract("5.7.4")
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda _self, events: 1 / 0, "ZeroDivisionError"),
        (lambda _self, events: pa.array(["{}"] * (len(events) - 1)), "must give an Arrow array with a text for each"),
        (lambda _self, events: ["{}"] * len(events), "must give an Arrow array with a text for each"),
        (lambda _self, events: pa.nulls(len(events), pa.string()), "must give an Arrow array with a text for each"),
        (lambda _self, events: pa.array(["{"] * len(events)), "must give texts of JSON"),
        (lambda _self, events: pa.array([b"\xff"] * len(events)), "must give texts of JSON"),
    ],
)
@pytest.mark.slow
def test_one_that_encodes_nothing_keeps_nobody_else_waiting(
    broken: Any, said: str, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(bench.context.store, bench.context.cipher, NewIntegration(
        "app", "second", "us", Secret("1" * 32), user_id_kind="nami_user_id", start_from=None
    ))  # fmt: skip
    events = 22 if said == "ZeroDivisionError" else 2  # more than are set aside
    for number in range(events):
        bench.load(f"e{number}", {}, minutes=number)
    monkeypatch.setattr(Short, "bodies", broken)
    failures: dict[str, NamiAmpError] = {}
    bench.prepare(lambda subject, error: failures.update({getattr(subject, "key", ""): error}))
    assert failures.keys() == {"app/main"}
    assert said in str(failures["app/main"])
    assert len(bench.bodies()) == events, "of the second"
    assert skipped_and_dead(bench) == {}
    monkeypatch.undo()
    monkeypatch.setitem(DESTINATIONS, "short", Short())
    Short.seen = []
    run_stage(bench.context, PREPARE, all_integrations(bench.context.store))
    assert {body[:8] for body in bench.bodies().values()} == {'{"key":"'}, "nothing was lost"


def test_without_its_package_its_events_wait(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.load("a", {})
    monkeypatch.delitem(DESTINATIONS, "short")
    failures: dict[str, NamiAmpError] = {}
    bench.prepare(lambda subject, error: failures.update({getattr(subject, "key", ""): error}))
    assert "app/main: unknown destination 'short'" in str(failures["app/main"])
    assert bench.bodies() == {}


@pytest.mark.slow
def test_what_waited_for_a_login_is_turned_when_it_is_released(short: Short) -> None:
    bench = Workbench(integration=integration(user_id_kind="external_id", anonymous="wait_for_login"))
    try:
        bench.load("a", {})
        bench.prepare()
        assert bench.bodies() == {}
        bench.load("b", {"external_ids": [{"key": "external_id", "type": "string", "value": "bo"}]}, minutes=1)
        bench.prepare()
        assert {ident: orjson.loads(body)["key"] for ident, body in bench.bodies().items()} == {"a": "a", "b": "b"}
    finally:
        bench.close()


def test_a_person_may_send_again_for_as_long_as_it_recognises_a_repeat(
    bench: Workbench, short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short, "most", replace(short.most, recognises_repeats=timedelta(days=1)))
    table, store = tables.exceptions, bench.context.store
    bench.load("a", {})
    bench.prepare()
    (main,) = all_integrations(store)
    values = {
        "integration_id": main.id, "state": "dead", "reason": "rejected", "event_id": "a", "event_type": "t",
        "user_id": "u", "identity": "u:u", "created_date": 0, "body": ',{"key":"a"}', "at": bench.context.now(),
        "run_id": "r",
    }  # fmt: skip
    with store.begin() as tx:
        tx.execute(sa.insert(table).values(**values))
    bench.now += timedelta(days=2)
    assert retry(store, Filter()).retried == 0
    bench.now -= timedelta(days=2)
    assert retry(store, Filter()).retried == 1
