"""Hours without Amplitude while events go on arriving: all is delivered after, and nothing grows but the queue."""

from __future__ import annotations

import heapq
import multiprocessing
import os
import random
import statistics
import time
from pathlib import Path

import duckdb

from nami_amp_pipeline.delivery.transport import HttpAnswer, HttpTransport, NoAnswer, Request
from nami_amp_pipeline.storage.duckdb_engine import literal
from nami_amp_pipeline_tests.endurance.amplitude import OwnProcess
from nami_amp_pipeline_tests.endurance.report import Report
from nami_amp_pipeline_tests.endurance.scene import MovedClock, Scene, event_ids, key_of, load_sample

WAYS = ("refused", "500")
APPS = ("radio-nami", "fit-nami")
TICK_SECONDS = 300
_TICKS_AFTER = 12
_MOST_TO_DELIVER_MB = 450
"""Outboxes that are kept at hand (256 MB) and requests under way (100 MB), whatever the backlog; and some air."""

_NOTICED = ("accepted_more_than_once", "order_violations", "concurrent_same_user", "changed_repeats")


class Away:
    """A wire on which no request gets through, in moved time.

    Args:
        clock: moved on where the pipeline waits.
        transport: None refuses each connection; else each request is answered 500, and every other one was stored.
        rng: decides which.
    """

    def __init__(self, clock: MovedClock, transport: HttpTransport | None, rng: random.Random) -> None:
        self._clock = clock
        self._transport = transport
        self._rng = rng
        self._answers: list[tuple[int, int]] = []
        self.requests = 0

    def start(self, number: int, request: Request) -> None:
        self.requests += 1
        if self._transport is not None and self._rng.random() < 0.5:
            self._transport.post(request)
        heapq.heappush(self._answers, (number, 500))

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        if not self._answers:
            self._clock.skip(seconds)
        came, self._answers = self._answers, []
        if self._transport is None:
            return [(number, NoAnswer("no_connection", maybe_stored=False)) for number, _ in came]
        return [
            (number, HttpAnswer(status, b'{"code":500,"error":"Internal Server Error"}')) for number, status in came
        ]

    def close(self) -> None:
        pass


class Loader:
    """Loads a part of the sample events at a time, as if each user's events had just happened."""

    def __init__(self, folder: Path, events: int, ticks: int) -> None:
        self._source = folder / "source.duckdb"
        self.warehouse = folder / "warehouse.duckdb"
        self._each = -(-events // ticks)
        # In a process of its own: what it needs would look like memory of the pipeline.
        loading = multiprocessing.get_context("spawn").Process(target=load_sample, args=(self._source, events, APPS))
        loading.start()
        loading.join()
        assert loading.exitcode == 0
        load_sample(self.warehouse, 0, APPS)

    def load(self, tick: int, now: float) -> int:
        """Loads what arrived in the time before ``now``; returns how many rows."""
        first, until = tick * self._each, (tick + 1) * self._each
        begin, apart = int((now - TICK_SECONDS) * 1e6), TICK_SECONDS * 10**6 // self._each
        at = f"make_timestamptz({begin} + (rowid - {first}) * {apart})"
        with duckdb.connect(str(self.warehouse), config={"memory_limit": "200MB", "threads": 1}) as connection:
            connection.execute(f"ATTACH {literal(str(self._source))} AS source (READ_ONLY)")
            row = connection.execute(
                f"INSERT INTO nami_events BY NAME SELECT id, app_id, event_type, user_id, {at} AS created_date, "
                f"{at} AS ingested_at, payload FROM source.nami_events WHERE rowid >= {first} AND rowid < {until}"
            ).fetchone()
        return int(row[0]) if row else 0


def run(report: Report, folder: Path, *, hours: float, events: int, how: str) -> None:
    """One outage, and what comes after."""
    folder.mkdir(parents=True, exist_ok=True)
    ticks = max(1, round(hours * 3600 / TICK_SECONDS))
    loader = Loader(folder, events, ticks)
    report.line(f"outage ({how}): {hours:g} hours, a tick every {TICK_SECONDS} s, {events:,} rows in {ticks} ticks")
    with OwnProcess(folder / "journal.ndjson") as amplitude:
        scene = Scene(folder / "home", loader.warehouse, report, {})
        for app_id in APPS:
            scene.add(app_id, amplitude.endpoint)
        resident = _through(report, scene, loader, ticks, how)
        stored = int(amplitude.audit()["accepted"])
        report.check((stored > 0) == (how == "500"), f"{stored} events were stored while Amplitude was away")
        report.zero(f"{how}: during the outage", delivered=sum(one.delivered for one in scene.numbers()))
        _recover(report, scene, how, resident[-1])
        _flat(report, resident, how)
        _check(report, scene, loader.warehouse, amplitude, how)
        scene.close()


def _through(report: Report, scene: Scene, loader: Loader, ticks: int, how: str) -> list[float]:
    """The ticks of the outage; the resident memory in MB after each."""
    rng, start = random.Random(1), scene.clock() + TICK_SECONDS
    transport = HttpTransport(30.0) if how == "500" else None
    resident: list[float] = []
    began, requests, rows = time.perf_counter(), 0, 0
    slowest = 0.0
    for tick in range(ticks):
        now = start + tick * TICK_SECONDS
        rows += loader.load(tick, now)
        scene.clock.reach(now)
        wire = Away(scene.clock, transport, rng)
        tick_began = time.perf_counter()
        scene.read()
        scene.deliver(wire)
        slowest = max(slowest, time.perf_counter() - tick_began)
        requests += wire.requests
        resident.append(resident_mb())
        if tick == 0 or (tick + 1) % max(1, ticks // 6) == 0:
            files, size = folder_size(scene.settings.data_dir)
            state = scene.settings.home / "state.db"
            report.line(
                f"  {(tick + 1) * TICK_SECONDS / 3600:4.1f} h: {rows:,} rows, {scene.pending():,} pending, "
                f"{resident[-1]:.0f} MB resident, data folder {files} files, {size / 1e6:.0f} MB "
                f"({size / rows:.0f} bytes a row), state {state.stat().st_size / 1e6:.1f} MB, {requests:,} requests"
            )
    seconds = time.perf_counter() - began
    report.line(
        f"  {ticks} ticks in {seconds:.0f} s, the slowest {slowest:.1f} s; {requests / ticks:.0f} requests a tick"
    )
    files, size = folder_size(scene.settings.data_dir)
    # A segment, its snapshots and the outboxes of a tick.
    report.check(files <= 4 * ticks + 4, f"{how}: {files} files for {ticks} ticks")
    report.check(size <= 2_000 * rows + 2_000_000, f"{how}: {size:,} bytes for {rows:,} rows")
    if transport is not None:
        transport.close()
    return resident


def _recover(report: Report, scene: Scene, how: str, before: float) -> None:
    began, most, ticks, waiting = time.perf_counter(), 0.0, 0, scene.pending()
    while scene.pending() and ticks < _TICKS_AFTER:
        ticks += 1
        scene.clock.skip(TICK_SECONDS)
        scene.read()
        scene.deliver()
        most = max(most, resident_mb())
    seconds = time.perf_counter() - began
    files, size = folder_size(scene.settings.data_dir)
    report.zero(f"{how}: after the outage", pending=scene.pending())
    report.check(most <= before + _MOST_TO_DELIVER_MB, f"{how}: delivering took {most - before:.0f} MB")
    report.line(
        f"  back: {waiting:,} delivered in {ticks} ticks, {seconds:.0f} s, {waiting / seconds:,.0f} events/s; "
        f"{most:.0f} MB resident; data folder {files} files, {size / 1e6:.0f} MB"
    )
    left = len(list((scene.settings.data_dir / "outboxes").iterdir()))
    report.zero(f"{how}: after the outage", outbox_files_left=left)


def _flat(report: Report, resident: list[float], how: str) -> None:
    """Whether the memory of the last third is that of the first, which is spent on warming up in part."""
    third = max(1, len(resident) // 3)
    first, last = statistics.median(resident[:third]), statistics.median(resident[-third:])
    report.check(last <= first * 1.25 + 30, f"{how}: {first:.0f} MB resident grew to {last:.0f} MB")
    report.line(
        f"  resident: median of the first third {first:.0f} MB, of the last {last:.0f} MB, most {max(resident):.0f} MB"
    )


def _check(report: Report, scene: Scene, warehouse: Path, amplitude: OwnProcess, how: str) -> None:
    accepted = 0
    for app_id in APPS:
        due, got = event_ids(warehouse, app_id), amplitude.taken(key_of(app_id))
        accepted += len(got)
        report.zero(
            f"{how}, {app_id}",
            lost=len(due - got.keys()),
            not_due=len(got.keys() - due),
            twice=sum(got.values()) - len(got),
            dead_letters=len(scene.dead(app_id)),
        )
    numbers = scene.numbers()
    report.check(sum(one.delivered for one in numbers) == accepted, f"{how}: delivered is not accepted")
    audit = amplitude.audit()
    report.zero(how, skipped=sum(sum(one.skipped.values()) for one in numbers), **{n: audit[n] for n in _NOTICED})
    report.line(
        f"  {accepted:,} accepted once, {audit['duplicates']:,} sent again, {audit['requests']:,} requests arrived"
    )


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def folder_size(folder: Path) -> tuple[int, int]:
    """Files, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)
