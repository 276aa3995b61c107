"""How an integration stands: each state from what really happened, and what it says to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.clock import to_datetime
from nami_amp_pipeline.contract import did_you_mean, nearest
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.operations import dead_letters, reasons
from nami_amp_pipeline.operations.overview import overview
from nami_amp_pipeline.operations.queued_users import some_users
from nami_amp_pipeline.operations.standing import Standing, State, next_run, standings
from nami_amp_pipeline.operations.verdicts import Word
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import integrations, tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.harness import START, Answering, Pipeline
from nami_amp_pipeline_tests.support.rows import renewal as row

pytestmark = pytest.mark.slow_cases

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
WRONG_KEY = HttpAnswer(400, b'{"code":400,"error":"Invalid API key: x"}')
THROTTLED = HttpAnswer(429, b'{"throttled_users":{"a":31}}')
QUOTA = HttpAnswer(429, b'{"exceeded_daily_quota_users":{"a":500001}}')
BUSY = HttpAnswer(429, b"{}", {"retry-after": "600"})
REJECTED = HttpAnswer(400, b'{"code":400,"events_with_invalid_fields":{"time":[0]}}')
TIMEOUT = NoAnswer("timeout", maybe_stored=True)
DOWN = HttpAnswer(503, b"")


@pytest.fixture
def pipe(tmp_path: Path, state_url: str) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, {"NAMI_AMP_STATE_URL": state_url, "NAMI_AMP_RUN_RETRY_SECONDS": "0"})
    yield made
    made.close()


def of(pipe: Pipeline, one: Integration) -> Standing:
    found = {standing.integration: standing for standing in standings(pipe.context)}
    return found[one.key]


def after(pipe: Pipeline, *answers: HttpAnswer | NoAnswer, for_ever: bool = False) -> Integration:
    """An integration with events of two users, one of which is ``a``, that were answered so."""
    one = pipe.add("radio")
    pipe.insert([row(1, START, "a"), row(2, START, "b")])
    pipe.wires[one.id] = Answering(answers, for_ever=for_ever)
    pipe.tick()
    return one


def test_nothing_came_and_all_is_delivered(pipe: Pipeline) -> None:
    one = pipe.add("radio")
    fresh = of(pipe, one)
    assert (fresh.state, fresh.needs_you, fresh.since) == ("idle", False, START)
    pipe.insert([row(1, START, "a")])
    pipe.tick()
    well = of(pipe, one)
    assert (well.state, well.needs_you, well.why, well.next_try, well.what_to_do) == (
        "delivering",
        False,
        "",
        None,
        None,
    )


@pytest.mark.slow
def test_a_wrong_key_halts_and_needs_a_person(pipe: Pipeline) -> None:
    one = after(pipe, WRONG_KEY)
    pipe.clock.set(START + HOUR)
    found = of(pipe, one)
    assert (found.state, found.needs_you, found.since, found.next_try) == ("halted", True, START, None)
    assert found.why == "Amplitude does not know the API key at this endpoint"
    assert found.code == "invalid_api_key"
    assert found.what_to_do is not None
    assert "'nami-amp integrations test radio/main'" in found.what_to_do
    assert "APP/NAME" not in found.what_to_do
    integrations.set_enabled(pipe.context.store, one.key, enabled=True)
    assert of(pipe, one).state != "halted"


@pytest.mark.slow
def test_off_says_by_whom_and_since_when(pipe: Pipeline) -> None:
    one = pipe.add("radio")
    pipe.insert([row(1, START, "a"), row(2, START, "b")])
    pipe.wires[one.id] = Answering([TIMEOUT], for_ever=True)
    pipe.tick()
    pipe.clock.set(START + HOUR)
    integrations.set_enabled(pipe.context.store, one.key, enabled=False, by="ana")
    found = of(pipe, one)
    assert (found.state, found.needs_you, found.since) == ("off", False, START + HOUR)
    assert found.why == "ana switched it off; 2 events wait and go when it is on again"


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (TIMEOUT, "timeout", "The endpoint does not answer in time"),
        (DOWN, "http_503", "Amplitude's servers are in trouble (HTTP 503)"),
        (
            NoAnswer("no_connection", maybe_stored=False),
            "no_connection",
            "No server listens at the endpoint, or its name is unknown",
        ),
    ],
)
@pytest.mark.slow
def test_an_outage_goes_on_by_itself_until_it_takes_too_long(
    pipe: Pipeline, answer: HttpAnswer | NoAnswer, code: str, said: str
) -> None:
    one = after(pipe, answer, for_ever=True)
    pipe.clock.set(START + 7 * MINUTE)
    pipe.tick()
    found = of(pipe, one)
    assert (found.state, found.code, found.why, found.needs_you) == ("unreachable", code, said, False)
    assert found.since == START
    assert found.next_try == START + 10 * MINUTE
    pipe.clock.set(START + 2 * HOUR)
    assert of(pipe, one).needs_you
    pipe.wires[one.id] = Answering([])
    pipe.tick()
    well = of(pipe, one)
    assert (well.state, well.needs_you) == ("delivering", False)


@pytest.mark.slow
def test_an_answer_between_two_outages_ends_the_first(pipe: Pipeline) -> None:
    one = after(pipe, HttpAnswer(200, b'{"code":200}'))
    pipe.clock.set(START + HOUR)
    pipe.insert([row(3, START + HOUR, "c")])
    pipe.wires[one.id] = Answering([DOWN], for_ever=True)
    pipe.tick()
    assert of(pipe, one).since == START + HOUR


@pytest.mark.parametrize(("answer", "code"), [(THROTTLED, "throttled"), (QUOTA, "over_daily_quota")])
def test_a_throttled_user_is_named(pipe: Pipeline, answer: HttpAnswer, code: str) -> None:
    one = after(pipe, answer)
    found = of(pipe, one)
    assert (found.state, found.code, found.needs_you, found.whose) == ("throttled", code, False, ("a",))
    assert "1 event of 1 user waits; all other events are delivered" in found.why
    assert found.next_try is not None
    assert found.next_try > START


@pytest.mark.slow
def test_users_that_wait_behind_a_halt_are_named_beside_those_that_are_held(pipe: Pipeline) -> None:
    one = after(pipe, THROTTLED)
    assert overview(pipe.context).verdict == "Nobody is needed: 1 of 1 waits and goes on by itself."
    pipe.insert([row(3, START, "c"), row(4, START, "d")])
    pipe.wires[one.id] = Answering([WRONG_KEY])
    pipe.tick()
    found = of(pipe, one)
    assert (found.state, found.pending, found.whose) == ("halted", 3, ("a", "c", "d"))
    assert (found.whose_is_all, found.whose_in_words) == (True, "a, c, d")
    pipe.insert([row(5, START, "e")])
    pipe.tick()
    cut = of(pipe, one)
    assert (cut.whose, cut.whose_is_all) == (("a", "c", "d"), False)
    assert cut.whose_in_words == "a, c, d, … ('nami-amp pending list --integration radio/main')"


@pytest.mark.slow
def test_users_of_every_file_are_named(pipe: Pipeline) -> None:
    one = pipe.add("radio")
    pipe.wires[one.id] = Answering([DOWN], for_ever=True)
    for number, user in enumerate("ab"):
        pipe.insert([row(number, START, user)])
        pipe.tick()
    assert (of(pipe, one).whose, of(pipe, one).whose_is_all) == (("a", "b"), True)
    with_limit = some_users(pipe.context, one, 1)
    assert with_limit == (("a",), False)


@pytest.mark.slow
def test_a_project_that_is_to_pause(pipe: Pipeline) -> None:
    one = after(pipe, BUSY)
    found = of(pipe, one)
    assert (found.state, found.code) == ("throttled", "project_throttled")
    assert found.next_try == START + 15 * MINUTE  # the first micro-batch after the 10 minutes that Amplitude asked for


def test_rejected_events_need_a_person_until_they_are_sent_again(pipe: Pipeline) -> None:
    one = after(pipe, REJECTED, REJECTED)
    found = of(pipe, one)
    assert found.numbers.dead_letters == {"rejected": found.rejected}
    assert (found.state, found.needs_you, found.since, found.code) == ("delivering", True, START, "rejected")
    assert found.called.startswith("delivering, ")
    assert f"nami-amp dead-letters retry --integration {one.key}" in (found.what_to_do or "")
    pipe.clock.set(START + timedelta(days=8))  # nobody can send them again by now without doubt
    assert not of(pipe, one).needs_you
    pipe.clock.set(START + HOUR)
    assert dead_letters.dismiss(pipe.context.store, dead_letters.Filter()) == found.rejected
    seen = of(pipe, one)
    assert (seen.rejected, seen.dismissed, seen.needs_you, seen.why) == (0, found.rejected, False, "")
    assert seen.numbers.dead_letters == {"rejected": found.rejected}
    dead_letters.retry(pipe.context.store, dead_letters.Filter())
    assert (of(pipe, one).rejected, of(pipe, one).dismissed, of(pipe, one).needs_you) == (0, 0, False)


@pytest.mark.slow
def test_rejected_events_are_told_beside_a_halt(pipe: Pipeline) -> None:
    one = after(pipe, REJECTED, WRONG_KEY, for_ever=True)
    found = of(pipe, one)
    assert (found.state, found.rejected) == ("halted", 1)
    assert "dead-letters list --integration radio/main" in found.also[0]


@pytest.mark.slow
def test_an_event_that_could_not_be_made_needs_nobody(pipe: Pipeline) -> None:
    one = pipe.add("radio")
    pipe.insert([{**row(1, START, "a"), "payload": "{"}])
    pipe.tick()
    found = of(pipe, one)
    assert (found.numbers.dead_letters, found.rejected, found.needs_you) == ({"malformed_payload": 1}, 0, False)


@pytest.mark.slow
def test_no_run_for_long_is_said(pipe: Pipeline) -> None:
    one = after(pipe, TIMEOUT)
    with pipe.context.store.begin() as tx:
        tx.execute(sa.delete(tables.requests))  # as if no request had ever been sent
    pipe.clock.set(START + timedelta(minutes=16))
    found = of(pipe, one)
    assert (found.state, found.code, found.next_try, found.needs_you) == ("waiting", "no_run", None, False)
    assert found.why == "No micro-batch has run since 2026-09-01T00:00:00Z"
    pipe.clock.set(START + 2 * HOUR)
    assert of(pipe, one).needs_you


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["radio", "radio|main"])
def test_a_stage_that_failed_for_it_is_told_until_something_moves(pipe: Pipeline, partition: str) -> None:
    one = after(pipe, TIMEOUT)
    pipe.clock.set(START + MINUTE)
    with pipe.context.store.begin() as tx:
        tx.execute(
            sa.insert(tables.run_troubles).values(
                run_id="r", asset="user_property_snapshots", partition=partition, kind="Unexpected",
                message="radio: this is a bug", at=pipe.context.now(),
            )
        )  # fmt: skip
    found = of(pipe, one)
    assert (found.state, found.needs_you, found.why) == ("waiting", True, "radio: this is a bug")
    pipe.clock.set(START + 2 * MINUTE)
    pipe.tick()
    assert of(pipe, one).state == "delivering"


@pytest.mark.slow
def test_many_integrations_take_no_more_statements_than_a_few(pipe: Pipeline) -> None:
    """Each with an outage behind it, held, rejected, dismissed and pending events, and a stage that failed."""
    asked: list[str] = []
    sa.event.listen(pipe.context.store.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    counts = []
    busy = HttpAnswer(429, b'{"throttled_users":{"a":31,"b":31,"c":31,"d":31}}')
    for number in range(8):
        one = pipe.add("radio", f"n-{number}")
        pipe.insert([row(10 * number + place, START, user) for place, user in enumerate("abcd")])
        pipe.wires[one.id] = Answering([REJECTED, busy, TIMEOUT], for_ever=True)
        pipe.tick()
        dead_letters.dismiss(pipe.context.store, dead_letters.Filter(integrations=[one.key], ids=[]))
        with pipe.context.store.begin() as tx:
            trouble = {"run_id": "r", "asset": "amplitude_events", "kind": "Unexpected", "message": "m", "at": 0}
            tx.execute(sa.insert(tables.run_troubles).values(partition=one.partition_key, **trouble))
        asked.clear()
        found = standings(pipe.context)
        counts.append(len(asked))
        assert len(found) == number + 1
        assert all(standing.whose for standing in found)  # no file is read for them: they are in the store
    assert len(set(counts[1:])) == 1, counts


@pytest.mark.slow
def test_only_those_that_wait_longest_have_users_of_files_named(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nami_amp_pipeline.operations.standing_facts.MOST_NAMED", 1)
    first = after(pipe, TIMEOUT, for_ever=True)
    second = pipe.add("tv")
    pipe.wires[second.id] = Answering([TIMEOUT], for_ever=True)
    pipe.clock.set(START + HOUR)
    pipe.insert([{**row(9, START + HOUR, "z"), "app_id": "tv"}])
    pipe.tick()
    assert (of(pipe, first).whose, of(pipe, second).whose) == (("a", "b"), ())
    (alone,) = standings(pipe.context, integrations=[second])
    assert alone.whose == ("z",)


@pytest.mark.slow
def test_a_wait_for_a_login_is_no_trouble(pipe: Pipeline) -> None:
    one = pipe.add("radio", anonymous="wait_for_login")
    pipe.insert([row(1, START)])
    pipe.tick()
    pipe.clock.set(START + timedelta(days=2))
    found = of(pipe, one)
    assert (found.state, found.needs_you, found.pending) == ("delivering", False, 1)
    assert found.also == ("1 event waits for the login of the user, which needs nobody",)


@pytest.mark.parametrize(
    ("minutes", "after", "at"),
    [(5, "12:04:59", "12:05"), (5, "12:05:00", "12:10"), (25, "12:51:00", "13:00"), (7, "12:56:30", "13:00")],
)
def test_the_next_run_is_that_of_the_schedule(minutes: int, after: str, at: str) -> None:
    start = int(datetime.fromisoformat(f"2026-09-01T{after}+00:00").timestamp()) * 1_000_000
    found = next_run(Settings(tick_minutes=minutes), start)
    assert found is not None
    assert to_datetime(found) == datetime.fromisoformat(f"2026-09-01T{at}:00+00:00")


ROOT = Path(__file__).parents[1]


def given() -> dict[str, set[str]]:
    """The codes that the program gives, by the file that gives them, as far as its text shows them."""
    patterns = {
        "sql/capture_2_rows.sql": r"THEN '(\w+)'",
        "sql/prepare_2_decide.sql": r"(?:THEN|problem,) '(?!skipped|dead|waiting|send)([a-z_]+)'",
        "nami_amp_pipeline/stages/waiting.py": r'"skipped", \{"(\w+)"',
        "nami_amp_pipeline/backfill/close.py": r'CANCELLED: Final = "(\w+)"',
        "nami_amp_pipeline/backfill/superseded.py": r'SUPERSEDED: Final = "(\w+)"',
        "nami_amp_pipeline/reconciliation/__init__.py": r'MISSING: Final = "(\w+)"',
        "nami_amp_pipeline/stages/rebuild.py": r'LOST_FILE = "(\w+)"',
        "nami_amp_pipeline/storage/row_faults.py": r'ODD_ROW = "(\w+)"',
        "nami_amp_pipeline/operations/status.py": r'WAITING: Final = "(\w+)"',
        "nami_amp_pipeline/operations/dead_letters.py": r'(?:OUTCOME_UNKNOWN|RETRIED) = "(\w+)"',
        "nami_amp_pipeline/delivery/destination.py": r'^[A-Z_]+: Final = "(\w+)"',
        "nami_amp_pipeline/delivery/http_session.py": r'note\("(\w+)"',
        "nami_amp_pipeline/delivery/guarded_socket.py": r'note\("(\w+)"',
        "nami_amp_pipeline/delivery/exchange.py": r'note\("(\w+)"|or \("(\w+)" if self.begun else "(\w+)"\)',
        "nami_amp_pipeline/delivery/request_threads.py": r'NoAnswer\("(\w+)"',
        "nami_amp_pipeline/http_endpoint/answers.py": r'BAD_RESULTS: Final = "(\w+)"',
        "nami_amp_pipeline/amplitude/answers.py": r'"(silenced|over_daily_quota|throttled|project_throttled|not_json|'
        r'not_accepted)"|HALT, f?"(\w+)(?::| \()',
    }
    found = {}
    for file, pattern in patterns.items():
        groups = re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)
        flat = [one if isinstance(one, tuple) else (one,) for one in groups]
        found[file] = {code for group in flat for code in group if code} - {"http_"}
    return found


def test_every_reason_that_the_program_gives_is_in_the_table() -> None:
    by_file = given()
    assert all(by_file.values()), "a file that gives reasons was moved, or writes them in another way"
    of_the_program = set().union(*by_file.values())
    assert of_the_program - reasons.REASONS.keys() == set()
    made_elsewhere = {"http_4", "http_5", "queued", "held", "refused"}  # of a status, of what is pending, of old rows
    assert reasons.REASONS.keys() - of_the_program == made_elsewhere


def test_every_code_has_its_words() -> None:
    assert reasons.means("rejected") == "Amplitude rejected the event for what it holds"
    assert reasons.means("http_503") == "Amplitude's servers are in trouble (HTTP 503)"
    assert reasons.means("of_tomorrow") == "of tomorrow"
    assert reasons.is_unreachable("http_408")
    assert not reasons.is_unreachable("http_404: no")
    assert nearest("rejcted", reasons.REASONS) == "rejected"
    assert nearest("zzz", reasons.REASONS) is None
    assert did_you_mean("Radio/Prdo", ["fit/main", "radio/prod"]) == ": did you mean radio/prod?"
    for one in reasons.REASONS.values():
        assert not one.means.endswith(".")
        assert "refuse" not in f"{one.means} {one.action}"


def test_the_page_has_all_reasons_and_states() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table = page.partition("reasons.table() -->\n")[2].partition("<!-- end of reasons -->")[0]
    assert table.strip() == reasons.table()
    for state in get_args(State):
        assert f"| `{state}` |" in page
    for word in get_args(Word):
        assert f"`{word}`" in page
