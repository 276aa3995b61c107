"""What a declared user property and event type must do, as tests.

```python
class TestPlatforms(PropertySuite):
    declared = PLATFORMS
    examples = (({"active_entitlements": [{"purchase_platform": "apple"}]}, ["apple"]),)
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import GROUPS, EventType, Property
from nami_amp_pipeline.storage.property_sql import mistakes
from nami_amp_pipeline.testing.workbench import Workbench


class PropertySuite:
    """Subclass it with a declaration and examples.

    Attributes:
        declared: the property.
        examples: payloads, each with the value that Amplitude is to be sent; the first ones of two that differ.
    """

    declared: ClassVar[Property]
    examples: ClassVar[Sequence[tuple[dict[str, Any], Any]]]

    def setup_method(self) -> None:
        """Opens a workbench."""
        self.bench = Workbench(properties=[self.declared])

    def teardown_method(self) -> None:
        """Closes it."""
        self.bench.close()

    def sent(self) -> dict[str, Any]:
        """What each event would be sent of the property; events without it are left out."""
        name = self.declared.name
        events = self.bench.prepared()
        return {
            ident: event["user_properties"][name]
            for ident, event in events.items()
            if name in event.get("user_properties", {})
        }

    def test_its_sql_can_be_used(self) -> None:
        """Where it has any: names, types, and nothing that depends on more than the event."""
        assert not mistakes((self.declared,))

    def test_each_example_is_sent_as_it_says(self) -> None:
        """One event for each, of one user: each replaces the value before it."""
        assert self.examples, "give examples"
        for number, (payload, _) in enumerate(self.examples):
            self.bench.load(f"{number:03}", payload, minutes=number)
        assert self.sent() == {f"{number:03}": value for number, (_, value) in enumerate(self.examples)}

    def test_an_event_without_the_group_keeps_the_value(self) -> None:
        """In the same run and in a later one."""
        payload, value = self.examples[0]
        self.bench.load("with", payload)
        self.bench.load("without", {}, minutes=1)
        assert self.sent() == {"with": value, "without": value}
        self.bench.load("later", {}, minutes=2)
        assert self.sent()["later"] == value

    def test_an_event_that_comes_late_has_the_value_of_its_own_time(self) -> None:
        """And does not change that of events after it."""
        payload, value = self.examples[0]
        self.bench.load("second", payload, minutes=10)
        self.sent()
        self.bench.load("first", {}, minutes=5)
        self.bench.load("third", {}, minutes=15)
        assert self.sent() == {"second": value, "third": value}

    def test_a_user_who_never_had_the_group_has_no_value(self) -> None:
        """Rather than an empty one."""
        self.bench.load("a", {})
        assert self.sent() == {}

    def test_values_of_other_types_stop_nothing(self) -> None:
        """The event is sent, with or without the property."""
        field = GROUPS[self.declared.group].removesuffix("[]")
        odd: tuple[Any, ...] = (
            None,
            1,
            "text",
            [],
            {},
            [None],
            [1, "x"],
            *([] if self.declared.sql else [[{self.declared.steps[0]: {"deep": [1]}}]]),
            True,
        )
        for number, value in enumerate(odd):
            self.bench.load(f"{number:03}", {field: value}, minutes=number)
        assert len(self.bench.prepared()) == len(odd)

    def test_the_same_events_give_the_same_bytes(self) -> None:
        """In another home."""
        for number, (payload, _) in enumerate(self.examples):
            self.bench.load(f"{number:03}", payload, minutes=number)
        once = self.sent()
        self.teardown_method()
        self.setup_method()
        for number, (payload, _) in enumerate(self.examples):
            self.bench.load(f"{number:03}", payload, minutes=number)
        assert self.sent() == once


class EventTypeSuite:
    """Subclass it with a declaration and an example.

    Attributes:
        declared: the event type.
        example: a payload.
        sends: what the event that is posted has at least: its ``event_properties``, ``revenue`` and so on.
    """

    declared: ClassVar[EventType]
    example: ClassVar[dict[str, Any]]
    sends: ClassVar[dict[str, Any]]

    def setup_method(self) -> None:
        """Opens a workbench."""
        self.bench = Workbench(event_types=[self.declared])

    def teardown_method(self) -> None:
        """Closes it."""
        self.bench.close()

    def test_it_can_be_selected(self) -> None:
        """By its name, by a prefix, and with all others."""
        name = self.declared.name
        for pattern in (name, f"{name.rpartition('.')[0]}.*", "all"):
            assert self.declared in contract.select_events(contract.check_patterns([pattern]))

    def test_the_example_is_sent(self) -> None:
        """With Nami's name and what the suite's author says."""
        self.bench.load("a", self.example, event_type=self.declared.name)
        event = self.bench.prepared()["a"]
        assert event["event_type"] == self.declared.name
        for name, value in self.sends.items():
            if isinstance(value, dict):
                assert {key: event[name].get(key) for key in value} == value
            else:
                assert event.get(name) == value

    def test_a_payload_with_nothing_in_it_is_sent_too(self) -> None:
        """A type declares no field that must be there."""
        self.bench.load("a", {}, event_type=self.declared.name)
        assert self.bench.prepared().keys() == {"a"}
