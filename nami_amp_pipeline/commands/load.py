"""``nami-amp load``: Nami's webhook events into the embedded warehouse."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from nami_amp_pipeline.commands.base import Invocation, json_option
from nami_amp_pipeline.commands.completion import app_names
from nami_amp_pipeline.errors import NamiAmpError

_SHOWN = 20


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--app", required=True, shell_complete=app_names, help="The Nami app whose events these are.")
@json_option
@click.pass_obj
def load(invocation: Invocation, files: tuple[Path, ...], app: str, as_json: bool) -> int:
    """Load files of Nami events into the embedded warehouse.

    A file holds one event a line, as Nami's webhook sends them (NDJSON), plain or gzipped. Lines that are not events
    are reported and left out; a file that cannot be read to its end is left out as a whole.
    """
    import time

    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.warehouse import duckdb_load as loading

    settings = invocation.settings
    started = time.monotonic()
    with screen.file_progress("Loading", sum(file.stat().st_size for file in files if file.is_file())) as progress:
        report = loading.load(settings, files, app, progress=progress)
    seconds = time.monotonic() - started
    for bad in report.bad[:_SHOWN]:
        invocation.complain(str(bad))
    missing = report.bad_lines + report.bad_files - min(len(report.bad), _SHOWN)
    if missing:
        invocation.complain(f"… and {missing:,} more")
    failed = bool(report.bad_lines or report.bad_files)
    with suppress(NamiAmpError):  # loading needs no state store
        nobody = invocation.operations.app_without_integration(app)
        if nobody:
            invocation.complain(nobody)
    if as_json:
        invocation.answer(
            {
                "rows": report.rows,
                "bad_lines": report.bad_lines,
                "bad_files": report.bad_files,
                "bad": [{"file": str(bad.file), "line": bad.line, "why": bad.why} for bad in report.bad],
                "bytes": report.bytes,
                "seconds": round(seconds, 3),
            }
        )
    else:
        left_out = [
            f"{count:,} {what}{'s' if count > 1 else ''} left out"
            for count, what in ((report.bad_lines, "bad line"), (report.bad_files, "file"))
            if count
        ]
        click.echo(", ".join([f"{report.rows:,} events loaded for {app} in {seconds:.1f} s", *left_out]) + ".")
    return 1 if failed else 0
