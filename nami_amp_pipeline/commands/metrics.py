"""``nami-amp metrics``: the figures of all integrations, for Prometheus and OpenTelemetry."""

from __future__ import annotations

from pathlib import Path

import click

from nami_amp_pipeline.commands.base import Invocation


@click.command()
@click.option(
    "--textfile",
    metavar="PATH",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write them to a file, for the node exporter's textfile collector; its name must end with .prom there.",
)
@click.option(
    "--otlp",
    is_flag=True,
    help="Send them once to OpenTelemetry, by OTLP over HTTP, as the variables OTEL_EXPORTER_OTLP_… say.",
)
@click.pass_obj
def metrics(invocation: Invocation, textfile: Path | None, otlp: bool) -> None:
    """Show the figures of all integrations as Prometheus reads them.

    State, events captured, delivered, skipped, rejected and pending, and how far behind each integration is.
    """
    if textfile is not None:
        invocation.operations.write_metrics(textfile)
    if otlp:
        invocation.operations.send_metrics()
    if otlp or textfile is not None:
        return
    click.echo(invocation.operations.metrics().decode(), nl=False)
