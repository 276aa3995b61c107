"""``nami-amp apps``: the Nami apps and the plans of their organisations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from nami_amp_pipeline.commands.base import Invocation, json_option
from nami_amp_pipeline.commands.completion import app_names
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.app_history import Kind

KINDS: Final = ("changes", "halts", "backfills", "resends", "comparisons", "app", "people")


@click.group()
def apps() -> None:
    """Show the known Nami apps with their plans and quotas, or change these."""


@apps.command(name="list")
@json_option
@click.pass_obj
def list_apps(invocation: Invocation, as_json: bool) -> None:
    """Show the apps, their plans, and how far each has been read."""
    from nami_amp_pipeline.commands import output as screen

    found = invocation.operations.apps()
    if as_json:
        invocation.answer({"apps": [app.to_json() for app in found]})
    elif found:
        screen.table(
            ("App", "Plan", "Integrations", "Quota a month", "Read up to"),
            [
                (app.app_id, app.plan, app.integrations, _quota(app.quota), screen.moment(app.watermark))
                for app in found
            ],
            right=("Integrations", "Quota a month"),
        )
    else:
        click.echo("No app yet; 'nami-amp integrations add' adds the first.")


@apps.command()
@click.argument("app", shell_complete=app_names)
@click.argument("plan", type=click.Choice(["paid", "free"]))
@click.pass_obj
def plan(invocation: Invocation, app: str, plan: str) -> None:
    """Set the plan of the organisation of APP.

    An app on the free plan cannot switch an integration on; those that are on stay on. An app that was never named here
    counts as paid.
    """
    invocation.operations.set_plan(app, plan)
    click.echo(f"{app} is on the {plan} plan.")
    nobody = invocation.operations.app_without_integration(app)
    if nobody:
        invocation.complain(nobody)


@apps.command()
@click.argument("app", shell_complete=app_names)
@click.argument("events", metavar="EVENTS|none")
@click.pass_obj
def quota(invocation: Invocation, app: str, events: str) -> None:
    """Set how many events a month the Amplitude organisation of APP takes.

    The Control Center shows which share of it an integration uses. Nothing is limited by it.
    """
    digits = events.replace(",", "").replace("_", "")
    if events != "none" and not (digits.isascii() and digits.isdecimal() and len(digits) < 19):
        raise Misconfigured("the quota must be a number of events a month, such as 10000000, or none")
    number = None if events == "none" else int(digits)
    invocation.operations.set_quota(app, number)
    click.echo(f"{app} has no quota." if number is None else f"{app} has a quota of {number:,} events a month.")
    nobody = invocation.operations.app_without_integration(app)
    if nobody:
        invocation.complain(nobody)


@apps.command()
@click.argument("app", shell_complete=app_names)
@click.option("--integration", metavar="NAME", help="Only of this integration of the app.")
@click.option("--kind", type=click.Choice(KINDS), help="Only of this; people and sign-ins are of all apps.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="So many at most.")
@click.option("--after", default="", metavar="KEY", help="Go on behind that key, the next of --json.")
@json_option
@click.pass_obj
def history(
    invocation: Invocation, app: str, integration: str | None, kind: Kind | None, limit: int, after: str, as_json: bool
) -> None:
    """Show what happened in APP and who did it, the newest first.

    Changes, halts and their ends, backfills and identifies, dead letters that were sent again, comparisons that were
    asked for, plan and quota; with --kind people who signed in, and who may.
    """
    from nami_amp_pipeline.commands import output as screen

    rows, rest = invocation.operations.app_history(app, name=integration, kind=kind, after=after, limit=limit)
    if as_json:
        invocation.answer({"app_id": app, "history": [row.to_json() for row in rows], "next": rest})
    elif rows:
        screen.table(
            ("When", "Who", "Integration", "What"),
            [(screen.moment(row.at), row.by, row.integration.partition("/")[2], row.in_words) for row in rows],
        )
    else:
        click.echo("Nothing is recorded.")
        if nobody := invocation.operations.app_without_integration(app):
            invocation.complain(nobody)
    if rest is not None and not as_json:
        screen.more(f"older ones (--after '{rest}')")


def _quota(quota: int | None) -> str:
    return "" if quota is None else f"{quota:,}"
