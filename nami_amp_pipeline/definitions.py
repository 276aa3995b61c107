"""What Dagster loads. Loading reads no store, warehouse or network, and needs no setting."""

from __future__ import annotations

from typing import Final

import dagster as dg

from nami_amp_pipeline.defs.component import NamiAmplitude

# An object, not a function with `@dg.definitions`: in a module that imports it beside Definitions of its own, Dagster
# would take the function for all there is, and the others would vanish without a word.
defs: Final = dg.Definitions.merge(
    NamiAmplitude().definitions(),
    dg.Definitions(executor=dg.in_process_executor),  # a process for each step would cost seconds
)
"""The component with its defaults."""
