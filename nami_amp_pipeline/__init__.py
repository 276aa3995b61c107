"""Delivers Nami ML subscription events, with each user's properties, to Amplitude."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nami_amp_pipeline.defs.component import NamiAmplitude as NamiAmplitude

__version__ = "0.1.0"

_COMPONENT = "NamiAmplitude"


def __getattr__(name: str) -> object:
    """The component, imported when somebody asks for it: most who import this package never do."""
    if name == _COMPONENT:
        from importlib import import_module

        return getattr(import_module("nami_amp_pipeline.defs.component"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the component, which ``dg`` looks for here."""
    return sorted({*globals(), _COMPONENT})
