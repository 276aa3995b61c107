"""``nami-amp deliveries`` and ``nami-amp audience``: what became of a window's events, and who was sent a property."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.completion import integration_names
from nami_amp_pipeline.contract import did_you_mean, event_type_names
from nami_amp_pipeline.errors import Misconfigured

_WINDOWS = ("1h", "24h", "7d", "30d")
_OUTCOMES = ("captured", "delivered", "skipped", "dead_letters", "waiting")
_PLACES = ("sent", "waiting", "no_external_id", "not_sent")

_integration = click.argument("integration", metavar="APP/NAME", shell_complete=integration_names)
_limit = click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="So many rows.")
_after = click.option("--after", default="", metavar="KEY", help="Go on where the rows before ended: their 'after'.")


@click.command()
@_integration
@click.option("--window", type=click.Choice(_WINDOWS), default="24h", show_default=True, help="How far back.")
@click.option("--events", "outcome", type=click.Choice(_OUTCOMES), help="List the events of this number.")
@click.option("--type", "event_type", metavar="TYPE", help="With --events: only of this event type.")
@click.option("--requests", is_flag=True, help="List the requests with their answers.")
@_limit
@_after
@json_option
@click.pass_obj
def deliveries(
    invocation: Invocation,
    integration: str,
    window: str,
    outcome: str | None,
    event_type: str | None,
    requests: bool,
    limit: int,
    after: str,
    as_json: bool,
) -> None:
    """Show what became of the events of a window: in all, hour by hour and by type.

    Captured is always the sum of delivered, skipped, dead letters and waiting. A window begins with a full hour, and an
    event counts in the hour in which it was captured.
    """
    if outcome and requests:
        raise click.UsageError("Give either --events or --requests, not both", click.get_current_context())
    (key,) = integration_keys([integration])
    if outcome:
        _show_events(invocation, key, outcome, window, event_type, limit, after, as_json=as_json)
    elif requests:
        _show_requests(invocation, key, limit, after, as_json=as_json)
    else:
        _show_numbers(invocation, key, window, as_json=as_json)


def _show_numbers(invocation: Invocation, key: str, window: str, *, as_json: bool) -> None:
    from nami_amp_pipeline.commands import output as screen

    found = invocation.operations.deliveries(key, window)
    if as_json:
        invocation.answer(found.to_json())
        return
    heads = [outcome.replace("_", " ").capitalize() for outcome in _OUTCOMES]
    rows = [("all", found.total)]
    rows += [(row.event_type, row.tally) for row in found.types if row.tally.captured]
    rows += [(screen.moment(bar.since), bar.tally) for bar in found.bars if bar.tally.captured]
    screen.table(
        ("Events", *heads),
        [(name, *map(screen.number, tally.to_json().values())) for name, tally in rows],
        right=heads,
    )
    if found.counted_since is not None:
        screen.say(f"Counts by hour are kept since {screen.moment(found.counted_since)}.", "yellow")
    if found.newest_delivered is not None and screen.is_terminal():
        screen.say(f"The newest request was delivered {screen.moment(found.newest_delivered)}.")


def _show_events(
    invocation: Invocation,
    key: str,
    outcome: str,
    window: str,
    event_type: str | None,
    limit: int,
    after: str,
    *,
    as_json: bool,
) -> None:
    from nami_amp_pipeline.commands import output as screen

    rows, following = invocation.operations.event_rows(
        key, outcome, window, event_type=event_type, after=after, limit=limit
    )
    if event_type is not None and not rows:  # one that was known once may still have events
        _check_type(event_type)
    if as_json:
        invocation.answer({"events": [row.to_json() for row in rows], "after": following})
        return
    screen.table(
        ("Event", "Type", "User", "Created", "Now", "Reason"),
        [
            (
                row.event_id,
                row.event_type,
                row.user or row.nami_user,
                screen.moment(row.created),
                row.outcome,
                row.reason,
            )
            for row in rows
        ],
        optional=("Created", "User"),
    )
    _say_more(following)


def _check_type(event_type: str) -> None:
    known = event_type_names()
    if event_type not in known:
        meant = did_you_mean(event_type, known) or f": use one of {', '.join(known)}"
        raise Misconfigured(f"unknown event type {event_type!r}{meant}")


def _show_requests(invocation: Invocation, key: str, limit: int, after: str, *, as_json: bool) -> None:
    from nami_amp_pipeline.commands import output as screen

    rows, following = invocation.operations.request_rows(key, after=after, limit=limit)
    if as_json:
        invocation.answer({"requests": [row.to_json() for row in rows], "after": following})
        return
    screen.table(
        ("Sent", "Events", "Bytes", "Status", "Outcome", "ms"),
        [
            (
                screen.moment(row.sent_at),
                screen.number(row.events),
                screen.number(row.size),
                row.status or "no answer",
                row.said,
                screen.number(row.millis),
            )
            for row in rows
        ],
        right=("Events", "Bytes", "ms"),
        texts=("Outcome",),
    )
    _say_more(following)


def _say_more(following: str | None) -> None:
    from nami_amp_pipeline.commands import output as screen

    if following is not None:
        screen.more(f"more behind these (--after '{following}')")


@click.command()
@_integration
@click.argument("name", metavar="PROPERTY")
@click.argument("value")
@click.option("--users", "place", type=click.Choice(_PLACES), help="List the users of this number.")
@_limit
@_after
@json_option
@click.pass_obj
def audience(
    invocation: Invocation,
    integration: str,
    name: str,
    value: str,
    place: str | None,
    limit: int,
    after: str,
    as_json: bool,
) -> None:
    """Count the users with a value of a property, and how many of them an integration was sent so.

    VALUE is true or false, or what a list of ids holds, such as premium of namiml_active_entitlements.
    """
    from nami_amp_pipeline.commands import output as screen

    (key,) = integration_keys([integration])
    found = invocation.operations.audience(key, name, value, place=place, after=after, limit=limit)
    if as_json:
        invocation.answer({**found.to_json(), "after": found.after})
        return
    screen.table(
        ("Users", "Number"),
        [("here", screen.number(found.here)), *((name, screen.number(count)) for name, count in found.places.items())],
        right=("Number",),
    )
    for user in found.users:
        screen.say(f"{user.nami_user}\t{user.external_id or ''}", wrapped=False)
    _say_more(found.after)
