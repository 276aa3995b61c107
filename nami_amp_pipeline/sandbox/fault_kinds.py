"""The kinds of faults: what each does, and when in the handling of a request it comes in."""

from __future__ import annotations

from typing import Final, Literal, get_args

FaultKind = Literal[
    "500",
    "502",
    "503",
    "504",
    "html_400",
    "html_502",
    "403",
    "413",
    "project_429",
    "redirect",
    "invalid_key",
    "reset_before_response",
    "closed_without_answer",
    "stored_then_500",
    "stored_then_502",
    "stored_then_504",
    "empty_body",
    "truncated_body",
    "stall",
    "trickle",
    "interim_answers",
    "slow",
    "throttle_user",
    "quota_user",
    "silence_device",
    "poison",
    "lost_after_200",
    "cut_property",
    "stored_twice",
    "export_too_large",
]
KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)

MEANINGS: Final[dict[FaultKind, str]] = {
    "500": "500; nothing is stored",
    "502": "502; nothing is stored",
    "503": "503; nothing is stored",
    "504": "504; nothing is stored. Of an export: it takes too long",
    "html_400": "400 with a page of HTML, as a load balancer answers",
    "html_502": "502 with a page of HTML",
    "403": "403, as Amplitude's firewall answers",
    "413": "413: the request is too large",
    "project_429": "429 for the whole project; `retry_after` adds that header",
    "redirect": "302 to `location`",
    "invalid_key": "400 `Invalid API key`",
    "reset_before_response": "a TCP reset instead of an answer; `stored` says whether the events are stored",
    "closed_without_answer": "the connection is closed without an answer; `stored` as above",
    "stored_then_500": "the events are stored, the answer is 500",
    "stored_then_502": "the events are stored, the answer is 502",
    "stored_then_504": "the events are stored, the answer is 504",
    "empty_body": "the events are stored, the answer is `status` without a body",
    "truncated_body": "the events are stored, the answer breaks off in its middle",
    "stall": "the events are stored, no answer comes for `seconds`, then the connection is closed",
    "trickle": "the events are stored, the answer comes byte by byte over `seconds`",
    "interim_answers": "the events are stored, two interim answers (102 and 103) come before the 200",
    "slow": "the answer comes `seconds` later",
    "throttle_user": "429 that names the user (or device) of the events",
    "quota_user": "429 that says the user (or device) of the events is over the daily quota",
    "silence_device": "400 that says the device of the events is silenced",
    "poison": "400 that names the events, or some of them (`indexes`), and blames `field_name`",
    "lost_after_200": "the answer is 200, and the events are not stored",
    "cut_property": "the answer is 200; `property_name` is stored with `characters` characters, or not at all",
    "stored_twice": "the answer is 200, and the events are stored twice, under another `uuid`",
    "export_too_large": "an export is answered 400, too large",
}

AFTER: Final = frozenset(
    {
        "stored_then_500",
        "stored_then_502",
        "stored_then_504",
        "empty_body",
        "truncated_body",
        "stall",
        "trickle",
        "interim_answers",
        "slow",
    }
)
"""Come in once the events were stored."""

EITHER: Final = frozenset({"reset_before_response", "closed_without_answer"})
"""Come in before or after that, as their rule says."""

OF_EVENTS: Final = frozenset({"throttle_user", "quota_user", "silence_device", "poison"})
"""Are about certain events, and need a filter that names them."""

LOSSES: Final = frozenset({"lost_after_200", "cut_property", "stored_twice"})
"""Are drawn and counted by event, not by request: each event on its own is lost, cut or stored twice."""

Stage = Literal["before", "events", "store", "after"]
"""Before the request is checked, when its events are, when they are stored, or after that."""


class FaultError(ValueError):
    """A rule that cannot be: its message says why, in words for whoever sent it."""


def table() -> str:
    """The kinds as a table of Markdown, for the documentation."""
    rows = "".join(f"| `{kind}` | {MEANINGS[kind]} |\n" for kind in KINDS)
    return f"| kind | what happens |\n|---|---|\n{rows}"
