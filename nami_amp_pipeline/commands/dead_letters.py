"""``nami-amp dead-letters``: the events that Amplitude will not get, why, and a second try."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.completion import dead_letter_reasons
from nami_amp_pipeline.commands.options import confirm, integrations_option, yes_option
from nami_amp_pipeline.destinations import DEFAULT
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.times import parse_time

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.dead_letters import DeadLetter, Filter


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Look at the events that could not be delivered; send them again, or mark them as seen.

    A dead letter is an event that Amplitude rejected, or that could not become an Amplitude event.
    """


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--until", metavar="TIME", help="Only events that became dead letters before this time."),
        click.option(
            "--since",
            metavar="TIME",
            help="Only events that became dead letters at or after this time: 1h, 2d, yesterday, 2026-09-01T00:00:00Z.",
        ),
        click.option(
            "--reason",
            "reasons",
            multiple=True,
            metavar="REASON",
            shell_complete=dead_letter_reasons,
            help="Only with this reason; may be given several times.",
        ),
        integrations_option,
    ):
        command = option(command)
    return command


def _filter(
    ids: tuple[str, ...],
    integrations: tuple[str, ...],
    reasons: tuple[str, ...],
    since: str | None,
    until: str | None,
    dismissed: bool | None = None,
) -> Filter:
    from nami_amp_pipeline.operations.dead_letters import Filter

    first = parse_time(since, "--since") if since else None
    end = parse_time(until, "--until") if until else None
    if first is not None and end is not None and end <= first and until != "now":  # 'dismiss' adds that one
        raise Misconfigured("--until must be later than --since")
    return Filter(ids, integration_keys(integrations), reasons, first, end, dismissed)


def _chosen(*given: object) -> None:
    """Makes sure that a command that changes something was told what to change."""
    if not any(given):
        raise click.UsageError(
            "Name dead letters, choose some by an option, or give --all", click.get_current_context()
        )


@dead_letters.command(name="causes")
@_filters
@click.option("--dismissed", is_flag=True, help="Of those that somebody marked as seen, and no others.")
@json_option
@click.pass_obj
def list_causes(
    invocation: Invocation,
    integrations: tuple[str, ...],
    reasons: tuple[str, ...],
    since: str | None,
    until: str | None,
    dismissed: bool,
    as_json: bool,
) -> None:
    """Show the causes of dead letters: how many, since when, and how many can be sent again."""
    from nami_amp_pipeline.commands import output as screen

    found = invocation.operations.causes(_filter((), integrations, reasons, since, until, dismissed))
    if as_json:
        invocation.answer({"causes": [cause.to_json() for cause in found]})
    elif found:
        screen.table(
            ("Integration", "Reason", "Events", "Since", "Can be sent again", "Older than 7 days", "Why"),
            [
                (
                    cause.integration,
                    cause.reason,
                    screen.number(cause.events),
                    screen.moment(cause.since),
                    screen.number(cause.sendable),
                    screen.number(cause.old),
                    "; ".join((cause.means, *cause.named)),
                )
                for cause in found
            ],
            right=("Events", "Can be sent again", "Older than 7 days"),
            texts=("Why",),
            optional=("Since",),
        )
    elif invocation.operations.integrations():
        screen.say("No dead letters.")
    else:
        screen.say(screen.sentence(invocation.operations.nothing_here))


@dead_letters.command(name="list")
@_filters
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="How many to show, the newest first."
)
@click.option("--dismissed", is_flag=True, help="Those that somebody marked as seen, and no others.")
@json_option
@click.pass_obj
def list_dead_letters(
    invocation: Invocation,
    integrations: tuple[str, ...],
    reasons: tuple[str, ...],
    since: str | None,
    until: str | None,
    limit: int,
    dismissed: bool,
    as_json: bool,
) -> None:
    """Show the dead letters, the newest first; without those that 'dismiss' marked as seen."""
    from nami_amp_pipeline.commands import output as screen

    which = _filter((), integrations, reasons, since, until, dismissed)
    found, total = invocation.operations.dead_letters(which, limit)
    seen = sum(invocation.operations.count_dead_letters(replace(which, dismissed=True)).values())
    if as_json:
        letters = [letter.to_json() for letter in found]
        invocation.answer({"total": total, "dismissed": seen, "dead_letters": letters})
    elif found:
        screen.table(
            ("No.", "Integration", "Reason", "Event", "User", "Type", "At", "Why"),
            [
                (
                    letter.id,
                    letter.integration,
                    letter.reason,
                    letter.event_id,
                    letter.user_id,
                    letter.event_type,
                    screen.moment(letter.at),
                    letter.why,
                )
                for letter in found
            ],
            right=("No.",),
            texts=("Why",),
            optional=("Type", "User", "At", "Integration"),
        )
        if total > len(found):
            screen.more(f"{screen.plural(total - len(found), 'older dead letter')} (--limit)")
    elif integrations or reasons or since or until:
        screen.say("No dead letters among those that were asked for.")
    elif invocation.operations.integrations():
        screen.say("No dead letters.")
    else:
        screen.say(screen.sentence(invocation.operations.nothing_here))
    if seen and not dismissed and not as_json and (screen.is_terminal() or not found):
        screen.say(f"{screen.plural(seen, 'dismissed dead letter')} not shown (--dismissed).")


@dead_letters.command()
@click.argument("id")
@json_option
@click.pass_obj
def show(invocation: Invocation, id: str, as_json: bool) -> None:  # noqa: A002 - the name of the argument in --help
    """Show one dead letter in full: the event, the field that Amplitude named, and what to do.

    ID is its number in the list, or the event's id.
    """
    from nami_amp_pipeline.clock import to_text
    from nami_amp_pipeline.commands import output as screen

    found = invocation.operations.dead_letter(id)
    if as_json:
        whole = [{**letter.to_json(), "body": letter.body, "payload": letter.payload} for letter in found]
        invocation.answer(whole[0] if len(whole) == 1 else {"dead_letters": whole})
        return
    for letter in found:
        screen.facts(
            {
                "No.": letter.id,
                "Integration": letter.integration,
                "Reason": letter.reason,
                "Why": letter.why,
                "Field": "\n".join(map(str, letter.fields)) or None,
                "Do": _beside_what_is_shown(letter),
                "Event": letter.event_id,
                "Type": letter.event_type,
                "Nami user": letter.user_id,
                "Created": to_text(letter.created_date),
                "Dead since": to_text(letter.at),
                "First sent": to_text(letter.first_sent) or "never",
                "Run": letter.run_id,
                "Dismissed": f"{to_text(letter.dismissed_at)} by {letter.dismissed_by or 'somebody'}"
                if letter.dismissed_at
                else None,
                "Answer": letter.answer,
                ("Amplitude event" if letter.destination == DEFAULT else "Posted event"): letter.body,
                "Nami payload": letter.payload,
            }
        )


@dead_letters.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filters
@click.option("--all", "everything", is_flag=True, help="All dead letters that are not dismissed.")
@click.option("--dismissed", is_flag=True, help="Only dismissed ones; otherwise they are sent only if named by ID.")
@click.option(
    "--force", is_flag=True, help="Also retry events first sent over 7 days ago; Amplitude may store them twice."
)
@json_option
@click.pass_obj
def retry(
    invocation: Invocation,
    ids: tuple[str, ...],
    integrations: tuple[str, ...],
    reasons: tuple[str, ...],
    since: str | None,
    until: str | None,
    everything: bool,
    dismissed: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Send dead letters again, with the next run.

    They keep their content and their insert id, so that Amplitude recognises events that it has already. Name them by
    number or event id, or choose them by reason, integration or time.
    """
    _chosen(ids, integrations, reasons, since, until, everything, dismissed)
    which = _filter(ids, integrations, reasons, since, until, dismissed or (None if ids else False))
    done = invocation.operations.retry(which, force=force)
    if as_json:
        invocation.answer({"retried": done.retried, "refused": dict(done.refused)})
    else:
        click.echo(f"{done.retried:,} dead letter{'s' if done.retried != 1 else ''} will be sent with the next run.")
    for why, count in done.refused.items():
        invocation.complain(f"{count:,} not retried: {why}")
    return 1 if done.refused else 0


@dead_letters.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filters
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@click.option("--undo", is_flag=True, help="Take the mark back: status and alerts ask about them again.")
@yes_option
@json_option
@click.pass_obj
def dismiss(
    invocation: Invocation,
    ids: tuple[str, ...],
    integrations: tuple[str, ...],
    reasons: tuple[str, ...],
    since: str | None,
    until: str | None,
    everything: bool,
    undo: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Mark dead letters as seen: status and alerts ask nobody about them any more.

    Nothing is lost: they stay dead letters, are counted as dismissed, and 'retry' can still send them. Name them by
    number or event id, or choose them by reason, integration or time. This command first says how many there are.
    """
    _chosen(ids, integrations, reasons, since, until, everything)
    # Not what dies while the person reads how many there are.
    which = _filter(ids, integrations, reasons, since, until or "now", undo)
    found = invocation.operations.count_dead_letters(which)
    verb = "ask again about" if undo else "dismiss"
    if found:
        confirm(f"{verb} {_counted(found)}", yes=yes)
    done = invocation.operations.dismiss(which, undo=undo) if found else 0
    if as_json:
        invocation.answer({"undone" if undo else "dismissed": done})
    else:
        state = "asked about again" if undo else "dismissed"
        click.echo(f"{done:,} dead letter{'s' if done != 1 else ''} {state}.")


def _counted(found: Mapping[tuple[str, str], int]) -> str:
    """So many dead letters, of which integrations and for which reasons."""
    count = sum(found.values())
    parts = [f"{events:,} {reason} of {integration}" for (integration, reason), events in sorted(found.items())]
    shown = ", ".join(parts[:5]) + (", …" if len(parts) > 5 else "")
    return f"{count:,} dead letter{'s' if count != 1 else ''} ({shown})"


def _beside_what_is_shown(letter: DeadLetter) -> str | None:
    """What to do, without the advice to look at what is on the screen already."""
    from nami_amp_pipeline.operations.reasons import SEE_THE_FIELD

    text, seen = letter.what_to_do, SEE_THE_FIELD.replace("ID", str(letter.id))
    if text is None or not text.startswith(seen):
        return text
    rest = text.removeprefix(seen)
    return f"{rest[:1].upper()}{rest[1:]}"
