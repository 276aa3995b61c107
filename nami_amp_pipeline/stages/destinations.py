"""The known destinations, by the name in the store."""

from __future__ import annotations

from nami_amp_pipeline.amplitude.target import AMPLITUDE
from nami_amp_pipeline.delivery.destination import Destination

DESTINATIONS: dict[str, Destination] = {AMPLITUDE.name: AMPLITUDE}
