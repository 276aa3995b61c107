"""One look at everything: what is new is told, what is over too, and what could not be told is told next time.

A message is noted as told only after the webhook took it. A process that ends in between tells it twice; nothing is
ever told by nobody. A lease keeps two processes from telling the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from nami_amp_pipeline.alerts import alert_store as book
from nami_amp_pipeline.alerts import message
from nami_amp_pipeline.alerts.alert_store import Entry
from nami_amp_pipeline.alerts.conditions import conditions
from nami_amp_pipeline.alerts.kinds import Alert, Kind
from nami_amp_pipeline.alerts.webhook import WebhookFailed, post
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.store import Lease

LEASE = "alerts"

MOST_SECONDS = 30.0
"""How long a look goes on posting; Dagster gives it a minute."""

Post = Callable[[str, str], None]


@dataclass
class Watch:
    """What a look did.

    Attributes:
        open: alerts that last.
        new: alerts that came up.
        ended: alerts that are over since now.
        trouble: why not everything could be told, or None.
    """

    open: list[Alert] = field(default_factory=list)
    new: list[Alert] = field(default_factory=list)
    ended: list[Alert] = field(default_factory=list)
    trouble: str | None = None


def watch(
    context: Context,
    log: logging.Logger,
    *,
    succeeded_since: Callable[[Mapping[str, int]], Iterable[str]] = lambda _jobs: (),
    post: Post = post,
) -> Watch:
    """Looks at everything, and tells what is new or over.

    Args:
        context: the process at work.
        log: where alerts go besides the webhook.
        succeeded_since: of jobs with the time of their last failure (µs since the epoch), those of which a run
            succeeded after it.
        post: posts a message to a webhook.

    Raises:
        StoreUnavailable: the state store cannot be read or written.
    """
    taken = context.store.acquire([LEASE])
    if LEASE not in taken:
        return Watch(trouble="another process is telling alerts at the moment")
    lease = taken[LEASE]
    try:
        found = conditions(context)
        jobs = book.open_failed_runs(context.store)
        recovered = set(succeeded_since(jobs)) if jobs else set()
        new, ended = book.bring_up_to_date(context, lease, found.alerts, found.known, recovered)
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
    """Tells of one alert that is in no book, because there is none to be had; returns whether that worked."""
    entry = Entry(alert, 0, None, None)
    line = message.log_line(alert, settings.dagster_url)
    log.warning("over: %s" if over else "%s", line)
    if not settings.alert_webhook_url:
        return True
    text = (message.all_clear if over else message.alarm)([entry], settings.dagster_url)
    try:
        post(settings.alert_webhook_url, text)
    except WebhookFailed as error:
        log.warning("%s; tried again at the next look", error)
        return False
    return True


def _tell(context: Context, log: logging.Logger, lease: Lease, done: Watch, post: Post) -> None:
    url, pages = context.settings.alert_webhook_url, context.settings.dagster_url
    until = time.monotonic() + MOST_SECONDS
    for over in (False, True):
        # Read again: an alert that came and went before it could be told is told, and so is its end.
        waiting = [entry for entry in book.entries(context.store) if _is_due(entry, over=over)]
        waiting.sort(key=lambda entry: list(Kind).index(entry.alert.kind))
        for _, group in groupby(waiting, key=lambda entry: entry.alert.kind):
            same: Sequence[Entry] = list(group)
            if time.monotonic() > until:
                done.trouble = "the alert webhook is slow; the rest is told at the next look"
                return
            try:
                if url:
                    post(url, (message.all_clear if over else message.alarm)(same, pages))
            except WebhookFailed as error:
                done.trouble = str(error)
                log.warning("%s; what it did not take is told at the next look", error)
                return
            book.told(context, lease, same)


def _is_due(entry: Entry, *, over: bool) -> bool:
    return (entry.told_at is not None and entry.ended_at is not None) if over else entry.told_at is None
