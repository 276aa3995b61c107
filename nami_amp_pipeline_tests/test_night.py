"""At three in the morning each question is answered by one command, and no two commands disagree."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from nami_amp_pipeline.alerts.conditions import conditions
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.pending import pending
from nami_amp_pipeline.operations.standing import standings
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.command_line import one_line
from nami_amp_pipeline_tests.support.night import REJECTED, Night, night

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bad_night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    with night(tmp_path_factory.mktemp("night")) as scene:
        scene.fall()
        assert scene.run("run").exit_code == 1
        yield scene


def rows(text: str) -> list[dict[str, str]]:
    """The table of a command in a pipe."""
    lines = [line for line in text.splitlines() if "\t" in line]
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_what_is_wrong_since_when_and_what_do_i_do(bad_night: Night) -> None:
    done = bad_night.run("status")
    assert done.stdout.splitlines()[0] == "2 of 4 integrations need you."
    assert done.exit_code == 0
    by_name = {row["Integration"]: row for row in rows(done.stdout)}
    states = {name: (row["State"], row["Needs you"]) for name, row in by_name.items()}
    assert states == {
        "radio/fussy": (f"delivering, {REJECTED} rejected", "yes"),
        "radio/outage": ("unreachable", "no"),
        "radio/slow": ("throttled", "no"),
        "radio/wrong": ("halted", "yes"),
    }
    assert all(row["Since"].endswith("Z") for row in by_name.values())
    assert by_name["radio/wrong"]["Why"] == "Amplitude does not know the API key at this endpoint"
    assert "nami-amp integrations enable radio/wrong" in by_name["radio/wrong"]["What to do"]
    assert "event_properties is invalid" in by_name["radio/fussy"]["Why"]
    assert "nami-amp dead-letters retry --integration radio/fussy" in by_name["radio/fussy"]["What to do"]
    assert by_name["radio/outage"]["Next try"].endswith("Z")
    assert by_name["radio/wrong"]["Next try"] == ""
    assert (by_name["radio/outage"]["Whose"], by_name["radio/slow"]["Whose"]) == ("ana, bo, cy", "bo")
    assert bad_night.run("status", "--check").exit_code == 1
    assert bad_night.run("status", "--check", "radio/slow").exit_code == 0


def test_whose_events_wait_why_and_until_when(bad_night: Night) -> None:
    found = rows(bad_night.run("pending", "list").stdout)
    waits = {(row["Integration"], row["User"]): row for row in found}
    assert {key[0] for key in waits} == {"radio/outage", "radio/slow", "radio/wrong"}
    assert waits["radio/wrong", "ana"]["Events"] == str(REJECTED)
    assert waits["radio/wrong", "ana"]["Why"].startswith("halted: ")
    assert waits["radio/wrong", "ana"]["Until"] == ""
    assert [user for key, user in waits if key == "radio/slow"] == ["bo"]
    assert "throttles the user" in waits["radio/slow", "bo"]["Why"]
    assert waits["radio/slow", "bo"]["Until"] > waits["radio/slow", "bo"]["Oldest created"]
    only = rows(bad_night.run("pending", "list", "--user", "nami-bo", "--integration", "radio/slow").stdout)
    assert [row["Nami user"] for row in only] == ["nami-bo"]
    assert "Nothing of zoe" in bad_night.run("pending", "list", "--user", "zoe").stdout


@pytest.mark.parametrize(
    ("event", "status", "words"),
    [
        ("event-1", 4, {"fussy": "rejected", "outage": "waits", "slow": "arrived", "wrong": "waits"}),
        ("event-100", 3, {"fussy": "arrived", "outage": "waits", "slow": "waits", "wrong": "waits"}),
        ("event-101", 3, {"fussy": "arrived", "outage": "waits", "slow": "arrived", "wrong": "waits"}),
    ],
)
def test_did_it_arrive(bad_night: Night, event: str, status: int, words: dict[str, str]) -> None:
    done = bad_night.run("trace", event)
    assert done.exit_code == status
    assert {row["Integration"].removeprefix("radio/"): row["Verdict"] for row in rows(done.stdout)} == words


def test_a_rejected_event_shows_the_field_that_amplitude_named(bad_night: Night) -> None:
    (row,) = [row for row in rows(bad_night.run("trace", "event-7").stdout) if row["Verdict"] == "rejected"]
    assert 'event_properties is invalid: {"mark":"bad"' in row["Why"]
    number = row["What to do"].partition("dead-letters show ")[2].partition("'")[0]
    shown = bad_night.run("dead-letters", "show", number)
    assert "event-7" in shown.stdout
    assert "Field\tevent_properties is invalid" in shown.stdout
    assert f"Do\tRepair its cause, then send it again with 'nami-amp dead-letters retry {number}'" in shown.stdout
    letter = orjson.loads(bad_night.run("dead-letters", "show", number, "--json").stdout)
    assert [field["field"] for field in letter["fields"]] == ["event_properties"]
    assert orjson.loads(letter["answer"])["events_with_invalid_fields"] == ["event_properties"]


@pytest.mark.parametrize("user", ["bo", "nami-bo"])
def test_did_the_events_of_a_user_arrive(bad_night: Night, user: str) -> None:
    done = bad_night.run("trace", user)
    assert done.exit_code == 3
    found = rows(done.stdout)
    assert {row["Event"] for row in found} == {"event-100"}
    assert [row["Verdict"] for row in found if row["Integration"] == "radio/slow"] == ["waits"]
    assert all("integrations enable" in row["What to do"] for row in found if row["Integration"] == "radio/wrong")
    whole = orjson.loads(bad_night.run("trace", user, "--json").stdout)
    assert whole["users"] == [{"app_id": "radio", "nami_user": "nami-bo", "external_id": "bo"}]


@pytest.mark.parametrize(
    "asked",
    [
        ("pending", "list", "--limit"),
        ("dead-letters", "list", "--limit"),
        ("preview", "radio/outage", "--limit"),
        ("deliveries", "radio/slow", "--events", "delivered", "--limit"),
        ("deliveries", "radio/wrong", "--events", "waiting", "--limit"),
        ("apps", "history", "radio", "--limit"),
        ("trace", "ana", "--limit"),
    ],
)
def test_no_list_in_a_pipe_ends_without_a_word(bad_night: Night, asked: tuple[str, ...]) -> None:
    cut, whole = bad_night.run(*asked, "1"), bad_night.run(*asked, "1000")
    assert "there are more: " in one_line(cut.stderr)
    assert "there are more" not in whole.stderr
    assert len(cut.stdout.splitlines()) < len(whole.stdout.splitlines())
    assert orjson.loads(bad_night.run(*asked, "1", "--json").stdout) != orjson.loads(
        bad_night.run(*asked, "1000", "--json").stdout
    )


def test_status_trace_pending_and_alerts_say_the_same(bad_night: Night) -> None:
    by_name = {
        one["integration"]: one for one in orjson.loads(bad_night.run("status", "--json").stdout)["integrations"]
    }
    settings = Settings.load(
        {"NAMI_AMP_HOME": str(bad_night.folder / ".nami-amp"), "NAMI_AMP_ALERT_DEAD_LETTERS": "30"}
    )
    context = Context.open(settings)
    try:
        stands = {one.integration: one for one in standings(context)}
        alerts = {(alert.kind.value, alert.subject) for alert in conditions(context).alerts}
        waits = pending(context)
    finally:
        context.store.close()
    assert {name: one["standing"] for name, one in by_name.items()} == {n: one.state for n, one in stands.items()}
    assert {name: one["why"] or "" for name, one in by_name.items()} == {n: one.why for n, one in stands.items()}
    assert {subject for kind, subject in alerts if kind == "integration_halted"} == {
        name for name, one in stands.items() if one.state == "halted"
    }
    assert {subject for kind, subject in alerts if kind == "dead_letters_growing"} == {
        name for name, one in stands.items() if one.rejected
    }
    for name, one in stands.items():
        assert sum(user.events for user in waits if user.integration == name) == one.pending
    traced = orjson.loads(bad_night.run("trace", "event-100", "--json").stdout)["verdicts"]
    for verdict in traced:
        one = stands[verdict["integration"]]
        if one.state in ("halted", "unreachable"):
            assert one.why in verdict["why"]
            assert verdict["what_to_do"] == one.what_to_do


def test_and_then_no_warehouse(tmp_path: Path) -> None:
    with night(tmp_path) as scene:
        scene.fall()
        said = scene.run("run").stderr
        for row in rows(scene.run("status").stdout):  # the words of the run are those of status
            if row["State"] in ("halted", "unreachable", "throttled"):
                assert f"nami-amp: {row['Integration']}: {row['State']}: {row['Why']} (" in said
        scene.lose_the_warehouse()
        assert scene.run("run").exit_code == 1
        done = scene.run("status", "--check")
        assert done.exit_code == 1
        assert done.stdout.splitlines()[0] == "2 of 4 integrations need you, and the warehouse cannot be read."
        assert "Warehouse: cannot be read since 20" in done.stdout
        assert "there is no DuckDB file" in done.stdout
        assert "Last run: failed" in done.stdout
        assert {row["Not read"] for row in rows(done.stdout)} == {"?"}
        found = orjson.loads(scene.run("status", "--json").stdout)
        assert found["warehouse"]["error"]
        assert found["last_run"]["outcome"] == "failed"
        assert scene.run("trace", "event-101").exit_code == 3
        missing = scene.run("trace", "event-999")
        assert missing.exit_code == 1
        assert "the warehouse cannot be asked for newer ones" in missing.output

        (scene.folder / "away.duckdb").rename(scene.folder / ".nami-amp" / "warehouse.duckdb")
        again = scene.run("status")
        assert "it can be read now" in again.stdout
        scene.run("run")
        assert again.stdout.splitlines()[0] == "2 of 4 integrations need you, and the last run could not do everything."
        assert scene.run("status").stdout.splitlines()[0] == "2 of 4 integrations need you."
