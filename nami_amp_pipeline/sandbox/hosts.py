"""Amplitude's own host names, for requests that reach the sandbox under one: each serves one region and one API.

https://amplitude.com/docs/apis/analytics/http-v2, https://amplitude.com/docs/apis/analytics/export
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .settings import BATCH_PATH, EXPORT_PATH, V2_PATH, Region

_UPLOADS: Final = (V2_PATH, BATCH_PATH)
_HOSTS: Final[dict[str, tuple[Region, tuple[str, ...]]]] = {
    "api2.amplitude.com": ("us", _UPLOADS),
    "api.eu.amplitude.com": ("eu", _UPLOADS),
    "amplitude.com": ("us", (EXPORT_PATH,)),
    "analytics.eu.amplitude.com": ("eu", (EXPORT_PATH,)),
}


def region_of(headers: Mapping[str, str]) -> Region | None:
    """The region of the host that a request was sent to; None where that is no host of Amplitude's.

    Args:
        headers: with lower-case names.
    """
    found = _HOSTS.get(_host(headers))
    return found[0] if found is not None else None


def serves(headers: Mapping[str, str], path: str) -> bool:
    """Whether the host that a request was sent to has a path; an address of this machine has them all."""
    found = _HOSTS.get(_host(headers))
    return found is None or path in found[1]


def _host(headers: Mapping[str, str]) -> str:
    return headers.get("host", "").partition(":")[0].lower()
