"""``nami-amp apps``: the Nami apps and the plans of their organisations."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.base import Invocation, json_option
from nami_amp_pipeline.commands.completion import app_names


@click.group()
def apps() -> None:
    """Show the known Nami apps and their plans, or change a plan."""


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
            ("App", "Plan", "Integrations", "Read up to"),
            [(app.app_id, app.plan, app.integrations, screen.moment(app.watermark)) for app in found],
            right=("Integrations",),
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
