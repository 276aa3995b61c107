"""``nami-amp pending``: who waits, why, and until when."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.options import integrations_option


@click.group()
def pending() -> None:
    """Look at the events that have been read and have no end yet."""


@pending.command(name="list")
@integrations_option
@click.option("--user", "users", multiple=True, metavar="USER", help="Only this External ID or Nami user.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="So many users.")
@json_option
@click.pass_obj
def list_pending(
    invocation: Invocation, integrations: tuple[str, ...], users: tuple[str, ...], limit: int, as_json: bool
) -> None:
    """Show whose events wait, why, and until when; who has waited longest comes first."""
    from nami_amp_pipeline.commands import output as screen

    keys = integration_keys(integrations) if integrations else None
    found = invocation.operations.pending(keys, users)
    shown = found[:limit]
    events = sum(user.events for user in found)
    if as_json:
        invocation.answer({"users": len(found), "events": events, "pending": [user.to_json() for user in shown]})
    elif found:
        screen.table(
            ("Integration", "User", "Nami user", "Events", "Oldest created", "Why", "Until"),
            [
                (
                    user.integration,
                    user.user,
                    user.nami_user,
                    screen.number(user.events),
                    screen.moment(user.oldest),
                    user.why,
                    screen.moment(user.until),
                )
                for user in shown
            ],
            right=("Events",),
            texts=("Why",),
            optional=("Nami user", "Oldest created"),
        )
        if len(found) > len(shown):
            screen.more(f"{screen.plural(len(found) - len(shown), 'more user')} (--limit)")
        if screen.is_terminal():
            screen.say(f"{screen.plural(events, 'event')} of {screen.plural(len(found), 'user')} pending.")
    elif users:
        screen.say(f"Nothing of {', '.join(users)} is pending; 'nami-amp trace USER' says what became of their events.")
    elif invocation.operations.integrations():
        screen.say("Nothing is pending.")
    else:
        screen.say(screen.sentence(invocation.operations.nothing_here))
