"""``nami-amp retention``: what the job ``retention`` does every hour, or only what it would do."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import click

from nami_amp_pipeline.commands.base import Invocation, json_option

if TYPE_CHECKING:
    from nami_amp_pipeline.retention import RetentionReport


@click.command()
@click.option("--dry-run", is_flag=True, help="Only report what would be removed.")
@json_option
@click.pass_obj
def retention(invocation: Invocation, dry_run: bool, as_json: bool) -> None:
    """Remove data that is past its retention and that nothing needs.

    Segments, receipts, dead letters and other rows of the state store, files that nothing refers to, and runs of
    Dagster's history. The job 'retention' does this every hour; how long things are kept is set by
    NAMI_AMP_..._RETENTION_DAYS.
    """
    from nami_amp_pipeline.commands import output as screen

    with screen.spinner("Looking …"), redirect_stdout(sys.stderr):
        from nami_amp_pipeline.dagster_support.instance import dagster_instance
        from nami_amp_pipeline.defs.retention_job import apply_retention

        with invocation.context() as context, dagster_instance(invocation.settings) as instance:
            report = apply_retention(context, instance, dry_run=dry_run)
    if as_json:
        invocation.answer(report.to_json())
    else:
        _show(report)


def _show(report: RetentionReport) -> None:
    from nami_amp_pipeline.commands import output as screen

    rows = [
        (kind.replace("_", " "), screen.number(removed.rows), screen.number(removed.files), screen.size(removed.bytes))
        for kind, removed in report.removed.items()
    ]
    if report.runs:
        rows.append(("Dagster runs", screen.number(report.runs), "", ""))
    if rows:
        head = "Would be removed" if report.dry_run else "Removed"
        screen.table((head, "Rows", "Files", "Size"), rows, right=("Rows", "Files", "Size"))
    else:
        click.echo("There is nothing to remove.")
    for name, segments in report.held_back.items():
        click.echo(
            f"{name}: {screen.number(segments)} expired segments are kept: this integration has not delivered them yet"
        )
    if report.runs_kept:
        kept = screen.number(report.runs_kept)
        click.echo(f"Dagster: {kept} older runs are kept: they hold the newest materialization of a partition")
