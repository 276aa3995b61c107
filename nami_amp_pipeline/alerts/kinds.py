"""The kinds of alerts: title and advice of each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote


class Kind(StrEnum):
    """A kind of problem; the state store holds the values."""

    INTEGRATION_HALTED = "integration_halted"
    DEAD_LETTERS_GROWING = "dead_letters_growing"
    LAG_OVER_LIMIT = "lag_over_limit"
    NOTHING_CAPTURED = "nothing_captured"
    NOTHING_INGESTED = "nothing_ingested"
    RUN_FAILED = "run_failed"
    STORE_UNAVAILABLE = "store_unavailable"
    WAREHOUSE_UNREADABLE = "warehouse_unreadable"
    AMPLITUDE_UNREACHABLE = "amplitude_unreachable"
    BACKFILL_FAILED = "backfill_failed"

    @property
    def called(self) -> str:
        """Its title."""
        return _TITLES[self]

    @property
    def advice(self) -> str:
        """The last part of the message: instructions."""
        return _ADVICE[self]


NOT_AT_ONCE = frozenset({Kind.WAREHOUSE_UNREADABLE})
"""Told at the second look: a database that is started again, or a file that a loader holds, is no alert."""

_TITLES = {
    Kind.INTEGRATION_HALTED: "Integration halted",
    Kind.DEAD_LETTERS_GROWING: "Dead letters growing",
    Kind.LAG_OVER_LIMIT: "Lag over the limit",
    Kind.NOTHING_CAPTURED: "Rows wait in the warehouse",
    Kind.NOTHING_INGESTED: "Nothing ingested",
    Kind.RUN_FAILED: "Run failed",
    Kind.STORE_UNAVAILABLE: "State store unavailable",
    Kind.WAREHOUSE_UNREADABLE: "Warehouse cannot be read",
    Kind.AMPLITUDE_UNREACHABLE: "Amplitude unreachable",
    Kind.BACKFILL_FAILED: "Backfill or identify failed",
}

_ADVICE = {
    Kind.INTEGRATION_HALTED: (
        "No events are lost; they stay queued, and other integrations continue. Fix the cause, check with 'nami-amp "
        "integrations test APP/NAME', then run 'nami-amp integrations enable APP/NAME': it continues where it stopped."
    ),
    Kind.DEAD_LETTERS_GROWING: (
        "See why with 'nami-amp dead-letters list', fix the cause, and send them again with 'nami-amp dead-letters "
        "retry' within 7 days."
    ),
    Kind.LAG_OVER_LIMIT: (
        "'nami-amp status' says what the events wait for. Check whether micro-batches run, whether Amplitude answers, "
        "and whether a daily quota is used up."
    ),
    Kind.NOTHING_CAPTURED: (
        "Check whether the schedule is on, whether micro-batches run, and whether another process holds the app's "
        "lease."
    ),
    Kind.NOTHING_INGESTED: (
        "Check whether the app still sends events, and whether the loader of the warehouse still runs. If the app will "
        "send no more events, disable its integrations."
    ),
    Kind.RUN_FAILED: "The run's page says why. The next run continues where this one stopped; nothing is lost.",
    Kind.WAREHOUSE_UNREADABLE: (
        "No new events are read until it is back, and nothing is lost; events that were read before are delivered. "
        "'nami-amp doctor' says what fails: address, login, table or permission."
    ),
    Kind.AMPLITUDE_UNREACHABLE: (
        "Nothing is lost: the events wait and go by themselves. If other services reach Amplitude, check proxy, "
        "firewall and the integration's endpoint with 'nami-amp integrations test APP/NAME'; else see "
        "status.amplitude.com."
    ),
    Kind.BACKFILL_FAILED: (
        "Live delivery is not affected, and nothing is lost. Once the cause is gone, 'nami-amp backfills resume ID' "
        "goes on where it stopped; 'nami-amp backfills cancel ID' gives it up."
    ),
    Kind.STORE_UNAVAILABLE: (
        "Nothing is sent until it is back, and nothing is lost. Check that the database of NAMI_AMP_STATE_URL runs, is "
        "reachable and has space."
    ),
}


@dataclass(frozen=True)
class Alert:
    """Something that is wrong now.

    Attributes:
        kind: what.
        subject: of which integration (``app/name``), app or job.
        summary: the facts in a line; no secret.
        page: path of the page of Dagster's that shows more.
    """

    kind: Kind
    subject: str
    summary: str
    page: str

    @property
    def key(self) -> tuple[Kind, str]:
        """By which it is known while it lasts."""
        return self.kind, self.subject


def run_page(run_id: str) -> str:
    """The page of a run."""
    return f"/runs/{quote(run_id, safe='')}"


def partition_page(asset: str, partition: str) -> str:
    """The page of an asset's partition."""
    return f"/assets/{asset}?view=partitions&partition={quote(partition, safe='')}"


def integration_page(partition: str, asset: str = "/assets/amplitude_deliveries") -> str:
    """The page of what was last seen of an integration: the other one shows no observation of what never moved."""
    return f"{asset}?view=events&partition={quote(partition, safe='')}"
