"""``nami-amp control-center``: Nami's integrations page for people without a terminal, and who may sign in."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from nami_amp_pipeline.commands.base import Invocation, json_option
from nami_amp_pipeline.commands.options import confirm, yes_option
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.people import Role

_LONGEST = 4_000

_role = click.option(
    "--role",
    type=click.Choice(["viewer", "editor"]),
    default="viewer",
    show_default=True,
    help="A viewer sees everything; an editor also changes it.",
)


@click.group(invoke_without_command=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8770, show_default=True, help="The port; 0 takes a free port."
)
@click.pass_context
def control_center(ctx: click.Context, host: str, port: int) -> None:
    """Serve the pages on which people set up integrations and see what becomes of events.

    Ctrl-C ends it. Without a sign-in it is for this machine only; docs/control-center.md says how people sign in.
    """
    if ctx.invoked_subcommand is not None:
        return
    from nami_amp_pipeline.control_center.server import serve

    invocation: Invocation = ctx.obj

    def ready(url: str) -> None:
        click.echo(f"Control Center at {url}; Ctrl-C stops it.")
        sys.stdout.flush()
        if invocation.settings.control_center_sign_in == "password" and not invocation.operations.people.all():
            invocation.complain("nobody may sign in yet: 'nami-amp control-center users add NAME --role editor'")

    serve(invocation.settings, host, port, ready)


@control_center.group()
def users() -> None:
    """Who may sign in with a password."""


@users.command()
@click.argument("name")
@_role
@click.pass_obj
def add(invocation: Invocation, name: str, role: Role) -> None:
    """Let NAME sign in; the password is read from standard input."""
    invocation.operations.people.add(name, role, _password(invocation))
    click.echo(f"{name} may sign in as {role}.")


@users.command(name="list")
@json_option
@click.pass_obj
def list_users(invocation: Invocation, as_json: bool) -> None:
    """Show who may sign in."""
    from nami_amp_pipeline.clock import to_text
    from nami_amp_pipeline.commands import output as screen

    found = invocation.operations.people.all()
    if as_json:
        rows = [{"name": row.name, "role": row.role, "created_at": to_text(row.created_at)} for row in found]
        invocation.answer({"users": rows})
    elif found:
        screen.table(("Name", "Role", "Added"), [(row.name, row.role, screen.moment(row.created_at)) for row in found])
    else:
        click.echo("Nobody yet; 'nami-amp control-center users add NAME --role editor' adds somebody.")


@users.command()
@click.argument("name")
@click.pass_obj
def password(invocation: Invocation, name: str) -> None:
    """Give NAME another password, read from standard input; who is signed in under the old one is signed out."""
    invocation.operations.people.set_password(name, _password(invocation))
    click.echo(f"{name} has another password.")


@users.command()
@click.argument("name")
@click.argument("role", type=click.Choice(["viewer", "editor"]))
@click.pass_obj
def role(invocation: Invocation, name: str, role: Role) -> None:
    """Give NAME another role, which counts at once."""
    invocation.operations.people.set_role(name, role)
    click.echo(f"{name} is {role} now.")


@users.command()
@click.argument("name")
@yes_option
@click.pass_obj
def remove(invocation: Invocation, name: str, yes: bool) -> None:
    """Take the access of NAME away, at once."""
    confirm(f"take the access of {name} away", yes=yes)
    invocation.operations.people.remove(name)
    click.echo(f"{name} may not sign in any more.")


def _password(invocation: Invocation) -> str:
    if sys.stdin.isatty():
        text = str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    else:
        try:
            text = sys.stdin.readline(_LONGEST).rstrip("\r\n")
        except UnicodeDecodeError:
            raise Misconfigured("standard input holds no password: it is not text") from None
    if not text:
        raise Misconfigured("standard input is empty: pipe the password into it")
    invocation.secrets.add(text)
    return text
