"""Dead letters: found, shown, and sent again without being changed, lost or counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import dead_letters
from nami_amp_pipeline.operations.dead_letters import BUSY, NO_BODY, TOO_OLD, Filter
from nami_amp_pipeline.sandbox import Fault, Sandbox, SandboxServer
from nami_amp_pipeline.state import Store, tables
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline_tests.support.command_line import add, event, load_events, tick

DAY = 86_400_000_000


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox()) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    clock = lambda: 30 * 86_400.0  # noqa: E731 - a clock is any such callable
    store = Store(f"sqlite:///{tmp_path}/state.db", clock)
    create_or_upgrade(store)
    with store.begin() as tx:
        tx.execute(sa.insert(tables.apps).values(app_id="radio"))
        for number, name in ((1, "prod"), (2, "test")):
            tx.execute(
                sa.insert(tables.integrations).values(
                    id=number, app_id="radio", name=name, enabled=True, endpoint="https://x", api_key="", events="[]",
                    user_id_kind="external_id", anonymous="skip", rename="{}", created_at=0,
                )
            )  # fmt: skip
    yield store
    store.close()


def bury(store: Store, number: int, **columns: Any) -> None:
    """Puts a dead letter into the store and counts it."""
    row = {
        "id": number,
        "integration_id": 1,
        "state": "dead",
        "reason": "rejected",
        "event_id": f"event-{number}",
        "event_type": "device.impression",
        "user_id": "u",
        "identity": "u:e",
        "created_date": 0,
        "body": ',{"a":1}',
        "run_id": "r",
        "at": 29 * DAY,
        **columns,
    }
    with store.begin() as tx:
        tx.execute(sa.insert(tables.exceptions).values(**row))
        store.count(tx, row["integration_id"], "dead", {row["reason"]: 1})


def exception(store: Store, number: int) -> Any:
    with store.begin() as tx:
        return tx.execute(sa.select(tables.exceptions).where(tables.exceptions.c.id == number)).one()


def dead_count(store: Store) -> dict[str, int]:
    table = tables.counts
    with store.begin() as tx:
        rows = tx.execute(sa.select(table.c.reason, table.c.events).where(table.c.state == "dead")).tuples().all()
    return {reason: events for reason, events in rows if events}


def test_filters_narrow(store: Store) -> None:
    bury(store, 1)
    bury(store, 2, integration_id=2, at=28 * DAY)
    bury(store, 3, reason="reserved_user_id", body=None, payload="{}")
    bury(store, 4, state="held")

    def ids(**narrowed: Any) -> list[int]:
        return [letter.id for letter in dead_letters.find(store, Filter(**narrowed))[0]]

    assert ids() == [3, 2, 1]
    assert ids(integrations=["radio/test"]) == [2]
    assert ids(reasons=["rejected"]) == [2, 1]
    assert ids(since=28 * DAY + 1) == [3, 1]
    assert ids(until=29 * DAY) == [2]
    assert ids(ids=["3", "event-1"]) == [3, 1]
    found, total = dead_letters.find(store, Filter(), limit=1)
    assert ([letter.id for letter in found], total) == ([3], 3)
    assert found[0].integration == "radio/prod"


def test_one_is_shown_whole(store: Store) -> None:
    bury(store, 1, answer="no", payload="{}")
    for name in ("1", "event-1"):
        (letter,) = dead_letters.show(store, name)
        assert (letter.body, letter.payload, letter.answer) == ('{"a":1}', "{}", "no")
    for name in ("2", "event-9", "", "9" * 30, "1' OR 1"):
        with pytest.raises(Misconfigured, match="no dead letter"):
            dead_letters.show(store, name)


def test_a_retry_waits_with_its_content_and_is_dead_no_longer(store: Store) -> None:
    bury(store, 1)
    bury(store, 2)
    before = exception(store, 1)
    done = dead_letters.retry(store, Filter(ids=["1"]))
    assert (done.retried, dict(done.refused)) == (1, {})
    after = exception(store, 1)
    assert (after.state, after.body, after.event_id) == ("held", before.body, before.event_id)
    assert after.first_sent_at == 29 * DAY
    assert dead_count(store) == {"rejected": 1}
    assert exception(store, 2).state == "dead"
    with pytest.raises(Misconfigured):
        dead_letters.retry(store, Filter(ids=["1"]))


def test_what_was_never_an_amplitude_event_cannot_be_sent(store: Store) -> None:
    bury(store, 1, reason="malformed_payload", body=None, payload="{")
    bury(store, 2, reason="reserved_user_id", body=None, payload="{}")
    for force in (False, True):
        assert dict(dead_letters.retry(store, Filter(), force=force).refused) == {NO_BODY: 2}
    assert dead_count(store) == {"malformed_payload": 1, "reserved_user_id": 1}


@pytest.mark.parametrize(
    "columns", [{"at": 22 * DAY}, {"unknown_since": 22 * DAY, "reason": "outcome_unknown"}, {"first_sent_at": 22 * DAY}]
)
@pytest.mark.contract("5.1.4")
def test_after_seven_days_only_a_person_sends_again(store: Store, columns: dict[str, Any]) -> None:
    bury(store, 1, **columns)
    assert dict(dead_letters.retry(store, Filter()).refused) == {TOO_OLD: 1}
    assert exception(store, 1).state == "dead"
    assert dead_letters.retry(store, Filter(), force=True).retried == 1
    forced = exception(store, 1)
    assert (forced.state, forced.unknown_since, forced.first_sent_at) == ("held", None, 22 * DAY)
    assert dead_count(store) == {}


def test_an_unknown_outcome_stays_unknown_without_force(store: Store) -> None:
    bury(store, 1, unknown_since=28 * DAY, reason="outcome_unknown")
    assert dead_letters.retry(store, Filter()).retried == 1
    assert exception(store, 1).unknown_since == 28 * DAY


STATE = (
    ',{"event_type":"user.x","user_id":"ann","time":1,"insert_id":"event-1",'
    '"user_properties":{"namiml_in_trial_period":true}}'
)


@pytest.mark.parametrize(
    ("columns", "sent", "is_history"),
    [
        ({}, (100, "event-2"), True),
        ({}, (99, "event-0"), False),
        ({}, (99, "event-2"), True),
        ({}, (99, "event-1"), False),
        ({}, (98, "event-2"), False),
        ({}, None, False),
        ({"reason": "forbidden"}, (100, "event-2"), True),
        ({"reason": "outcome_unknown", "unknown_since": 28 * DAY}, (100, "event-2"), False),
        ({"unknown_since": 28 * DAY}, (100, "event-2"), False),
        ({"body": STATE.replace("ann", "bea")}, (100, "event-2"), False),
        ({"body": ',{"event_type":"device.x","user_id":"ann","insert_id":"event-1"}'}, (100, "event-2"), False),
    ],
)
@pytest.mark.contract("5.1.5")
def test_what_was_refused_comes_back_as_history_once_newer_state_was_sent(
    store: Store,
    columns: dict[str, Any],
    sent: tuple[int, str] | None,
    is_history: bool,
) -> None:
    given = {"body": STATE, **columns}
    bury(store, 1, created_date=99, **given)
    with store.begin() as tx:
        told = [(2, "ann", 10**9, "x"), (1, "eve", 10**9, "x"), *([(1, "ann", *sent)] if sent else [])]
        names = ("integration_id", "user_id", "as_of_date", "as_of_event")
        tx.execute(sa.insert(tables.sent_states), [dict(zip(names, row, strict=True)) for row in told])
    assert dead_letters.retry(store, Filter()).retried == 1
    body = exception(store, 1).body
    if not is_history:
        assert body == given["body"]
        return
    event = orjson.loads(body[1:])
    assert event.pop("$skip_user_properties_sync") is True
    assert event == orjson.loads(given["body"][1:])
    assert list(event) == list(orjson.loads(given["body"][1:])), "nothing else moves"


def test_what_is_dismissed_is_found_apart_and_keeps_its_mark(store: Store) -> None:
    for number in (1, 2, 3):
        bury(store, number)
    bury(store, 4, integration_id=2, reason="bad_date", body=None)
    assert dead_letters.count(store, Filter()) == {("radio/prod", "rejected"): 3, ("radio/test", "bad_date"): 1}
    assert dead_letters.dismiss(store, Filter(ids=["1", "event-2"]), by="ana") == 2
    assert dead_letters.dismiss(store, Filter(ids=["1", "3"]), by="bo") == 1
    marks = {letter.id: (letter.dismissed_at, letter.dismissed_by) for letter in dead_letters.find(store, Filter())[0]}
    assert marks == {1: (30 * DAY, "ana"), 2: (30 * DAY, "ana"), 3: (30 * DAY, "bo"), 4: (None, None)}
    assert [letter.id for letter in dead_letters.find(store, Filter(dismissed=False))[0]] == [4]
    assert dead_letters.count(store, Filter(dismissed=True)) == {("radio/prod", "rejected"): 3}
    assert dead_count(store) == {"rejected": 3, "bad_date": 1}  # nothing is lost
    assert dead_letters.dismiss(store, Filter(ids=["1"]), undo=True) == 1
    assert dead_letters.count(store, Filter(dismissed=True)) == {("radio/prod", "rejected"): 2}
    for wrong in (Filter(ids=["9"]), Filter(reasons=["rejcted"])):
        with pytest.raises(Misconfigured):
            dead_letters.dismiss(store, wrong)


@pytest.mark.contract("5.1.6")
def test_a_dismissed_event_can_be_sent_again_and_its_next_death_is_new(store: Store) -> None:
    bury(store, 1)
    dead_letters.dismiss(store, Filter())
    assert dead_letters.retry(store, Filter()).retried == 1
    row = exception(store, 1)
    assert (row.state, row.dismissed_at, row.dismissed_by) == ("held", None, None)
    bury(store, 2)
    dead_letters.dismiss(store, Filter(ids=["2"]))
    with store.begin() as tx:  # as a process of the version before would send it again, and see it rejected
        again = sa.update(tables.exceptions).where(tables.exceptions.c.id == 2)
        tx.execute(again.values(at=31 * DAY))
    assert dead_letters.count(store, Filter(dismissed=True)) == {}
    assert dead_letters.dismiss(store, Filter(ids=["2"])) == 1  # although its clock was ahead
    assert dead_letters.count(store, Filter(dismissed=True)) == {("radio/prod", "rejected"): 1}


def test_a_run_that_is_at_work_is_left_alone(store: Store, tmp_path: Path) -> None:
    bury(store, 1)
    bury(store, 2, integration_id=2)
    other = Store(f"sqlite:///{tmp_path}/state.db", store.clock, owner="elsewhere:1:x")
    lease = other.acquire(["integration:1"])
    done = dead_letters.retry(store, Filter())
    assert (done.retried, dict(done.refused)) == (1, {BUSY: 1})
    assert exception(store, 1).state == "dead"
    other.release(lease.values())
    other.close()
    assert dead_letters.retry(store, Filter()).retried == 1


@pytest.mark.slow
def test_a_refused_event_is_delivered_once_the_cause_is_gone(tmp_path: Path, server: SandboxServer) -> None:
    add(tmp_path, server.endpoint)
    load_events(tmp_path, *(event(number, f"u{number}", f"e{number}") for number in range(20)))
    server.sandbox.faults.add(Fault("poison", insert_id="event-7"))
    assert tick(tmp_path, "first")[0].dead_letters == {"rejected": 1}
    server.sandbox.faults.remove()
    store = Store(f"sqlite:///{tmp_path}/.nami-amp/state.db", lambda: 0.0)
    (letter,), _ = dead_letters.find(store, Filter())
    (whole,) = dead_letters.show(store, str(letter.id))
    assert whole.body is not None
    assert orjson.loads(whole.body)["insert_id"] == "event-7"
    assert dead_letters.retry(store, Filter()).retried == 1
    store.close()
    after = tick(tmp_path, "second")[0]
    assert (after.delivered, after.dead_letters, after.pending) == (20, {}, 0)


@pytest.mark.slow
@pytest.mark.contract("4.11")
def test_an_old_state_that_is_sent_again_does_not_overwrite_the_profile(tmp_path: Path, server: SandboxServer) -> None:
    add(tmp_path, server.endpoint)

    def state(number: int, sku: str) -> bytes:
        carried = {"active_entitlements": [{"entitlement_ref_id": "pro", "sku_ref_id": sku}]}
        return orjson.dumps({**orjson.loads(event(number, "ann", "ann@example.com")), **carried})

    load_events(tmp_path, state(1, "old"))
    server.sandbox.faults.add(Fault("poison", insert_id="event-1"))
    assert tick(tmp_path, "first")[0].dead_letters == {"rejected": 1}
    load_events(tmp_path, state(2, "new"))
    tick(tmp_path, "second")
    server.sandbox.faults.remove()
    store = Store(f"sqlite:///{tmp_path}/.nami-amp/state.db", lambda: 0.0)
    assert dead_letters.retry(store, Filter()).retried == 1
    store.close()
    assert tick(tmp_path, "third")[0].delivered == 2
    (project,) = server.sandbox.stores()
    while not project.catch_up():
        pass
    profile = project.profiles.get("ann@example.com")
    assert profile is not None
    assert profile.user_properties["namiml_active_skus"] == ["new"]
    audit = server.sandbox.audit
    assert (audit.changed_repeats.count, audit.order_violations.count) == (0, 0)
