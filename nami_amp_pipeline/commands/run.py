"""``nami-amp run``: one micro-batch through Dagster, in this process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.frame import Invocation, integration_keys, json_option
from nami_amp_pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from nami_amp_pipeline.runner import RunReport


@click.command()
@click.option(
    "--integration",
    "integrations",
    multiple=True,
    metavar="APP/NAME",
    help="Only this one; may be given several times.",
)
@json_option
@click.pass_obj
def run(invocation: Invocation, integrations: tuple[str, ...], as_json: bool) -> int:
    """Read what is new, and deliver it.

    One micro-batch: what a schedule would do, once. The run shows in Dagster's UI. Ends with 1 if something could not
    be delivered; that stays pending, and the next run goes on with it.
    """
    from nami_amp_pipeline.commands import screen
    from nami_amp_pipeline.state.integrations import all_integrations

    settings = invocation.settings
    keys = integration_keys(integrations) if integrations else None
    known = all_integrations(invocation.store, keys)
    invocation.close()
    # Whatever is logged on the way must not come between a reader and the object.
    with screen.spinner("Delivering …"), redirect_stdout(sys.stderr):
        from nami_amp_pipeline.runner import run_micro_batch

        report = run_micro_batch(settings, keys)
    if as_json:
        invocation.answer(report.to_json())
    else:
        _show(report.run_id, report.integrations)
        if not known:
            click.echo("There is no integration yet: 'nami-amp integrations add' adds one.")
    for problem in _problems(report):
        invocation.complain(problem)
    return 0 if report.ok else 2 if isinstance(report.error, Misconfigured) else 1


def _problems(report: RunReport) -> list[str]:
    """A line for each thing that kept events from being delivered."""
    lines = list(report.problems)
    for row in report.integrations:
        if row["error"] and not any(row["error"] in line for line in lines):
            lines.append(f"{row['integration']}: {row['error']}")
    return [
        line + _left(next((row for row in report.integrations if line.startswith(f"{row['integration']}:")), {}))
        for line in lines
    ]


def _left(row: Mapping[str, Any]) -> str:
    pending = row.get("pending", 0)
    return f" ({pending:,} event{'s' if pending != 1 else ''} pending, the next run goes on)" if pending else ""


def _show(run_id: str, rows: list[dict[str, Any]]) -> None:
    from nami_amp_pipeline.commands import screen

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
