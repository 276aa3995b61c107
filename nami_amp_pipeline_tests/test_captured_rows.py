"""Which rows of a large reading are taken: the same whether their numbers are joined or looked up in a bitmap."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nami_amp_pipeline.stages import captured_rows
from nami_amp_pipeline.stages.captured_rows import BITS_PER_ROW, only_fresh

SOURCE = "(SELECT range AS rid, 'row ' || range AS payload FROM range({first}, {end}))"


def taken(fresh: list[int], first: int, end: int) -> tuple[str, list[tuple[int, str]]]:
    with duckdb.connect() as connection:
        connection.register("fresh", pa.table({"rid": pa.array(fresh, pa.int64())}))
        rows = only_fresh(connection, SOURCE.format(first=first, end=end))
        return rows, connection.execute(f"SELECT rid, payload FROM {rows} ORDER BY rid").fetchall()


@settings(deadline=None, max_examples=30)
@given(
    fresh=st.sets(st.integers(0, 200), min_size=1),
    lowest=st.sampled_from([0, 2**31 - 100, 2**62]),
    first=st.integers(0, 50),
    end=st.integers(150, 250),
)
def test_a_bitmap_finds_what_a_join_finds(fresh: set[int], lowest: int, first: int, end: int) -> None:
    numbers = sorted(lowest + rid for rid in fresh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured_rows, "JOINED_ROWS", 0)
        patch.setattr(captured_rows, "BITS_PER_ROW", 1_000)
        sql, rows = taken(numbers, lowest + first, lowest + end)
    assert "JOIN" not in sql
    assert rows == [(rid, f"row {rid}") for rid in numbers if lowest + first <= rid < lowest + end]


@pytest.mark.parametrize(
    ("fresh", "is_joined"),
    [
        ([0, 2 * BITS_PER_ROW - 1], False),
        ([0, 2 * BITS_PER_ROW], True),
        ([-(2**63), 2**63 - 1], True),
        ([7], False),
        ([], True),
    ],
)
def test_numbers_that_lie_far_apart_are_joined(
    monkeypatch: pytest.MonkeyPatch, fresh: list[int], is_joined: bool
) -> None:
    monkeypatch.setattr(captured_rows, "JOINED_ROWS", 0)
    sql, rows = taken(fresh, 0, 100)
    assert ("JOIN" in sql) is is_joined
    assert [rid for rid, _ in rows] == [rid for rid in fresh if 0 <= rid < 100]


def test_a_bitmap_is_never_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_rows, "JOINED_ROWS", 0)
    monkeypatch.setattr(captured_rows, "MOST_BITS", 10)
    assert "JOIN" in taken([0, 10], 0, 20)[0]
    assert "JOIN" not in taken([0, 9], 0, 20)[0]


def test_few_rows_are_joined() -> None:
    assert "JOIN" in taken([1, 2, 3], 0, 10)[0]
