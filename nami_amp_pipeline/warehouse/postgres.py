"""PostgreSQL as the warehouse: its address, one consistent reading of it, and what it says put in one line."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.warehouse.adbc import AdbcWarehouse, Session
from nami_amp_pipeline.warehouse.base import COLUMNS, Finding, Kind, check_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adbc_driver_manager.dbapi import Connection

TYPES: Mapping[Kind, tuple[str, ...]] = {
    "text": ("text", "character varying"),
    "time": ("timestamp with time zone",),
    "json": ("text", "character varying", "json", "jsonb"),
}
"""The types that a column of each kind may have, as PostgreSQL names them."""

_ADDRESS = re.compile(
    r"postgresql://(?:(?P<user>[^@/?]*)@)?"
    r"(?P<hosts>(?:\[[0-9A-Fa-f:.%]+\]|[^@/?:,\[\]]*)(?::\d*)?(?:,(?:\[[0-9A-Fa-f:.%]+\]|[^@/?:,\[\]]*)(?::\d*)?)*)"
    r"(?:/(?P<database>[^?]*))?(?:\?(?P<more>.*))?"
)
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SECRETS = ("password", "sslpassword")

# What an address does not set. A server that vanished without a word is noticed within a minute.
_DEFAULTS = {
    "connect_timeout": ("10", "PGCONNECT_TIMEOUT"),
    "keepalives_idle": ("20", ""),
    "keepalives_interval": ("10", ""),
    "keepalives_count": ("3", ""),
    "fallback_application_name": ("nami-amp-pipeline", ""),
}

_LONG = 100_000.0
"""What the planner says of reading some 700 MB."""

_TABLE = """
SELECT c.relkind::text, n.nspname::text, a.attname::text,
    format_type(CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END, NULL)::text,
    has_column_privilege(c.oid, a.attnum, 'SELECT')
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE c.oid = to_regclass({table})
"""

_INDEX = """
SELECT 1::int4
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_am m ON m.oid = c.relam
JOIN pg_catalog.pg_attribute one ON one.attrelid = i.indrelid AND one.attnum = i.indkey[0]
LEFT JOIN pg_catalog.pg_attribute two ON i.indnatts > 1 AND two.attrelid = i.indrelid AND two.attnum = i.indkey[1]
WHERE i.indrelid = to_regclass({table}) AND i.indisvalid AND i.indpred IS NULL AND m.amname IN ('btree', 'brin')
    AND (one.attname = 'ingested_at' OR one.attname = 'app_id' AND two.attname = 'ingested_at' AND m.amname = 'btree')
LIMIT 1
"""


class PostgresWarehouse(AdbcWarehouse):
    """A table or view of a PostgreSQL database.

    Raises:
        Misconfigured: the address cannot be parsed.
    """

    def __init__(self, settings: Settings) -> None:
        schema, table = settings.warehouse_schema, settings.warehouse_table
        super().__init__(f'"{schema}"."{table}"' if schema else f'"{table}"')
        self._called = f"{schema}.{table}" if schema else table
        self._url = settings.warehouse_url
        found = _ADDRESS.fullmatch(self._url)
        # libpq's own words would show what it took for the port, which is a part of a password with an '@' or '/'.
        if found is None or _BAD_PERCENT.search(self._url):
            raise Misconfigured(
                "NAMI_AMP_WAREHOUSE_URL cannot be parsed as postgresql://USER:PASSWORD@HOST:PORT/DATABASE; in a "
                "password, write '@' as %40, '/' as %2F, ':' as %3A, '?' as %3F, '#' as %23 and '%' as %25"
            )
        more = dict(parse_qsl(found["more"] or "", keep_blank_values=True))
        password = (found["user"] or "").partition(":")[2]
        self._secrets = {password, unquote(password), *(more.get(name, "") for name in _SECRETS)} - {""}
        self._more = more
        hosts = ",".join(filter(None, (found["hosts"], more.get("host")))) or os.environ.get("PGHOST", "")
        database = unquote(found["database"] or more.get("dbname") or os.environ.get("PGDATABASE", ""))
        self._place = f"PostgreSQL database {database or 'of the role'} on {unquote(hosts) or 'this machine'}"
        self._warned = False

    def __repr__(self) -> str:
        return f"PostgresWarehouse({self.name!r})"

    @property
    def name(self) -> str:
        """The table as people call it."""
        return f"{self._called} in {self._place}"

    def connect(self) -> Connection:
        """See :class:`AdbcWarehouse`; what libpq knows of an address, the environment and files holds."""
        from adbc_driver_postgresql import dbapi

        defaults = [
            f"{name}={value}"
            for name, (value, variable) in _DEFAULTS.items()
            if name not in self._more and variable not in os.environ
        ]
        address = f"{self._url}{'&' if '?' in self._url else '?'}{'&'.join(defaults)}"
        try:
            db: Connection = dbapi.connect(address)
        except dbapi.Error as error:
            raise WarehouseUnavailable(f"cannot connect to {self._place}: {self._said(error)}") from None
        return db

    def begin(self, session: Session) -> list[str]:
        """See :class:`AdbcWarehouse`: a snapshot of the database that cannot be written in."""
        self._begin(session)
        relkind = self._check_table(session)
        if self._warned:
            return []
        self._warned = True  # once a run is enough
        finding = self._check_index(session, relkind)
        return [f"{finding.message}; run: {finding.fix}"] if finding.level == "warning" else []

    def _begin(self, session: Session) -> None:
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        session.execute("SET LOCAL client_encoding TO 'UTF8'")
        session.execute("SET LOCAL standard_conforming_strings TO on")

    def _check_table(self, session: Session) -> str:
        """Compares the columns with the contract; returns what kind of relation it is."""
        rows = session.rows(_TABLE.format(table=self.text(self.table)))
        if not rows:
            raise WarehouseUnavailable(
                f"there is no table {self._called} in {self._place}: sql/nami_events_postgres.sql creates it; another "
                "name is set with NAMI_AMP_WAREHOUSE_SCHEMA and NAMI_AMP_WAREHOUSE_TABLE"
            )
        check_columns({name: kind for _, _, name, kind, _ in rows}, self._called, TYPES)
        if not all(may_read for _, _, name, _, may_read in rows if name in COLUMNS):
            raise WarehouseUnavailable(self._no_right())
        return str(rows[0][0])

    def _check_index(self, session: Session, relkind: str) -> Finding:
        if relkind not in ("r", "p", "m"):
            return Finding("index", "ok", f"{self._called} is no table of its own: what it reads from needs an index")
        if session.rows(_INDEX.format(table=self.text(self.table))):
            return Finding("index", "ok", f"{self._called} has an index for reading what is new")
        return Finding(
            "index",
            "warning",
            f"{self._called} has no index on (app_id, ingested_at): each run reads the whole table",
            f"CREATE INDEX CONCURRENTLY ON {self.table} (app_id, ingested_at)",
        )

    def takes_long(self, session: Session, query: str) -> bool:
        """See :class:`AdbcWarehouse`; the planner knows of indexes, of sizes, and of what a view reads."""
        ((plan,),) = session.rows(f"EXPLAIN (FORMAT JSON) {query}", **{"adbc.postgresql.use_copy": "false"})
        return float(json.loads(plan)[0]["Plan"]["Total Cost"]) > _LONG

    def check(self) -> list[Finding]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        findings: list[Finding] = []
        try:
            with self._session() as session:
                self._begin(session)
                ((version, is_replica),) = session.rows(
                    "SELECT current_setting('server_version')::text, pg_is_in_recovery()"
                )
                kind = "a replica of PostgreSQL" if is_replica else "PostgreSQL"
                findings.append(Finding("connection", "ok", f"{self._place}: {kind} {version}"))
                relkind = self._check_table(session)
                findings.append(Finding("columns", "ok", f"{self._called} has all columns and may be read"))
                findings.append(self._check_index(session, relkind))
        except WarehouseUnavailable as error:
            findings.append(Finding("columns" if findings else "connection", "error", str(error)))
        return findings

    def explain(self, error: Exception) -> str:
        """See :class:`AdbcWarehouse`."""
        # What breaks a stream comes without its code, so the words must do.
        state, said = getattr(error, "sqlstate", None) or "", self._said(error)
        if state == "42501" or "permission denied" in said:
            return self._no_right()
        if "statement timeout" in said:
            return (
                f"reading {self.name} took longer than statement_timeout allows; the next run tries again. Raise it "
                "for this role (ALTER ROLE … SET statement_timeout), or lower NAMI_AMP_MAX_ROWS_PER_TICK"
            )
        if state == "40001" or "conflict with recovery" in said:
            return f"the replica broke off reading {self.name}, the next run reads the same again: {said}"
        if state[:2] in ("08", "57", "25") or (not state and "connection" in said):
            return f"lost the connection while reading {self.name}, the next run reads the same again: {said}"
        return f"cannot read {self.name}: {said}"

    def _no_right(self) -> str:
        return (
            f"the role may not read {self._called} in {self._place}: GRANT SELECT ON {self.table} TO the role of "
            "NAMI_AMP_WAREHOUSE_URL, and USAGE on its schema"
        )

    def _said(self, error: Exception) -> str:
        """The server's words, without the driver's, and without what must not be shown."""
        text = " ".join(str(error).split())
        words = re.search(r"(?:ERROR|FATAL): .*", text)
        text = words[0] if words else re.sub(r"^[A-Z_]+: \[libpq\] (?:Failed to connect: )?", "", text)
        text = re.sub(r"\.? SQLSTATE: \w+$", "", text)[:300]
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "…")
        return text
