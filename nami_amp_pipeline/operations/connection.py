"""Checks whether an endpoint accepts a key, with a request that cannot store anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nami_amp_pipeline.delivery.transport import HttpTransport
from nami_amp_pipeline.stages.destinations import DESTINATIONS

if TYPE_CHECKING:
    from nami_amp_pipeline.secrets import Secret
    from nami_amp_pipeline.settings import Settings


@dataclass(frozen=True)
class Tested:
    """The result of testing a key.

    Attributes:
        integration: ``<app_id>/<name>``.
        ok: whether the endpoint accepts the key.
        result: its answer in a few words, without the key.
    """

    integration: str
    ok: bool
    result: str


def check_connection(
    endpoint: str, api_key: Secret, settings: Settings, destination: str = "amplitude"
) -> tuple[bool, str]:
    """Whether an endpoint accepts a key, and its answer in a few words."""
    transport = HttpTransport(settings.http_timeout_seconds)
    try:
        found = DESTINATIONS[destination].probe(endpoint, api_key, transport)
    finally:
        transport.close()
    return found.ok, found.message
