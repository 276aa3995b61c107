"""``nami-amp demo``: to see it work without any account."""

from __future__ import annotations

import sys

import click

from nami_amp_pipeline.commands.base import Invocation


@click.command()
@click.option(
    "--users", type=click.IntRange(1), default=2000, show_default=True, help="How many subscribers to make up."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Where the local Amplitude listens; by default the port of the last time, or a free one.",
)
@click.option("--serve", is_flag=True, help="Keep the local Amplitude running afterwards, to look around.")
@click.pass_obj
def demo(invocation: Invocation, users: int, port: int | None, serve: bool) -> int:
    """Show one whole run with made-up subscribers and a local Amplitude.

    Needs no account and sends nothing over the internet.
    """
    from nami_amp_pipeline.demo import run_demo

    return run_demo(invocation.settings, users=users, port=port, keep_serving=serve, out=sys.stdout)
