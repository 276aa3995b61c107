"""What ``nami-amp backfill``, ``identify`` and ``backfills`` share: to work on one, and to show it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from nami_amp_pipeline.errors import Misconfigured, NamiAmpError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import click

    from nami_amp_pipeline.backfill.plan import Plan
    from nami_amp_pipeline.commands.base import Invocation
    from nami_amp_pipeline.operations.backfill_status import BackfillStatus
    from nami_amp_pipeline.operations.backfills import Backfill, Kind


def number_of(text: str) -> int:
    """The number of a backfill or an identify, as it was given.

    Raises:
        Misconfigured: it is none.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise Misconfigured(
            f"{text!r} is not the number of a backfill or an identify: 'nami-amp backfills list' shows all of both"
        )
    return int(text)


def plan_of(invocation: Invocation, text: str, kind: Kind) -> int:
    """The number of a saved plan, as it was given.

    Raises:
        Misconfigured: there is none of that kind and number.
    """
    from nami_amp_pipeline.operations.backfills import plan_command

    number = number_of(text)
    made = invocation.operations.backfills.show(number).backfill
    if made.kind != kind:
        raise Misconfigured(f"{made.called} is no {kind}: run it with '{plan_command(made)}'")
    return number


def work_on(ctx: click.Context, number: int, *, as_json: bool) -> None:
    """Works on a backfill or an identify through Dagster, with a line of progress where somebody looks."""
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.operations.backfills import SAYS, UNFINISHED

    invocation: Invocation = ctx.obj
    settings = invocation.settings
    made = invocation.operations.backfills.show(number).backfill
    invocation.close()

    error: NamiAmpError | None = None
    with screen.spinner(f"{made.called.capitalize()} …") as shown, redirect_stdout(sys.stderr):
        from nami_amp_pipeline.runner import run_backfill

        try:
            run_backfill(settings, number, made.kind, progress=lambda progress: shown(str(progress)))
        except Misconfigured:
            raise
        except NamiAmpError as own:
            error = own
    status = invocation.operations.backfills.show(number)
    if as_json:
        invocation.answer(status.to_json())
    else:
        show_table([status])
        show_found(status)
        if made.kind == "identify":
            screen.say(SAYS)
    if error is not None:
        goes_on = status.backfill.state in UNFINISHED
        hint = f" (to go on: 'nami-amp backfills resume {number}')" if goes_on else ""
        invocation.complain(f"{error}{hint}")
    if status.backfill.state != "done" or status.dead_letters:
        ctx.exit(1)


def show_plan(invocation: Invocation, made: Backfill, plan: Plan, *, as_json: bool) -> None:
    """What a dry run counted."""
    import orjson

    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.operations.backfill_status import window_json
    from nami_amp_pipeline.operations.backfills import SAYS, plan_command

    if as_json:
        invocation.answer(
            {
                "backfill_id": made.id,
                "kind": made.kind,
                "integration": made.integration,
                **window_json(made),
                "events": plan.events,
                "by_type": dict(sorted(plan.by_type.items())),
                "users": plan.users,
                "requests": plan.requests,
                "bytes": plan.bytes,
                "seconds": plan.seconds,
                "would_be_stored_twice": plan.stored_twice,
                "found": dict(plan.found),
                "skipped": dict(plan.skipped),
                "dead_letters": dict(plan.dead_letters),
                "preview": [orjson.loads(text) for text in plan.preview],
            }
        )
        return
    how_long = f"about {screen.duration(plan.seconds)}" if plan.seconds >= 1 else "less than a second"
    screen.say(
        f"{screen.plural(plan.events, 'event')} of {screen.plural(plan.users, 'user')} would be sent in "
        f"{screen.plural(plan.requests, 'request')} ({screen.size(plan.bytes)}), in {how_long}. Nothing was sent."
        if plan.events
        else "No event would be sent."
    )
    if plan.by_type:
        screen.table(
            ("Event type", "Events"),
            [(name, screen.number(events)) for name, events in sorted(plan.by_type.items())],
            right=("Events",),
        )
    _show_classes(made, dict(plan.found))
    if plan.skipped or plan.dead_letters:
        screen.say(f"Skipped: {screen.reasons(plan.skipped)}. Dead letters: {screen.reasons(plan.dead_letters)}.")
    if plan.stored_twice and not made.resend:
        screen.say(f"Left out: {screen.plural(plan.stored_twice, 'event')} that Amplitude would store a second time.")
    for text in plan.preview:
        screen.say(text, wrapped=False)
    if made.kind == "identify":
        screen.say(SAYS)
    screen.say(f"Run it with '{plan_command(made)}'.")


def show_found(status: BackfillStatus) -> None:
    """What was found of the events of a window, or of users."""
    _show_classes(status.backfill, status.found)


def _show_classes(made: Backfill, found: Mapping[str, int]) -> None:
    from nami_amp_pipeline.backfill.kinds import KINDS
    from nami_amp_pipeline.commands import output as screen

    kind = KINDS[made.kind]
    if found:
        screen.table(
            ("Found", kind.unit.capitalize(), "Meaning"),
            [(name, screen.number(events), kind.classes.get(name, "")) for name, events in sorted(found.items())],
            right=(kind.unit.capitalize(),),
            texts=("Meaning",),
        )


def show_table(some: Sequence[BackfillStatus]) -> None:
    """Backfills and identifies, a row each; what they count is events or users."""
    from nami_amp_pipeline.commands import output as screen

    screen.table(
        (
            "Number",
            "Kind",
            "Integration",
            "From",
            "To",
            "State",
            "Events",
            "Done",
            "Delivered",
            "Skipped",
            "Dead letters",
            "Pending",
        ),
        [
            (
                str(status.backfill.id),
                status.backfill.kind,
                status.backfill.integration,
                *_window(status.backfill),
                _state(status),
                "?" if status.backfill.events is None else screen.number(status.backfill.events),
                screen.number(status.done),
                screen.number(status.delivered),
                screen.reasons(status.skipped),
                screen.reasons(status.dead_letters),
                screen.number(status.pending),
            )
            for status in some
        ],
        right=("Events", "Done", "Delivered", "Pending"),
        optional=("From", "To", "Skipped", "Dead letters"),
    )


def _window(made: Backfill) -> tuple[str, str]:
    from nami_amp_pipeline.commands import output as screen

    if made.kind == "identify":
        return f"silent since {screen.moment(made.since)}" if made.since else "all users", ""
    return screen.moment(made.since), screen.moment(made.until)


def _state(status: BackfillStatus) -> str:
    if status.backfill.state == "running" and not status.is_at_work:
        return "running, but no process works on it"
    return status.backfill.state
