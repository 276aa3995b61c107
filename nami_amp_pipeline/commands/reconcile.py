"""``nami-amp reconcile``: whether Amplitude holds what was delivered, and sending again what it does not hold."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.times import parse_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nami_amp_pipeline.operations.reconciliation import Altered, Day, Reconciliation, Repaired

MOST_LISTED = 10_000
"""Ids of each list of --json."""

_SHOWN = 20


@click.command()
@click.argument("integration", metavar="APP/NAME")
@click.option("--from", "first", metavar="DAY", help="The first day, in UTC: 2026-09-01, 7d, yesterday.")
@click.option("--to", "last", metavar="DAY", help="The last day; by default that of --from.")
@click.option(
    "--source",
    metavar="FOLDER|s3://BUCKET/PREFIX",
    help="Read Amplitude's exported files instead of asking its Export API.",
)
@click.option("--now", "now_too", is_flag=True, help="Also compare hours that closed less than 3 hours ago.")
@click.option("--repair", "with_repair", is_flag=True, help="Send what is missing again, with the next run.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@click.pass_obj
def reconcile(
    invocation: Invocation,
    integration: str,
    first: str | None,
    last: str | None,
    source: str | None,
    now_too: bool,
    with_repair: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Compare what was delivered with what Amplitude holds, day by day.

    Without --from, this command compares yesterday. Hours that closed less than 3 hours ago are left out, because
    exports do not have all of them yet; with --now, what is not in the export of such an hour is counted as not yet
    exported, and never as missing. With --repair, events that Amplitude does not hold are sent again, with the
    same insert id, once.

    \b
    Exit status:
      0  Amplitude holds everything as it was sent, or --repair sends again what it does not hold
      1  something is missing, altered or held twice
    """
    (key,) = integration_keys([integration])
    start = parse_time(first or "yesterday", "--from")
    end = start if last is None else parse_time(last, "--to")
    work = invocation.operations.reconciliation(key, source)
    days = []
    for day in work.compare(start, end, now_too=now_too):
        days.append(day)
        if not as_json:
            _show(day)
    repaired = _repair(invocation, work, days, yes=yes, as_json=as_json) if with_repair else None
    if as_json:
        invocation.answer(to_json(key, days, repaired))
    for why, events in (repaired.refused if repaired is not None else {}).items():
        invocation.complain(f"{events:,} not sent again: {why}")
    return _status(days, repaired)


def _status(days: list[Day], repaired: Repaired | None) -> int:
    left = sum(day.counts["missing"] for day in days) - (repaired.events if repaired is not None else 0)
    return 1 if left or any(day.counts["altered"] or day.counts["twice"] for day in days) else 0


def _repair(
    invocation: Invocation, work: Reconciliation, days: list[Day], *, yes: bool, as_json: bool
) -> Repaired | None:
    missing = sum(day.counts["missing"] for day in days)
    if not missing:
        return None
    by_day = ", ".join(f"{day.date} {day.counts['missing']:,}" for day in days if day.counts["missing"])
    what = f"{missing:,} missing event{'s' * (missing != 1)} ({by_day}) with the next run, with the same insert ids"
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise Misconfigured(f"give --yes to send {what}")
        click.confirm(f"Send {what}? Altered events and those held twice stay as they are.", abort=True)
    done = work.repair(days)
    if not as_json:
        click.echo(f"{done.events:,} event{'s' * (done.events != 1)} will be sent again with the next run.")
    return done


def _show(day: Day) -> None:
    from nami_amp_pipeline.commands import output as screen

    click.echo(day.in_a_line)
    rows = [
        (event.kind, event.event_id, ", ".join(event.columns), _values(event.fields))
        for event in day.differences[:_SHOWN]
    ]
    if rows:
        screen.table(("", "Event", "Altered", "Sent, and held"), rows)
    if len(day.differences) > _SHOWN:
        screen.more(f"{len(day.differences) - _SHOWN:,} more (--json lists them)")


def _values(fields: Sequence[Altered]) -> str:
    return "; ".join(f"{each.field}: {each.sent!r}, {each.held!r}" for each in fields)


def to_json(key: str, days: list[Day], repaired: Repaired | None) -> dict[str, Any]:
    """The object of ``--json``."""
    missing = [event.event_id for day in days for event in day.of("missing")]
    altered = [
        {"insert_id": event.event_id, "columns": list(event.columns)} for day in days for event in day.of("altered")
    ]
    twice = [event.event_id for day in days for event in day.of("twice")]
    undelivered = [event.event_id for day in days for event in day.of("undelivered")]
    answer: dict[str, Any] = {
        "integration": key,
        "days": [
            {
                "day": day.date,
                "delivered": day.delivered,
                "held": day.held,
                **{name: day.counts[name] for name in ("identical", "altered", "missing", "twice", "others")},
                "not_yet_exported": day.counts["not_yet_exported"],
                "undelivered": day.counts["undelivered"],
                "hours": len(day.hours),
                "left_out": {why: len(hours) for why, hours in day.left_out.items()},
            }
            for day in days
        ],
        "missing": missing[:MOST_LISTED],
        "altered": altered[:MOST_LISTED],
        "twice": twice[:MOST_LISTED],
        "undelivered": undelivered[:MOST_LISTED],
        "repaired": repaired.events if repaired is not None else 0,
    }
    if any(len(ids) > MOST_LISTED for ids in (missing, altered, twice, undelivered)):
        answer["truncated"] = True
    return answer
