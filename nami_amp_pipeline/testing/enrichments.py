"""What an enrichment must do, as tests.

```python
class TestLifetimeValue(EnrichmentSuite):
    declared = LIFETIME_VALUE
    tables = {"user_ltv": pa.table({"user_id": ["ann"], "ltv": [12.5]})}
    examples = (("ann", {}, {"ltv": 12.5}), ("ben", {}, {}))
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa

from nami_amp_pipeline.contract import Enrichment
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.testing.workbench import Workbench


class EnrichmentSuite:
    """Subclass it with a declaration, the tables that it asks for, and examples.

    Attributes:
        declared: the enrichment.
        tables: of the warehouse, by name.
        examples: a Nami user, a payload, and the properties that Amplitude is to be sent; those that are null are left
            out. The users differ.
    """

    declared: ClassVar[Enrichment]
    tables: ClassVar[Mapping[str, pa.Table]] = {}
    examples: ClassVar[Sequence[tuple[str, dict[str, Any], dict[str, Any]]]]

    def setup_method(self) -> None:
        """Opens a workbench."""
        self.bench = Workbench(enrichments=[self.declared], tables=self.tables)

    def teardown_method(self) -> None:
        """Closes it."""
        self.bench.close()

    def load(self, *, backwards: bool = False) -> dict[str, dict[str, Any]]:
        """Loads an event for each example; returns what is to be sent, by event."""
        order = -1 if backwards else 1
        for number, (user, payload, _) in list(enumerate(self.examples))[::order]:
            self.bench.load(f"{number:03}", payload, user=user)
        return {f"{number:03}": wanted for number, (_, _, wanted) in enumerate(self.examples)}

    def sent(self) -> dict[str, dict[str, Any]]:
        """What each event would be sent of the properties."""
        return {
            ident: {name: value for name, value in event["user_properties"].items() if name in self.declared.properties}
            for ident, event in self.bench.prepared().items()
        }

    def test_each_example_is_sent_as_it_says(self) -> None:
        """All in one batch."""
        assert self.examples, "give examples"
        wanted = self.load()
        assert self.sent() == wanted

    def test_each_example_is_sent_as_it_says_alone(self) -> None:
        """What one user has is none of another's."""
        wanted = self.load()
        for number, (user, payload, _) in enumerate(self.examples):
            bench = Workbench(enrichments=[self.declared], tables=self.tables)
            try:
                bench.load("a", payload, user=user)
                found = bench.prepared()["a"]["user_properties"]
            finally:
                bench.close()
            assert {name: found[name] for name in self.declared.properties if name in found} == wanted[f"{number:03}"]

    def test_the_order_of_the_events_does_not_matter(self) -> None:
        """Each row of the answer belongs to the row of the batch."""
        wanted = self.load(backwards=True)
        assert self.sent() == wanted

    def test_what_it_gave_is_kept(self) -> None:
        """What is prepared later, or again, is what it gave at first."""
        wanted = self.load()
        self.bench.snapshotted()
        with _instead(self.bench, self.declared, _raise):
            assert self.sent() == wanted

    def test_its_failure_stops_nobody_or_makes_the_app_wait(self) -> None:
        """As ``on_failure`` says; afterwards it goes on."""
        wanted = self.load()
        with _instead(self.bench, self.declared, _raise):
            if self.declared.on_failure == "wait":
                assert "RuntimeError: the suite's own" in self._waits()
            else:
                assert self.sent() == {ident: {} for ident in wanted}
        if self.declared.on_failure == "wait":
            assert self.sent() == wanted

    def _waits(self) -> str:
        """Why the app waits."""
        try:
            self.bench.snapshotted()
        except Blocked as error:
            return str(error)
        return ""

    def test_history_goes_without_current_values(self) -> None:
        """An event older than what its user was sent."""
        user, payload, wanted = self.examples[0]
        self.bench.load("new", payload, user=user, minutes=10)
        self.sent()
        self.bench.load("old", payload, user=user)
        assert self.sent()["old"] == ({} if self.declared.timing == "current" else wanted)


def _raise(_batch: Any, _context: Any) -> Any:
    raise RuntimeError("the suite's own")


class _instead:  # noqa: N801 - a context manager, used like a function
    """Another function, for the length of a block."""

    def __init__(self, bench: Workbench, declared: Enrichment, function: Any) -> None:
        self._bench, self._declared, self._other = bench, declared, replace(declared, function=function)

    def __enter__(self) -> None:
        self._bench.replace(self._declared, self._other)

    def __exit__(self, *_error: object) -> None:
        self._bench.replace(self._other, self._declared)
