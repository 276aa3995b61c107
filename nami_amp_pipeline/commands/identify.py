"""``nami-amp identify``: gives Amplitude the current snapshot of users, without an event of theirs."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.backfill_output import plan_of, show_plan, work_on
from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.completion import integration_names
from nami_amp_pipeline.errors import Misconfigured


@click.command()
@click.argument("integration", required=False, metavar="APP/NAME", shell_complete=integration_names)
@click.option("--all", "every", is_flag=True, help="All users; this is what happens without any option.")
@click.option("--silent-since", metavar="TIME", help="Only users to whom no event was delivered since then.")
@click.option("--dry-run", is_flag=True, help="Only count who would be sent what, and keep that as a plan.")
@click.option("--plan", metavar="ID", help="Run a saved plan.")
@json_option
@click.pass_context
def identify(
    ctx: click.Context,
    integration: str | None,
    every: bool,
    silent_since: str | None,
    dry_run: bool,
    plan: str | None,
    as_json: bool,
) -> None:
    """Give Amplitude the current snapshot of users.

    Posts one $identify event for each user whose snapshot no identify has sent yet. Profile pages, and every later
    event of these users, have the properties at once. Charts and cohorts look at a user's latest active event, and an
    identify is none: silent users join no audience by it.

    Live delivery goes first, and users with pending events are left to those. 'nami-amp backfills' pauses, resumes and
    cancels it. Exit status 1 if it did not reach its end, or if there are dead letters.
    """
    invocation: Invocation = ctx.obj
    if plan is not None:
        if integration or every or silent_since or dry_run:
            raise Misconfigured("--plan ID runs that plan: give nothing else with it")
        work_on(ctx, plan_of(invocation, plan, "identify"), as_json=as_json)
        return
    if every and silent_since is not None:
        raise Misconfigured("give --all or --silent-since TIME, not both")
    if integration is None:
        raise Misconfigured("name the integration, as in 'nami-amp identify APP/NAME'")
    from nami_amp_pipeline.operations.backfills import NewIdentify
    from nami_amp_pipeline.operations.times import parse_time

    (key,) = integration_keys([integration])
    new = NewIdentify(key, parse_time(silent_since, "--silent-since") if silent_since is not None else None)
    if dry_run:
        show_plan(invocation, *invocation.operations.backfills.plan(new), as_json=as_json)
        return
    work_on(ctx, invocation.operations.backfills.create(new).id, as_json=as_json)
