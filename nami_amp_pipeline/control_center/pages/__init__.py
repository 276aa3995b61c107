"""The pages, a module for each group; their order is that of the navigation."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from nami_amp_pipeline.control_center.pages import (
    apps,
    backfills,
    deliveries,
    history,
    integration_form,
    integrations,
    metrics,
    preview,
    reconciliation,
    refused,
    sign_in,
    trace,
)

PAGES: Final[tuple[ModuleType, ...]] = (
    apps,
    integrations,
    integration_form,
    preview,
    deliveries,
    refused,
    trace,
    backfills,
    reconciliation,
    history,
    sign_in,
    metrics,
)
"""Each has ``routes``; those on the left of an app's pages also have ``navigation``, a page's name and a label."""
