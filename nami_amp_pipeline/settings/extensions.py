"""What others declare: enrichments and destinations that a component or a setting names, and mistakes in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import Enrichment
from nami_amp_pipeline.destinations import DESTINATIONS, OURS, is_destination, usable
from nami_amp_pipeline.errors import Misconfigured


def mistakes_of_properties() -> Sequence[str]:
    """Of user properties that are declared by SQL; nothing is imported where there are none."""
    if not any(prop.sql for prop in contract.PROPERTIES):
        return ()
    from nami_amp_pipeline.storage.property_sql import mistakes

    return mistakes(contract.PROPERTIES)


def declare(names: Sequence[str], kind: str = "") -> None:
    """Declares them for this process; what it knows already stays as it is.

    Args:
        names: ``module:name`` of an enrichment or a destination, or of several.
        kind: ``enrichment`` or ``destination``, where only such will do.

    Raises:
        Misconfigured: one cannot be used.
    """
    for name in filter(None, map(str.strip, names)):
        called = f"the {kind or 'extension'} {name}"
        module, _, attribute = name.partition(":")
        try:
            value = getattr(import_module(module), attribute)
        except Exception as error:  # noqa: BLE001 - whatever a module of somebody else raises
            raise Misconfigured(f"{called} cannot be loaded: {type(error).__name__}: {error}") from None
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, Enrichment) and kind in ("", "enrichment"):
                _enrich(each, called)
            elif is_destination(each) and kind in ("", "destination"):
                _send_to(each, name)
            else:
                raise Misconfigured(f"{name} is no {kind or 'enrichment, and no destination'}")


def _enrich(enrichment: Enrichment, called: str) -> None:
    try:
        contract.add_enrichments([enrichment])
    except ValueError as error:
        raise Misconfigured(f"{called} cannot be used: {error}") from None


def _send_to(found: Any, name: str) -> None:
    destination = usable(found, name)
    if destination.name in OURS:
        raise Misconfigured(f"{name} calls itself {destination.name}, as a destination that ships does")
    DESTINATIONS[destination.name] = destination
