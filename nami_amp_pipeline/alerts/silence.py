"""Silences: alerts that a person knows of are sent to nobody for some time; the log still has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

from nami_amp_pipeline.alerts.kinds import Alert, Kind
from nami_amp_pipeline.contract import did_you_mean
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Store
from nami_amp_pipeline.state.tables import SILENCED

ANY: Final = "*"
"""Stands for all subjects."""


def silence(store: Store, kind: str, subject: str, now: int, until: int) -> None:
    """Silences alerts; with an end that is over, lifts the silence.

    Args:
        store: the state store.
        kind: a value of :class:`Kind`.
        subject: an integration, app or job; :data:`ANY` for all.
        now: in µs since the epoch.
        until: the same.

    Raises:
        Misconfigured: there is no such kind.
        StoreUnavailable: nothing was changed.
    """
    if kind not in {known.value for known in Kind}:
        meant = did_you_mean(kind, Kind) or f"; there are {', '.join(sorted(Kind))}"
        raise Misconfigured(f"there is no alert '{kind[:60]}'{meant}")
    table, key = tables.alerts, f"{kind} {subject}"
    with store.begin() as tx:
        tx.execute(sa.delete(table).where(table.c.kind == SILENCED, table.c.subject == key))
        tx.execute(sa.delete(table).where(table.c.kind == SILENCED, table.c.seen_at <= now))
        if until > now:
            row = {"kind": SILENCED, "subject": key, "summary": "", "causes": "[]", "page": ""}
            tx.execute(sa.insert(table).values(**row, since=now, seen_at=until))


def silences(store: Store, now: int) -> dict[tuple[str, str], int]:
    """Until when alerts are silenced, in µs since the epoch, by kind and subject."""
    table = tables.alerts
    query = sa.select(table.c.subject, table.c.seen_at).where(table.c.kind == SILENCED, table.c.seen_at > now)
    with store.begin() as tx:
        return {(key.partition(" ")[0], key.partition(" ")[2]): until for key, until in tx.execute(query)}


def is_silenced(alert: Alert, found: Mapping[tuple[str, str], int]) -> bool:
    """Whether an alert is silenced."""
    return (alert.kind.value, alert.subject) in found or (alert.kind.value, ANY) in found
