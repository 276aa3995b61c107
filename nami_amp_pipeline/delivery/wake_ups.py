"""The times at which channels are due again."""

from __future__ import annotations

from heapq import heappop, heappush


class WakeUps:
    """One time per channel: the earliest requested."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []
        self._at: dict[int, int] = {}

    def add(self, channel_id: int, at: int) -> None:
        """Wakes a channel at this time, in µs since the epoch, unless it is woken earlier."""
        known = self._at.get(channel_id)
        if known is None or at < known:
            self._at[channel_id] = at
            heappush(self._heap, (at, channel_id))

    def due(self, now: int) -> list[int]:
        """Takes out the channels that are due."""
        woken = []
        while self._heap and self._heap[0][0] <= now:
            at, channel_id = heappop(self._heap)
            if self._at.get(channel_id) == at:
                del self._at[channel_id]
                woken.append(channel_id)
        return woken

    def next_at(self) -> int | None:
        """The earliest time; None if there is none."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None
