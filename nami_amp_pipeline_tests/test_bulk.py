"""Bulk writes put down exactly what they are given, on both databases, and fail as the store fails anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.errors import StoreUnavailable
from nami_amp_pipeline.state import Store, Transaction, bulk, tables
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline.state.users import move_forward, move_sent, read_sent
from nami_amp_pipeline_tests.support.postgres import Postgres

MANY = bulk.FEW_ROWS + 25_000  # more than one part
HOSTILE = [
    "", " ", "NULL", "null", "\\N", "\\.", "a,b", 'a"b', '"', "line\nline", "line\r\nline", "tab\t", "\\n", "%s %(x)s",
    "{}", "\N{SNOWMAN}", "\U0001f600", "e\u0301", "';--", "\\", "\x01", "\ufeff", "\u2028", "🇫🇮" * 40, "x" * 70_000,
]  # fmt: skip


@pytest.fixture
def store(state_url: str) -> Iterator[Store]:
    opened = Store(state_url, lambda: 0.0)
    create_or_upgrade(opened)
    yield opened
    opened.close()


def snapshots(users: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Rows of ``user_property_snapshots`` of one app; what is not given is NULL."""
    types = {sa.Text: pa.string(), sa.BigInteger: pa.int64()}
    schema = pa.schema([(column.name, types[type(column.type)]) for column in tables.user_property_snapshots.columns])
    return pa.Table.from_pylist(
        [{"app_id": "radio", "user_id": user, **values} for user, values in sorted(users.items())], schema=schema
    )


def stored(store: Store) -> dict[str, dict[str, Any]]:
    with store.begin() as tx:
        rows = tx.execute(sa.select(tables.user_property_snapshots)).mappings().all()
    return {row["user_id"]: {key: value for key, value in row.items() if value is not None} for row in rows}


@pytest.mark.parametrize("more", [0, MANY], ids=["few", "many"])
@pytest.mark.slow
def test_every_text_comes_back_as_it_was(store: Store, more: int) -> None:
    users: dict[str, dict[str, Any]] = {
        f"{number}{text}": {"external_id": text, "external_id_date": number, "external_id_event": text or None}
        for number, text in enumerate(HOSTILE)
    }
    users |= {f"m{number:06d}": {"as_of_date": number, "as_of_event": "e"} for number in range(more)}
    with store.begin() as tx:
        move_forward(store, tx, snapshots(users))
        move_forward(store, tx, snapshots({"second": {}}))  # twice in one transaction
    found = stored(store)
    for user, values in users.items():
        expected = {
            "app_id": "radio",
            "user_id": user,
            **{key: value for key, value in values.items() if value is not None},
        }
        assert found.pop(user) == expected
    assert found == {"second": {"app_id": "radio", "user_id": "second"}}


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("known", [0, 1, 700])
def test_many_users_some_of_whom_are_known(store: Store, known: int, is_sorted: bool) -> None:
    """Also where they only seem to be new, as rows are in another order than that of the store."""
    old: dict[str, dict[str, Any]] = {
        f"m{number:06}": {"as_of_date": 5, "as_of_event": "old"} for number in range(known)
    }
    users: dict[str, dict[str, Any]] = {
        f"m{number:06}": {"as_of_date": 4 + number % 3, "as_of_event": "e"} for number in range(MANY)
    }
    rows = snapshots(users)
    middle = rows.num_rows // 2
    with store.begin() as tx:
        if old:
            move_forward(store, tx, snapshots(old))
        move_forward(store, tx, rows if is_sorted else pa.concat_tables([rows.slice(middle), rows.slice(0, middle)]))
        move_forward(store, tx, snapshots({"last": {}}))  # the transaction goes on
    found = stored(store)
    assert found.pop("last")["user_id"] == "last"
    assert found.keys() == users.keys()
    for user, values in users.items():
        newest = old[user] if user in old and values["as_of_date"] < 6 else values
        assert found[user]["as_of_date"] == newest["as_of_date"]
        assert found[user]["as_of_event"] == newest["as_of_event"]


@pytest.mark.parametrize("more", [0, bulk.FEW_ROWS], ids=["few", "many"])
def test_snapshots_only_move_forward_group_by_group(store: Store, more: int) -> None:
    padding = {f"p{number}": {"as_of_date": 1, "as_of_event": "p"} for number in range(more)}

    def group(**changes: Any) -> dict[str, Any]:
        return {"journey": "first", "journey_date": 10, "journey_event": "B", **changes}

    with store.begin() as tx:
        move_forward(
            store, tx, snapshots({user: group() for user in ("new", "old", "tie", "tie below", "none")} | padding)
        )
    later: dict[str, dict[str, Any]] = {
        "new": group(journey="later", journey_date=11, journey_event="A"),
        "old": group(journey="later", journey_date=9, journey_event="Z"),
        # By code point 'a' is after 'B'; most collations have it before.
        "tie": group(journey="later", journey_event="a"),
        "tie below": group(journey="later", journey_event="A"),
        "none": {"external_id": "e", "external_id_date": 1, "external_id_event": "x"},
    }
    with store.begin() as tx:
        move_forward(store, tx, snapshots(later | padding))
    found = stored(store)
    assert {user: (found[user]["journey"], found[user]["journey_event"]) for user in later} == {
        "new": ("later", "A"), "old": ("first", "B"), "tie": ("later", "a"), "tie below": ("first", "B"),
        "none": ("first", "B"),
    }  # fmt: skip
    assert found["none"]["external_id"] == "e"
    assert "external_id" not in found["new"]


@pytest.mark.parametrize("more", [0, bulk.FEW_ROWS], ids=["few", "many"])
def test_what_was_sent_only_moves_forward(store: Store, more: int) -> None:
    with store.begin() as tx:
        tx.execute(sa.insert(tables.apps).values(app_id="radio"))
        tx.execute(
            sa.insert(tables.integrations).values(
                app_id="radio", name="n", enabled=True, endpoint="e", api_key="k", user_id_kind="u", anonymous="a",
                events="[]", rename="{}", created_at=0,
            )
        )  # fmt: skip

    def rows(states: dict[str, tuple[int, str]]) -> pa.Table:
        padded = sorted((states | {f"p{number}": (1, "p") for number in range(more)}).items())
        return pa.table(
            {
                "integration_id": pa.array([1] * len(padded), pa.int64()),
                "user_id": [user for user, _ in padded],
                "as_of_date": pa.array([state[0] for _, state in padded], pa.int64()),
                "as_of_event": [state[1] for _, state in padded],
            }
        )

    with store.begin() as tx:
        move_sent(store, tx, rows({"later": (1, "b"), "earlier": (5, "b"), "tie": (5, "B"), "below": (5, "b")}))
        move_sent(store, tx, rows({"later": (2, "a"), "earlier": (4, "z"), "tie": (5, "a"), "below": (5, "B")}))
    with store.begin() as tx:
        found = {user: state for user, *state in read_sent(store, tx, 1, ["later", "earlier", "tie", "below"])}
    assert found == {"later": [2, "a"], "earlier": [5, "b"], "tie": [5, "a"], "below": [5, "b"]}


@pytest.mark.parametrize("more", [0, MANY], ids=["few", "many"])
def test_what_is_not_given_gets_its_default_and_its_number(store: Store, more: int) -> None:
    rows = pa.table({"app_id": [f"app-{number}" for number in range(more + 2)]})
    with store.begin() as tx:
        bulk.insert(store, tx, tables.apps, rows)
        assert tx.execute(sa.select(sa.func.count(), sa.func.min(tables.apps.c.plan))).tuples().all() == [
            (more + 2, "paid")
        ]


def test_nothing_to_write_is_nothing(store: Store) -> None:
    with store.begin() as tx:
        move_forward(store, tx, snapshots({}))
    assert stored(store) == {}


def _cut_off(store: Store, tx: Transaction) -> None:
    """Ends the server's side of a connection, as an administrator or a restart does."""
    with sa.create_engine(store.url).connect() as other:
        (pid,) = tx.exec_driver_sql("SELECT pg_backend_pid()").one()
        other.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")


@pytest.mark.parametrize("rows", [10, MANY], ids=["few", "many"])
def test_a_server_that_goes_away_is_a_store_that_cannot_be_reached(postgres: Postgres, rows: int) -> None:
    store = Store(postgres.fresh_database(), lambda: 0.0)
    create_or_upgrade(store)
    users: dict[str, dict[str, Any]] = {f"u{number}": {} for number in range(rows)}
    with pytest.raises(StoreUnavailable), store.begin() as tx:  # noqa: PT012
        _cut_off(store, tx)
        move_forward(store, tx, snapshots(users))
    with store.begin() as tx:
        move_forward(store, tx, snapshots(users))
    assert len(stored(store)) == rows
    store.close()


def test_a_full_disk_is_a_store_that_cannot_be_written(tmp_path: Any) -> None:
    store = Store(f"sqlite:///{tmp_path}/state.db", lambda: 0.0)
    create_or_upgrade(store)
    users: dict[str, dict[str, Any]] = {f"u{number}": {"external_id": "x" * 1_000} for number in range(2_000)}
    with pytest.raises(StoreUnavailable, match="full"), store.begin() as tx:  # noqa: PT012
        tx.exec_driver_sql("PRAGMA max_page_count=100")
        move_forward(store, tx, snapshots(users))
    assert stored(store) == {}
    store.close()


@pytest.mark.slow
def test_a_key_that_is_missing_elsewhere_is_a_bug_and_not_the_store(store: Store) -> None:
    rows = pa.table({"integration_id": [7], "user_id": ["u"], "as_of_date": [1], "as_of_event": ["e"]})
    with pytest.raises(sa.exc.IntegrityError), store.begin() as tx:
        move_sent(store, tx, rows)
