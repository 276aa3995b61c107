"""Merges the lives of many sample users into one table, in the order in which a warehouse would load it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Final

import pyarrow as pa

from nami_amp_pipeline.sample import payloads as rendering
from nami_amp_pipeline.sample.payloads import DAY, HOUR, Event
from nami_amp_pipeline.sample.personas import CAST_SIZE, personas_of, play
from nami_amp_pipeline.sample.user_life import Life, live

SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("app_id", pa.string()),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("created_date", pa.timestamp("us", tz="UTC")),
        ("ingested_at", pa.timestamp("us", tz="UTC")),
        ("payload", pa.string()),
    ]
)
"""The columns of the warehouse table."""

START: Final = datetime(2026, 9, 1, tzinfo=UTC)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ROWS_PER_USER: Final = 10
_DENSEST: Final = 50_000
"""With `rows`, no more users than this install within `days`, lest memory grow with `rows`; time goes on instead."""


def generate(
    users: int,
    *,
    seed: int = 7,
    apps: Sequence[str] = ("radio-nami", "fit-nami"),
    start: datetime = START,
    days: int = 30,
    batch_rows: int = 50_000,
    rows: int | None = None,
    hostile: float = 0.0,
) -> Iterator[pa.RecordBatch]:
    """Yields the warehouse rows of made-up users, in order of `ingested_at`; the same arguments give the same bytes.

    Users install one after the other over `days` days, and each is followed for `days` days. Without `rows`, what is
    loaded after `start + days` is left out, as it would not be there yet. The first users of each app are its cast
    (`personas_of`), who live the whole time. What is kept in memory is what has happened but is not loaded yet, without
    its text: about 100 MB for every 50,000 users who live at the same time.

    Args:
        users: How many users install, over all apps; the apps take turns.
        seed: Another seed gives other people.
        apps: The apps' ids, at least one.
        start: When the first user installs, with a time zone.
        days: The length of the history, in days.
        batch_rows: Rows in each batch but the last.
        rows: Exactly this many rows instead: more users install, and the history goes on longer, as needed.
        hostile: Probability, per event, of a payload that is broken or hard to carry, and, ten times that, of such an
            External ID, per login. 0 for a clean history.

    Raises:
        ValueError: `start` has no time zone, there is no app, or a number is below its least.
    """
    if start.tzinfo is None:
        raise ValueError("start has no time zone")
    if not apps or users < 0 or days < 1 or batch_rows < 1 or (rows or 0) < 0:
        raise ValueError("sample needs an app, at least one day and one row per batch, and no negative number")
    begin = (start - _EPOCH) // timedelta(microseconds=1)
    return _batches(_merged(users, seed, tuple(apps), begin, days, rows, hostile), batch_rows)


def to_webhook_ndjson(batch: pa.RecordBatch, *, app_id: str | None = None) -> bytes:
    """The batch's payloads, one a line, as Nami's webhook sends them; of one app only, if `app_id` is given.

    A payload names no app. A row without a payload, or with a blank one, gives no line.
    """
    payloads = batch.column("payload").to_pylist()
    owners = batch.column("app_id").to_pylist()
    lines = [
        payload
        for payload, owner in zip(payloads, owners, strict=True)
        if payload and not payload.isspace() and app_id in (None, owner)
    ]
    return "".join(line + "\n" for line in lines).encode()


def _merged(
    users: int, seed: int, apps: tuple[str, ...], begin: int, days: int, rows: int | None, hostile: float
) -> Iterator[Event]:
    """All events in the order in which they are loaded.

    A user's events are all loaded after their install, and users install in order: so the hours before the next
    install are complete and can go out.
    """
    span = days * DAY
    planned = users if rows is None else max(users, min(rows // _ROWS_PER_USER + 1, _DENSEST))
    left = rows
    hours: defaultdict[int, list[Event]] = defaultdict(list)
    done = begin // HOUR
    number = 0
    for index in range(planned) if rows is None else count():
        # The cast installs at the start; everybody else one by one.
        installed = begin + (span * index // planned if index >= CAST_SIZE * len(apps) else 0)
        for hour in range(done, installed // HOUR):
            for event in sorted(hours.pop(hour, ())):
                if left is not None:
                    if left == 0:
                        return
                    left -= 1
                yield event
        done = max(done, installed // HOUR)
        life = _lived(index, seed, apps, installed, span, number, hostile)
        number += len(life.events)
        for event in life.events:
            if rows is not None or event.ingested_us < begin + span:
                hours[event.ingested_us // HOUR].append(event)
    for hour in sorted(hours):
        yield from sorted(hours.pop(hour))


def _lived(
    index: int, seed: int, apps: tuple[str, ...], installed: int, span: int, first_number: int, hostile: float
) -> Life:
    """The whole life of user number `index`."""
    turn, which = divmod(index, len(apps))
    app_id = apps[which]
    until = installed + span
    if turn < CAST_SIZE:
        member = personas_of(app_id)[turn]
        rng = random.Random(member.user_id)  # noqa: S311 - nothing here is secret
        life = Life(app_id, member.user_id, rng, installed, until, first_number=first_number, tidy=True)
        play(life, member)
        return life
    rng = random.Random((seed << 64) + index)  # noqa: S311 - nothing here is secret
    user_id = rendering.random_uuid(rng)
    life = Life(app_id, user_id, rng, installed, until, first_number=first_number, hostility=hostile)
    live(life)
    return life


def _batches(events: Iterator[Event], batch_rows: int) -> Iterator[pa.RecordBatch]:
    chunk: list[Event] = []
    for event in events:
        chunk.append(event)
        if len(chunk) == batch_rows:
            yield _batch(chunk)
            chunk = []
    if chunk:
        yield _batch(chunk)


def _batch(events: list[Event]) -> pa.RecordBatch:
    columns = [
        [event.event_id for event in events],
        [event.app_id for event in events],
        [event.event_type for event in events],
        [event.user_id for event in events],
        [event.created_us for event in events],
        [event.ingested_us for event in events],
        [rendering.payload(event) for event in events],
    ]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)
