"""The search for a refused event that no answer names: by halving, in posting order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nami_amp_pipeline.delivery.request_record import RequestRecord


@dataclass
class Bisection:
    """The events of which one at least is refused, and the answer that said so.

    The event that is left at the end of a search is not asked for again where that would tell nothing new: two requests
    with it were refused, one within the other, and everything else of the smaller one has been accepted since. A single
    refusal does not count as much: it may have been a bad moment of the receiver's. With that, finding a refused event
    costs no more than log2 of the batch, rounded up, and one more request.

    Attributes:
        suspects: the events by number, in posting order, without those that were accepted since.
        reason: why the request was refused.
        size: bytes of the smallest request that was refused.
        answer: the one to the smallest request that was refused.
        request: the record of that one.
        refusals: requests that were refused, each within the one before.
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
        """The refused event, once it is known without asking again.

        Of what is too large together each may be taken by itself; and what a firewall refuses is counted one by one.
        """
        is_known = len(self.suspects) == 1 and self.refusals > 1 and self.reason == "rejected"
        return self.suspects[0] if is_known else None

    def accepted(self, events: Collection[int]) -> None:
        """Takes out what was delivered; what only waits now stays in."""
        self.suspects = [event for event in self.suspects if event not in events]


def narrowed(
    before: Bisection | None, events: Sequence[int], reason: str, size: int, answer: str | None, request: RequestRecord
) -> Bisection:
    """The search after a request of more than one event was refused."""
    found = Bisection(list(events), reason, size, answer, request)
    if before is not None and before.reason == reason and set(events) <= set(before.suspects):
        found.refusals = before.refusals + 1
    return found
