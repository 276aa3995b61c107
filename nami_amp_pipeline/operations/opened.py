"""What all operations stand on: settings, store and context, opened when they are first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from nami_amp_pipeline import redaction

if TYPE_CHECKING:
    from nami_amp_pipeline.clock import Clock
    from nami_amp_pipeline.context import Context
    from nami_amp_pipeline.secrets import Cipher
    from nami_amp_pipeline.settings import Settings
    from nami_amp_pipeline.state import Store


class Opened:
    """What is open. Close it when done, or use it as a context manager.

    Args:
        settings: what was set; the store is opened when it is first needed.
        by: in whose name things are changed; empty for nobody in particular.
        clock: what time it is.
    """

    def __init__(self, settings: Settings, *, by: str = "", clock: Clock | None = None) -> None:
        redaction.add_settings(settings)
        self._settings = settings
        self._by = by
        self._clock = clock
        self._store: Store | None = None
        self._context: Context | None = None
        self._is_lent = False

    @classmethod
    def over(cls, context: Context, *, by: str = "") -> Self:
        """The same over what is open already; closing it leaves that open."""
        operations = cls(context.settings, by=by, clock=context.clock)
        operations._store, operations._context, operations._is_lent = context.store, context, True
        return operations

    def named(self, by: str) -> Self:
        """The same, over what is open here, in the name of somebody else; it need not be closed."""
        return self.over(self._whole(), by=by)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the store; the next question opens it again."""
        if self._store is not None and not self._is_lent:
            self._store.close()
            self._store = self._context = None

    def _opened(self) -> Store:
        """The state store, its tables made where they are missing."""
        if self._store is None:
            from nami_amp_pipeline.clock import system_clock
            from nami_amp_pipeline.state import Store
            from nami_amp_pipeline.state.migrate import create_or_upgrade

            store = Store(self._settings.state_url, self._clock or system_clock, self._settings.lease_seconds)
            try:
                create_or_upgrade(store)
            except BaseException:
                store.close()
                raise
            self._store = store
        return self._store

    def _cipher(self) -> Cipher:
        from nami_amp_pipeline.secrets import Cipher

        return Cipher(self._settings.encryption_key, self._settings.home / "encryption.key")

    def _whole(self) -> Context:
        """The context of the stages, for operations that read their files and the warehouse."""
        if self._context is None:
            from nami_amp_pipeline.clock import system_clock
            from nami_amp_pipeline.context import Context
            from nami_amp_pipeline.storage.cached_folder import open_folder
            from nami_amp_pipeline.warehouse import open_warehouse

            self._context = Context(
                settings=self._settings,
                store=self._opened(),
                folder=open_folder(self._settings),
                warehouse=open_warehouse(self._settings),
                cipher=self._cipher(),
                clock=self._clock or system_clock,
            )
        return self._context
