"""What differs between a backfill and an identify; all else is the same for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from nami_amp_pipeline.backfill.choice import CLASSES, Choice, ComputedFile, choose
from nami_amp_pipeline.backfill.identify_events import USER_CLASSES, compute_identifies, found_users
from nami_amp_pipeline.backfill.identify_users import write_users
from nami_amp_pipeline.backfill.profiles import flag_history
from nami_amp_pipeline.backfill.superseded import leave_out_superseded
from nami_amp_pipeline.backfill.window_events import compute_window
from nami_amp_pipeline.backfill.window_files import write_files
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import backfills
from nami_amp_pipeline.state.backfills import Backfill, BackfillFile
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.store import Lease
from nami_amp_pipeline.storage.duckdb_engine import engine


@dataclass(frozen=True)
class KindOfWork:
    """See the module's docstring.

    Attributes:
        unit: what it counts, in the plural.
        classes: what it may find of each of them, and what that means.
        write_files: writes its files; returns (file, rows, events) of each.
        compute: decides on what is in a file, and writes the outbox files, which count after a commit.
        find: decides on what is in a file, as of now.
        keep_profiles: before a turn posts: sees to it that no profile is turned back.
    """

    unit: str
    classes: Mapping[str, str]
    write_files: Callable[[Context, Backfill, Integration], list[tuple[str, int, int]]]
    compute: Callable[[Context, Backfill, BackfillFile, Integration], ComputedFile]
    find: Callable[[Context, Backfill, BackfillFile, Integration], Choice]
    keep_profiles: Callable[[Context, Backfill, Integration, Lease], None]


def _found_events(context: Context, backfill: Backfill, file: BackfillFile, integration: Integration) -> Choice:
    with engine(context.settings) as own:
        return choose(context, backfill, file, integration, own)


KINDS: Final[Mapping[backfills.Kind, KindOfWork]] = {
    "backfill": KindOfWork("events", CLASSES, write_files, compute_window, _found_events, flag_history),
    "identify": KindOfWork("users", USER_CLASSES, write_users, compute_identifies, found_users, leave_out_superseded),
}


def found_now(context: Context, backfill: Backfill, integration: Integration) -> tuple[Counter[str], int]:
    """By class, what would be found now, and the digest of what would be sent."""
    with context.store.reading() as tx:
        files = backfills.files_of(tx, backfill.id)
    now: Counter[str] = Counter()
    digest = 0
    for file in files:
        choice = KINDS[backfill.kind].find(context, backfill, file, integration)
        now.update(choice.found)
        digest += choice.digest
    return now, digest
