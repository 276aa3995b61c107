"""``nami-amp run``: one micro-batch through Dagster, in this process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import click

from nami_amp_pipeline.commands.frame import Invocation, integration_keys, json_option


@click.command()
@click.option(
    "--integration", "integrations", multiple=True, metavar="APP/NAME", help="Only this one; may be given several times."
)
@json_option
@click.pass_obj
def run(invocation: Invocation, integrations: tuple[str, ...], as_json: bool) -> int:
    """Read what is new, and deliver it.

    One micro-batch: what a schedule would do, once. The run shows in Dagster's UI. Ends with 1 if something could not be
    delivered; that stays pending, and the next run goes on with it.
    """
    from nami_amp_pipeline.commands import screen
    from nami_amp_pipeline.state.integrations import all_integrations

    settings = invocation.settings
    keys = integration_keys([key for key in integrations]) if integrations else None
    known = all_integrations(invocation.store, keys)
    invocation.close()
    # Whatever is logged on the way must not come between a reader and the object.
    with screen.spinner("Delivering …"), redirect_stdout(sys.stderr):
        from nami_amp_pipeline.runner import run_micro_batch

        report = run_micro_batch(settings, keys)
    if as_json:
        invocation.answer({"run_id": report.run_id, "integrations": report.integrations})
    else:
        _show(report.run_id, report.integrations)
        if not known:
            click.echo("There is no integration yet: 'nami-amp integrations add' adds one.")
    failures = [failure for row in report.integrations if (failure := undelivered(row))]
    for failure in failures:
        invocation.complain(failure)
    return 1 if failures else 0


def undelivered(row: Mapping[str, Any]) -> str | None:
    """What of an integration a run should have delivered and did not, in one line; None if nothing.

    Events that wait for a login are where they should be, and an integration that is off sends nothing.
    """
    error = row.get("error")
    if row.get("state") == "disabled":
        return None
    waiting = (row.get("pending_by") or {}).get("waiting_for_login", 0)
    left = int(row.get("pending", 0)) - waiting
    if left <= 0 and not error:
        return None
    events = f"{left:,} event{'s' if left != 1 else ''} not delivered" if left > 0 else "not delivered"
    return f"{row['integration']}: {events}: {error or 'still pending; the next run goes on'}"


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
