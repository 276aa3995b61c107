"""The conformance suites of user properties and event types, which ship: they pass for good declarations only."""

from __future__ import annotations

from typing import Any

import pytest

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import EventType, Property, extended
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.testing import EventTypeSuite, PropertySuite

PLATFORMS = Property(
    "namiml_purchase_platforms", "entitlements", "active_entitlements[].purchase_platform", "texts",
    "where what is active was bought",
)  # fmt: skip
PAUSED = Property("namiml_in_pause", "journey", "customer_journey_state.in_pause", "flag", "is paused")


def bought(*platforms: str) -> dict[str, Any]:
    return {"active_entitlements": [{"purchase_platform": platform} for platform in platforms]}


@pytest.mark.slow
class TestTexts(PropertySuite):
    declared = PLATFORMS
    examples = ((bought("roku", "apple"), ["apple", "roku"]), (bought("apple"), ["apple"]))


@pytest.mark.slow
class TestFlag(PropertySuite):
    declared = PAUSED
    examples = (
        ({"customer_journey_state": {"in_pause": True}}, True),
        ({"customer_journey_state": {"in_pause": False}}, False),
    )


class TestRefund(EventTypeSuite):
    declared = EventType("user.subscription.refunded", is_revenue=True)
    example = {"amount": 9.99, "sku": "gold", "reason": "asked"}  # noqa: RUF012
    sends = {"price": 9.99, "event_properties": {"reason": "asked"}}  # noqa: RUF012


class TestCampaign(EventTypeSuite):
    declared = EventType("campaign.sent")
    example = {"amount": 3, "note": "n"}  # noqa: RUF012
    sends = {"event_properties": {"note": "n", "namiml_event_category": "campaign"}, "price": None}  # noqa: RUF012


@pytest.mark.slow
def test_a_suite_notices_a_property_that_is_not_what_its_examples_say() -> None:
    class Wrong(PropertySuite):
        declared = PLATFORMS
        examples = ((bought("roku"), ["apple"]),)

    suite = Wrong()
    suite.setup_method()
    try:
        with pytest.raises(AssertionError):
            suite.test_each_example_is_sent_as_it_says()
    finally:
        suite.teardown_method()
    assert PLATFORMS not in contract.PROPERTIES


def points(found: Any) -> Any:
    """The entry points of a group with a single one."""
    return [Point("one", found)]


class Point:
    """An entry point."""

    def __init__(self, name: str, found: Any) -> None:
        self.name, self.value, self._found = name, f"their.module:{name}", found

    def load(self) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


@pytest.mark.parametrize(
    ("found", "added", "said"),
    [
        ((PLATFORMS, PAUSED), [PLATFORMS, PAUSED], []),
        (PAUSED, [PAUSED], []),
        (EventType("a.b"), [], ["their.module:one is no Property"]),
        (contract.PROPERTIES[0], [], ["their.module:one declares namiml_active_entitlements, which there is"]),
        (ImportError("no module x"), [], ["their.module:one cannot be loaded: ImportError: no module x"]),
    ],
)
def test_entry_points_add_declarations(found: Any, added: list[Property], said: list[str]) -> None:
    ours = contract.PROPERTIES
    assert extended(ours, points(found), Property) == ((*ours, *added), said)


def test_nothing_is_sent_without_a_declaration_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "UNUSABLE", ("x:y is no Property",))
    with pytest.raises(Misconfigured, match="is no Property"):
        Settings.load({})


@pytest.mark.parametrize("name", ["", "refund", "User.refund", "user.", "user..x", 'user."; drop'])
def test_an_event_type_that_cannot_be_is_refused(name: str) -> None:
    found, (said,) = extended(contract.EVENT_TYPES, points(EventType(name)), EventType)
    assert found == contract.EVENT_TYPES
    assert "is no event type" in said
