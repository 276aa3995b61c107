"""``nami-amp alerts``: the alerts that are open, a test message, and silences."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.base import Invocation, json_option


@click.group()
def alerts() -> None:
    """List the alerts that are open, test the webhook, and silence what you know of.

    The sensor 'alerts' of Dagster sends them; docs/alerts.md lists all kinds.
    """


@alerts.command(name="list")
@json_option
@click.pass_obj
def list_alerts(invocation: Invocation, as_json: bool) -> None:
    """List what is wrong, since when, whether people were told, and what is silenced.

    Told is 'not yet' where the sensor has not looked since, or the webhook does not take it; 'over' if the problem is
    over, and the all-clear goes with the sensor's next look.
    """
    from nami_amp_pipeline.alerts.desk import open_alerts, silenced
    from nami_amp_pipeline.commands import output as screen

    with invocation.context() as context:
        found, muted = open_alerts(context), silenced(context)
    if as_json:
        invocation.answer({"alerts": [alert.to_json() for alert in found], "silences": muted})
        return
    if found:
        rows = [(alert.kind, alert.subject, screen.moment(alert.since), alert.told, alert.summary) for alert in found]
        screen.table(("Alert", "Subject", "Since", "Told", "Summary"), rows)
    elif invocation.operations.integrations():
        click.echo("No alert is open.")
    else:
        screen.say(screen.sentence(invocation.operations.nothing_here))
    for silence in muted:
        click.echo(f"Silenced until {silence['until']}: {silence['kind']} {silence['subject']}")


@alerts.command(name="test")
@click.pass_obj
def test_alerts(invocation: Invocation) -> None:
    """Send a message to NAMI_AMP_ALERT_WEBHOOK_URL that says it is a test."""
    from nami_amp_pipeline.alerts.desk import send_test

    send_test(invocation.settings)
    click.echo("The webhook accepted the test message.")


@alerts.command()
@click.argument("kind", metavar="ALERT")
@click.argument("subject", metavar="SUBJECT", default="*")
@click.option(
    "--for", "length", metavar="TIME", default="1d", show_default=True, help="How long: 30m, 4h, 1d; 0 ends it."
)
@click.pass_obj
def silence(invocation: Invocation, kind: str, subject: str, length: str) -> None:
    """Send no message about an alert for some time; with --for 0 again.

    ALERT is a name as 'nami-amp alerts list' shows it; SUBJECT is the integration, app or job, and '*' all of them.
    The log still has each alert, and an alert that is open when the silence ends is sent then.
    """
    from nami_amp_pipeline.alerts.desk import silence_for

    with invocation.context() as context:
        click.echo(silence_for(context, kind, subject, length))
