"""How an integration stands, as Dagster's pages show it: events, checks and facts of its partition."""

from __future__ import annotations

import re
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.defs.ours import DEFAULT, REPORT, Place
from nami_amp_pipeline.operations.standing import Standing

DELIVERIES: Final = "amplitude_deliveries"

_TROUBLE: Final = ("halted", "unreachable", "throttled", "waiting")

NAMES: Final = (
    *("state", "pending", "rejected", "dismissed", "lag_seconds", "since", "why"),
    *("whose_events_wait", "next_try", "what_to_do", "also"),
)
"""All names of :func:`facts`; an older value of one that is missing now holds no more."""

_COMMAND: Final = re.compile(r"'(nami-amp [^']*)'")


def partition_of(standing: Standing) -> str:
    """The partition key of an integration."""
    return standing.numbers.partition_key


def is_stuck(standing: Standing) -> bool:
    """Whether events wait that should not; a login or the next micro-batch is no trouble, and a rejection an end."""
    return standing.state in _TROUBLE


def is_in_trouble(standing: Standing) -> bool:
    """Whether events wait that should not, or a person is needed."""
    return is_stuck(standing) or (standing.needs_you and standing.state != "off")


def in_a_line(standing: Standing) -> str:
    """State, since when, why and what to do, in a line that begins with the partition."""
    return f"{partition_of(standing)}{standing.in_a_line.removeprefix(standing.integration)}"


def facts(standing: Standing) -> dict[str, Any]:
    """The same as metadata of a materialization, an observation or a check."""
    told: dict[str, Any] = {
        "state": standing.called,
        "pending": standing.pending,
        "rejected": standing.rejected,
        "dismissed": standing.dismissed,
        "lag_seconds": round(standing.lag_seconds, 3),
    }
    if standing.since is not None:
        told["since"] = dg.MetadataValue.timestamp(standing.since)
    if standing.why:
        told["why"] = standing.why
    if standing.whose:
        told["whose_events_wait"] = standing.whose_in_words
    if standing.next_try is not None:
        told["next_try"] = dg.MetadataValue.timestamp(standing.next_try)
    if standing.what_to_do:
        told["what_to_do"] = dg.MetadataValue.md(commands_as_code(standing.what_to_do))
    if standing.also:
        told["also"] = dg.MetadataValue.md(commands_as_code("; ".join(standing.also)))
    return told


def how_to_trace(standing: Standing, place: Place = DEFAULT) -> dg.MarkdownMetadataValue:
    """How to find out whether one event arrived."""
    return dg.MetadataValue.md(
        f"Did an event arrive? [Ask here]({place.ask}), or `nami-amp trace EVENT_ID`. What was rejected? "
        f"`nami-amp dead-letters list --integration {standing.integration}`. How do all stand? "
        f"[delivery_report]({place.page(REPORT)}), `nami-amp status`."
    )


def observation(standing: Standing, place: Place = DEFAULT) -> dg.AssetObservation:
    """An event in the history of the partition: how it stands now."""
    return dg.AssetObservation(
        place.key(DELIVERIES),
        description=in_a_line(standing),
        metadata={**facts(standing), "did_it_arrive": how_to_trace(standing, place)},
        partition=partition_of(standing),
    )


def commands_as_code(text: str) -> str:
    """Commands in quotes as Markdown has them, so that they can be copied from the page."""
    return _COMMAND.sub(r"`\1`", text)
