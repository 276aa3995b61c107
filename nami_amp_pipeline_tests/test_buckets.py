"""Segments of a large reading: each user's rows in one, about as many rows in each, neighbours together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages.buckets import create_buckets
from nami_amp_pipeline.storage.duckdb_engine import compute
from nami_amp_pipeline.warehouse import Source, open_warehouse
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.warehouses import PostgresEvents

Row = tuple[str, str | None]
USERS = "(SELECT * FROM source)"


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as made:
        yield made


def spread(
    connection: duckdb.DuckDBPyConnection, rows: Sequence[Row], segment_rows: int, *, users: bool, users_of: int = 1
) -> dict[Row, set[int]]:
    """The buckets of each user; the warehouse has rows that are not wanted too."""
    unwanted: list[Row] = [("other", "nobody")] * 50
    apps, people = zip(*rows, *unwanted, strict=True)
    source = pa.table(
        {
            "rid": pa.array(range(len(apps)), pa.int64()),
            "app_id": pa.array(apps, pa.string()),
            "user_id": pa.array(people, pa.string()),
        }
    )
    connection.register("source", source)
    connection.execute("CREATE OR REPLACE TEMP VIEW keys AS SELECT rid, app_id FROM source")
    connection.execute("CREATE OR REPLACE TEMP TABLE fresh AS SELECT rid FROM source WHERE rid < ?", [len(rows)])
    connection.execute("DROP MACRO IF EXISTS bucket_of")
    sample = f"(FROM source WHERE hash(rid, 1) % {users_of} = 0)"
    of = Source("keys", 1, lambda: USERS, lambda _: USERS, sample if users else None, users_of=users_of)
    create_buckets(connection, of, segment_rows)
    found: dict[Row, set[int]] = defaultdict(set)
    for app_id, user_id, bucket in connection.execute(
        "SELECT app_id, user_id, bucket_of(app_id, replace(coalesce(user_id, ''), chr(0), '')) "
        "FROM source SEMI JOIN fresh USING (rid)"
    ).fetchall():
        found[app_id, user_id].add(bucket)
    return found


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b'", "c\u00e9", "\U0001f600"]), st.one_of(st.none(), st.text(max_size=4))),
        min_size=1,
        max_size=80,
    ),
    segment_rows=st.integers(1, 40),
    users=st.booleans(),
    users_of=st.sampled_from([1, 2, 32]),
)
def test_all_rows_of_a_user_are_in_one_segment(
    connection: duckdb.DuckDBPyConnection, rows: list[Row], segment_rows: int, users: bool, users_of: int
) -> None:
    found = spread(connection, rows, segment_rows, users=users, users_of=users_of)
    assert all(len(buckets) == 1 for buckets in found.values())
    assert min(min(buckets) for buckets in found.values()) >= 0


def sizes(rows: Sequence[Row], found: dict[Row, set[int]]) -> list[int]:
    return sorted(Counter(next(iter(found[row])) for row in rows).values())


def rows_of(app_id: str, many: int, users: int) -> list[Row]:
    return [(app_id, f"{app_id}-{number * 7919 % users:06}") for number in range(many)]


@pytest.mark.parametrize("users", [True, False])
def test_segments_are_about_as_large_as_they_are_to_be(connection: duckdb.DuckDBPyConnection, users: bool) -> None:
    rows = [*rows_of("a", 30_000, 5_000), *rows_of("b", 10_000, 3_000)]
    found = sizes(rows, spread(connection, rows, 10_000, users=users))
    assert len(found) in (4, 5)
    assert 8_000 < found[0] <= found[-1] < 11_500


@pytest.mark.parametrize("users_of", [1, 4])
def test_segments_have_ranges_of_users(connection: duckdb.DuckDBPyConnection, users_of: int) -> None:
    rows = [*rows_of("a", 3_000, 900), *rows_of("b", 3_000, 900), ("b", "x" * 5_000), ("b", "x" * 5_000 + "y")]
    found = spread(connection, rows, 1_000, users=True, users_of=users_of)
    in_order = [next(iter(found[row])) for row in sorted(found)]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) == 7


def test_a_user_with_nearly_all_rows_is_no_reason_for_empty_ones(connection: duckdb.DuckDBPyConnection) -> None:
    rows: list[Row] = [("a", "hot")] * 5_000 + rows_of("a", 100, 100)
    found = spread(connection, rows, 1_000, users=True)
    assert len(found["a", "hot"]) == 1
    assert len(set().union(*found.values())) <= 3


def test_where_only_apps_are_known_a_small_app_is_in_one_segment(connection: duckdb.DuckDBPyConnection) -> None:
    rows = [row for number in range(100) for row in rows_of(f"app-{number:03}", 30, 10)] + rows_of("large", 2_500, 999)
    found = spread(connection, rows, 1_000, users=False)
    of_app: dict[str, set[int]] = defaultdict(set)
    for (app_id, _), buckets in found.items():
        of_app[app_id] |= buckets
    assert len(of_app.pop("large")) == 3
    assert all(len(buckets) == 1 for buckets in of_app.values())
    assert len(set().union(*of_app.values())) == 4, "thirty-three of them are a segment"


def test_a_small_reading_is_one_segment_and_asks_for_no_users(connection: duckdb.DuckDBPyConnection) -> None:
    rows = rows_of("a", 1_000, 300)
    found = spread(connection, rows, 1_000, users=True)
    assert set().union(*found.values()) == {0}


def test_a_sample_with_too_few_rows_is_none(connection: duckdb.DuckDBPyConnection) -> None:
    """Also where it has none at all: a hash of the users bounds a segment then."""
    rows = rows_of("a", 10_000, 3_000)
    for users_of in (200, 10**9):
        found = sizes(rows, spread(connection, rows, 1_000, users=True, users_of=users_of))
        assert len(found) == 10
        assert found[-1] < 1_300


DDL = "CREATE TABLE nami_events (id {id}, app_id text, event_type text, user_id {user}, created_date timestamptz, "
DDL += "ingested_at timestamptz, payload text)"
FILL = """
    INSERT INTO nami_events
    SELECT {id}, CASE WHEN n % 4 = 0 THEN 'b' ELSE 'a' END, 'type', {user}, now(), to_timestamp(n), '{{}}'
    FROM generate_series(1, 20000) AS of_rows (n) ORDER BY {order}
"""
KINDS = {
    "text": ("text", "text", "'e' || n", "'u' || n / 8"),
    "numbers": ("bigint", "integer", "n", "n / 8"),
    "uuid": ("uuid", "uuid", "md5(n::text)::uuid", "md5((n / 8)::text)::uuid"),
    "some are null": ("text", "text", "'e' || n", "CASE WHEN n % 10 > 0 THEN 'u' || n / 8 END"),
    "long": ("text", "text", "'e' || n", "'u' || n / 8 || repeat('x', 500)"),
}


def read_sample(url: str, home: Path) -> tuple[list[tuple[object, ...]], list[list[str]]]:
    """The sample of all rows, and the users of each segment of 10,000 rows, in order."""
    settings = Settings.load({"NAMI_AMP_HOME": str(home), "NAMI_AMP_WAREHOUSE_URL": url}, home / "no.env")
    with compute(settings) as connection, open_warehouse(settings).open(connection, {"a": None, "b": None}) as source:
        connection.execute(f"CREATE TEMP VIEW keys AS FROM {source.keys}")
        connection.execute("CREATE TEMP TABLE fresh AS SELECT rid FROM keys")
        create_buckets(connection, source, 10_000)
        sample = connection.execute(
            f"SELECT k.app_id, id, user_id FROM {source.users} u JOIN keys k USING (rid, app_id) ORDER BY ALL"
        ).fetchall()
        segments = connection.execute(
            "SELECT list(DISTINCT concat(app_id, ' ', user_id) ORDER BY concat(app_id, ' ', user_id)) "
            f"FROM {source.rows()} GROUP BY bucket_of(app_id, coalesce(user_id, '')) ORDER BY ALL"
        ).fetchall()
    return sample, [users for (users,) in segments]


@pytest.mark.parametrize("kind", KINDS)
def test_of_postgresql_a_sample_is_known_whatever_the_order(kind: str, postgres: Postgres, tmp_path: Path) -> None:
    id_type, user_type, event_id, user = KINDS[kind]
    samples = []
    for order in ("n", "md5(n::text)"):
        url = postgres.fresh_database()
        table = PostgresEvents(url, create=False)
        table.run(DDL.format(id=id_type, user=user_type))
        table.run(FILL.format(id=event_id, user=user, order=order))
        sample, segments = read_sample(url, tmp_path)
        samples.append(sample)
        assert 20_000 / 32 * 0.8 < len(sample) < 20_000 / 32 * 1.2
        assert len(segments) == 2
        assert segments[0][-1] < segments[1][0]
        assert max(len(str(user_id)) for *_, user_id in sample) <= 100
    assert samples[0] == samples[1]
