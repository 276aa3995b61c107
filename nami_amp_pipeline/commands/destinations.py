"""``nami-amp integrations destinations``: what can receive events, and what each wants to be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from nami_amp_pipeline.commands.base import Invocation, json_option
from nami_amp_pipeline.destinations import SHARED_FIELDS


def _how(field: Mapping[str, Any]) -> str:
    """What it may be, and by which option a field of the destination's own is given."""
    choices = f" One of {', '.join(field['choices'])}." if field["choices"] else ""
    if field["name"] in SHARED_FIELDS:
        return choices
    return choices + (
        f" By --secret-field-env {field['name']}=VAR." if field["is_secret"] else f" By --field {field['name']}=VALUE."
    )


@click.command()
@json_option
@click.pass_obj
def destinations(invocation: Invocation, as_json: bool) -> int:
    """Show what can receive events: Amplitude, any HTTP endpoint, and what other packages add.

    With --json also limits, and what an answer means by its status.
    """
    from nami_amp_pipeline.commands import output as screen
    from nami_amp_pipeline.operations.abilities import described_destinations

    _ = invocation.settings  # which may name modules with some
    found, unusable = described_destinations()
    if as_json:
        invocation.answer({"destinations": found})
    else:
        screen.table(
            ("Destination", "Receives", "To give", "Has"),
            [
                (
                    row["destination"],
                    row["title"],
                    "\n".join(
                        f"{field['label']}{'' if field['is_required'] else ' (optional)'}: {field['help']}{_how(field)}"
                        for field in row["fields"]
                    ),
                    ", ".join(row["abilities"]),
                )
                for row in found
            ],
            texts=("To give",),
            optional=("Has",),
        )
    for line in unusable:
        invocation.complain(line)
    return 1 if unusable else 0
