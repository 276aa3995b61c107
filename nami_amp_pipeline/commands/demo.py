"""``nami-amp demo`` and ``nami-amp sandbox``: to see it work without any account."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nami_amp_pipeline.commands.base import Invocation
from nami_amp_pipeline.errors import Misconfigured


@click.command()
@click.option(
    "--users", type=click.IntRange(1), default=2000, show_default=True, help="How many subscribers to make up."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Where the local Amplitude listens; a free port by default."
)
@click.option("--serve", is_flag=True, help="Keep the local Amplitude running afterwards, to look around.")
@click.pass_obj
def demo(invocation: Invocation, users: int, port: int | None, serve: bool) -> int:
    """Show one whole run with made-up subscribers and a local Amplitude.

    Needs no account and sends nothing over the internet.
    """
    from nami_amp_pipeline.demo import run_demo

    return run_demo(invocation.settings, users=users, port=port, keep_serving=serve, out=sys.stdout)


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="The port; 0 takes a free port."
)
@click.option(
    "--journal", type=click.Path(path_type=Path, dir_okay=False), help="Keep the received events in this file."
)
def sandbox(port: int, journal: Path | None) -> None:
    """Start a local Amplitude to develop against.

    It is as strict as Amplitude's documentation, takes any API key, and shows what it received on a page. Ctrl-C ends
    it.
    """
    from nami_amp_pipeline.sandbox import Sandbox, serve

    def ready(url: str) -> None:
        click.echo(f"Local Amplitude at {url} (its page shows the received events); Ctrl-C stops it.")
        click.echo(f"Use it with: --endpoint {url}/2/httpapi --allow-custom-endpoint")
        sys.stdout.flush()

    try:
        serve(Sandbox(journal=journal), port=port, on_ready=ready)
    except OSError as error:
        raise Misconfigured(f"cannot listen on port {port}, or open the journal: {error.strerror or error}") from None
