"""``nami-amp status``: whether anybody is needed, and how each integration stands."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.completion import integration_names
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from datetime import datetime

    from nami_amp_pipeline.commands.output import Colour
    from nami_amp_pipeline.operations.overview import Overview
    from nami_amp_pipeline.operations.standing import Standing


@click.command()
@click.argument("names", nargs=-1, metavar="[APP/NAME]...", shell_complete=integration_names)
@click.option("--check", is_flag=True, help="Exit status 1 if a person is needed: for cron and for monitoring.")
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option(
    "--every", type=click.IntRange(1, 3600), default=5, show_default=True, metavar="SECONDS", help="For --watch."
)
@json_option
@click.pass_obj
def status(invocation: Invocation, names: tuple[str, ...], check: bool, watch: bool, every: int, as_json: bool) -> int:
    """Show whether a person is needed, and how each integration stands.

    The first line is the verdict. For each integration: its state, since when, why, when the next try is and what to
    do; how many events were captured, delivered and skipped, are dead letters or pending, and how many rows in the
    warehouse no run has read. Then the last run, and open alerts.

    Captured is always the sum of delivered, skipped, dead letters and pending. Lag is how long the oldest pending event
    has been in the warehouse; events that wait for the login of their user cause none.
    """
    if watch and as_json:
        raise Misconfigured("give either --watch or --json, not both")
    keys = integration_keys(names) if names else None
    while True:
        found = _with_what_is_over(invocation, invocation.operations.overview(keys))
        if as_json:
            invocation.answer(found.to_json())
        else:
            if watch:
                click.clear()
            _show(found, invocation.operations.nothing_here, whole=not names)
        if not watch:
            return 1 if check and found.needs_you else 0
        time.sleep(every)


def _with_what_is_over(invocation: Invocation, found: Overview) -> Overview:
    """Alerts are recorded by a sensor: if it has not looked since, some of them are over."""
    if not found.alerts:
        return found
    from nami_amp_pipeline.alerts.desk import over_by_now

    with invocation.context() as context:
        over = over_by_now(context)
    alerts = [replace(alert, over=(alert.kind, alert.subject) in over) for alert in found.alerts]
    return replace(found, alerts=alerts)


def _show(found: Overview, nothing_here: str, *, whole: bool) -> None:
    from nami_amp_pipeline.commands import output as screen

    screen.say(found.verdict, "red" if found.needs_you else "green", bold=True)
    if not found.standings:
        screen.say(f"{screen.sentence(nothing_here)} 'nami-amp demo' shows it all.")
        return
    _show_table(found)
    if screen.is_terminal():
        for standing in found.standings:
            _show_standing(standing)
    if whole:
        _show_rest(found)


_COLUMNS = (
    "Integration", "State", "Since", "Captured", "Delivered", "Skipped", "Dead letters", "Pending", "Not read", "Lag",
)  # fmt: skip
_ONLY_IN_A_PIPE = ("Needs you", "Why", "Next try", "What to do", "Whose", "Also")


def _show_table(found: Overview) -> None:
    from nami_amp_pipeline.commands import output as screen

    rows = []
    for standing in found.standings:
        unread = found.not_read(standing)
        numbers = standing.numbers
        rows.append(
            [
                standing.integration,
                standing.called,
                _time(standing.since),
                screen.number(numbers.captured),
                screen.number(numbers.delivered),
                screen.reasons(numbers.skipped),
                screen.reasons(numbers.dead_letters)
                + (f"\n({standing.dismissed:,} dismissed)" * bool(standing.dismissed)),
                screen.reasons({why.replace("_", " "): events for why, events in numbers.pending_by.items()}),
                "?" if found.warehouse.error else screen.number(unread.rows if unread else 0),
                screen.duration(standing.lag_seconds),
            ]
        )
    columns: tuple[str, ...] = _COLUMNS
    if not screen.is_terminal():
        columns += _ONLY_IN_A_PIPE
        for row, standing in zip(rows, found.standings, strict=True):
            row += ["yes" if standing.needs_you else "no", standing.why, _time(standing.next_try),
                    standing.what_to_do or "", standing.whose_in_words, "; ".join(standing.also)]  # fmt: skip
    screen.table(
        columns,
        rows,
        right=("Captured", "Delivered", "Not read", "Lag"),
        optional=("Since", "Skipped", "Captured", "Lag", "Not read", "Dead letters", "Delivered"),
        colours=[_colour(standing) for standing in found.standings],
    )


def _colour(standing: Standing) -> Colour | None:
    if standing.needs_you:
        return "red"
    return "yellow" if standing.state in ("unreachable", "throttled", "waiting") else None


def _show_standing(standing: Standing) -> None:
    """What there is to say of an integration that is not simply well."""
    from nami_amp_pipeline.commands import output as screen

    if standing.state in ("delivering", "idle") and not standing.why and not standing.also:
        return
    since = f" since {_time(standing.since)}" if standing.since else ""
    screen.say()
    screen.say(
        f"{standing.integration}: {standing.called}{since}{f'. {standing.why}.' if standing.why else ''}",
        _colour(standing),
    )
    if standing.whose:
        events = screen.plural(standing.pending, "event")
        screen.say(f"  Whose:    {events} pending, of {standing.whose_in_words}", wrapped=False)
    if standing.next_try:
        screen.say(f"  Next try: {_time(standing.next_try)}")
    if standing.what_to_do:
        screen.say(f"  Do:       {standing.what_to_do}.", wrapped=False)
    for more in standing.also:
        screen.say(f"  Also:     {more}.", wrapped=False)


def _show_rest(found: Overview) -> None:
    from nami_amp_pipeline.commands import output as screen

    if screen.is_terminal():
        screen.say()
    for backfill in found.backfills:
        screen.say(str(backfill))
    warehouse, run = found.warehouse, found.last_run
    if warehouse.error:
        since = f" since {screen.moment(warehouse.since)}" if warehouse.since else ""
        screen.say(f"Warehouse: cannot be read{since}: {warehouse.error}", "red")
        screen.say("  Do: 'nami-amp doctor' says what is wrong with it. What was read goes on being delivered.")
    elif warehouse.since is not None:
        screen.say(f"Warehouse: runs could not read it since {screen.moment(warehouse.since)}; it can be read now")
    for app, meant in warehouse.silent.items():
        hint = f"did you mean {meant}?" if meant else "is it spelled as in the column app_id?"
        screen.say(f"Warehouse: no row of app {app}: {hint}", "red")
    for app, unread in warehouse.unread.items():
        age = screen.duration((found.now - unread.oldest) / 1e6)
        rows = screen.plural(unread.rows, "row")
        screen.say(f"Warehouse: {rows} of {app} not read yet, the oldest for {age}; the next run reads them")
    if found.age_seconds is None:
        screen.say("Last run: none yet; 'nami-amp run' runs one micro-batch")
    else:
        name = f" ({run.run_id})" if run.run_id else ""
        left = f", {screen.plural(found.pending, 'event')} pending" if found.pending else ""
        screen.say(f"Last run: {found.outcome}{left}, {screen.duration(found.age_seconds)} ago{name}")
    for problem in run.problems:
        screen.say(f"  {problem}", "red")
    if len(found.histories) > 1:
        from nami_amp_pipeline.operations.histories import WHAT_TO_DO, in_words

        screen.say(f"Dagster: {in_words(found.histories)}", "yellow")
        screen.say(f"  Do: {WHAT_TO_DO}")
    for alert in found.alerts:
        said = alert.kind.replace("_", " ")
        line = f"Alert: {said}, {alert.subject}, since {screen.moment(alert.since)}: {alert.summary}"
        if alert.over:
            screen.say(f"{line} (over by now; the all-clear goes with the next look of Dagster's sensor)")
        else:
            screen.say(line, "red")


def _time(moment: datetime | None) -> str:
    return moment.isoformat().replace("+00:00", "Z") if moment is not None else ""
