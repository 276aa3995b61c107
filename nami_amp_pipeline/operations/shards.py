"""Shards: a micro-batch as several runs, each of which works for its share of the apps, on whatever machine it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from nami_amp_pipeline.errors import Misconfigured

MOST = 256


@dataclass(frozen=True)
class Shard:
    """One share of the apps.

    An app belongs to a shard by a hash of its id, so that all its integrations and stages are in one run. Runs of
    another division, as while the number of shards is changed, do no harm: each app and integration has a lease.

    Attributes:
        number: from 1 on.
        of: how many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard | None:
        """The shard that a text such as ``2/4`` names; None for an empty text, which means all apps.

        Raises:
            Misconfigured: it names none.
        """
        if not text:
            return None
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and len(text) < 8 and 1 <= int(number) <= int(of) <= MOST):
            raise Misconfigured(f"a shard is named as in 2/4, with at most {MOST} shards")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, app_id: str) -> bool:
        """Whether an app belongs to it."""
        digest = hashlib.sha256(app_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.number - 1

    @property
    def is_first(self) -> bool:
        """Whether it also does what is to be done once, such as the report of all integrations."""
        return self.number == 1


def shards(many: int) -> Sequence[Shard | None]:
    """All shards of a micro-batch; None where it is one run for all apps."""
    return [Shard(number, many) for number in range(1, many + 1)] if many > 1 else [None]
