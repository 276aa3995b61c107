"""``nami-amp dead-letters``: the events that Amplitude will not get, why, and a second try."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option, parse_time
from nami_amp_pipeline.commands.completion import dead_letter_reasons, integration_names

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.dead_letters import Filter


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Look at the events that could not be delivered, and send them again.

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
        click.option(
            "--integration",
            "integrations",
            multiple=True,
            metavar="APP/NAME",
            shell_complete=integration_names,
            help="Only of this integration; may be given several times.",
        ),
    ):
        command = option(command)
    return command


def _filter(
    ids: tuple[str, ...],
    integrations: tuple[str, ...],
    reasons: tuple[str, ...],
    since: str | None,
    until: str | None,
) -> Filter:
    from nami_amp_pipeline.operations.dead_letters import Filter

    return Filter(
        ids,
        integration_keys(integrations),
        reasons,
        parse_time(since, "--since") if since else None,
        parse_time(until, "--until") if until else None,
    )


@dead_letters.command(name="list")
@_filters
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="How many to show, the newest first."
)
@json_option
@click.pass_obj
def list_dead_letters(
    invocation: Invocation,
    integrations: tuple[str, ...],
    reasons: tuple[str, ...],
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show the dead letters, the newest first."""
    from nami_amp_pipeline.commands import output as screen

    which = _filter((), integrations, reasons, since, until)
    found, total = invocation.operations.dead_letters(which, limit)
    if as_json:
        invocation.answer({"total": total, "dead_letters": [letter.to_json() for letter in found]})
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
            screen.say(f"… and {total - len(found):,} older dead letters (see --limit).")
    elif integrations or reasons or since or until:
        screen.say("No dead letters among those that were asked for.")
    elif invocation.operations.integrations():
        screen.say("No dead letters.")
    else:
        screen.say("There is no integration yet: 'nami-amp integrations add' adds one.")


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
                "Do": letter.what_to_do,
                "Event": letter.event_id,
                "Type": letter.event_type,
                "Nami user": letter.user_id,
                "Created": to_text(letter.created_date),
                "Dead since": to_text(letter.at),
                "First sent": to_text(letter.first_sent) or "never",
                "Run": letter.run_id,
                "Answer": letter.answer,
                "Amplitude event": letter.body,
                "Nami payload": letter.payload,
            }
        )


@dead_letters.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filters
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
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
    force: bool,
    as_json: bool,
) -> int:
    """Send dead letters again, with the next run.

    They keep their content and their insert id, so that Amplitude recognises events that it has already. Name them by
    number or event id, or choose them by reason, integration or time.
    """
    if not (ids or integrations or reasons or since or until or everything):
        raise click.UsageError(
            "Name dead letters, choose some by an option, or give --all", click.get_current_context()
        )
    which = _filter(ids, integrations, reasons, since, until)
    done = invocation.operations.retry(which, force=force)
    if as_json:
        invocation.answer({"retried": done.retried, "refused": dict(done.refused)})
    else:
        click.echo(f"{done.retried:,} dead letter{'s' if done.retried != 1 else ''} will be sent with the next run.")
    for why, count in done.refused.items():
        invocation.complain(f"{count:,} not retried: {why}")
    return 1 if done.refused else 0
