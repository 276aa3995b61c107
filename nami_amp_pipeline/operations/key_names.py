"""What the project behind an API key is called here: the integrations that send with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nami_amp_pipeline.clock import system_clock
from nami_amp_pipeline.errors import Misconfigured, NamiAmpError
from nami_amp_pipeline.secrets import Cipher
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store, tables
from nami_amp_pipeline.state.integration_rows import all_integrations


def names_of_keys(settings: Settings, digest: Callable[[str], str]) -> dict[str, str]:
    """The names of the integrations by what is made of their API keys; of those that share a key, all.

    Makes and changes nothing: without a store, or with one of another version, there are no names.

    Args:
        settings: where the store is.
        digest: makes of a key what may be shown and kept.
    """
    path = settings.state_url.removeprefix("sqlite:///")
    if path != settings.state_url and not Path(path).exists():
        return {}
    names: dict[str, list[str]] = {}
    try:
        store = Store(settings.state_url, system_clock, settings.lease_seconds)
        try:
            if store.schema_version() != tables.SCHEMA_VERSION:
                return {}
            cipher = Cipher(settings.encryption_key, settings.home / "encryption.key")
            for integration in all_integrations(store):
                try:
                    key = cipher.decrypt(integration.api_key).reveal()
                except Misconfigured:
                    continue
                names.setdefault(digest(key), []).append(integration.key)
        finally:
            store.close()
    except NamiAmpError:
        return {}
    return {made: ", ".join(sorted(keys)) for made, keys in names.items()}
