"""What each asset's page says to somebody who was just called out of bed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DESCRIPTIONS: Final[Mapping[str, str]] = {
    "nami_events": """
New rows of the warehouse table, copied once into immutable Parquet segments. **Partition:** the Nami app.

- Rows are read in order of `ingested_at`; one that becomes visible late (up to `NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS`)
  is still read, once. The same id loaded again is not captured again.
- **Nothing new although there are new rows?** The app needs an integration that is switched on:
  `nami-amp integrations list`.
- **Fails?** The message says what is wrong with the warehouse. Nothing is lost: the next run reads the same again.
- Running it again is always safe.
""",
    "user_property_snapshots": """
The state of each user as of each of their `user.*` events: entitlements, SKUs, devices, journey flags.
**Partition:** the Nami app.

- What an event does not carry is taken from the user's newest earlier event that does. An event that arrives late never
  moves the current state back.
- `truncated_arrays` counts arrays cut to the 1,024 characters that Amplitude keeps.
- The current state of every user is the table `user_property_snapshots` of the state store.
- Running it again is always safe.
""",
    "amplitude_events": """
What will be posted, as it will be posted: one outbox per segment. **Partition:** `<app_id>|<integration>`.

- From here on nothing is computed again: what is sent a second time is the same bytes, with the same `insert_id`.
- **Skipped** events have no External ID yet, and the integration's `anonymous` says not to send those. **Dead letters**
  are malformed, or carry an id that Amplitude reserves: `nami-amp dead-letters list`.
- A pair of app and integration that does not exist does nothing.
- Running it again is always safe.
""",
    "amplitude_deliveries": """
Posted to Amplitude, with a receipt for each event. **Partition:** `<app_id>|<integration>`.

- **A partition fails** when its API key is refused, its region is down, or a user is throttled for longer than a run
  goes on (`NAMI_AMP_RUN_RETRY_SECONDS`). Others are not affected, nothing is lost, and the next run goes on.
- **Halted** by a refused key: the check `not_halted` of the partition says why and what to do. Set the right key in
  the Control Center, then `nami-amp integrations enable APP/NAME`.
- **Where is one event?** `nami-amp trace EVENT_ID`. **What was refused?** `nami-amp dead-letters list`.
  **How do things stand?** `nami-amp status`.
- *Terminate* is safe: requests under way are finished and recorded.
- Running it again is always safe: each event is sent once, and repeats carry the same `insert_id`.
""",
}
