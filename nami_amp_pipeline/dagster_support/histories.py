"""Where Dagster keeps the history that a process works with, and whether the settings name another one."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import dagster as dg
import yaml
from dagster._core.storage.runs import SqlRunStorage

from nami_amp_pipeline.dagster_support.instance import dagster_home
from nami_amp_pipeline.operations.histories import WHAT_TO_DO, histories, in_words, note
from nami_amp_pipeline.settings import Settings, variable

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""In C, where PyYAML has it: a sensor looks twice a minute."""


def place_of(instance: dg.DagsterInstance) -> str | None:
    """The folder of a history, or the address of its database without a login; None if it is in memory only."""
    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        return None
    with storage.connect() as connection:
        url = connection.engine.url
    if not url.drivername.startswith("sqlite"):
        return f"{url.get_backend_name()}://{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database}"
    if not url.database or "memory:" in url.database or "memory" in url.query.values():
        return None
    folder = Path(url.database).resolve().parent
    return str(folder.parent if folder.name == "history" else folder)


def two_histories(instance: dg.DagsterInstance, settings: Settings) -> str | None:
    """Notes the history of this process, and says in a line if the home has another one; None if all is well.

    Args:
        instance: of this process.
        settings: what was set.
    """
    place = place_of(instance)
    if place is None:
        return None
    now = time.time()
    note(settings.home, place, now)
    wanted = _wanted(settings)
    if wanted is not None and place.startswith("/") and Path(place) != wanted:
        return (
            f"this Dagster keeps its history in {place}, but the settings name {wanted}: 'nami-amp run' writes there, "
            "and each shows its own runs only. Stop this Dagster and start 'nami-amp dev', or start it with "
            f"DAGSTER_HOME={wanted}"
        )
    found = histories(settings.home, now)
    return f"{in_words(found)}; {WHAT_TO_DO}" if len(found) > 1 else None


def _wanted(settings: Settings) -> Path | None:
    """The folder of the history that the settings name; None where Dagster's own settings say where it is."""
    if variable("DAGSTER_HOME"):
        return None  # then Dagster takes it from there, too
    home = dagster_home(settings).resolve()
    own: Any = None
    with suppress(OSError, yaml.YAMLError):
        own = yaml.load((home / "dagster.yaml").read_text("utf-8"), _LOADER)  # noqa: S506 - a safe one
    is_elsewhere = isinstance(own, dict) and any(
        key.endswith("storage") for key in own if key != "local_artifact_storage"
    )
    return None if is_elsewhere else home
