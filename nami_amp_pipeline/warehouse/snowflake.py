"""Snowflake as the warehouse. Written from its documentation and never tried on a real account.

Sources: https://arrow.apache.org/adbc/current/driver/snowflake.html and
https://docs.snowflake.com/en/sql-reference/data-types-datetime.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.warehouse.adbc_session import Session
from nami_amp_pipeline.warehouse.base import COLUMNS, Kind
from nami_amp_pipeline.warehouse.hosted import HostedWarehouse, driver, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adbc_driver_manager.dbapi import Connection

    from nami_amp_pipeline.settings import Settings

_SPELLED: Final = "snowflake://USER:PASSWORD@ACCOUNT/DATABASE/SCHEMA?warehouse=NAME"
_MORE: Final = ("warehouse", "role", "auth", "private_key_file")
_SQL: Final = "adbc.snowflake.sql"
_CLIENT: Final = "adbc.snowflake.sql.client_option"
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")

TYPES: Mapping[Kind, tuple[str, ...]] = {
    "text": ("TEXT", "VARCHAR"),
    "time": ("TIMESTAMP_TZ", "TIMESTAMP_LTZ"),
    "json": ("TEXT", "VARCHAR", "VARIANT", "OBJECT"),
}
"""The types that a column of each kind may have, as Snowflake names them."""


class SnowflakeWarehouse(HostedWarehouse):
    """A table or view of Snowflake.

    Names that need no quotes are written without, so that they mean what they mean in a worksheet. The password is a
    password, with ``auth=pat`` a programmatic access token and with ``auth=oauth`` a token of OAuth; with
    ``private_key_file`` none is needed.

    Raises:
        Misconfigured: the address cannot be parsed.
    """

    types = TYPES

    def __init__(self, settings: Settings) -> None:
        at = parse(settings, _SPELLED, _MORE)
        database, *schemas = at.path or ("",)
        schema = settings.warehouse_schema or "".join(schemas[:1])
        if not (at.user and at.host and database and schema) or len(schemas) > 1:
            raise Misconfigured(
                f"NAMI_AMP_WAREHOUSE_URL must be {_SPELLED}; NAMI_AMP_WAREHOUSE_SCHEMA goes before SCHEMA"
            )
        if at.more.get("auth", "pat") not in ("pat", "oauth"):
            raise Misconfigured("NAMI_AMP_WAREHOUSE_URL: auth must be pat or oauth; without it the password is one")
        names = (database, schema, settings.warehouse_table)
        super().__init__(".".join(map(_written, names)))
        self._names = names
        self._at = at
        self.called = ".".join(names[1:])
        self.place = f"Snowflake database {database} of {at.host}"
        self.secrets = (at.password,)

    def connect(self) -> Connection:
        """See :class:`AdbcWarehouse`."""
        dbapi = driver("adbc_driver_snowflake.dbapi", "snowflake")
        db: Connection = dbapi.connect(db_kwargs=self.options(), autocommit=True)
        return db

    def options(self) -> Mapping[str, str]:
        """Of the driver, which brings times in microseconds and counts as whole numbers."""
        at = self._at
        found = {
            "username": at.user,
            f"{_SQL}.account": at.host,
            f"{_SQL}.db": self._names[0],
            f"{_SQL}.schema": self._names[1],
            f"{_CLIENT}.login_timeout": "30s",
            f"{_CLIENT}.use_high_precision": "false",
            f"{_CLIENT}.max_timestamp_precision": "microseconds",
        }
        for name in ("warehouse", "role"):
            if name in at.more:
                found[f"{_SQL}.{name}"] = at.more[name]
        if "private_key_file" in at.more:
            found[f"{_SQL}.auth_type"] = "auth_jwt"
            found[f"{_CLIENT}.jwt_private_key"] = at.more["private_key_file"]
        elif "auth" in at.more:
            found[f"{_SQL}.auth_type"] = f"auth_{at.more['auth']}"
            found[f"{_CLIENT}.auth_token"] = at.password
        else:
            found["password"] = at.password
        return found

    def begin(self, session: Session) -> list[str]:
        """See :class:`AdbcWarehouse`; literals are read in one way, whatever the account has set."""
        session.execute("ALTER SESSION SET TIMEZONE = 'UTC', TIMESTAMP_INPUT_FORMAT = 'AUTO'")
        return super().begin(session)

    def columns_query(self) -> str:
        """See :class:`HostedWarehouse`."""
        database, schema, table = (name.upper() if _PLAIN.fullmatch(name) else name for name in self._names)
        return (
            f"SELECT column_name, data_type, is_nullable FROM {_written(database)}.information_schema.columns "  # noqa: S608
            f"WHERE table_schema = {self.text(schema)} AND table_name = {self.text(table)}"
        )

    def text(self, value: str) -> str:
        """See :class:`AdbcWarehouse`; a backslash escapes."""
        return super().text(value.replace("\\", "\\\\"))

    def time(self, micros: int) -> str:
        """See :class:`AdbcWarehouse`."""
        return f"CAST({super().time(micros).removeprefix('TIMESTAMP WITH TIME ZONE ')} AS TIMESTAMP_TZ)"

    def within(self, first: int, last: int) -> str:
        """See :class:`AdbcWarehouse`; a time may have nanoseconds, which its microseconds here do not."""
        return f"ingested_at >= {self.time(first)} AND ingested_at < {self.time(last + 1)}"

    def as_text(self, column: str) -> str:
        """See :class:`AdbcWarehouse`."""
        return f"TO_JSON({column})" if self.kind_of(column) in ("VARIANT", "OBJECT") else column

    def is_sampled(self, one_of: int) -> str:
        """See :class:`AdbcWarehouse`; of what is read, the time counts."""
        return f"MOD(HASH(id), {one_of}) = 0"

    def column(self, name: str) -> str:
        """See :class:`AdbcWarehouse`."""
        return f"DATE_TRUNC('MICROSECOND', {name})" if COLUMNS[name] == "time" else name


def _written(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'
