"""Several machines with a bucket between them: each carries on where another stopped, whatever the bucket does."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nami_amp_pipeline.backfill.turns import Work, run_backfill
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.errors import FilesUnavailable
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.backfill_status import show
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.operations.repair import lost_files, repair
from nami_amp_pipeline.retention import retain
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.storage import bucket as buckets
from nami_amp_pipeline.storage.cached_folder import CachedFolder
from nami_amp_pipeline_tests.support.bucket import S3, Machines, bucket, moto_server
from nami_amp_pipeline_tests.support.harness import Agreeing, Pipeline

pytestmark = pytest.mark.slow_cases

STEPS = ("capture.commit", "ledger.commit", "snapshot.commit", "prepare.commit", "receipts.commit")
"""Between these and what comes before, files are in the bucket that no row names yet."""


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def s3(moto: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with bucket(moto, monkeypatch) as made:
        yield made


@pytest.fixture
def each_machines(tmp_path: Path, s3: S3, state_url: str) -> Iterator[Machines]:
    """On each kind of state store."""
    made = Machines(tmp_path, s3, state_url)
    yield made
    made.close()


@pytest.fixture
def machines(tmp_path: Path, s3: S3) -> Iterator[Machines]:
    made = Machines(tmp_path, s3, f"sqlite:///{tmp_path / 'state.db'}")
    yield made
    made.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket is given up after two tries, and within a run for good."""
    monkeypatch.setattr(buckets, "_RETRIES", 1)
    monkeypatch.setattr("nami_amp_pipeline.stages.deliver.STORE_PATIENCE_SECONDS", 2)


class Patient(Agreeing):
    """A wire that lets time pass while nothing is under way."""

    def __init__(self, machine: Pipeline) -> None:
        super().__init__()
        self._machine = machine

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        if not self._answers:
            self._machine.clock.sleep(seconds)
            return []
        return super().wait(seconds)


@pytest.mark.slow
def test_a_machine_with_nothing_carries_on_after_each_stage(each_machines: Machines) -> None:
    machines = each_machines
    first = machines.new()
    one = first.add("app")
    machines.load("1", "2", user="a")
    machines.load("3", user="b")
    pipeline.capture_apps(first.context)
    second = machines.new()
    pipeline.snapshot_apps(second.context)
    third = machines.new()
    pipeline.prepare_integrations(third.context, [one])
    fourth = machines.new()
    wire = Agreeing()
    pipeline.deliver_integrations(fourth.context, [one], wire=wire)
    assert sorted(event["insert_id"] for event in wire.events) == ["1", "2", "3"]
    assert fourth.status(one).delivered == 3
    # What was read once is known on a machine that has not seen it.
    fifth = machines.new()
    machines.load("1", "4", user="a", minutes=1)
    fifth.clock.now += 3_600
    fifth.tick()
    assert [event["insert_id"] for event in fifth.sent(one)] == ["4"]
    assert {name.partition("/")[0] for name in machines.s3.names()} == {"segments", "ledger", "snapshots", "receipts"}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.slow
def test_killed_between_object_and_commit_another_machine_ends_it_and_retention_removes_the_orphan(
    machines: Machines, step: str
) -> None:
    begin = datetime.now(UTC)
    first = machines.new(begin=begin, NAMI_AMP_UNUSED_FILE_RETENTION_DAYS=str(1 / 86_400))
    one = first.add("app")
    machines.load("1", "2", user="a")

    def die(name: str) -> None:
        assert not lost_files(first.context.store, first.context.folder)
        if name == step:
            raise Killed

    first.context.step = die
    with pytest.raises(Killed):
        first.tick()
    lost = machines.s3.names()
    second = machines.new(begin=begin, NAMI_AMP_UNUSED_FILE_RETENTION_DAYS=str(1 / 86_400))
    second.clock.now = time.time() + 3_600  # the killed process loses its leases
    second.tick()
    came = [event["insert_id"] for each in machines.all for event in each.sent(one)]
    # What was posted and not recorded is posted again, the same; only the receipts come after the posting.
    assert sorted(came) == ["1", "2"]
    assert second.status(one).delivered == 2
    assert not lost_files(second.context.store, second.context.folder)
    third = machines.new(begin=begin, NAMI_AMP_UNUSED_FILE_RETENTION_DAYS=str(1 / 86_400))
    removed = []
    for _ in range(3):  # it is noted, and removed when it has been noted for long enough
        third.clock.now += 60
        removed.append(retain(third.context).removed.get("unused_files"))
    assert [found is not None and found.files >= 1 for found in removed] == [False, True, False]
    assert {name.partition("/")[0] for name in machines.s3.names()} == {"segments", "ledger", "snapshots", "receipts"}
    assert len(machines.s3.names()) == 4
    assert lost - machines.s3.names()
    assert not lost_files(third.context.store, third.context.folder)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.slow
def test_a_bucket_that_fails_stops_a_stage_with_one_line_and_the_next_run_goes_on(
    machines: Machines, stage: int
) -> None:
    first = machines.new()
    one = first.add("app")
    machines.load("1", "2", user="a")
    wire = Patient(first)
    acts: list[Callable[[], object]] = [
        lambda: pipeline.capture_apps(first.context),
        lambda: pipeline.snapshot_apps(first.context),
        lambda: pipeline.prepare_integrations(first.context, [one]),
        lambda: pipeline.deliver_integrations(first.context, [one], wire=wire),
    ]
    for act in acts[:stage]:
        act()
    before = machines.s3.names()
    machines.s3.trouble.fail = -1
    if stage < 3:
        with pytest.raises(FilesUnavailable, match=r"^s3://files-\d+/nami: \w+/\w+\.\w+ cannot be written: ") as said:
            acts[stage]()
        assert "\n" not in str(said.value)
        assert len(str(said.value)) < 500
    else:
        done = pipeline.deliver_integrations(first.context, [one], wire=wire)[one.id]
        assert done.error is not None
        assert "cannot be written" in done.error
    machines.s3.trouble.fail = 0
    assert machines.s3.names() == before
    second = machines.new()
    second.clock.now += 3_600
    second.tick()
    assert sorted(event["insert_id"] for event in [*wire.events, *second.sent(one)]) == ["1", "2"]
    assert second.status(one).delivered == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.slow
def test_a_machine_that_cannot_read_the_bucket_posts_nothing_and_says_so(machines: Machines) -> None:
    first = machines.new()
    one = first.add("app")
    machines.load("1", "2", user="a")
    pipeline.capture_apps(first.context)
    pipeline.snapshot_apps(first.context)
    pipeline.prepare_integrations(first.context, [one])
    second = machines.new()
    machines.s3.trouble.fail, machines.s3.trouble.only = -1, ("GET",)
    wire = Patient(second)
    done = pipeline.deliver_integrations(second.context, [one], wire=wire)[one.id]
    assert wire.bodies == []
    assert done.error is not None
    assert "cannot be read" in done.error
    assert second.status(one).pending == 2
    machines.s3.trouble.fail = 0
    second.tick()
    assert second.status(one).delivered == 2


@pytest.mark.slow
def test_some_failures_of_a_bucket_are_not_even_noticed(machines: Machines) -> None:
    first = machines.new()
    one = first.add("app")
    machines.load("1", "2", user="a")
    machines.s3.trouble.fail = 1
    machines.s3.trouble.after = 3  # the object is there, the answer says that it is not: the second try finds it
    machines.s3.trouble.delay = 0.05
    first.tick()
    assert first.status(one).delivered == 2
    puts = [path for method, path in machines.s3.trouble.seen if method == "PUT"]
    assert len(puts) > len(set(puts))
    assert not lost_files(first.context.store, first.context.folder)


def test_a_bucket_that_is_away_for_a_while_is_waited_for(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_FIRST_WAIT", timedelta(milliseconds=1))
    monkeypatch.setattr(buckets, "_LONGEST_WAIT", timedelta(milliseconds=2))
    first = machines.new()
    one = first.add("app")
    machines.load("1", user="a")
    machines.s3.trouble.fail = 40
    first.tick()
    assert machines.s3.trouble.fail == 0
    assert first.status(one).delivered == 1


@pytest.mark.usefixtures("impatient")
def test_a_bucket_that_does_not_answer_in_time_is_one_line(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "TIMEOUT_SECONDS", 0.2)
    first = machines.new()
    first.add("app")
    machines.load("1", "2", user="a")
    machines.s3.trouble.delay = 1.0
    with pytest.raises(FilesUnavailable, match="cannot be written") as said:
        pipeline.capture_apps(first.context)
    assert "\n" not in str(said.value)
    machines.s3.trouble.delay = 0.0
    monkeypatch.setattr(buckets, "TIMEOUT_SECONDS", 30)
    assert machines.new().context.store
    machines.all[-1].clock.now += 3_600
    assert pipeline.capture_apps(machines.all[-1].context)["app"].rows == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.slow
def test_half_an_object_is_never_taken_for_a_whole_one(machines: Machines) -> None:
    first = machines.new()
    one = first.add("app")
    machines.load("1", "2", user="a")
    pipeline.capture_apps(first.context)
    second = machines.new()
    machines.s3.trouble.cut, machines.s3.trouble.only = -1, ("GET",)
    with pytest.raises(FilesUnavailable, match=r"segments/\w+\.parquet"):
        pipeline.snapshot_apps(second.context)
    assert list((second.context.folder.root / "segments").iterdir()) == []
    machines.s3.trouble.cut = 0
    second.tick()
    assert second.status(one).delivered == 2


@pytest.mark.slow
def test_a_backfill_is_taken_over_by_machines_with_nothing_and_history_stays_history(machines: Machines) -> None:
    """The second rewrites the outbox of the first, because live delivery sent newer state, and is killed after it."""
    first = machines.new()
    start = datetime.fromtimestamp(first.clock.now, UTC)
    machines.load("old", user="a", minutes=-60)
    one = first.add("app", start_from=start)
    over = Window(from_datetime(start - timedelta(days=1)), from_datetime(start))
    made = backfills.create(first.context, NewBackfill(one.key, over))
    wire = Agreeing()
    run_backfill(first.context, made.id, Work(wire=lambda: wire, stop=iter([False, True, True]).__next__))
    machines.load("new", user="a", minutes=60)
    first.clock.now += 7_200
    second = machines.new()
    second.tick()
    assert [event["insert_id"] for event in second.sent(one)] == ["new"]

    def die(name: str) -> None:
        if name == "backfill.flagged":
            raise Killed

    second.context.step = die
    with pytest.raises(Killed):
        run_backfill(second.context, made.id, Work(wire=lambda: wire))
    assert wire.events == []
    third = machines.new()
    third.clock.now += 3_600
    run_backfill(third.context, made.id, Work(wire=lambda: wire))
    assert show(third.context, made.id).backfill.state == "done"
    (sent,) = wire.events
    assert (sent["insert_id"], sent["$skip_user_properties_sync"]) == ("old", True)


@pytest.mark.slow
def test_a_lost_object_is_put_back_from_a_copy_or_made_again(machines: Machines) -> None:
    first = machines.new()
    one = first.add("app")
    machines.load("1", "2", user="a")
    pipeline.capture_apps(first.context)
    pipeline.snapshot_apps(first.context)
    pipeline.prepare_integrations(first.context, [one])
    kept = {name.partition("/")[0]: name for name in machines.s3.names()}
    segment, snapshots, outbox = (kept[kind] for kind in ("segments", "snapshots", "outboxes"))
    for name in (segment, snapshots, outbox):
        machines.s3.client.delete_object(Bucket=machines.s3.bucket, Key=f"nami/{name}")
    for name in (snapshots, outbox):
        first.context.folder.path(name).unlink()
    lost = lost_files(first.context.store, first.context.folder)
    assert [each.file for each in lost] == [segment, snapshots, outbox]
    assert [why for _, why in repair(first.context, lost)] == [None, None, None]
    assert segment in machines.s3.names()
    assert not {snapshots, outbox} & machines.s3.names()
    second = machines.new()
    assert not lost_files(second.context.store, second.context.folder)
    second.tick()
    assert second.status(one).delivered == 2


def test_copies_leave_the_disk_by_use_and_come_back(machines: Machines, tmp_path: Path) -> None:
    storage = buckets.Bucket(machines.s3.address)
    folder = CachedFolder(tmp_path / "disk", storage, most_bytes=2_500, unused_seconds=86_400)
    names = [folder.new_name("segments", "parquet") for _ in range(4)]
    for number, name in enumerate(names):
        folder.path(name).write_bytes(bytes([number]) * 1_000)
    folder.publish(names[:3])
    hour_ago = time.time() - 3_600
    for number, name in enumerate(names):
        os.utime(folder.path(name), (hour_ago + number, hour_ago + number))
    folder.fetch(names[0])
    folder.trim()
    # The last is in no bucket yet, and the first was used just now.
    assert [folder.path(name).exists() for name in names] == [True, False, False, True]
    assert folder.missing(names) == [names[3]]
    assert folder.sizes(names) == [1_000] * 4
    assert folder.fetch(names[2]).read_bytes() == bytes([2]) * 1_000
    assert not folder.path(names[2]).stat().st_mode & stat.S_IWUSR
    os.utime(folder.path(names[3]), (hour_ago - 86_400, hour_ago - 86_400))
    folder.trim()  # of a process that was killed long ago
    assert not folder.path(names[3]).exists()
    assert not folder.exists(names[3])
    assert folder.exists(names[1])


def test_the_bound_holds_while_work_goes_on(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nami_amp_pipeline.storage.cached_folder.IN_USE_SECONDS", -1)
    folder = CachedFolder(
        tmp_path / "disk", buckets.Bucket(machines.s3.address), most_bytes=16_000, unused_seconds=86_400
    )
    names = []
    for _ in range(40):
        names.append(folder.new_name("outboxes", "arrow"))
        folder.path(names[-1]).write_bytes(b"x" * 1_000)
        folder.publish([names[-1]])
        kept = sum(path.stat().st_size for path in (folder.root / "outboxes").iterdir())
        assert kept <= 17_000
    assert folder.missing(names) == []
    assert {path.stat().st_size for path in folder.fetch_all(names[:10])} == {1_000}


@pytest.mark.slow
def test_a_listing_of_several_pages_is_whole(s3: S3) -> None:
    for number in range(1_050):
        s3.client.put_object(Bucket=s3.bucket, Key=f"nami/segments/{number}.parquet", Body=b"x")
    storage = buckets.Bucket(s3.address)
    assert len(list(storage.list("segments/"))) == 1_050
    assert sum(method == "GET" for method, _ in s3.trouble.seen) > 1
    storage.delete(f"segments/{number}.parquet" for number in range(1_040))
    assert len(s3.names()) == 10


def test_a_large_file_goes_in_parts(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_WHOLE_BYTES", 1_000)
    monkeypatch.setattr(buckets, "_PART_BYTES", 6_000_000)
    content = os.urandom(1_000) * 13_000
    (tmp_path / "large").write_bytes(content)
    storage = buckets.Bucket(s3.address)
    storage.create("segments/large.parquet", tmp_path / "large")
    assert sum("partNumber" in path for _, path in s3.trouble.seen) == 3
    assert storage.read("segments/large.parquet", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_a_name_is_never_used_twice(s3: S3, tmp_path: Path) -> None:
    storage = buckets.Bucket(s3.address)
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"another")
    storage.create("segments/x", tmp_path / "a")
    storage.create("segments/x", tmp_path / "a")
    with pytest.raises(FilesUnavailable, match="is another file"):
        storage.create("segments/x", tmp_path / "b")
    assert storage.read("segments/x", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"one"
    assert not storage.read("segments/y", tmp_path / "none")
    assert storage.size("segments/y") is None
