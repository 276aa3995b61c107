"""What the demo needs before it can run: events in the embedded warehouse, and an integration for each app."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.clock import to_datetime
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import UserIdKind
from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, NewIntegration, add, all_integrations
from nami_amp_pipeline.storage.duckdb_engine import sql

NAME: Final = "demo"
DAYS: Final = 30
"""The length of the sample."""

APPS: Final[Mapping[str, UserIdKind]] = {"radio-nami": "external_id", "fit-nami": "nami_user_id"}
"""The apps, and what becomes of each one's Amplitude user ids."""


def demo_key(app_id: str) -> str:
    """The API key of an app's project in the local Amplitude, which takes any."""
    return hashlib.sha256(f"demo {app_id}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Sample:
    """The sample events of a home.

    Attributes:
        events: how many there are.
        new: how many of them were loaded now.
        end: when the last of them can have been loaded.
    """

    events: int
    new: int
    end: datetime


def load_sample(settings: Settings, users: int, now: float) -> Sample:
    """Puts the sample events into the embedded warehouse, those that are not there yet.

    Args:
        settings: of the home.
        users: how many subscribers.
        now: in seconds since the epoch: the sample of a new home ends in this hour. That of a home that has one keeps
            its dates, because the same events cannot happen again on other days.

    Raises:
        Misconfigured: the settings name another warehouse, which the demo must not write to.
        WarehouseUnavailable: the file cannot be written.
    """
    path = settings.home / "warehouse.duckdb"
    if settings.warehouse_url != f"duckdb:///{path}" or settings.warehouse_schema:
        raise Misconfigured(
            "the demo writes sample events into its own warehouse only: unset NAMI_AMP_WAREHOUSE_URL and "
            "NAMI_AMP_WAREHOUSE_SCHEMA"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with duckdb.connect(str(path)) as connection:
            return _insert(connection, settings.warehouse_table, users, datetime.fromtimestamp(now, UTC))
    except duckdb.Error as error:
        raise WarehouseUnavailable(f"cannot write {path}: {str(error).splitlines()[0][:200]}") from None


def _insert(connection: duckdb.DuckDBPyConnection, table: str, users: int, now: datetime) -> Sample:
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(sql("nami_events").replace("nami_events", f'"{table}"'))
    # The first subscriber of each app installs at the very start of the sample.
    ((first,),) = connection.execute(
        f'SELECT epoch_us(min(created_date)) FROM "{table}" WHERE app_id IN ?',  # noqa: S608 - the name of a setting
        [list(APPS)],
    ).fetchall()
    start = now.replace(minute=0, second=0, microsecond=0) - timedelta(days=DAYS)
    start = to_datetime(first) if first is not None else start
    connection.register("sample", pa.Table.from_batches(generate(users, apps=tuple(APPS), start=start, days=DAYS)))
    ((events,),) = connection.execute("SELECT count(*) FROM sample").fetchall()
    ((new,),) = connection.execute(
        f'INSERT INTO "{table}" BY NAME FROM sample ANTI JOIN "{table}" USING (app_id, id) ORDER BY ingested_at'
    ).fetchall()
    return Sample(events, new, start + timedelta(days=DAYS))


def demo_endpoints(context: Context) -> list[str]:
    """Where the demo's integrations post to; none before the first demo."""
    ours = demo_integration_keys()
    return [integration.endpoint for integration in all_integrations(context.store) if integration.key in ours]


def ensure_integrations(context: Context, endpoint: str) -> list[Integration]:
    """An integration for each app, posting to the local Amplitude at this address.

    Raises:
        Misconfigured: an integration of the demo's name goes somewhere else.
    """
    _past_proxies()
    known = {integration.key: integration for integration in all_integrations(context.store)}
    for app_id, user_id_kind in APPS.items():
        there = known.get(f"{app_id}/{NAME}")
        if there is None:
            new = NewIntegration(
                app_id,
                NAME,
                endpoint,
                Secret(demo_key(app_id)),
                user_id_kind=user_id_kind,
                allow_custom_endpoint=True,
            )
            add(context.store, context.cipher, new)
        elif there.endpoint != endpoint:
            _move(context, there, endpoint)
    return all_integrations(context.store, demo_integration_keys())


def _past_proxies() -> None:
    """No proxy leads to the local Amplitude: it is on this machine."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if "127.0.0.1" not in known:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (known, "127.0.0.1", "localhost")))


def demo_integration_keys() -> list[str]:
    """``<app_id>/<name>`` of the demo's integrations."""
    return [f"{app_id}/{NAME}" for app_id in APPS]


def _move(context: Context, integration: Integration, endpoint: str) -> None:
    """Lets a demo integration post to another port, the local Amplitude's usual one being taken."""
    if context.cipher.decrypt(integration.api_key).reveal() != demo_key(integration.app_id):
        raise Misconfigured(
            f"integration {integration.key} does not belong to the demo: remove it, or set NAMI_AMP_HOME to another "
            "folder"
        )
    table = tables.integrations
    with context.store.begin() as tx:
        tx.execute(sa.update(table).where(table.c.id == integration.id).values(endpoint=endpoint))


def journal(settings: Settings) -> Path:
    """Where the local Amplitude of the demo keeps what it received."""
    return settings.home / "sandbox.ndjson"
