"""Sample warehouses of any size, made once and kept in ``bench/.cache``.

:func:`sample_warehouse` is what :mod:`nami_amp_pipeline.sample` makes, row by row. For millions more,
:func:`multiplied` lays copies of such a sample one behind the other: in copy *k* four digits of every UUID in every
column and payload are *k*, so that each copy is of other users with other devices, logins and events.

:func:`whole_state_warehouse` is of another kind, and made by DuckDB alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from nami_amp_pipeline import contract, sample
from nami_amp_pipeline.sample import stream
from nami_amp_pipeline.storage.duckdb_engine import sql

CACHE: Final = Path(__file__).parent / ".cache"

APPS: Final = ("radio-nami", "fit-nami")

BASE_ROWS: Final = 200_000
"""Rows of the sample that :func:`multiplied` copies; of about 20,000 users."""

_UUID = '"([0-9a-f]{4})[0-9a-f]{4}(-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")'
_LOGIN = '("key":"external_id","type":"(?:sha256|numeric)","value":")[^"]{4}'
MARKED: Final = f"""regexp_replace(
    regexp_replace(payload, '{_UUID}', concat('"\\1', chr(1), '\\2'), 'g'), '{_LOGIN}', concat('\\1', chr(1))
)"""
"""SQL: a payload with a mark, which no JSON has, for each four digits that tell a copy's people from another's."""

_WHOLE_STATE_USERS = """
    CREATE TEMP TABLE users AS SELECT
        number,
        $apps[1 + number % len($apps)] AS app_id,
        ['apple', 'google'][1 + number // 2 % 2] AS store,
        md5('user ' || number)::UUID::VARCHAR AS user_id,
        [{id: md5('device ' || number)::UUID, platform: {id: md5(app_id || store)::UUID, name: 'Phones',
            platform_type: store, marketplace_app_id: 'com.example.' || app_id}},
         {id: md5('second ' || number)::UUID, platform: {id: md5(app_id || 'web')::UUID, name: 'Web',
            platform_type: 'web', marketplace_app_id: 'com.example.' || app_id}}] AS devices,
        [{key: 'original_transaction_id', type: 'original_transaction_id',
            value: (1000000000000000 + number)::VARCHAR},
         {key: 'external_id', type: 'uuid', value: md5('login ' || number)::UUID::VARCHAR}] AS external_ids
    FROM range($users) AS of_users (number)
"""

_WHOLE_STATE_EVENTS = """
    INSERT INTO nami_events
    WITH drawn AS (
        SELECT
            md5('event ' || number)::UUID::VARCHAR AS id,
            (hash(number, 1) % $users)::BIGINT AS user_number,
            ['purchased', 'renewed', 'renewed', 'renewed', 'cancelled', 'in_grace_period',
             'renewal_in_grace_period', 'resumed'][1 + (hash(number, 2) % 8)::BIGINT] AS news,
            ['weekly', 'monthly', 'yearly'][1 + (hash(number, 3) % 3)::BIGINT] AS term,
            make_timestamp($start + number * ($span // $rows)) AS ingested,
            ingested - to_microseconds(1000000 + (hash(number, 4) % 20000000)::BIGINT) AS created,
            [{entitlement_ref_id: 'premium', name: 'Premium', description: 'Everything, without ads',
                sku_ref_id: 'premium_' || term, pending_sku_ref_id: NULL::VARCHAR,
                expiration: strftime(created + INTERVAL 30 DAY, '%Y-%m-%dT%H:%M:%SZ'),
                last_verified: strftime(created, '%Y-%m-%dT%H:%M:%SZ')}] AS premium,
            [{entitlement_ref_id: 'sports', name: 'Sports', description: 'Live',
                sku_ref_id: 'sports_' || term, pending_sku_ref_id: NULL::VARCHAR,
                expiration: strftime(created + INTERVAL 7 DAY, '%Y-%m-%dT%H:%M:%SZ'),
                last_verified: strftime(created, '%Y-%m-%dT%H:%M:%SZ')}] AS sports,
            CASE WHEN hash(number, 5) % 8 = 0 THEN premium || sports ELSE premium END AS entitlements
        FROM range($rows) AS of_rows (number)
    )
    SELECT id, app_id, 'user.subscription.' || news AS type, user_id, created, ingested, to_json({
        id: id, event_type: type, event_platform: store, created_date: strftime(created, '%Y-%m-%dT%H:%M:%S.%f+00:00'),
        user_id: user_id, active_entitlements: entitlements,
        customer_journey_state: {former_subscriber: false, in_account_hold: false,
            in_grace_period: news = 'in_grace_period', in_trial_period: false, in_intro_offer_period: false,
            in_pause: false, is_cancelled: news = 'cancelled'},
        devices: devices, external_ids: external_ids
    })
    FROM drawn JOIN users ON users.number = user_number
"""

_COLUMNS = "id, app_id, event_type, user_id, created_date, ingested_at, payload"


def sample_warehouse(rows: int) -> Path:
    """A DuckDB file with so many sample events of two apps in the table ``nami_events``."""

    def fill(connection: duckdb.DuckDBPyConnection) -> None:
        for batch in sample.generate(max(1, rows // 10), rows=rows, apps=APPS):
            connection.register("sample", pa.Table.from_batches([batch]))
            connection.execute(f"INSERT INTO nami_events SELECT {_COLUMNS} FROM sample")

    return derived(f"sample-{rows}", fill)


def multiplied(rows: int, *, base_rows: int = BASE_ROWS, of_one_app: bool = False) -> Path:
    """The same with as many copies of a smaller sample as it takes; all of the first app where that is asked for."""
    base = sample_warehouse(base_rows)

    def fill(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"ATTACH '{base}' AS base (READ_ONLY)")
        values = f"{MARKED} AS payload" + (f", '{APPS[0]}' AS app_id" if of_one_app else "")
        connection.execute(f"CREATE TEMP TABLE marked AS SELECT * REPLACE ({values}) FROM base.nami_events")
        connection.execute("DETACH base")
        for copy, first in enumerate(range(0, rows, base_rows)):
            connection.execute(insert_copy("marked", f"{copy:04x}", limit=min(base_rows, rows - first)))

    return derived(f"multiplied-{rows}-of-{base_rows}{'-one-app' if of_one_app else ''}", fill)


def whole_state_warehouse(rows: int) -> Path:
    """A DuckDB file with so many events of the same two apps, each of about 1.2 KB, with the whole state of its user.

    There is a user for every ten rows. Each event has one or two active entitlements, the journey's flags, the user's
    two devices, and two entries of ``external_ids``, the second of which is the External ID. All event types are ones
    that integrations select; rows are in the order of ``ingested_at``, and none is there twice.
    """
    users = max(1, rows // 10)

    def fill(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("SET preserve_insertion_order = true; SET TimeZone = 'UTC'")
        connection.execute(_WHOLE_STATE_USERS, {"apps": list(APPS), "users": users})
        times = {"start": int(stream.START.timestamp() * 1e6), "span": 30 * 86_400_000_000}
        connection.execute(_WHOLE_STATE_EVENTS, {"rows": rows, "users": users, **times})

    # Another SQL, another file.
    version = hashlib.sha256((_WHOLE_STATE_USERS + _WHOLE_STATE_EVENTS).encode()).hexdigest()[:8]
    return derived(f"whole-state-{rows}-{version}", fill)


def derived(name: str, fill: Callable[[duckdb.DuckDBPyConnection], None]) -> Path:
    """A DuckDB file with the table ``nami_events``, filled where it is not there yet."""
    path = _cached(name)
    if not path.exists():
        aside = path.with_suffix(".part")
        aside.unlink(missing_ok=True)
        try:
            with duckdb.connect(str(aside)) as connection:
                connection.execute("SET preserve_insertion_order = false")  # millions of copies take half the time
                new_table(connection)
                fill(connection)
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
    return path


def insert_copy(
    source: str, digits: str, *, people: str | None = None, where: str = "true", limit: int | None = None
) -> str:
    """SQL that adds a copy of the rows of ``source`` to ``nami_events``.

    Args:
        source: a table with its columns, in which ``payload`` is :data:`MARKED`.
        digits: four hexadecimal digits that stand in each event's id.
        people: the same for users and for what their payloads hold, where that is another; may be spliced SQL.
        where: which rows.
        limit: how many at most.
    """
    return f"""
        INSERT INTO nami_events SELECT
            id[:4] || '{digits}' || id[9:],
            app_id,
            event_type,
            user_id[:4] || '{people or digits}' || user_id[9:],
            created_date,
            ingested_at,
            replace(payload, chr(1), '{people or digits}')
        FROM (SELECT * FROM {source} WHERE {where} {"" if limit is None else f"LIMIT {limit}"})
    """


def selected(connection: duckdb.DuckDBPyConnection, source: str, expression: str) -> object:
    """An aggregate over the events that an integration with all event types is to deliver, each once."""
    types = ", ".join(f"'{name}'" for name in contract.event_type_names())
    ((value,),) = connection.execute(
        f"SELECT {expression} FROM (SELECT DISTINCT id AS insert_id FROM {source} WHERE event_type IN ({types}))"
    ).fetchall()
    return value


def expected(path: Path, expression: str) -> object:
    """The same of a DuckDB file."""
    with duckdb.connect(str(path), read_only=True) as connection:
        return selected(connection, "nami_events", expression)


def new_table(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes the table ``nami_events``."""
    connection.execute(sql("nami_events"))


def _cached(name: str) -> Path:
    """Where a file of this name is, made from the sample as it is now."""
    CACHE.mkdir(exist_ok=True)
    found = hashlib.sha256()
    for path in sorted(Path(sample.__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return CACHE / f"{name}-{found.hexdigest()[:12]}.duckdb"
