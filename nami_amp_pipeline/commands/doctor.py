"""``nami-amp doctor``: is everything there that the pipeline needs, and what to do about what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nami_amp_pipeline.commands.base import Invocation, json_option
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.warehouse import Finding

_WORDS = {"ok": "ok", "warning": "warning", "error": "problem"}


@click.command()
@json_option
@click.pass_obj
def doctor(invocation: Invocation, as_json: bool) -> int:
    """Check everything that the pipeline needs, and say what to do about what is wrong.

    Settings, warehouse (columns and index), state store, migrations, encryption key, data folder and disk, Amplitude's
    endpoints, clock, Dagster's history and daemons. Nothing is changed and no event is sent. Exit status 1 if there is
    a problem.
    """
    shown = []
    for finding in _findings(invocation):
        word = _WORDS[finding.level]
        message, fix = (
            invocation.clean(" ".join(finding.message.split())),
            finding.fix and invocation.clean(finding.fix),
        )
        shown.append({"check": finding.subject, "result": word, "message": message, "fix": fix})
        if not as_json:
            click.echo(f"{word:<9}{finding.subject}: {message}{f' -> {fix}' if fix else ''}")
    fine = not any(finding["result"] == "problem" for finding in shown)
    if as_json:
        invocation.answer({"ok": fine, "checks": shown})
    return 0 if fine else 1


def _findings(invocation: Invocation) -> list[Finding]:
    from nami_amp_pipeline.dagster_support.health import check_dagster
    from nami_amp_pipeline.operations import doctor as library
    from nami_amp_pipeline.warehouse import Finding

    try:
        settings = invocation.settings
    except Misconfigured as error:
        return [Finding("settings", "error", str(error), "docs/settings.md lists all settings")]
    checks = [*library.CHECKS, ("dagster", check_dagster)]
    return [Finding("settings", "ok", "all are valid"), *library.examine(settings, checks)]
