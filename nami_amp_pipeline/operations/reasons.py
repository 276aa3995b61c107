"""Every reason that the pipeline gives for an event or an integration: its code, what it means, what to do about it.

`status`, `trace`, `pending`, `dead-letters`, alerts, checks and asset pages take their words from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["skipped", "dead_letter", "pending", "unreachable", "halted"]
"""What a reason is a reason for: the end of an event, its wait, or that of a whole integration."""

_LOADER: Final = "Repair the loader; then load the row again under a new id"


@dataclass(frozen=True)
class Reason:
    """One reason.

    Attributes:
        code: as the store, JSON and options have it.
        kind: what it is a reason for.
        means: a clause with subject and verb, without a full stop.
        action: what a person can do, as a sentence without a full stop; None if there is nothing to do. ``APP/NAME``
            stands for the integration.
        was_posted: of a dead letter: whether it is an Amplitude event that can be posted again.
    """

    code: str
    kind: Kind
    means: str
    action: str | None = None
    was_posted: bool = False


SEE_THE_FIELD: Final = "See the field with 'nami-amp dead-letters show ID', "
"""How some advice begins, for whoever does not see the dead letter yet."""

_REPAIR_AND_RETRY: Final = f"{SEE_THE_FIELD}repair its cause, then send it again with 'nami-amp dead-letters retry ID'"

_ALL: Final = (
    Reason("no_external_id", "skipped", "the user had no External ID", "'nami-amp integrations update APP/NAME "
           "--anonymous wait_for_login' keeps such events until their user logs in, '--anonymous nami_user_id' sends "
           "them under Nami's user id; both hold from now on"),
    Reason("sandbox", "skipped", "the event is from a store's sandbox, and the integration skips those",
           "'nami-amp integrations update APP/NAME --sandbox send' sends such events from now on"),
    Reason("production", "skipped", "the event is from production, and the integration takes sandbox events only",
           "'nami-amp integrations update APP/NAME --sandbox send' sends such events from now on"),
    Reason("cancelled", "skipped", "the backfill or identify that was to send it was cancelled",
           "'nami-amp backfill APP/NAME --from TIME --to TIME' sends such events, 'nami-amp identify APP/NAME' such "
           "snapshots"),
    Reason("superseded", "skipped", "of an identify: the user was sent newer state, or a later identify",
           "Nothing is to be done: Amplitude has the newer state"),
    Reason("malformed_payload", "dead_letter", "the payload is missing or is no JSON object", _LOADER),
    Reason("bad_date", "dead_letter", "the row has no possible created_date", _LOADER),
    Reason("no_user_id", "dead_letter", "the row has no user_id", _LOADER),
    Reason("long_user_id", "dead_letter", "the user or device id has more than 1,024 bytes", "Repair the app: "
           "Amplitude takes no such id"),
    Reason("reserved_user_id", "dead_letter", "the user id is a word that Amplitude reserves, such as 'null'",
           "Repair the app: it must not use such a word as an External ID"),
    Reason("reserved_device_id", "dead_letter", "the device id is a word that Amplitude reserves, such as 'null'",
           "Repair the app: it must not use such a word as a device id"),
    Reason("too_large", "dead_letter", "the event does not fit into a request", "Shorten the payload at its source"),
    Reason("odd_row", "dead_letter", "the pipeline failed to compute the event", "Report it as a bug: the log of "
           "the run has the error"),
    Reason("lost_file", "dead_letter", "the file with the event was lost", "Restore the data folder from a backup"),
    Reason("rejected", "dead_letter", "Amplitude rejected the event for what it holds", _REPAIR_AND_RETRY,
           was_posted=True),
    Reason("silenced", "dead_letter", "the Amplitude project drops events of this device", "Ask Amplitude's support "
           "why the device is silenced; then send it again with 'nami-amp dead-letters retry ID'", was_posted=True),
    Reason("forbidden", "dead_letter", "Amplitude answered 403 to this event alone", "Ask Amplitude's support; then "
           "send it again with 'nami-amp dead-letters retry ID'", was_posted=True),
    Reason("outcome_unknown", "dead_letter", "the event was posted, and no answer came for 7 days", "Look for its "
           "insert id in Amplitude; if it is not there, send it with 'nami-amp dead-letters retry ID --force'",
           was_posted=True),
    Reason("queued", "pending", "the next micro-batch posts it"),
    Reason("throttled", "pending", "Amplitude throttles the user: more than 30 events a second"),
    Reason("over_daily_quota", "pending", "the user has used up Amplitude's quota of 500,000 events a day",
           "Find out which user or device sends so many events"),
    Reason("project_throttled", "pending", "Amplitude throttles the whole project"),
    Reason("retried", "pending", "a person sent the dead letter again"),
    Reason("missing", "pending", "reconciliation found that Amplitude does not hold it, so it is sent again"),
    Reason("held", "pending", "the next micro-batch posts it before newer events of its user"),
    Reason("waiting_for_login", "pending", "the user has no External ID yet"),
    Reason("no_connection", "unreachable", "no server listens at the endpoint, or its name is unknown",
           "Check the network and the endpoint with 'nami-amp integrations test APP/NAME'"),
    Reason("refused", "unreachable", "no server listens at the endpoint, or its name is unknown (an older version's "
           "word)", "Check the network and the endpoint with 'nami-amp integrations test APP/NAME'"),
    Reason("proxy", "unreachable", "the proxy does not let requests through", "Check the proxy of this machine"),
    Reason("tls", "unreachable", "no secure connection to the endpoint is possible", "Check the certificates of this "
           "machine, and its proxy"),
    Reason("timeout", "unreachable", "the endpoint does not answer in time"),
    Reason("reset", "unreachable", "the connection to the endpoint breaks"),
    Reason("truncated", "unreachable", "the endpoint's answers break off"),
    Reason("out_of_step", "unreachable", "the endpoint sends what is no answer to a request",
           "Check the endpoint and the proxy of this machine"),
    Reason("late", "unreachable", "this machine was too slow to send in time"),
    Reason("bad_address", "unreachable", "the endpoint's address cannot be used",
           "Correct it with 'nami-amp integrations update APP/NAME --endpoint …'"),
    Reason("failed", "unreachable", "requests fail before they are sent"),
    Reason("not_json", "unreachable", "a server that is not Amplitude's HTTP API answers, such as a proxy's page",
           "Check the endpoint and the proxy of this machine"),
    Reason("not_accepted", "unreachable", "the endpoint answers 200, but does not accept the events"),
    Reason("bad_results", "unreachable", "the endpoint's results of single events cannot be read, so these are sent "
           "again", "Repair the receiver's answers; docs/http.md says what they hold"),
    Reason("http_5", "unreachable", "Amplitude's servers are in trouble", "Look at https://status.amplitude.com"),
    Reason("http_4", "halted", "the endpoint or the API key is not accepted"),
    Reason("invalid_api_key", "halted", "Amplitude does not know the API key at this endpoint"),
    Reason("bad_request", "halted", "Amplitude cannot read the requests"),
    Reason("redirect", "halted", "the endpoint is not Amplitude's HTTP API"),
)  # fmt: skip

REASONS: Final[Mapping[str, Reason]] = {entry.code: entry for entry in _ALL}
"""By code. ``http_4`` and ``http_5`` stand for all statuses of these hundreds."""

RETRYABLE: Final = tuple(entry.code for entry in _ALL if entry.was_posted)
"""The codes of dead letters that can be posted again."""


def reason(code: str) -> Reason | None:
    """What is known of a code; of a longer text, its first word counts. None for a code of another version."""
    word = code.partition(":")[0].split(" ")[0] if code else ""
    if word in ("http_408", "http_425"):
        return REASONS["http_5"]
    return REASONS.get(word) or (REASONS.get(word[:6]) if word.startswith("http_") else None)


def means(code: str) -> str:
    """A reason in words; a code of another version is shown as it is."""
    known = reason(code)
    if known is None:
        return code.replace("_", " ")
    status = code.partition(":")[0].partition("_")[2] if code.startswith("http_") else ""
    return f"{known.means} (HTTP {status})" if status else known.means


def is_unreachable(outcome: str) -> bool:
    """Whether the outcome of a request says that Amplitude could not be reached, or did not answer as such."""
    known = reason(outcome)
    return known is not None and known.kind == "unreachable"


def halted_for(reason_of_halt: str) -> str:
    """Why an integration halted, in words: what was said, or else what the code means."""
    code, _, said = reason_of_halt.partition(": ")
    return said or means(code)


def codes(*kinds: Kind) -> tuple[str, ...]:
    """The codes of some kinds, in the order of the table."""
    return tuple(entry.code for entry in _ALL if entry.kind in kinds)


def table() -> str:
    """The reasons for docs/operations.md, as a Markdown table."""
    heads = {"dead_letter": "dead letter"}
    lines = [
        f"| `{entry.code}` | {heads.get(entry.kind, entry.kind)} | {entry.means} | {entry.action or 'nothing'} |"
        for entry in _ALL
    ]
    return "\n".join(["| reason | of | it means | do |", "|---|---|---|---|", *lines])
