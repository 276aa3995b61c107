"""Finds and repairs lost files: files that the store refers to but the data folder lacks.

A lost file is never repaired automatically: somebody may be about to restore it. Each repair is one transaction under
the lease of the stage that uses such files, so it cannot collide with a running process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import sqlalchemy as sa

from nami_amp_pipeline.backfill.lost import set_aside, what_to_do
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked, Busy, NamiAmpError
from nami_amp_pipeline.stages import captured_ids
from nami_amp_pipeline.stages.rebuild import rebuild_outbox
from nami_amp_pipeline.stages.snapshots import snapshot
from nami_amp_pipeline.state import Store, backfills, tables
from nami_amp_pipeline.state.store import Lease, Transaction
from nami_amp_pipeline.storage.data_folder import DataFolder

_DAY: Final = 86_400_000_000


@dataclass(frozen=True)
class LostFile:
    """A lost file of the data folder.

    Attributes:
        file: its name in the data folder.
        kind: ``segment``, ``ledger``, ``snapshots``, ``outbox``, ``receipts``, or ``backfill``: an outbox of a backfill
            or an identify.
        stops: the work that it blocks, for people.
        mend: the effect of a repair, for people.
    """

    file: str
    kind: str
    stops: str
    mend: str

    def to_json(self) -> dict[str, Any]:
        """As ``repair --json`` shows it."""
        return asdict(self)


_TEXTS: Final[Mapping[str, tuple[str, str]]] = {
    "segment": (
        "its events cannot be prepared",
        "reads its rows from the warehouse again; if every integration has prepared it, only removes its record",
    ),
    "ledger": (
        "nothing can be captured: it is unknown which rows were captured before",
        "rebuilds the ledger from the segments that are kept; ids of older rows are forgotten",
    ),
    "snapshots": ("stage 3 of its apps, and late events", "recomputes the snapshots from the segment"),
    "outbox": (
        "its integration's events, from this outbox on",
        "prepares the segment again and sends its events again, with the same insert ids; Amplitude drops repeats "
        "within 7 days",
    ),
    "receipts": ("nothing; trace lacks the details of its events", "removes the record of the receipts"),
}


def lost_files(store: Store, folder: DataFolder) -> list[LostFile]:
    """The lost files that the store needs; files that block most come first.

    Args:
        store: the state store.
        folder: the data folder.

    Raises:
        StoreUnavailable: the store cannot be read.
        FilesUnavailable: the object storage cannot be listed.
    """
    with store.reading() as tx:
        named = {kind: sorted({str(name) for name in tx.execute(query).scalars()}) for kind, query in _needed().items()}
        of_backfills = {row.file: backfills.get(tx, row.id) for row in tx.execute(_BACKFILL_BOXES)}
    found = [LostFile(name, kind, *_TEXTS[kind]) for kind, names in named.items() for name in folder.missing(names)]
    return found + [
        LostFile(name, "backfill", f"{whose.called} of {whose.integration}", what_to_do(whose))
        for name in folder.missing(sorted(of_backfills))
        for whose in (of_backfills[name],)
    ]


def repair(context: Context, lost: Iterable[LostFile], *, resend: bool = False) -> list[tuple[LostFile, str | None]]:
    """Repairs what it can, one file after the other.

    Args:
        context: the process at work.
        lost: what :func:`lost_files` found.
        resend: sends events again even if Amplitude may not recognise the repeat any more.

    Returns:
        Each file with the reason why it was not repaired, or None.
    """
    found: list[tuple[LostFile, str | None]] = []
    for file in lost:
        try:
            if not context.folder.put_back(file.file):
                _MENDS[file.kind](context, file.file, resend)
        except NamiAmpError as error:
            found.append((file, str(error)))
        else:
            found.append((file, None))
    return found


_CHANNELS: Final = sa.select(tables.backfills.c.channel_id)
_BACKFILL_BOXES: Final = (
    sa.select(tables.outboxes.c.file, tables.outboxes.c.id.label("outbox"), tables.backfills.c.id)
    .join(tables.backfills, tables.backfills.c.channel_id == tables.outboxes.c.integration_id)
    .where(tables.outboxes.c.done_at.is_(None))
)


def _needed() -> dict[str, sa.Select[tuple[str | None]]]:
    parts, boxes = tables.segment_apps, tables.outboxes
    return {
        "ledger": sa.select(tables.captured_ids.c.file),
        "segment": sa.select(tables.segments.c.file),
        "snapshots": sa.select(parts.c.snapshot_file).where(parts.c.snapshot_file.is_not(None)),
        "outbox": sa.select(boxes.c.file).where(boxes.c.done_at.is_(None), boxes.c.integration_id.not_in(_CHANNELS)),
        "receipts": sa.select(boxes.c.receipts_file).where(boxes.c.receipts_file.is_not(None)),
    }


@contextmanager
def _under(context: Context, names: Iterable[str]) -> Iterator[list[Lease]]:
    wanted = sorted(set(names))
    leases = context.store.acquire(wanted)
    try:
        if len(leases) < len(wanted):
            raise Busy(
                f"{sorted(set(wanted) - leases.keys())[0]} is in use by another process: try again when it has finished"
            )
        yield list(leases.values())
    finally:
        with suppress(NamiAmpError):  # a lease that is not given back runs out by itself
            context.store.release(leases.values())


def _mend_ledger(context: Context, file: str, _resend: bool) -> None:
    with _under(context, [captured_ids.LEASE]) as leases, context.store.begin(under=leases) as tx:
        _forget_run(tx, tables.captured_ids.c.file == file)


def _forget_run(tx: Transaction, which: sa.ColumnElement[bool]) -> None:
    """Drops sorted runs of the ledger; their segments are read directly until the next merge."""
    runs, segments = tables.captured_ids, tables.segments
    for run in tx.execute(sa.select(runs).where(which)).all():
        tx.execute(
            sa.update(segments)
            .where(segments.c.captured_at >= run.oldest, segments.c.captured_at <= run.newest)
            .values(in_ledger=False)
        )
        tx.execute(sa.delete(runs).where(runs.c.id == run.id))


def _mend_snapshots(context: Context, file: str, _resend: bool) -> None:
    parts = tables.segment_apps
    with context.store.reading() as tx:
        app_ids = list(tx.execute(sa.select(parts.c.app_id).where(parts.c.snapshot_file == file)).scalars())
    with _under(context, [f"app:{app_id}" for app_id in app_ids]) as leases:
        with context.store.begin(under=leases) as tx:
            tx.execute(sa.update(parts).where(parts.c.snapshot_file == file).values(snapshot_file=None))
        # At once: an outbox that is lost as well is made of them.
        snapshot(context, {lease.name.removeprefix("app:"): lease for lease in leases})


def _mend_receipts(context: Context, file: str, _resend: bool) -> None:
    boxes = tables.outboxes
    with context.store.begin() as tx:
        tx.execute(sa.update(boxes).where(boxes.c.receipts_file == file).values(receipts_file=None))


def _mend_segment(context: Context, file: str, _resend: bool) -> None:
    segments, parts, integrations = tables.segments, tables.segment_apps, tables.integrations
    with context.store.reading() as tx:
        segment_id = tx.execute(sa.select(segments.c.id).where(segments.c.file == file)).scalar_one_or_none()
        apps = tx.execute(sa.select(parts).where(parts.c.segment_id == segment_id)).all()
        app_ids = [part.app_id for part in apps]
        integration_ids = (
            tx.execute(sa.select(integrations.c.id).where(integrations.c.app_id.in_(app_ids))).scalars().all()
        )
    # A process that prepares it may have the file open still, so those leases are needed too.
    names = [captured_ids.LEASE, *(f"app:{app_id}" for app_id in app_ids)]
    names += [f"integration:{integration_id}" for integration_id in integration_ids]
    with _under(context, names) as leases, context.store.begin(under=leases) as tx:
        captured_at = tx.execute(
            sa.select(segments.c.captured_at).where(segments.c.id == segment_id)
        ).scalar_one_or_none()
        if captured_at is None:
            return  # it is past its retention
        rereading = False
        for part in apps:
            through = tx.execute(
                sa.select(integrations.c.prepared_through).where(integrations.c.app_id == part.app_id)
            ).scalars()
            lacks = [segment_id > number for number in through]
            if not any(lacks):
                continue
            if not all(lacks):
                raise Blocked(
                    f"segment {file}: some integrations of {part.app_id} have prepared it and some have not: restore "
                    "the file from a backup, or remove the integrations that lack it"
                )
            rereading = True
            first = part.min_ingested_at
            tx.execute(
                sa.update(tables.apps)
                .where(
                    tables.apps.c.app_id == part.app_id,
                    sa.or_(tables.apps.c.frontier.is_(None), tables.apps.c.frontier > first),
                )
                .values(frontier=first)
            )
        if rereading:
            runs = tables.captured_ids
            _forget_run(tx, sa.and_(runs.c.oldest <= captured_at, runs.c.newest >= captured_at))
        tx.execute(sa.delete(parts).where(parts.c.segment_id == segment_id))
        tx.execute(sa.delete(segments).where(segments.c.id == segment_id))


def _mend_outbox(context: Context, file: str, resend: bool) -> None:
    boxes = tables.outboxes
    with context.store.reading() as tx:
        rows = tx.execute(sa.select(boxes).where(boxes.c.file == file, boxes.c.done_at.is_(None))).all()
    for box in rows:
        with _under(context, [f"integration:{box.integration_id}"]) as leases:
            rebuild_outbox(context, box.id, leases[0], resend=resend)


def _mend_backfill(context: Context, file: str, _resend: bool) -> None:
    with context.store.reading() as tx:
        rows = tx.execute(_BACKFILL_BOXES.where(tables.outboxes.c.file == file)).all()
        found = [(row.outbox, backfills.get(tx, row.id)) for row in rows]
    for outbox_id, backfill in found:
        with _under(context, [f"integration:{backfill.integration_id}"]) as leases:
            set_aside(context, backfill, outbox_id, leases[0])


_MENDS: Final[Mapping[str, Callable[[Context, str, bool], None]]] = {
    "segment": _mend_segment,
    "ledger": _mend_ledger,
    "snapshots": _mend_snapshots,
    "outbox": _mend_outbox,
    "backfill": _mend_backfill,
    "receipts": _mend_receipts,
}
