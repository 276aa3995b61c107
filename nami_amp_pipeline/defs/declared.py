"""Enrichments that a component names, rather than an entry point of a package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import Enrichment
from nami_amp_pipeline.errors import Misconfigured


def declare(names: Sequence[str]) -> None:
    """Declares them for this process.

    Args:
        names: ``module:name`` of an enrichment, or of several.

    Raises:
        Misconfigured: one cannot be used.
    """
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            value = getattr(import_module(module), attribute)
        except Exception as error:  # noqa: BLE001 - whatever a module of somebody else raises
            raise Misconfigured(f"the enrichment {name} cannot be loaded: {type(error).__name__}: {error}") from None
        found = value if isinstance(value, (tuple, list)) else (value,)
        if not all(isinstance(each, Enrichment) for each in found):
            raise Misconfigured(f"{name} is no Enrichment")
        try:
            contract.add_enrichments(found)
        except ValueError as error:
            raise Misconfigured(f"the enrichment {name} cannot be used: {error}") from None
