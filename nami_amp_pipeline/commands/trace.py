"""``nami-amp trace``: where one event is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.base import Invocation, json_option

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.trace import Trace


@click.command()
@click.argument("event_id")
@click.option(
    "--whole-table",
    is_flag=True,
    help="Read all of the warehouse's table, however long that takes: needed where it has no index on id.",
)
@json_option
@click.pass_obj
def trace(invocation: Invocation, event_id: str, whole_table: bool, as_json: bool) -> int:
    """Show where one event is: in the warehouse, and with each integration.

    EVENT_ID is Nami's event id, which is the insert id in Amplitude too. Exit status 1 if the event is not found.

    In a large table without an index on id, this command searches the captured row and the newest rows only;
    --whole-table finds other rows with this id.
    """
    found = invocation.operations.trace(event_id, whole_table=whole_table)
    if as_json:
        invocation.answer(found.to_json())
    else:
        _show(found)
    if not found.is_known:
        invocation.complain(f"event {event_id} not found in the warehouse, in any segment or in any integration")
        return 1
    return 0


def _show(found: Trace) -> None:
    from nami_amp_pipeline.commands import output as screen

    if found.warehouse_error:
        click.echo(f"Warehouse: {found.warehouse_error}")
    elif not found.warehouse:
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
    for one in found.integrations:
        reason = f" ({one['reason']})" if one["reason"] else ""
        click.echo(f"{one['integration']}: {one['state'].replace('_', ' ')}{reason}")
        screen.facts(_details(one), indent=2)


def _details(one: dict[str, Any]) -> dict[str, object]:
    outbox, request = one.get("outbox"), one.get("request")
    return {
        "Amplitude user": one.get("identity"),
        "Prepared": f"{outbox['prepared_at']}, run {outbox['run_id']}" if outbox else None,
        "Request": (
            f"{request['id']}: {request['status'] or 'no answer'} ({request['outcome']}), "
            f"{request['events']:,} events, "
            f"sent {request['sent_at']}, answered {request['answered_at']}, run {request['run_id']}"
            if request
            else None
        ),
        "Paused until": one.get("paused_until"),
        "Answer": one.get("answer") or (request or {}).get("answer"),
        "Dead letter": one.get("dead_letter"),
    }
