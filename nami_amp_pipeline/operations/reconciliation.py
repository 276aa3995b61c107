"""Reconciliation: whether Amplitude holds what was delivered, day by day, and sending again what it does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from nami_amp_pipeline.amplitude.exported import ExportApi, ExportBucket, ExportFolder, ExportSource, export_address
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.abilities import need_ability
from nami_amp_pipeline.reconciliation import records
from nami_amp_pipeline.reconciliation.day import DAY, Day, reconcile_day
from nami_amp_pipeline.reconciliation.records import ReconciledDay
from nami_amp_pipeline.reconciliation.repair import Repaired, send_again
from nami_amp_pipeline.reconciliation.verify import Altered
from nami_amp_pipeline.state import comparison_requests, tables
from nami_amp_pipeline.state.comparison_requests import ComparisonRequest
from nami_amp_pipeline.state.integrations import Integration, all_integrations

__all__ = [
    "Altered",
    "ComparisonRequest",
    "Day",
    "ReconciledDay",
    "Reconciliation",
    "Repaired",
    "ask_comparison",
    "asked_comparison",
    "due_days",
    "fail_asked",
    "reconcilable",
    "reconciled",
    "source_of",
]

_NO_KEY: Final = (
    "has no secret key. With it, reconciliation reads what Amplitude holds from its Export API, says which delivered "
    "events are missing, altered or held twice, and sends missing ones again. Set it (Amplitude: Settings, Projects, "
    "the project, Secret Key) with 'nami-amp integrations update {key} --secret-key-env VAR', or read Amplitude's "
    "exported files with --source FOLDER or --source s3://BUCKET/PREFIX"
)


LOOKED_BACK: Final = 7
"""Days that the daily comparison goes back, for what was not complete or not clean."""


def source_of(context: Context, integration: Integration, source: str | ExportSource | None = None) -> ExportSource:
    """Where to read what Amplitude holds of an integration.

    Args:
        context: the process at work.
        integration: whose.
        source: a folder or ``s3://bucket/prefix``, or what reads exports; the Export API without it.

    Raises:
        Misconfigured: it cannot be used, or there is no secret key for the Export API.
    """
    need_ability(integration, "reconcile")
    scratch = context.settings.data_dir / "spill"
    if source is not None and not isinstance(source, str):
        return source
    if source is not None:
        return ExportBucket(source, scratch) if source.startswith("s3://") else ExportFolder(Path(source), scratch)
    if integration.secret_key is None:
        raise Misconfigured(f"{integration.key} {_NO_KEY.format(key=integration.key)}")
    return ExportApi(
        export_address(integration.endpoint),
        context.cipher.decrypt(integration.api_key),
        context.cipher.decrypt(integration.secret_key),
        scratch,
        context.sleep,
    )


class Reconciliation:
    """The comparison of some days of an integration, and the repair of what it found.

    Args:
        context: the process at work.
        key: ``<app_id>/<name>``.
        source: as for :func:`source_of`.

    Raises:
        Misconfigured: the integration or the source cannot be used.
    """

    def __init__(self, context: Context, key: str, source: str | ExportSource | None = None) -> None:
        self._context = context
        (self.integration,) = all_integrations(context.store, [key])
        self._source = source_of(context, self.integration, source)

    def compare(self, first: int, last: int, *, now_too: bool = False) -> Iterator[Day]:
        """Compares days and records what was found, the first of them first; days to come are left out.

        Args:
            first: a µs of the first day.
            last: a µs of the last day.
            now_too: also hours that are not whole in exports yet.

        Raises:
            Misconfigured: the days cannot be used.
            Blocked: the source or a file cannot be read.
        """
        first, last = first // DAY * DAY, last // DAY * DAY
        now = self._context.now()
        if last < first:
            raise Misconfigured("the day of --to is before that of --from")
        if first > now:
            raise Misconfigured("the day of --from is still to come")
        for day in range(first, min(last, now) + 1, DAY):
            found = reconcile_day(self._context, self.integration, self._source, day, now_too=now_too)
            records.save(self._context, self.integration.id, found, self._source.called)
            self._context.step("reconcile.compared")
            comparison_requests.end(self._context.store, self.integration.id, day)
            yield found

    def repair(self, days: Sequence[Day]) -> Repaired:
        """Sends what is missing again, with the next run.

        Args:
            days: of :meth:`compare`.

        Raises:
            Busy: a run delivers for the integration.
        """
        done = Repaired()
        for day in days:
            missing = day.of("missing")
            if not missing:
                continue
            part = send_again(self._context, self.integration, missing)
            records.add_repaired(self._context, self.integration.id, day.day, part.events)
            done.events += part.events
            done.refused.update(part.refused)
        return done


def reconciled(context: Context, key: str, *, first: int | None = None, last: int | None = None) -> list[ReconciledDay]:
    """What the newest comparison of each day found, the first day first.

    Raises:
        Misconfigured: there is no such integration.
    """
    (integration,) = all_integrations(context.store, [key])
    return records.read(context, integration.id, integration.key, first=first, last=last)


def due_days(context: Context, integration: Integration) -> list[int]:
    """The days before today that are to be compared, the first of them first: not compared whole, or not clean.

    Args:
        context: the process at work.
        integration: whose; days from before it was added are left out.
    """
    today = context.now() // DAY * DAY
    first = max(today - LOOKED_BACK * DAY, integration.created_at // DAY * DAY)
    known = records.read(context, integration.id, integration.key, first=first, last=today)
    settled = {day.day for day in known if day.complete_at is not None and day.is_clean}
    return [day for day in range(first, today, DAY) if day not in settled]


def reconcilable(context: Context) -> list[Integration]:
    """The integrations with a secret key, which the daily comparison is for."""
    return [integration for integration in all_integrations(context.store) if integration.secret_key is not None]


def ask_comparison(context: Context, key: str, day: int, *, by: str = "") -> None:
    """Asks for a day to be compared by whoever works for the store: the sensor ``asked_comparisons`` starts it.

    Args:
        context: the process at work.
        key: ``<app_id>/<name>``.
        day: a µs of the day.
        by: in whose name.

    Raises:
        Misconfigured: there is no such integration, or it has no secret key.
    """
    (integration,) = all_integrations(context.store, [key])
    if integration.secret_key is None:
        raise Misconfigured(f"{key} {_NO_KEY.format(key=key)}")
    comparison_requests.ask(context.store, integration.id, day // DAY * DAY, by=by)


def asked_comparison(context: Context, key: str) -> ComparisonRequest | None:
    """The comparison of an integration that was asked for last; None if none was.

    Raises:
        Misconfigured: there is no such integration.
    """
    (integration,) = all_integrations(context.store, [key])
    with context.store.reading() as tx:
        mine = tables.comparison_requests.c.integration_id == integration.id
        return next(iter(comparison_requests.read(tx, mine, newest=1)), None)


def fail_asked(context: Context, integration: Integration, error: str) -> None:
    """Notes why what was asked for of an integration cannot be compared: who asked for it may ask once more."""
    comparison_requests.fail(context.store, integration.id, error)
