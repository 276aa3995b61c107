"""``nami-amp repair``: files of the data folder that are lost, and what mends that."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.base import Invocation, json_option


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show the lost files and what a repair would do.")
@click.option(
    "--resend",
    is_flag=True,
    help="Send the events of a lost outbox again even if it is older than 7 days: Amplitude may store them twice.",
)
@json_option
@click.pass_context
def repair(ctx: click.Context, dry_run: bool, resend: bool, as_json: bool) -> None:
    """Repair the data folder after files were lost.

    A file that the state store refers to may be lost: deleted by hand, or missing from a restored backup. If you can
    restore it, do that instead. Exit status 1 if a file could not be repaired.
    """
    from nami_amp_pipeline.commands import output as screen

    invocation: Invocation = ctx.obj
    lost = invocation.operations.lost_files()
    mended = [(file, None) for file in lost] if dry_run else invocation.operations.repair(lost, resend=resend)
    failed = [why for _, why in mended if why is not None]
    if as_json:
        files = [{**file.to_json(), "mended": not dry_run and why is None, "error": why} for file, why in mended]
        invocation.answer({"files": files})
    elif not mended:
        click.echo("No file is lost.")
    else:
        done = "Would do" if dry_run else "Done"
        rows = [(file.file, file.stops, file.mend if why is None else "nothing") for file, why in mended]
        screen.table(("Lost file", "It stops", done), rows)
    for why in failed:
        invocation.complain(why)
    if failed:
        ctx.exit(1)
