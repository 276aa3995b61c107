"""BigQuery as the warehouse. Written from its documentation and never tried on a real project.

Sources: https://arrow.apache.org/adbc/current/driver/bigquery.html and
https://cloud.google.com/bigquery/docs/reference/standard-sql/lexical.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.warehouse.adbc_session import Session
from nami_amp_pipeline.warehouse.base import Kind
from nami_amp_pipeline.warehouse.hosted import HostedWarehouse, driver, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adbc_driver_manager.dbapi import Connection

    from nami_amp_pipeline.settings import Settings

_SPELLED: Final = "bigquery://PROJECT/DATASET"
_MORE: Final = ("location", "credentials_file")
_SQL: Final = "adbc.bigquery.sql"
_NAME: Final = re.compile(r"[^`\\\s]+")
_ESCAPES: Final = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\x00": "\\x00"}

TYPES: Mapping[Kind, tuple[str, ...]] = {"text": ("STRING",), "time": ("TIMESTAMP",), "json": ("STRING", "JSON")}
"""The types that a column of each kind may have, as BigQuery names them."""


class BigQueryWarehouse(HostedWarehouse):
    """A table or view of BigQuery.

    Credentials are Google's application default ones, such as ``GOOGLE_APPLICATION_CREDENTIALS`` names, or those of
    ``credentials_file``.

    Raises:
        Misconfigured: the address cannot be parsed.
    """

    types = TYPES

    def __init__(self, settings: Settings) -> None:
        at = parse(settings, _SPELLED, _MORE)
        dataset = settings.warehouse_schema or "".join(at.path[:1])
        names = (at.host, dataset, settings.warehouse_table)
        if at.user or at.password or len(at.path) > 1 or not all(map(_NAME.fullmatch, names)):
            raise Misconfigured(f"NAMI_AMP_WAREHOUSE_URL must be {_SPELLED}; credentials are Google's own")
        super().__init__(f"`{'.'.join(names)}`")
        self._names = names
        self._more = at.more
        self.called = ".".join(names[1:])
        self.place = f"BigQuery project {at.host}"

    def connect(self) -> Connection:
        """See :class:`AdbcWarehouse`."""
        dbapi = driver("adbc_driver_bigquery.dbapi", "bigquery")
        db: Connection = dbapi.connect(db_kwargs=self.options(), autocommit=True)
        return db

    def options(self) -> Mapping[str, str]:
        """Of the driver."""
        found = {f"{_SQL}.project_id": self._names[0], f"{_SQL}.dataset_id": self._names[1]}
        if "location" in self._more:
            found[f"{_SQL}.location"] = self._more["location"]
        if "credentials_file" in self._more:
            found[f"{_SQL}.auth_type"] = f"{_SQL}.auth_type.json_credential_file"
            found[f"{_SQL}.auth_credentials"] = self._more["credentials_file"]
        return found

    def columns_query(self) -> str:
        """See :class:`HostedWarehouse`."""
        project, dataset, table = self._names
        return (
            f"SELECT column_name, data_type, is_nullable FROM `{project}.{dataset}`.INFORMATION_SCHEMA.COLUMNS "  # noqa: S608
            f"WHERE table_name = {self.text(table)}"
        )

    def text(self, value: str) -> str:
        """See :class:`AdbcWarehouse`; a backslash escapes, and a literal ends with its line."""
        return "'" + "".join(_ESCAPES.get(character, character) for character in value) + "'"

    def time(self, micros: int) -> str:
        """See :class:`AdbcWarehouse`."""
        return super().time(micros).replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMP")

    def as_text(self, column: str) -> str:
        """See :class:`AdbcWarehouse`."""
        return f"TO_JSON_STRING({column})" if self.kind_of(column) == "JSON" else column

    def takes_long(self, session: Session, query: str) -> bool:
        """See :class:`AdbcWarehouse`; each byte of a column that a query looks at is to be paid for."""
        return True
