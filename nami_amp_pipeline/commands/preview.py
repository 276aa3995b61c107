"""``nami-amp preview``: what would be posted next."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.completion import integration_names
from nami_amp_pipeline.errors import Misconfigured


@click.command()
@click.argument("integration", metavar="APP/NAME", shell_complete=integration_names)
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, help="So many events.")
@click.option("--from", "since", metavar="TIME", help="Of a backfill: the first instant of the window.")
@click.option("--to", "until", metavar="TIME", help="The first instant after the window.")
@json_option
@click.pass_obj
def preview(
    invocation: Invocation, integration: str, limit: int, since: str | None, until: str | None, as_json: bool
) -> None:
    """Show the events that would be posted next, byte for byte.

    Nothing is posted or recorded. Events of rows that no run has read yet are not shown. With --from and --to: the
    events that a backfill of that window would send.
    """
    import orjson

    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.operations.times import parse_window

    if (since is None) != (until is None):
        raise Misconfigured("give both --from and --to, or neither")
    window = None
    if since is not None and until is not None:
        window = parse_window(since, until)
    (key,) = integration_keys([integration])
    found = invocation.operations.preview(key, limit + 1, window)
    goes_on = len(found) > limit
    found = found[:limit]
    if as_json:
        invocation.answer({"integration": key, "events": [orjson.loads(text) for text in found], "goes_on": goes_on})
        return
    for text in found:
        click.echo(text)
    if goes_on:
        screen.more("more behind these (--limit)")
    if not found and screen.is_terminal():
        screen.say("Nothing would be posted; 'nami-amp run' reads new rows.")
