"""``nami-amp migrate``: brings the state store to this program's version."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.base import Invocation, json_option


@click.command()
@json_option
@click.pass_obj
def migrate(invocation: Invocation, as_json: bool) -> None:
    """Bring the state store up to date with this program.

    Safe migrations run whenever the program starts. Run this command for the others, when a message asks for it. Make a
    backup first, and stop everything else that uses the store. It migrates completely or not at all.
    """
    before, now = invocation.operations.migrate()
    if as_json:
        invocation.answer({"before": before, "now": now})
    elif before == now:
        click.echo(f"The state store is up to date: schema version {now}.")
    elif before == 0:
        click.echo(f"The state store was empty; it has schema version {now} now.")
    else:
        click.echo(f"The state store went from schema version {before} to {now}.")
