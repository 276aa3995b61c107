"""The next file of a backfill or an identify, computed before the lease of its integration is taken.

Computing a file takes seconds, and live delivery would have to wait for them. What was computed counts only if nobody
else has had the lease since: then nothing that it was made of has changed.
"""

from __future__ import annotations

from typing import Final

from nami_amp_pipeline.backfill.choice import ComputedFile
from nami_amp_pipeline.backfill.kinds import KINDS
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import live_first
from nami_amp_pipeline.state.backfills import Backfill, BackfillFile
from nami_amp_pipeline.state.integration_rows import Integration, refreshed
from nami_amp_pipeline.state.store import Lease

MOST_TIMES: Final = 5
"""How often a file is computed ahead while live delivery works in between; then once under the lease."""


class Ahead:
    """At most one file.

    Args:
        context: the process at work.
        backfill: whose files.
    """

    def __init__(self, context: Context, backfill: Backfill) -> None:
        self._context = context
        self._backfill = backfill
        self._computed: tuple[int, int, Integration, ComputedFile] | None = None
        self._misses: tuple[int, int] = (0, 0)

    @property
    def may_try_again(self) -> bool:
        """Whether what :meth:`take` did not have is to be computed ahead once more, as live delivery works often."""
        return self._misses[1] < MOST_TIMES

    def compute(self, file: BackfillFile, integration: Integration) -> None:
        """Computes a file, unless another process works on the integration, or the file is gone."""
        context = self._context
        fence = live_first.fence_if_free(context.store, integration.id)
        if self._computed is not None or fence is None or not context.folder.exists(file.file):
            return
        with context.store.reading() as tx:
            (integration,) = refreshed(tx, [integration])
        computed = KINDS[self._backfill.kind].compute(context, self._backfill, file, integration)
        self._computed = file.id, fence, integration, computed
        context.step("backfill.computed")

    def take(self, file: BackfillFile, integration: Integration, lease: Lease) -> ComputedFile | None:
        """What was computed of a file, if it still counts.

        Args:
            file: that is to be prepared.
            integration: as it is now.
            lease: of the integration, taken just now.
        """
        if self._computed is not None:
            file_id, fence, was, computed = self._computed
            if file_id == file.id and was == integration and lease.fence == fence + 1:
                self._computed = None
                return computed
            self.drop()
        missed_file, times = self._misses
        self._misses = (file.id, times + 1 if missed_file == file.id else 1)
        return None

    def drop(self) -> None:
        """Forgets what was computed, and removes its files."""
        if self._computed is not None:
            for part in self._computed[3].parts:
                self._context.folder.remove(part.file)
            self._computed = None
