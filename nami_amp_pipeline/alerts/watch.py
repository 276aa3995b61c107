"""One look at everything: sends an alert for each new problem, an all-clear for each that is over.

A message is recorded as sent only after the webhook accepted it: a process that ends in between sends it twice, and no
message is lost. A lease keeps two processes from sending the same message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from nami_amp_pipeline.alerts import alert_store as book
from nami_amp_pipeline.alerts import message
from nami_amp_pipeline.alerts.alert_store import Entry
from nami_amp_pipeline.alerts.conditions import conditions
from nami_amp_pipeline.alerts.kinds import NOT_AT_ONCE, Alert, Kind
from nami_amp_pipeline.alerts.silence import is_silenced, silences
from nami_amp_pipeline.alerts.webhook import WebhookFailed, post
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.store import Lease

LEASE = "alerts"

MOST_SECONDS = 30.0
"""How long a look posts messages at most; Dagster ends it after a minute."""

Post = Callable[[str, str], None]


@dataclass
class Watch:
    """The result of one look.

    Attributes:
        open: alerts of problems that continue.
        new: alerts of problems that began since the look before.
        ended: alerts of problems that ended since the look before.
        trouble: why some messages could not be sent, or None.
    """

    open: list[Alert] = field(default_factory=list)
    new: list[Alert] = field(default_factory=list)
    ended: list[Alert] = field(default_factory=list)
    trouble: str | None = None


def watch(
    context: Context,
    log: logging.Logger,
    *,
    succeeded_since: Callable[[Mapping[str, int]], Iterable[str]] = lambda _runs: (),
    link: Callable[[str], str] = lambda path: path,
    post: Post = post,
) -> Watch:
    """Checks everything, and sends an alert for each new problem and an all-clear for each that is over.

    Args:
        context: the process at work.
        log: receives all alerts, with or without a webhook.
        succeeded_since: takes jobs with the time of their last failure (µs since the epoch); returns those of
            which a run succeeded after it.
        link: the path of a page in this Dagster, whose assets may have a prefix.
        post: posts a message to a webhook.

    Raises:
        StoreUnavailable: the state store cannot be read or written.
    """
    taken = context.store.acquire([LEASE])
    if LEASE not in taken:
        return Watch(trouble="another process is sending alerts at the moment")
    lease = taken[LEASE]
    try:
        there = {entry.alert.key: entry.since for entry in book.entries(context.store) if entry.ended_at is None}
        found = conditions(context, there)
        runs = book.open_failed_runs(context.store)
        succeeded = set(succeeded_since({subject: at for subject, (at, _) in runs.items()})) if runs else set()
        # Runs fail for news only: a success does not say that the trouble of a partition is over.
        recovered = {
            subject
            for subject in succeeded
            if not {cause.replace("/", "|") for cause in runs[subject][1]} & found.in_trouble
        }
        alerts = [replace(alert, page=link(alert.page)) for alert in found.alerts]
        new, ended = book.bring_up_to_date(context, lease, alerts, found.known, recovered, unsettled=found.unsettled)
        for alert in new:
            log.warning("%s", message.log_line(alert, context.settings.dagster_url))
        for alert in ended:
            log.warning("over: %s: %s", alert.kind.called, alert.subject)
        done = Watch(new=new, ended=ended)
        _tell(context, log, lease, done, post)
        done.open = [entry.alert for entry in book.entries(context.store) if entry.ended_at is None]
        return done
    finally:
        context.store.release([lease])


def tell(settings: Settings, log: logging.Logger, alert: Alert, *, over: bool = False, post: Post = post) -> bool:
    """Sends one alert without the state store, which is unavailable; returns whether the webhook accepted it."""
    entry = Entry(alert, 0, None, None)
    line = message.log_line(alert, settings.dagster_url)
    log.warning("over: %s" if over else "%s", line)
    if not settings.alert_webhook_url:
        return True
    text = (message.all_clear if over else message.alarm)([entry], settings.dagster_url)
    try:
        post(settings.alert_webhook_url, text)
    except WebhookFailed as error:
        log.warning("%s; the next look sends it again", error)
        return False
    return True


def _tell(context: Context, log: logging.Logger, lease: Lease, done: Watch, post: Post) -> None:
    url, pages = context.settings.alert_webhook_url, context.settings.dagster_url
    until = time.monotonic() + MOST_SECONDS
    for over in (False, True):
        # Read again: a problem that began and ended before its message could be sent gets its alert and its all-clear.
        muted = silences(context.store, context.now())
        waiting = [
            entry
            for entry in book.entries(context.store)
            if _is_due(entry, over=over)
            and not is_silenced(entry.alert, muted)
            and (over or entry.alert.kind not in NOT_AT_ONCE or _was_seen_before(context, entry))
        ]
        waiting.sort(key=lambda entry: list(Kind).index(entry.alert.kind))
        for _, group in groupby(waiting, key=lambda entry: entry.alert.kind):
            same: Sequence[Entry] = list(group)
            if time.monotonic() > until:
                done.trouble = "the alert webhook is slow; the next look sends the rest"
                return
            try:
                if url:
                    post(url, (message.all_clear if over else message.alarm)(same, pages))
            except WebhookFailed as error:
                done.trouble = str(error)
                log.warning("%s; the next look sends the rest", error)
                return
            book.told(context, lease, same)


def _was_seen_before(context: Context, entry: Entry) -> bool:
    """Whether an earlier look saw a problem; one that began at a time to come did before the clock was set back."""
    age = context.now() - entry.since
    return age < 0 or age >= context.settings.sensor_seconds * 500_000


def _is_due(entry: Entry, *, over: bool) -> bool:
    return (entry.told_at is not None and entry.ended_at is not None) if over else entry.told_at is None
