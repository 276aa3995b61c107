"""How many requests it takes to find refused events that no list names, wherever they stand.

``python -m nami_amp_pipeline_tests.tools.bisection_cost`` tries every place in requests of 1 to 256 events,
alone and with a second refused event, in a lane and among events that waited in the store. The channel is real, the
answers are made up.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import orjson
import pyarrow as pa

from nami_amp_pipeline.amplitude.target import AMPLITUDE
from nami_amp_pipeline.delivery.attempt import Limits
from nami_amp_pipeline.delivery.channel import Channel
from nami_amp_pipeline.delivery.destination import Target
from nami_amp_pipeline.delivery.held_queue import HeldEvent, ReadHeld
from nami_amp_pipeline.delivery.lane import Lane
from nami_amp_pipeline.delivery.outbox import OutboxCache
from nami_amp_pipeline.delivery.request_record import RequestRecord
from nami_amp_pipeline.delivery.store_changes import StoreChanges
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages.outbox_writer import OUTBOX_SCHEMA

TAKEN = HttpAnswer(200, b'{"code":200}')
REFUSED = HttpAnswer(400, b'{"code":400,"error":"Invalid event JSON"}')
_TARGET = Target(AMPLITUDE, "http://127.0.0.1/2/httpapi", Secret("0" * 32))
_START = 1_790_000_000_000_000


def most_extra(events: int) -> int:
    """How many requests more one refused event may cost: log2 of the batch and one, rounded up."""
    return math.ceil(math.log2(events)) + 1


class _Noted(StoreChanges):
    """StoreChanges that are not written, but remembered: which events have their end state."""

    def __init__(self) -> None:
        super().__init__(1)
        self.dead: list[int] = []
        self.ended: set[int] = set()

    def insert_exceptions(self, rows: Sequence[dict[str, Any]], request: RequestRecord | None = None) -> None:
        assert all(row["state"] == "dead" and row["answer"] and request for row in rows)
        self.dead += [int(row["event_id"]) for row in rows]

    def update_exceptions(
        self, ids: Sequence[int], values: Mapping[str, Any], request: RequestRecord | None = None
    ) -> None:
        if values.get("state") == "dead":
            assert values["answer"]
            assert request
            self.dead += ids
        if "state" in values:
            self.ended.update(ids)


class Asking:
    """One channel with one batch of events.

    Args:
        events: how many.
        refused: those that Amplitude never takes.
        waiting: they wait in the store, three of each user, instead of being rows of a lane.
    """

    def __init__(self, events: int, refused: Iterable[int], *, waiting: bool = False) -> None:
        self.refused = set(refused)
        self.events = events
        self.posted: list[list[int]] = []
        self.changes = _Noted()
        self.channel = _channel(events, self._read if waiting else lambda _identity, _most: [])
        self.channel.ends.changes = self.changes
        if waiting:
            for number in range(0, events, 3):
                self.channel.held.wait(f"u:{number // 3}", _START - events + number)
        else:
            self.channel.load(1, 1, "outbox", [Lane(1, 0, events, 0, 0, None)])

    def _read(self, identity: str, most: int) -> Sequence[HeldEvent]:
        first = int(identity[2:]) * 3
        left = [number for number in range(first, min(first + 3, self.events)) if number not in self.changes.ended]
        return [HeldEvent(number, identity, _bodies(self.events)[number][1:].encode(), None) for number in left[:most]]

    def run(self) -> int:
        """Delivers; returns how many requests it took more than one.

        Raises:
            AssertionError: not exactly the refused events are dead letters, or something was not delivered once.
        """
        now = _START
        delivered: list[int] = []
        for _ in range(3 * self.events + 3):
            attempt = self.channel.start(now)
            self._written()
            if attempt is None:
                break
            numbers = [int(event["insert_id"]) for event in orjson.loads(attempt.body)["events"]]
            self.posted.append(numbers)
            taken = self.refused.isdisjoint(numbers)
            delivered += numbers if taken else []
            self.channel.finish(attempt, TAKEN if taken else REFUSED, now)
            self._written()
            now += 1_000
        assert sorted(delivered) == sorted(set(range(self.events)) - self.refused)
        assert sorted(self.changes.dead) == sorted(self.refused)
        assert not self.channel.has_pending
        return len(self.posted) - 1

    def _written(self) -> None:
        self.changes.clear()


@cache
def _bodies(events: int) -> list[str]:
    return [f',{{"event_type":"e","insert_id":"{number}"}}' for number in range(events)]


@cache
def _file(events: int) -> pa.Buffer:
    rows = [
        {"id": str(number), "event_type": "e", "user_id": "u", "identity": f"u:{number // 3}", "created_date": number,
         "state": "send", "row": number, "body": body}
        for number, body in enumerate(_bodies(events))
    ]  # fmt: skip
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, OUTBOX_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=OUTBOX_SCHEMA))
    return sink.getvalue()


def _channel(events: int, read: ReadHeld) -> Channel:
    shelf = OutboxCache(lambda _name: pa.ipc.open_file(_file(events)))
    limits = Limits(events, 10_000_000, 1)
    return Channel(1, _TARGET, shelf, read, limits=limits, run_id="searching", rng=random.Random(1))


def worst(events: int, places: Iterable[Collection[int]], *, waiting: bool) -> int:
    """The most requests that any of these sets of refused events costs more than none would.

    Raises:
        AssertionError: one costs more than it may.
    """
    most = 0
    for refused in places:
        extra = Asking(events, refused, waiting=waiting).run()
        assert extra <= most_extra(events) * len(refused), (events, refused, extra)
        most = max(most, extra)
    return most


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=256, help="events of the largest request")
    given = parser.parse_args()
    begun, cases = time.monotonic(), 0
    rng = random.Random(1)
    for waiting in (False, True):
        for events in range(1, given.most + 1):
            ones = [(place,) for place in range(events)]
            twos = list(combinations(range(events), 2))
            twos = twos if events <= 48 else rng.sample(twos, 2 * events)
            worst(events, ones, waiting=waiting)
            worst(events, twos, waiting=waiting)
            cases += len(ones) + len(twos)
    sys.stdout.write(
        f"{cases:,} cases in {time.monotonic() - begun:.0f} s: none costs more than log2 + 1, rounded up\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
