"""``nami-amp backfill`` and ``nami-amp backfills``: the events of a window of time once more, from the warehouse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nami_amp_pipeline.commands.backfill_output import number_of, plan_of, show_found, show_plan, show_table, work_on
from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.completion import integration_names
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.backfills import NewBackfill


@click.command()
@click.argument("integration", required=False, metavar="APP/NAME", shell_complete=integration_names)
@click.option("--from", "since", metavar="TIME", help="The first instant of the window.")
@click.option("--to", "until", metavar="TIME", help="The first instant after the window.")
@click.option(
    "--by",
    type=click.Choice(["created_date", "ingested_at"]),
    default="created_date",
    show_default=True,
    help="Which time of a row counts.",
)
@click.option("--events", metavar="TYPE,…", help="Only these of the integration's event types, or prefixes.")
@click.option("--resend", is_flag=True, help="Also send events that Amplitude would store a second time.")
@click.option("--dry-run", is_flag=True, help="Only count what would be sent, and keep that as a plan.")
@click.option("--plan", metavar="ID", help="Run a saved plan.")
@json_option
@click.pass_context
def backfill(
    ctx: click.Context,
    integration: str | None,
    since: str | None,
    until: str | None,
    by: str,
    events: str | None,
    resend: bool,
    dry_run: bool,
    plan: str | None,
    as_json: bool,
) -> None:
    """Send the events of a window of time again.

    Reads the window from the warehouse and posts its events with the same insert ids. Live delivery goes first, and
    no newer profile is overwritten. What Amplitude would store a second time is left out unless you give --resend.
    Exit status 1 if it did not reach its end, or if there are dead letters.
    """
    invocation: Invocation = ctx.obj
    if plan is not None:
        if integration or since or until or events or resend or dry_run:
            raise Misconfigured("--plan ID runs that plan as it is: give nothing else with it")
        number = plan_of(invocation, plan, "backfill")
    else:
        new = _asked(integration, since, until, by, events, resend=resend)
        if dry_run:
            show_plan(invocation, *invocation.operations.backfills.plan(new), as_json=as_json)
            return
        number = invocation.operations.backfills.create(new).id
    work_on(ctx, number, as_json=as_json)


def _asked(
    integration: str | None, since: str | None, until: str | None, by: str, events: str | None, *, resend: bool
) -> NewBackfill:
    from nami_amp_pipeline.operations.backfills import NewBackfill
    from nami_amp_pipeline.operations.times import parse_window

    if integration is None or since is None or until is None:
        raise Misconfigured(
            "name the integration and its window, as in 'nami-amp backfill APP/NAME --from TIME --to TIME'"
        )
    (key,) = integration_keys([integration])
    window = parse_window(since, until, by)
    patterns = [part.strip() for part in events.split(",")] if events is not None else None
    return NewBackfill(key, window, patterns, resend)


@click.group()
def backfills() -> None:
    """Look at backfills and identifies, pause, resume and cancel them."""


_number = click.argument("which", metavar="ID")


@backfills.command(name="list")
@click.option("--integration", metavar="APP/NAME", shell_complete=integration_names, help="Only of this integration.")
@json_option
@click.pass_obj
def list_backfills(invocation: Invocation, integration: str | None, as_json: bool) -> None:
    """Show all backfills and identifies, the newest first."""
    from nami_amp_pipeline.commands import output as screen

    key = integration_keys([integration])[0] if integration is not None else None
    found = invocation.operations.backfills.listed(key)
    if as_json:
        invocation.answer({"backfills": [status.to_json() for status in found]})
    elif found:
        show_table(found)
    else:
        screen.say(
            "There is none: 'nami-amp backfill APP/NAME --from TIME --to TIME' and 'nami-amp identify APP/NAME' make "
            "one."
        )


@backfills.command(name="show")
@_number
@json_option
@click.pass_obj
def show_backfill(invocation: Invocation, which: str, as_json: bool) -> None:
    """Show one of them, with its plan if it has one."""
    from nami_amp_pipeline.commands import output as screen

    status = invocation.operations.backfills.show(number_of(which))
    if as_json:
        invocation.answer({**status.to_json(), "plan": status.backfill.plan})
        return
    show_table([status])
    show_found(status)
    if status.backfill.error:
        screen.say(status.backfill.error, "red")


@backfills.command(name="pause")
@_number
@click.pass_obj
def pause_backfill(invocation: Invocation, which: str) -> None:
    """Pause one that is running; requests under way are recorded."""
    show_table([invocation.operations.backfills.pause(number_of(which))])


@backfills.command(name="resume")
@_number
@json_option
@click.pass_context
def resume_backfill(ctx: click.Context, which: str, as_json: bool) -> None:
    """Go on with one that was paused, that failed, or whose process was killed."""
    work_on(ctx, number_of(which), as_json=as_json)


@backfills.command(name="cancel")
@_number
@click.pass_obj
def cancel_backfill(invocation: Invocation, which: str) -> None:
    """End one; what was posted stays in Amplitude."""
    show_table([invocation.operations.backfills.cancel(number_of(which))])
