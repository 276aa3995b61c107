"""``nami-amp run``: one micro-batch through Dagster, in this process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.base import Invocation, integration_keys, json_option
from nami_amp_pipeline.commands.options import integrations_option
from nami_amp_pipeline.errors import Blocked, Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.operations.standing import Standing
    from nami_amp_pipeline.runner import RunReport

_TOLD_BY_STATUS = ("halted", "unreachable", "throttled")
"""States that say all that there is to say of an integration that did not get on."""


@click.command()
@integrations_option
@json_option
@click.pass_obj
def run(invocation: Invocation, integrations: tuple[str, ...], as_json: bool) -> int:
    """Read new rows, and deliver their events.

    One micro-batch: what a schedule would do, once. The run shows in Dagster's UI. Exit status 1 if some events
    could not be delivered, which stay pending until the next run continues with them, or if there is no integration.
    """
    from nami_amp_pipeline.commands import output as screen

    settings = invocation.settings
    keys = integration_keys(integrations) if integrations else None
    is_there = bool(invocation.operations.integrations(keys)) if keys else invocation.operations.has_integrations()
    invocation.close()
    if not is_there:
        raise Blocked(invocation.operations.nothing_here)
    # Whatever is logged on the way must not come between a reader and the object.
    with screen.spinner("Delivering …"), redirect_stdout(sys.stderr):
        run_micro_batch = _runner()
        report = run_micro_batch(settings, keys)
    if as_json:
        invocation.answer(report.to_json())
    else:
        _show(report.run_id, report.integrations)
    for problem in _problems(report, lambda: _standings(invocation)):
        invocation.complain(problem)
    return 0 if report.ok else 2 if isinstance(report.error, Misconfigured) else 1


def _runner() -> Callable[..., RunReport]:
    """The function that runs a micro-batch; importing it brings all of Dagster."""
    gc.disable()  # looking for garbage among what is being imported takes a fifth of the time, and finds none
    try:
        from nami_amp_pipeline.runner import run_micro_batch
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)  # of the thousands of integrations that a run lists, none is garbage
        gc.enable()
    return run_micro_batch


def _standings(invocation: Invocation) -> dict[str, Standing]:
    """How the integrations stand, by key; nothing where the store cannot be asked."""
    from nami_amp_pipeline.errors import NamiAmpError

    try:
        found = invocation.operations.standings(invocation.operations.integrations())
    except NamiAmpError:
        return {}
    return {standing.integration: standing for standing in found}


def _problems(report: RunReport, standings: Callable[[], Mapping[str, Standing]]) -> list[str]:
    """A line for each thing that kept events from being delivered, in the words of status, and how it goes on."""
    lines = list(report.problems)
    for row in report.integrations:
        if row["error"] and not any(row["error"] in line for line in lines):
            lines.append(f"{row['integration']}: {row['error']}")
    now = standings() if lines else {}
    found = []
    for line in lines:
        row = next((row for row in report.integrations if line.startswith(f"{row['integration']}:")), {})
        standing = now.get(row.get("integration", ""))
        if standing is not None and standing.state in _TOLD_BY_STATUS:
            line = f"{standing.integration}: {standing.state}: {standing.why}"
        found.append(line + _left(row, is_halted=standing is not None and standing.state == "halted"))
    return found


def _left(row: Mapping[str, Any], *, is_halted: bool) -> str:
    pending, key = row.get("pending", 0), row.get("integration")
    if not pending:
        return ""
    goes_on = "the next run continues"
    if is_halted:
        goes_on = f"to continue: 'nami-amp integrations test {key}', then 'nami-amp integrations enable {key}'"
    return f" ({pending:,} event{'s' if pending != 1 else ''} pending, {goes_on})"


def _show(run_id: str, rows: list[dict[str, Any]]) -> None:
    from nami_amp_pipeline.commands import output as screen

    screen.table(
        ("Integration", "Captured", "Delivered", "Skipped", "Dead letters", "Pending"),
        [
            (
                row["integration"],
                screen.number(row["captured"]),
                screen.number(row["delivered"]),
                screen.reasons(row["skipped"]),
                screen.reasons(row["dead_letters"]),
                screen.number(row["pending"]),
            )
            for row in rows
        ],
        right=("Captured", "Delivered", "Pending"),
    )
    click.echo(f"Run {run_id}")
