"""What hosted warehouses share: their columns are looked up by name, and nothing spans two statements."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import duckdb

from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.warehouse.adbc import AdbcWarehouse
from nami_amp_pipeline.warehouse.adbc_session import Session
from nami_amp_pipeline.warehouse.base import Finding, Kind, check_columns

if TYPE_CHECKING:
    from nami_amp_pipeline.settings import Settings


class Address(NamedTuple):
    """The parts of ``NAMI_AMP_WAREHOUSE_URL``, decoded.

    Attributes:
        user, password, host: empty where there is none.
        path: its names.
        more: what follows the question mark.
    """

    user: str
    password: str
    host: str
    path: tuple[str, ...]
    more: Mapping[str, str]


def parse(settings: Settings, spelled: str, known: Collection[str]) -> Address:
    """Takes the address of the settings apart.

    Args:
        settings: with the address.
        spelled: how such an address is written, for the message.
        known: names that may follow the question mark.

    Raises:
        Misconfigured: it cannot be parsed. The message repeats nothing of it.
    """
    wrong = Misconfigured(
        f"NAMI_AMP_WAREHOUSE_URL cannot be parsed as {spelled}; in a name or password, write '@' as %40, '/' as %2F, "
        "':' as %3A, '?' as %3F, '#' as %23 and '%' as %25"
    )
    try:
        parts = urlsplit(settings.warehouse_url)
        more = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        raise wrong from None
    if parts.fragment or "@" in parts.netloc.rpartition("@")[0]:
        raise wrong
    unknown = sorted(set(more) - set(known))
    if unknown:
        raise Misconfigured(f"NAMI_AMP_WAREHOUSE_URL: unknown option; there are {', '.join(known)}")
    path = tuple(unquote(name) for name in parts.path.split("/") if name)
    return Address(unquote(parts.username or ""), unquote(parts.password or ""), unquote(host), path, more)


class HostedWarehouse(AdbcWarehouse):
    """A table that a hosted database reads, without a transaction around the statements of a reading.

    Rows that arrive between two statements are left to the next reading. None may be deleted meanwhile.

    Attributes:
        types: what each kind of column may be.
        called: the table as people call it.
        place: where it is, as people say it.
        secrets: what no message may repeat.
    """

    types: Mapping[Kind, tuple[str, ...]]
    called: str
    place: str
    secrets: Iterable[str] = ()
    _columns: Mapping[str, tuple[str, bool]]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def name(self) -> str:
        """See :class:`AdbcWarehouse`."""
        return f"{self.called} in {self.place}"

    @abstractmethod
    def columns_query(self) -> str:
        """A query for name, type, and YES or NO for whether it may be null, of each column of the table."""

    def begin(self, session: Session) -> list[str]:
        """See :class:`AdbcWarehouse`."""
        rows = session.rows(self.columns_query())
        if not rows:
            raise WarehouseUnavailable(
                f"there is no table {self.called} in {self.place}, or the role may not see it; another name is set "
                "with NAMI_AMP_WAREHOUSE_SCHEMA and NAMI_AMP_WAREHOUSE_TABLE"
            )
        self._columns = {name.lower(): (kind.partition("(")[0], null != "NO") for name, kind, null in rows}
        check_columns({name: kind for name, (kind, _) in self._columns.items()}, self.called, self.types)
        return []

    def kind_of(self, column: str) -> str:
        """The type of a column, once a reading has begun."""
        return self._columns[column][0]

    def may_be_null(self, column: str) -> bool:
        """See :class:`AdbcWarehouse`."""
        return self._columns[column][1]

    def check(self) -> list[Finding]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        findings: list[Finding] = []
        try:
            with self._session() as session:
                session.rows("SELECT 1 AS one")
                findings.append(Finding("connection", "ok", f"{self.place} answers"))
                self.begin(session)
                findings.append(Finding("columns", "ok", f"{self.called} has all columns and is readable"))
                with duckdb.connect(":memory:") as connection:
                    findings += [row.finding for row in self.unplaced(session, connection, None)]
        except (WarehouseUnavailable, Misconfigured) as error:
            findings.append(Finding("columns" if findings else "connection", "error", str(error)))
        return findings

    def explain(self, error: Exception) -> str:
        """See :class:`AdbcWarehouse`."""
        said = " ".join(str(error).split())
        for secret in sorted(filter(None, self.secrets), key=len, reverse=True):
            said = said.replace(secret, "…")
        return f"cannot read {self.name}: {said[:300]}"


def driver(module: str, extra: str) -> Any:
    """A driver's module, which an extra of this package installs.

    Raises:
        Misconfigured: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise Misconfigured(
            f"the driver for this warehouse is missing: pip install 'nami-amp-pipeline[{extra}]'"
        ) from None
