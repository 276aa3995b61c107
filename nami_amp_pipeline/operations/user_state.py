"""The properties of one user as they are now, and up to which event each integration was sent them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import from_datetime, to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.current_snapshots import current_snapshots_schema
from nami_amp_pipeline.stages.snapshot_sql import snapshot_sql, stored_table
from nami_amp_pipeline.state.integration_rows import of_app
from nami_amp_pipeline.state.users import COLUMNS, read_sent, read_snapshots
from nami_amp_pipeline.storage.duckdb_engine import compute


@dataclass(frozen=True)
class UserState:
    """A user's state.

    Attributes:
        nami_user: Nami's id.
        external_id: None if there is none yet.
        as_of: when Nami created the newest event of the user, in µs since the epoch.
        properties: by name; what was never seen is left out.
        sent: by integration (``<app_id>/<name>``), when Nami created the newest event whose state it was sent, or will
            be with what is queued, in µs since the epoch; None if it was sent none.
    """

    nami_user: str
    external_id: str | None
    as_of: int | None
    properties: dict[str, Any]
    sent: dict[str, int | None]

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "nami_user": self.nami_user,
            "external_id": self.external_id,
            "as_of": to_text(self.as_of),
            "properties": self.properties,
            "sent": {key: to_text(at) for key, at in self.sent.items()},
        }


def user_states(context: Context, app_id: str, nami_users: list[str]) -> list[UserState]:
    """The states of a few users of an app; those that are not known are left out."""
    integrations = of_app(context.store, app_id)
    with context.store.reading() as tx:
        rows = read_snapshots(context.store, tx, app_id, nami_users, COLUMNS)
    with compute(context.settings) as connection:
        connection.register("stored", stored_table(rows))
        found = connection.sql(snapshot_sql("snapshots_of_users")).to_arrow_table().cast(current_snapshots_schema())
    states = []
    with context.store.reading() as tx:
        for row in found.to_pylist():
            sent: dict[str, int | None] = {}
            for integration in integrations:
                own = row["user_id"] if integration.user_id_kind == "nami_user_id" else row["external_id"]
                known = read_sent(context.store, tx, integration.id, [own]) if own else []
                sent[integration.key] = known[0][1] if known else None
            names = [prop.name for prop in contract.PROPERTIES]
            states.append(
                UserState(
                    row["user_id"],
                    row["external_id"],
                    None if row["as_of"] is None else from_datetime(row["as_of"]),
                    {name: row[name] for name in names if row[name] is not None},
                    sent,
                )
            )
    return states
