"""What a delivery asks of the store and the disk does not grow with each integration: they are worked on together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.delivery.outbox_finisher import InThread, OutboxFinisher
from nami_amp_pipeline.delivery.receipts import Ending, finish_outboxes
from nami_amp_pipeline.errors import Blocked, LostLease, StoreUnavailable
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Lease, Store
from nami_amp_pipeline.storage.data_folder import DataFolder
from nami_amp_pipeline_tests.simulation.scripted_answers import Bench, event


class Busy:
    """A background that begins when somebody looks, as a thread does that was busy."""

    def start(self, act: Callable[[], None]) -> Future[None]:
        return _Looked(act)

    def close(self) -> None:
        pass


class _Looked(Future[None]):
    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def done(self) -> bool:
        if not super().done():
            self._act()
            self.set_result(None)
        return True


def _transactions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What transactions are begun from here on."""
    begun: list[str] = []

    def counted(name: str) -> Any:
        whole = getattr(Store, name)

        @contextmanager
        def begin(self: Store, **given: Any) -> Iterator[Any]:
            begun.append(name)
            with whole(self, **given) as tx:
                yield tx

        return begin

    for name in ("begin", "reading"):
        monkeypatch.setattr(Store, name, counted(name))
    del bench
    return begun


@pytest.mark.parametrize("integrations", [2, 30])
def test_a_delivery_takes_as_many_transactions_for_many_integrations_as_for_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, integrations: int
) -> None:
    bench = Bench(tmp_path, integrations=integrations)
    bench.prepare([event(number) for number in range(3)])
    bench.background = Busy()
    begun = _transactions(bench, monkeypatch)
    bench.deliver()
    assert len(begun) < 20, f"{len(begun)} transactions"
    assert all(bench.status(number).delivered == 3 for number in range(integrations))
    with bench.context.store.reading() as tx:
        assert not tx.execute(sa.select(tables.outboxes.c.id).where(tables.outboxes.c.done_at.is_(None))).all()


def test_outboxes_that_wait_are_finished_in_one_go() -> None:
    calls: list[list[tuple[int, int]]] = []
    begins = threading.Event()

    def finish(some: Sequence[tuple[int, int]]) -> dict[int, Exception]:
        begins.wait(20)
        calls.append(list(some))
        return {8: Blocked("no")}

    finishing = OutboxFinisher(finish, InThread(), 1)
    for number in (7, 8, 9, 10):
        finishing.start(number, number, 0)
    begins.set()
    finishing.close()
    assert [each for some in calls for each in some] == [(number, number) for number in (7, 8, 9, 10)]
    assert len(calls) <= 2, "what came while the first was finished is finished together"
    assert [channel_id for channel_id, _ in finishing.settle(0)] == [8]
    assert finishing.next_at(0) is None


def _outboxes(bench: Bench) -> dict[int, Any]:
    with bench.context.store.reading() as tx:
        return {row.integration_id: row for row in tx.execute(sa.select(tables.outboxes))}


def _endings(bench: Bench) -> list[Ending]:
    """All outboxes, each under the lease of its integration."""
    leases = bench.context.store.acquire([f"integration:{number}" for number in bench.ids])
    boxes = _outboxes(bench)
    return [Ending(boxes[number].id, leases[f"integration:{number}"]) for number in bench.ids]


def _ids(bench: Bench, name: str) -> list[str]:
    found: list[str] = pq.read_table(bench.context.folder.path(name))["id"].to_pylist()
    return found


def test_each_outbox_has_receipts_of_its_own_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, integrations=3)
    first, second, third = bench.ids
    bench.prepare([event(1), event(2)], integrations=[first, third])
    bench.prepare([], integrations=[second])
    assert finish_outboxes(bench.context, _endings(bench)) == {}
    boxes = _outboxes(bench)
    assert {number: _ids(bench, box.receipts_file) for number, box in boxes.items()} == {
        first: ["e1", "e2"],
        second: [],
        third: ["e1", "e2"],
    }
    assert not list(bench.settings.data_dir.glob("outboxes/*")), "files of which all shares are done are removed"
    assert not list(bench.settings.data_dir.glob("receipts/*.part"))


def test_an_outbox_whose_lease_is_lost_stops_itself_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, integrations=3)
    bench.prepare([event(1)])
    endings = _endings(bench)
    lost = Ending(endings[1].outbox_id, Lease(endings[1].lease.name, endings[1].lease.fence - 1))
    failed = finish_outboxes(bench.context, [endings[0], lost, endings[2]])
    assert {number: type(error) for number, error in failed.items()} == {lost.outbox_id: LostLease}
    assert [box.done_at is not None for box in _outboxes(bench).values()] == [True, False, True]


def test_an_outbox_that_cannot_be_read_stops_itself_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, integrations=3)
    for number in bench.ids:
        bench.prepare([event(number)], integrations=[number])
    endings, boxes = _endings(bench), _outboxes(bench)
    bench.context.folder.path(boxes[bench.ids[1]].file).write_bytes(b"no Arrow file")
    failed = finish_outboxes(bench.context, endings)
    assert {number: type(error) for number, error in failed.items()} == {boxes[bench.ids[1]].id: Blocked}
    assert [box.done_at is not None for box in _outboxes(bench).values()] == [True, False, True]


def test_a_store_that_is_away_is_everybodys_and_is_not_asked_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, integrations=3)
    bench.prepare([event(1)])
    endings = _endings(bench)
    asked: list[int] = []

    def reading(_store: Store) -> Any:
        asked.append(1)
        raise StoreUnavailable("away")

    monkeypatch.setattr(Store, "reading", reading)
    failed = finish_outboxes(bench.context, endings)
    assert {type(error) for error in failed.values()} == {StoreUnavailable}
    assert (len(failed), len(asked)) == (3, 1)


def test_files_that_are_written_together_are_there_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    names = [folder.new_name("receipts", "parquet") for _ in range(3)]
    empty = pa.table({"id": pa.array([], pa.string())})

    def write(*, fails: bool) -> None:
        with folder.together() as files:
            for name in names:
                with folder.parquet(name, empty.schema, among=files) as writer:
                    writer.write_table(empty)
                assert not folder.path(name).exists()
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(fails=True)
    assert not list((tmp_path / "receipts").iterdir())
    write(fails=False)
    assert sorted(path.name for path in (tmp_path / "receipts").iterdir()) == sorted(
        name.rpartition("/")[2] for name in names
    )
