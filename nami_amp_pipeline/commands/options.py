"""Options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from nami_amp_pipeline.commands.completion import integration_names
from nami_amp_pipeline.errors import Misconfigured

integrations_option: Callable[[Any], Any] = click.option(
    "--integration",
    "integrations",
    multiple=True,
    metavar="APP/NAME",
    shell_complete=integration_names,
    help="Only this integration; may be given several times.",
)

yes_option: Callable[[Any], Any] = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def confirm(what: str, *, yes: bool) -> None:
    """Asks a person before something is done.

    Args:
        what: in the imperative, such as ``remove radio/main``.
        yes: whether ``--yes`` was given.

    Raises:
        Misconfigured: nobody can be asked, as standard input is no terminal.
        click.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Misconfigured(f"give --yes to {what}")
    click.confirm(f"{what[:1].upper()}{what[1:]}?", abort=True)
