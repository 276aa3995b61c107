"""Asks the destination of an integration whether it takes the integration's key; nothing is stored by that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nami_amp_pipeline.delivery.transport import HttpTransport
from nami_amp_pipeline.destinations import DESTINATIONS

if TYPE_CHECKING:
    from nami_amp_pipeline.secrets import Secret
    from nami_amp_pipeline.settings import Settings


def check_connection(
    endpoint: str, api_key: Secret, settings: Settings, destination: str = "amplitude"
) -> tuple[bool, str]:
    """Whether an endpoint takes a key, and what it said in a few words."""
    transport = HttpTransport(settings.http_timeout_seconds)
    try:
        found = DESTINATIONS[destination].probe(endpoint, api_key, transport)
    finally:
        transport.close()
    return found.ok, found.message
