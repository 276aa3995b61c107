"""PostgreSQL as the warehouse: its address, one consistent reading of it, and what it says put in one line."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

import duckdb

from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.warehouse.adbc import AdbcWarehouse
from nami_amp_pipeline.warehouse.adbc_session import Session
from nami_amp_pipeline.warehouse.base import COLUMNS, Finding, Kind, check_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adbc_driver_manager.dbapi import Connection

    from nami_amp_pipeline.settings import Settings

_INTEGERS = ("smallint", "integer", "bigint", "numeric")
_AS_THEY_ARE = ("text", "character varying", "timestamp with time zone")
TYPES: Mapping[Kind, tuple[str, ...]] = {
    "text": ("text", "character varying", "character", "citext", "uuid", "enum", *_INTEGERS),
    "time": ("timestamp with time zone",),
    "json": ("text", "character varying", "character", "citext", "json", "jsonb"),
}
"""The types that a column of each kind may have, as PostgreSQL names them, or a domain over one of them."""

_ADDRESS = re.compile(
    r"postgres(?:ql)?://(?:(?P<user>[^@/?]*)@)?"
    r"(?P<hosts>(?:\[[0-9A-Fa-f:.%]+\]|[^@/?:,\[\]]*)(?::\d*)?(?:,(?:\[[0-9A-Fa-f:.%]+\]|[^@/?:,\[\]]*)(?::\d*)?)*)"
    r"(?:/(?P<database>[^?]*))?(?:\?(?P<more>.*))?"
)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
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

_FEW = 100
"""More values than this are one literal of an array: parsing and planning with thousands takes longer than reading."""

_LONG = 100_000.0
"""What the planner says of reading some 700 MB."""

_TABLE = """
WITH RECURSIVE columns AS (
    SELECT a.attname, a.attnum, a.attnotnull, false AS is_domain, t.oid, t.typtype, t.typbasetype, t.typname,
        c.oid AS relation, c.relkind
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE c.oid = to_regclass({table})
    UNION ALL
    SELECT o.attname, o.attnum, o.attnotnull, true, t.oid, t.typtype, t.typbasetype, t.typname, o.relation, o.relkind
    FROM columns o JOIN pg_catalog.pg_type t ON t.oid = o.typbasetype
    WHERE o.typtype = 'd'
)
SELECT relkind::text, attname::text,
    CASE WHEN typtype = 'e' THEN 'enum' WHEN typname = 'citext' THEN 'citext' ELSE format_type(oid, NULL) END::text,
    is_domain,
    attnotnull AND relkind IN ('r', 'p'),
    has_column_privilege(relation, attnum, 'SELECT'),
    oid::int8
FROM columns
WHERE typtype <> 'd'
"""

# Of a partitioned table each partition may have an index of its own.
_INDEX = """
WITH RECURSIVE parts AS (
    SELECT c.oid, c.relkind FROM pg_catalog.pg_class c WHERE c.oid = to_regclass({table})
    UNION ALL
    SELECT c.oid, c.relkind
    FROM parts p
    JOIN pg_catalog.pg_inherits i ON i.inhparent = p.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    WHERE p.relkind = 'p'
)
SELECT count(*)::int8
FROM parts
WHERE (relkind <> 'p' OR NOT EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i WHERE i.inhparent = parts.oid))
AND NOT EXISTS (
    SELECT 1
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am m ON m.oid = c.relam
    JOIN pg_catalog.pg_attribute first ON first.attrelid = i.indrelid AND first.attnum = i.indkey[0]
    LEFT JOIN pg_catalog.pg_attribute second
        ON i.indnatts > 1 AND second.attrelid = i.indrelid AND second.attnum = i.indkey[1]
    WHERE i.indrelid = parts.oid AND i.indisvalid AND i.indpred IS NULL
        AND (
            m.amname IN ('btree', 'brin') AND first.attname = 'ingested_at'
            OR m.amname = 'btree' AND first.attname = 'app_id' AND second.attname = 'ingested_at'
        )
)
"""

# A policy that shows all rows hides none, unless a restrictive policy exists too.
_HIDDEN = """
SELECT row_security_active(c.oid) AND NOT (
    EXISTS (
        SELECT 1 FROM pg_catalog.pg_policy p
        WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('r', '*')
            AND pg_get_expr(p.polqual, p.polrelid) = 'true'
            AND (p.polroles = '{{0}}' OR EXISTS (
                SELECT 1 FROM unnest(p.polroles) AS r (id) WHERE r.id = 0 OR pg_has_role(r.id, 'USAGE')
            ))
    )
    AND NOT EXISTS (
        SELECT 1 FROM pg_catalog.pg_policy p
        WHERE p.polrelid = c.oid AND NOT p.polpermissive AND p.polcmd IN ('r', '*')
    )
)
FROM pg_catalog.pg_class c
WHERE c.oid = to_regclass({table}) AND c.relkind IN ('r', 'p')
"""


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        type: its base type, or ``enum``.
        is_domain: whether that is behind a domain.
        is_null: whether it may be null.
        labels: of an enum.
    """

    type: str
    is_domain: bool
    is_null: bool
    labels: frozenset[str] = frozenset()


class PostgresWarehouse(AdbcWarehouse):
    """A table or view of a PostgreSQL database.

    Raises:
        Misconfigured: the address cannot be parsed.
    """

    def __init__(self, settings: Settings) -> None:
        schema, table = settings.warehouse_schema, settings.warehouse_table
        super().__init__(f"{_quoted(schema)}.{_quoted(table)}" if schema else _quoted(table))
        self._columns: dict[str, _Column] = {}
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
        findings = [self._check_index(session, relkind), *self._check_policies(session)]
        return [
            f"{finding.message}; run: {finding.fix}" if finding.fix else finding.message
            for finding in findings
            if finding.level == "warning"
        ]

    def begin_query(self, session: Session, seconds: float) -> None:
        """See :class:`AdbcWarehouse`."""
        self._begin(session)
        session.execute(f"SET LOCAL statement_timeout TO {max(1, int(seconds * 1_000))}")

    def _begin(self, session: Session) -> None:
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        session.execute("SET LOCAL client_encoding TO 'UTF8'")
        session.execute("SET LOCAL standard_conforming_strings TO on")
        ((encoding,),) = session.rows("SELECT current_setting('server_encoding')::text")
        if encoding == "SQL_ASCII":  # such a database stores any bytes, and returns them unconverted on request
            session.execute("SET LOCAL client_encoding TO 'SQL_ASCII'")
            session.any_bytes = True

    def _check_table(self, session: Session) -> str:
        """Compares the columns with the contract; returns what kind of relation it is."""
        rows = session.rows(_TABLE.format(table=self.text(self.table)))
        if not rows:
            raise WarehouseUnavailable(
                f"there is no table {self._called} in {self._place}: sql/nami_events_postgres.sql creates it; another "
                "name is set with NAMI_AMP_WAREHOUSE_SCHEMA and NAMI_AMP_WAREHOUSE_TABLE"
            )
        check_columns({name: kind for _, name, kind, *_ in rows}, self._called, TYPES)
        if not all(may_read for _, name, _, _, _, may_read, _ in rows if name in COLUMNS):
            raise WarehouseUnavailable(self._no_right())
        self._columns = {
            name: _Column(kind, is_domain, not is_filled, self._labels(session, kind, oid))
            for _, name, kind, is_domain, is_filled, _, oid in rows
            if name in COLUMNS
        }
        return str(rows[0][0])

    def _labels(self, session: Session, kind: str, oid: int) -> frozenset[str]:
        if kind != "enum":
            return frozenset()
        rows = session.rows(f"SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = {int(oid)}")  # noqa: S608
        return frozenset(label for (label,) in rows)

    def column(self, name: str) -> str:
        """See :class:`AdbcWarehouse`; a type that the driver does not know comes as a text, char(n) without padding."""
        found = self._columns[name]
        if found.type in _AS_THEY_ARE and not found.is_domain:
            return name
        return f"CAST({name} AS {'text' if COLUMNS[name] == 'text' else found.type})"

    def is_sampled(self, one_of: int) -> str:
        """See :class:`AdbcWarehouse`; the hash that PostgreSQL itself has texts in its hash tables by."""
        return f"hashtext({self.column('id')}) % {one_of} = 0"

    def may_be_null(self, column: str) -> bool:
        """See :class:`AdbcWarehouse`."""
        return self._columns[column].is_null

    def among(self, column: str, values: Iterable[str]) -> str:
        """See :class:`AdbcWarehouse`."""
        found, some = self._columns[column], list(values)
        if len(some) <= _FEW or found.type not in _AS_THEY_ARE or found.is_domain:
            return super().among(column, some)
        quoted = ('"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"')) for value in some)
        return f"{column} = ANY ({self.text('{' + ','.join(quoted) + '}')})"

    def literals(self, column: str, values: Iterable[str]) -> list[str]:
        """See :class:`AdbcWarehouse`; the server refuses to compare an enum or a number with what is none."""
        found = self._columns[column]
        if found.type in _INTEGERS:
            return [value for value in values if _INTEGER.fullmatch(value)]
        if found.type == "uuid":
            values = filter(_UUID.fullmatch, values)
        elif found.type == "enum":
            values = filter(found.labels.__contains__, values)
        return [self.text(value) for value in values]

    def _check_index(self, session: Session, relkind: str) -> Finding:
        if relkind not in ("r", "p", "m"):
            return Finding("index", "ok", f"{self._called} is not a table: the tables that it reads need an index")
        ((missing,),) = session.rows(_INDEX.format(table=self.text(self.table)))
        if not missing:
            return Finding("index", "ok", f"{self._called} has an index for reading new rows")
        # PostgreSQL makes none of a partitioned table concurrently.
        concurrently = "" if relkind == "p" else "CONCURRENTLY "
        whose = f"{missing:,} of its partitions have" if relkind == "p" and missing > 1 else "has"
        return Finding(
            "index",
            "warning",
            f"{self._called} has no index on (app_id, ingested_at): each run reads the whole table"
            if whose == "has"
            else f"{self._called}: {whose} no index on (app_id, ingested_at): each run reads all of them",
            f"CREATE INDEX {concurrently}ON {self.table} (app_id, ingested_at)",
        )

    def _check_policies(self, session: Session) -> list[Finding]:
        rows = session.rows(_HIDDEN.format(table=self.text(self.table)))
        if not rows or not rows[0][0]:
            return []
        return [
            Finding(
                "row security",
                "warning",
                f"row level security of {self._called} may hide rows from this role; hidden rows are not delivered",
                f"CREATE POLICY nami_amp_reads_all ON {self.table} FOR SELECT TO CURRENT_USER USING (true), as the "
                "owner and for the role of NAMI_AMP_WAREHOUSE_URL; or ALTER ROLE … BYPASSRLS",
            )
        ]

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
                findings.append(Finding("columns", "ok", f"{self._called} has all columns and is readable"))
                findings.append(self._check_index(session, relkind))
                findings += self._check_policies(session)
                with duckdb.connect(":memory:") as connection:
                    findings += [row.finding for row in self.unplaced(session, connection, None)]
        except WarehouseUnavailable as error:
            findings.append(Finding("columns" if findings else "connection", "error", str(error)))
        return findings

    def explain(self, error: Exception) -> str:
        """See :class:`AdbcWarehouse`."""
        # An error in a stream has no error code, so its text decides.
        state, said = getattr(error, "sqlstate", None) or "", self._said(error)
        if state == "42501" or "permission denied" in said:
            return self._no_right()
        if "statement timeout" in said:
            return (
                f"reading {self.name} took longer than statement_timeout allows; the next run tries again. Raise it "
                "for this role (ALTER ROLE … SET statement_timeout), or lower NAMI_AMP_MAX_ROWS_PER_TICK"
            )
        if state == "40001" or "conflict with recovery" in said:
            return f"the replica cancelled reading {self.name}; the next run reads the same rows again: {said}"
        if state[:2] in ("08", "57", "25") or (not state and "connection" in said):
            return f"lost the connection while reading {self.name}; the next run reads the same rows again: {said}"
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


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
