"""``nami-amp apps``: the Nami apps and the plans of their organisations."""

from __future__ import annotations

import click

from nami_amp_pipeline import contract
from nami_amp_pipeline.commands.base import Invocation, json_option
from nami_amp_pipeline.errors import Misconfigured


@click.group()
def apps() -> None:
    """Show the known Nami apps and their plans, or change a plan."""


@apps.command(name="list")
@json_option
@click.pass_obj
def list_apps(invocation: Invocation, as_json: bool) -> None:
    """Show the apps, their plans, and how far each has been read."""
    import sqlalchemy as sa

    from nami_amp_pipeline.clock import to_text
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.state import tables

    counted = (
        sa.select(
            tables.apps.c.app_id, tables.apps.c.plan, tables.apps.c.watermark, sa.func.count(tables.integrations.c.id)
        )
        .outerjoin(tables.integrations, tables.integrations.c.app_id == tables.apps.c.app_id)
        .group_by(tables.apps.c.app_id, tables.apps.c.plan, tables.apps.c.watermark)
        .order_by(tables.apps.c.app_id)
    )
    with invocation.store.begin() as tx:
        rows = tx.execute(counted).tuples().all()
    if as_json:
        invocation.answer(
            {
                "apps": [
                    {"app_id": app_id, "plan": plan, "integrations": count, "watermark": to_text(watermark)}
                    for app_id, plan, watermark, count in rows
                ]
            }
        )
    elif rows:
        screen.table(
            ("App", "Plan", "Integrations", "Read up to"),
            [(app_id, plan, count, screen.moment(watermark)) for app_id, plan, watermark, count in rows],
            right=("Integrations",),
        )
    else:
        click.echo("No app yet; 'nami-amp integrations add' adds the first.")


@apps.command()
@click.argument("app")
@click.argument("plan", type=click.Choice(["paid", "free"]))
@click.pass_obj
def plan(invocation: Invocation, app: str, plan: str) -> None:
    """Set the plan of the organisation of APP.

    An app on the free plan cannot switch an integration on; those that are on stay on. An app that was never named here
    counts as paid.
    """
    from nami_amp_pipeline.state.integrations import set_plan

    if not contract.APP_ID.fullmatch(app):
        raise Misconfigured(f"app id {app!r} must be of letters, digits, '.', '_' and '-'")
    set_plan(invocation.store, app, plan)
    click.echo(f"{app} is on the {plan} plan.")
