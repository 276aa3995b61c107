"""What every stage is given: settings, clock, store, files, warehouse, and who is running."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nami_amp_pipeline import redaction
from nami_amp_pipeline.clock import Clock, micros, system_clock
from nami_amp_pipeline.secrets import Cipher
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline.storage.cached_folder import open_folder
from nami_amp_pipeline.storage.data_folder import DataFolder
from nami_amp_pipeline.warehouse import Warehouse, open_warehouse


def _nothing(_step: str) -> None:
    return


@dataclass
class Context:
    """One process at work.

    Attributes:
        settings: what was set.
        store: progress.
        folder: files.
        warehouse: the events table.
        cipher: of the API keys.
        clock: what time it is.
        monotonic: the clock that nobody sets, in seconds; leases give the right to send by it.
        run_id: Dagster's run id, or another name for this run.
        sleep: waits so many seconds.
        step: called with the name of each step just before it takes effect; a simulation or a kill test ends the
            process there.
        log: progress for people; never a secret.
    """

    settings: Settings
    store: Store
    folder: DataFolder
    warehouse: Warehouse
    cipher: Cipher
    clock: Clock = system_clock
    run_id: str = "none"
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    step: Callable[[str], None] = _nothing
    log: logging.Logger = field(default_factory=lambda: redaction.guarded_logger("nami_amp_pipeline"))

    @staticmethod
    def open(settings: Settings, *, run_id: str = "none", clock: Clock = system_clock) -> Context:
        """Opens the store (making its tables where they are missing), the data folder and the warehouse's address.

        Raises:
            Misconfigured: a setting cannot be used.
            StoreUnavailable: the store cannot be reached.
            Blocked: the data folder cannot be written.
        """
        redaction.add_settings(settings)
        store = Store(settings.state_url, clock, settings.lease_seconds)
        create_or_upgrade(store)
        return Context(
            settings=settings,
            store=store,
            folder=open_folder(settings),
            warehouse=open_warehouse(settings),
            cipher=Cipher(settings.encryption_key, settings.home / "encryption.key"),
            clock=clock,
            run_id=run_id,
        )

    def now(self) -> int:
        """Now in microseconds since the epoch."""
        return micros(self.clock)
