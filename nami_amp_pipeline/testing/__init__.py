"""Conformance suites for what other packages add: subclass one in a test module, and let pytest run it."""

from nami_amp_pipeline.testing.declarations import EventTypeSuite, PropertySuite
from nami_amp_pipeline.testing.destination import DestinationSuite
from nami_amp_pipeline.testing.enrichments import EnrichmentSuite
from nami_amp_pipeline.testing.warehouse import WarehouseSuite

__all__ = ["DestinationSuite", "EnrichmentSuite", "EventTypeSuite", "PropertySuite", "WarehouseSuite"]
