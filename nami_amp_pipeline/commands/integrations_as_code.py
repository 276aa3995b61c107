"""``nami-amp integrations export``, ``plan``, ``apply``, ``release``, ``schema``: integrations as one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.completion import app_names, integration_names
from nami_amp_pipeline.commands.options import confirm, yes_option
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.commands.output import Colour
    from nami_amp_pipeline.operations.as_code.operations import Plan, PlannedChange

_CHANGES = 2
"""The exit status of ``plan --detailed-exitcode`` when something would change."""

_MARKS: dict[str, tuple[str, Colour]] = {
    "add": ("+", "green"), "change": ("~", "yellow"), "set plan": ("~", "yellow"), "switch off": ("-", "red"),
}  # fmt: skip

_FILE = click.Path(path_type=Path)
_prune_option = click.option(
    "--prune", is_flag=True, help="Switch off integrations that the file manages and no longer has."
)


@click.command()
@click.argument("file", required=False, type=_FILE)
@click.option(
    "--app", "apps", multiple=True, shell_complete=app_names, help="Only this app; may be given several times."
)
@click.option("--overwrite", is_flag=True, help="Write FILE even if it exists.")
@json_option
@click.pass_obj
def export(invocation: Invocation, file: Path | None, apps: tuple[str, ...], overwrite: bool, as_json: bool) -> None:
    """Write the integrations that there are as YAML, to FILE or standard output.

    Keys are not written: each is named by an environment variable of its own, for you to set.
    """
    from nami_amp_pipeline.operations.as_code.operations import as_yaml

    document = invocation.operations.as_code.export(apps)
    if as_json:
        invocation.answer(document)
        return
    if file is None:
        click.echo(as_yaml(document), nl=False)
        return
    try:
        with file.open("w" if overwrite else "x", encoding="utf-8") as opened:
            opened.write(as_yaml(document))
    except FileExistsError:
        raise Misconfigured(f"{file} exists already: give --overwrite to write it again") from None
    except OSError as error:
        raise Misconfigured(f"cannot write {file}: {error.strerror}") from None
    click.echo(f"{file} written.")


@click.command()
@click.argument("file", type=_FILE)
@_prune_option
@click.option("--out", type=_FILE, metavar="PLAN", help="Write the plan to a file, for 'apply'.")
@click.option(
    "--detailed-exitcode", is_flag=True, help="Exit with 0 if nothing would change, 2 if something would, 1 on errors."
)
@json_option
@click.pass_obj
def plan(
    invocation: Invocation, file: Path, prune: bool, out: Path | None, detailed_exitcode: bool, as_json: bool
) -> int:
    """Show what 'apply' would change, and what follows from it; nothing is changed."""
    as_code = invocation.operations.as_code
    planned = as_code.plan(file, prune=prune)
    if out is not None:
        as_code.save(planned, out)
    if as_json:
        invocation.answer(planned.to_json())
    else:
        _show(planned)
        if out is not None:
            click.echo(f"{out} written.")
    return _CHANGES if detailed_exitcode and planned.changes else 0


@click.command()
@click.argument("file", type=_FILE)
@_prune_option
@yes_option
@json_option
@click.pass_obj
def apply(invocation: Invocation, file: Path, prune: bool, yes: bool, as_json: bool) -> None:
    """Make the integrations what FILE says, all of it or nothing; FILE may be a plan that 'plan --out' wrote.

    A file is planned and shown first. A plan is applied as it is, or not at all if anything has changed since.
    """
    as_code = invocation.operations.as_code
    if as_code.is_saved_plan(file):
        if prune:
            raise Misconfigured("a plan says by itself whether it prunes: give --prune to 'plan', not to 'apply'")
        done = as_code.apply_saved(file)
        if not as_json:
            _show(done)
    else:
        planned = as_code.plan(file, prune=prune)
        if not as_json:
            _show(planned)
        if planned.changes:
            confirm(f"make {_count(len(planned.changes))}", yes=yes)
        done = as_code.apply(planned) if planned.changes else planned
    if as_json:
        invocation.answer({**done.to_json(), "applied": True})
    elif done.changes:
        click.echo(f"Applied: {_count(len(done.changes))} made.")
        for change in done.changes:
            if change.halted:
                click.echo(
                    f"{change.subject} is still halted: run 'nami-amp integrations test {change.subject}', then "
                    f"'nami-amp integrations enable {change.subject}'."
                )


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="APP/NAME", shell_complete=integration_names)
@click.pass_obj
def release(invocation: Invocation, names: tuple[str, ...]) -> None:
    """Let people change an integration again that a file manages; nothing else changes.

    Take it out of the file too: 'apply' manages what is in the file.
    """
    for key in integration_keys(names, in_two_words=True):
        file = invocation.operations.as_code.release(key)
        click.echo(f"{key} is no longer managed by {file}." if file else f"{key} is managed by no file.")


@click.command()
@click.pass_obj
def schema(invocation: Invocation) -> None:
    """Print the JSON schema of the file, for editors and checks."""
    from nami_amp_pipeline.operations.as_code.document import json_schema

    invocation.answer(json_schema())


COMMANDS = (export, plan, apply, release, schema)
"""What ``nami-amp integrations`` has more."""


def _show(planned: Plan) -> None:
    from nami_amp_pipeline.commands import output as screen

    counts = [
        f"{number} to {what}"
        for number, what in (
            (planned.count("add"), "add"),
            (planned.count("change") + planned.count("set plan"), "change"),
            (planned.count("switch off"), "switch off"),
        )
        if number
    ]
    said = ", ".join(counts) or "nothing to change"
    screen.say(f"{planned.given.name}: {said}; {planned.unchanged} unchanged.", bold=True)
    for change in planned.changes:
        _show_change(change)
    for key in planned.left:
        screen.say(
            f"{key} is managed by {planned.given.name} and no longer in it. It stays as it is: --prune switches it "
            f"off, and 'nami-amp integrations release {key}' lets people change it.",
            "yellow",
        )


def _show_change(change: PlannedChange) -> None:
    from nami_amp_pipeline.commands import output as screen

    mark, colour = _MARKS[change.action]
    version = f" (version {change.version})" if change.version is not None else ""
    screen.say(f"\n{mark} {'app ' * (change.action == 'set plan')}{change.subject}{version}", colour, bold=True)
    for field in change.fields:
        before = "" if change.action == "add" else f"{_text(field.before)} -> "
        screen.say(f"    {field.name}: {before}{_text(field.after)}")
    for clause in change.consequences:
        screen.say(f"  ! {clause}", "yellow")


def _text(value: Any) -> str:
    """A value in a few words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items()) or "none"
    return str(value)


def _count(changes: int) -> str:
    return f"{changes:,} change{'s' * (changes != 1)}"
