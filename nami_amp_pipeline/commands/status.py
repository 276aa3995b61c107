"""``nami-amp status``: where every event of every integration is, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nami_amp_pipeline.commands.base import Invocation, json_option

if TYPE_CHECKING:
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
    operations = invocation.operations
    found, run_id = operations.status(), operations.last_run()
    if as_json:
        invocation.answer({"run_id": run_id, "integrations": [one.to_json() for one in found]})
    elif found:
        _show(found, run_id)
    else:
        click.echo("There is no integration yet: 'nami-amp integrations add' adds one, 'nami-amp demo' shows it all.")


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
