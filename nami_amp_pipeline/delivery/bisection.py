"""Finds a refused event that no answer names, by bisection in posting order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nami_amp_pipeline.delivery.request_record import RequestRecord


@dataclass
class Bisection:
    """Events of which at least one is refused, and the answer that said so.

    The last suspect is not posted alone if two nested requests with it were refused, and every other event of the
    smaller request has been accepted since. A single refusal is not enough: the receiver may have had a bad moment. So
    finding a refused event in a batch of n costs at most ceil(log2 n) + 1 requests.

    Attributes:
        suspects: the events by number, in posting order, without those accepted since.
        reason: why the request was refused.
        size: bytes of the smallest request that was refused.
        answer: of the smallest request that was refused.
        request: the record of that request.
        refusals: the number of nested requests that were refused.
    """

    suspects: list[int]
    reason: str
    size: int
    answer: str | None
    request: RequestRecord
    refusals: int = 1

    @property
    def half(self) -> int:
        """How many of the suspects the next request carries."""
        return max(1, len(self.suspects) // 2)

    @property
    def found(self) -> int | None:
        """The refused event, if it is known without another request.

        Events that are too large together may each be accepted alone, and events that a firewall refuses are counted
        singly.
        """
        is_known = len(self.suspects) == 1 and self.refusals > 1 and self.reason == "rejected"
        return self.suspects[0] if is_known else None

    def accepted(self, events: Collection[int]) -> None:
        """Removes delivered events; held events stay."""
        self.suspects = [event for event in self.suspects if event not in events]


def narrowed(
    before: Bisection | None, events: Sequence[int], reason: str, size: int, answer: str | None, request: RequestRecord
) -> Bisection:
    """The search after the refusal of a request with several events."""
    found = Bisection(list(events), reason, size, answer, request)
    if before is not None and before.reason == reason and set(events) <= set(before.suspects):
        found.refusals = before.refusals + 1
    return found
