"""``nami-amp status``: where every event of every integration is, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nami_amp_pipeline.commands.base import Invocation, json_option

if TYPE_CHECKING:
    from nami_amp_pipeline.context import Context
    from nami_amp_pipeline.operations.status import IntegrationStatus


@click.command()
@json_option
@click.pass_obj
def status(invocation: Invocation, as_json: bool) -> None:
    """Show per integration how many events were captured, delivered and skipped, and how many are pending.

    Captured is always the sum of delivered, skipped, dead letters and pending. Lag is how long the oldest pending event
    has been in the warehouse. Events that wait for the login of their user are pending, but cause no lag: a line below
    the table says how long they have been waiting.
    """
    from nami_amp_pipeline.operations.status import status as read_status
    from nami_amp_pipeline.state.integrations import all_integrations

    with invocation.context() as context:
        found = read_status(context, all_integrations(context.store))
        run_id = _last_run(context)
    if as_json:
        invocation.answer({"run_id": run_id, "integrations": [one.to_json() for one in found]})
    elif found:
        _show(found, run_id)
    else:
        click.echo("There is no integration yet: 'nami-amp integrations add' adds one, 'nami-amp demo' shows it all.")


def _last_run(context: Context) -> str | None:
    """The run that last captured, prepared or posted anything."""
    import sqlalchemy as sa

    from nami_amp_pipeline.state import tables

    newest: list[tuple[int, str]] = []
    with context.store.begin() as tx:
        for table, at in (
            (tables.segments, tables.segments.c.captured_at),
            (tables.outboxes, tables.outboxes.c.prepared_at),
            (tables.requests, tables.requests.c.answered_at),
        ):
            newest += tx.execute(sa.select(at, table.c.run_id).order_by(table.c.id.desc()).limit(1)).tuples().all()
    return max(newest)[1] if newest else None


def _show(found: list[IntegrationStatus], run_id: str | None) -> None:
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.operations.status import WAITING

    screen.table(
        ("Integration", "State", "Captured", "Delivered", "Skipped", "Dead letters", "Pending", "Lag"),
        [
            (
                one.integration,
                one.state,
                screen.number(one.captured),
                screen.number(one.delivered),
                screen.reasons(one.skipped),
                screen.reasons(one.dead_letters),
                screen.reasons({why.replace("_", " "): events for why, events in one.pending_by.items()}),
                screen.duration(one.lag_seconds),
            )
            for one in found
        ],
        right=("Captured", "Delivered", "Lag"),
    )
    for one in found:
        if one.waiting:
            events = f"{screen.number(one.waiting)} event{'s' * (one.waiting != 1)} wait{'s' * (one.waiting == 1)}"
            for_how_long = screen.duration(one.lag_by.get(WAITING, 0.0))
            click.echo(f"{one.integration}: {events} for a login, the longest for {for_how_long}")
        if one.error:
            click.echo(f"{one.integration}: {one.error}")
    if run_id:
        click.echo(f"Last run: {run_id}")
