"""``nami-amp trace``: whether an event arrived, or the events of a user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.base import Invocation, json_option
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nami_amp_pipeline.commands.output import Colour
    from nami_amp_pipeline.operations.trace import Trace, UserTrace
    from nami_amp_pipeline.operations.verdicts import Verdict


@click.command()
@click.argument("what", metavar="EVENT_ID|EXTERNAL_ID|NAMI_USER")
@click.option("--full", is_flag=True, help="Below the verdicts, show all that is known.")
@click.option("--user", "only_user", is_flag=True, help="Take it for a user, also if there is an event of that id.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="So many events of a user.")
@click.option(
    "--whole-table",
    is_flag=True,
    help="Read all of the warehouse's table, however long that takes: needed where it has no index on id.",
)
@json_option
@click.pass_obj
def trace(
    invocation: Invocation, what: str, full: bool, only_user: bool, limit: int, whole_table: bool, as_json: bool
) -> int:
    """Show whether an event arrived: a verdict for each integration, with when, why and what to do.

    Name an event by Nami's event id, which is the insert id in Amplitude too, or a user by External ID or Nami's user
    id: then the user's newest events are shown.

    \b
    Exit status:
      0  it arrived with every integration that takes it
      1  nothing of that name is known
      3  it waits, or was not read yet
      4  it was rejected, or nobody knows
      5  nothing is to be sent: not selected, skipped, or from before the start
    Of several integrations or events the worst counts: 4, then 3, then 0, then 5.

    In a large table without an index on id, this command searches the captured row and the newest rows only;
    --whole-table finds other rows with this id.
    """
    if not what.strip():
        raise Misconfigured("give an event id, an External ID or a Nami user")
    found = invocation.operations.look_up(what, only_user=only_user, most=limit, whole_table=whole_table)
    if found.missing and what != what.strip():  # copied with a blank
        found = invocation.operations.look_up(what.strip(), only_user=only_user, most=limit, whole_table=whole_table)
    if as_json:
        invocation.answer(found.to_json())
    elif found.missing:
        pass
    elif found.event is not None:
        _show_event(found.event, full=full)
    elif found.user is not None:
        _show_user(found.user, found.verdict)
    if found.missing:
        invocation.complain(found.missing)
    return found.exit_status


def _colour(word: str) -> Colour | None:
    colours: dict[str, Colour] = {
        "arrived": "green", "rejected": "red", "unknown": "red", "waits": "yellow", "not read yet": "yellow",
    }  # fmt: skip
    return colours.get(word)


def _show_verdicts(verdicts: Sequence[Verdict]) -> None:
    from nami_amp_pipeline.commands import output as screen

    if not screen.is_terminal():
        screen.table(
            ("Integration", "Verdict", "When", "Why", "Next try", "What to do"),
            [
                (verdict.integration, verdict.word, verdict.when, verdict.why, verdict.next_try, verdict.what_to_do)
                for verdict in verdicts
            ],
        )
        return
    for verdict in verdicts:
        screen.say(str(verdict), _colour(verdict.word), bold=True)
        if verdict.what_to_do:
            screen.say(f"  Do: {verdict.what_to_do}.", wrapped=False)


def _show_event(found: Trace, *, full: bool) -> None:
    from nami_amp_pipeline.commands import output as screen

    _show_verdicts(found.verdicts)
    if not found.verdicts:
        apps = ", ".join(found.apps)
        screen.say(f"No integration of app {apps}: 'nami-amp integrations add' adds one.", "yellow")
    if found.warehouse_error:
        screen.say(f"The warehouse cannot be asked: {found.warehouse_error}", "yellow")
    if full:
        _show_details(found)
    elif screen.is_terminal():
        screen.say(f"{found.event_type} of {', '.join(found.apps)}, created {found.created_date}; --full shows more")


def _show_user(found: UserTrace, summary: str) -> None:
    from nami_amp_pipeline.commands import output as screen

    if screen.is_terminal():
        screen.say(f"{summary}.", bold=True)
        for app, nami_user, external in found.users:
            screen.say(f"{app}: Nami user {nami_user}, External ID {external or 'not known'}")
    rows, colours = [], []
    for event in found.events:
        for verdict in event.verdicts:
            rows.append((event.event_id, verdict.integration, verdict.word, verdict.when, event.event_type,
                         event.created_date, verdict.why, verdict.next_try, verdict.what_to_do))  # fmt: skip
            colours.append(_colour(verdict.word))
    columns = ("Event", "Integration", "Verdict", "When", "Type", "Created", "Why", "Next try", "What to do")
    shown = len(columns) - screen.is_terminal()  # where 'trace EVENT_ID' says what to do
    if rows:
        screen.table(
            columns[:shown],
            [row[:shown] for row in rows],
            texts=("Why",),
            optional=("Next try", "Created", "Type", "When"),
            colours=colours,
        )
    if found.has_older:
        screen.more("older events of this user (--limit)")
    for event in found.events:
        if not event.verdicts:
            screen.say(f"{event.event_id}: no integration of app {', '.join(event.apps)}", "yellow")


def _show_details(found: Trace) -> None:
    from nami_amp_pipeline.commands import output as screen

    if not found.warehouse and not found.warehouse_error:
        click.echo("Warehouse: no row")
    for row in found.warehouse:
        click.echo(f"Warehouse: {row['event_type']} of {row['app_id']}, created {row['created_date']}")
        click.echo(f"           loaded {row['ingested_at']}")
    if not found.warehouse_is_whole:
        click.echo("           looked for where it was captured, and among new rows: the table is large and")
        click.echo("           has no index on id; --whole-table reads all of it")
    for capture in found.captures:
        click.echo(f"Captured:  {capture['captured_at']} into segment {capture['segment']}, run {capture['run_id']}")
        if capture["snapshot"] is not None:
            click.echo("User properties as of it:")
            screen.facts(capture["snapshot"], indent=2)
            for group, source in capture["snapshot_sources"].items():
                click.echo(f"  {group} from {source['event_id']}, created {source['created_date']}")
    for place in found.integrations:
        reason = f" ({place['reason']})" if place["reason"] else ""
        click.echo(f"{place['integration']}: {place['state'].replace('_', ' ')}{reason}")
        screen.facts(_details(place), indent=2)


def _details(place: dict[str, Any]) -> dict[str, object]:
    outbox, request = place.get("outbox"), place.get("request")
    return {
        "Amplitude user": place.get("identity"),
        "Prepared": f"{outbox['prepared_at']}, run {outbox['run_id']}" if outbox else None,
        "Request": (
            f"{request['id']}: {request['status'] or 'no answer'} ({request['outcome']}), "
            f"{request['events']:,} events, "
            f"sent {request['sent_at']}, answered {request['answered_at']}, run {request['run_id']}"
            if request
            else None
        ),
        "Paused until": place.get("paused_until"),
        "Answer": place.get("answer") or (request or {}).get("answer"),
        "Dead letter": place.get("dead_letter"),
    }
