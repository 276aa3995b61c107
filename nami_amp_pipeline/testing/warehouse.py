"""What a warehouse must do, as tests: late rows, ties, rows that come again, odd texts, times, and what is unavailable.

```python
class TestMine(WarehouseSuite):
    def address(self, folder):
        return f"mine://{folder}/events"

    def load(self, address, rows):
        ...  # appends the rows of an Arrow table
```
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages.pipeline import run_stage
from nami_amp_pipeline.stages.table import CAPTURE
from nami_amp_pipeline.state.integrations import NewIntegration, add
from nami_amp_pipeline.storage.duckdb_engine import compute, files
from nami_amp_pipeline.warehouse import Warehouse, open_warehouse

_TIME: Final = pa.timestamp("us", tz="UTC")

SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("app_id", pa.string()),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("created_date", _TIME),
        ("ingested_at", _TIME),
        ("payload", pa.string()),
    ]
)
"""Of the rows that a suite loads."""

NOON: Final = datetime(2026, 9, 1, 12, tzinfo=UTC)

MANY: Final = 2_500
"""More rows than a warehouse may read along with those that are wanted."""


class WarehouseSuite:
    """Subclass it, and give an empty warehouse and how rows get into it. Each test begins with a new folder."""

    def address(self, folder: Path) -> str:
        """The address of an empty events table, for ``NAMI_AMP_WAREHOUSE_URL``.

        Args:
            folder: that nothing else uses.
        """
        raise NotImplementedError

    def load(self, address: str, rows: pa.Table) -> None:
        """Appends rows to the events table.

        Args:
            address: what :meth:`address` gave.
            rows: of :data:`SCHEMA`.
        """
        raise NotImplementedError

    def missing(self, folder: Path) -> str:
        """The address of a warehouse that is not there; it may hold the password ``hush``, which no error repeats."""
        raise NotImplementedError

    def setup_method(self) -> None:
        """Makes the folder."""
        self._folder = tempfile.TemporaryDirectory()
        home = Path(self._folder.name)
        self.url = self.address(home)
        self.now = NOON + timedelta(hours=1)
        self.settings = Settings(home=home / "home", warehouse_url=self.url)
        self.context = Context.open(self.settings, run_id="test", clock=lambda: self.now.timestamp())

    def teardown_method(self) -> None:
        """Removes it."""
        self.context.store.close()
        self._folder.cleanup()

    def insert(self, *rows: Mapping[str, Any]) -> None:
        """Loads rows made by :func:`row`."""
        self.load(self.url, pa.Table.from_pylist([dict(each) for each in rows], schema=SCHEMA))

    def capture(self) -> list[dict[str, Any]]:
        """Runs the first stage; returns what is new, in the order of the ids."""
        run_stage(self.context, CAPTURE, ["app"])
        seen = set(getattr(self, "_seen", set()))
        paths = sorted(path for path in self.settings.data_dir.rglob("*.parquet") if "segments" in path.parts)
        new = [path for path in paths if path not in seen]
        self._seen = set(paths)
        if not new:
            return []
        with compute(self.settings) as connection:
            columns = ", ".join(SCHEMA.names)
            query = f"SELECT {columns} FROM read_parquet({files(new)}) ORDER BY id"  # noqa: S608
            found: list[dict[str, Any]] = connection.sql(query).to_arrow_table().to_pylist()
        return found

    def integrate(self) -> None:
        """Adds an integration, without which nothing of an app is captured."""
        key = Secret("0" * 32)
        new = NewIntegration("app", "main", contract.ENDPOINTS["us"], api_key=key, user_id_kind="nami_user_id")
        add(self.context.store, self.context.cipher, new)

    @contextmanager
    def warehouse(self) -> Iterator[tuple[Warehouse, Any]]:
        """The warehouse, with a connection to read into."""
        with compute(self.settings) as connection:
            yield open_warehouse(self.settings), connection

    def ids(self) -> list[str]:
        """Ids of what is new."""
        return [each["id"] for each in self.capture()]

    def test_rows_are_read_once_and_as_they_are(self) -> None:
        """Texts of any kind, empty ones, and times to the microsecond."""
        self.integrate()
        given = [
            row("a", 0, payload='{"text": "ä\\u0000 \\"quoted\\" \'single\' 🦆"}'),
            row("b", 1, user_id="o'brien", created_date=NOON + timedelta(microseconds=1)),
            row("c", 2, event_type="user.new.kind", payload="not JSON at all"),
            row("id with spaces; and 'quotes'", 3),
        ]
        self.insert(*given)
        found = self.capture()
        assert [each["id"] for each in found] == sorted(each["id"] for each in given)
        by_id = {each["id"]: each for each in given}
        for each in found:
            wanted = by_id[each["id"]]
            assert each["user_id"] == wanted["user_id"]
            assert each["event_type"] == wanted["event_type"]
            assert each["payload"] == wanted["payload"]
            for name in ("created_date", "ingested_at"):
                assert from_datetime(each[name]) == from_datetime(wanted[name])
        assert self.ids() == []

    def test_times_of_another_zone_are_the_same_moment(self) -> None:
        """A row has no zone of its own."""
        self.integrate()
        local = NOON.astimezone(tz=datetime.strptime("+0530", "%z").tzinfo)
        self.insert(row("a", 0, created_date=local))
        ((found),) = self.capture()
        assert from_datetime(found["created_date"]) == from_datetime(NOON)

    def test_a_row_that_becomes_visible_late_is_read(self) -> None:
        """With an earlier time than rows that were read, within the late-commit window."""
        self.integrate()
        self.insert(row("b", 10))
        assert self.ids() == ["b"]
        self.insert(row("a", 9))
        assert self.ids() == ["a"]

    def test_rows_at_the_same_instant_are_all_read(self) -> None:
        """Also where some of them come later."""
        self.integrate()
        self.insert(*(row(f"a{number}", 5) for number in range(3)))
        assert self.ids() == ["a0", "a1", "a2"]
        self.insert(*(row(f"b{number}", 5) for number in range(2)))
        assert self.ids() == ["b0", "b1"]

    def test_a_row_that_is_loaded_again_is_not_captured_again(self) -> None:
        """Neither with the same time nor with a later one, nor twice at once."""
        self.integrate()
        self.insert(row("a", 0), row("a", 0), row("b", 1))
        assert self.ids() == ["a", "b"]
        self.insert(row("a", 0), row("b", 20), row("c", 20))
        assert self.ids() == ["c"]

    def test_a_quiet_run_over_many_known_rows(self) -> None:
        """And one with a single new row among them."""
        self.integrate()
        self.insert(*(row(f"{number:05}", number / 1000) for number in range(MANY)))
        assert len(self.ids()) == MANY
        assert self.ids() == []
        self.insert(row("new", MANY / 1000))
        assert self.ids() == ["new"]
        assert self.ids() == []

    def test_rows_of_other_apps_are_left(self) -> None:
        """Of apps without an integration nothing is captured, and they are still told of."""
        self.integrate()
        self.insert(row("a", 0), row("x", 1, app_id="other"))
        assert self.ids() == ["a"]
        with self.warehouse() as (warehouse, connection):
            assert sorted(warehouse.app_ids(connection)) == ["app", "other"]

    def test_rows_without_an_id_or_a_place_do_not_stop_the_others(self) -> None:
        """Where the table allows them; one that does not, with whatever error, is fine."""
        self.integrate()
        try:
            self.insert(row("a", 0), {**row("", 1), "ingested_at": None})
        except Exception:  # noqa: BLE001
            self.insert(row("a", 0))
        assert self.ids() == ["a"]

    def test_few_rows_are_the_same_as_all_rows(self) -> None:
        """Heavy rows are read by their numbers."""
        self.insert(*(row(f"{number:03}", number) for number in range(60)))
        with self.warehouse() as (warehouse, connection), warehouse.open(connection, {"app": None}) as source:
            keys = dict(connection.execute(f"SELECT id, rid FROM {source.keys}").fetchall())  # noqa: S608
            assert len(set(keys.values())) == 60
            wanted = sorted(keys[f"{number:03}"] for number in (0, 1, 2, 30, 59))
            connection.execute("CREATE TEMP TABLE fresh AS SELECT unnest(?::BIGINT[]) AS rid, ?::TIMESTAMPTZ AS "
                               "ingested_at, 'app' AS app_id", [wanted, NOON])  # fmt: skip
            for is_few in (True, False):
                relation = source.few(wanted) if is_few else source.rows()
                query = f"SELECT DISTINCT id, rid FROM {relation} SEMI JOIN fresh USING (rid) ORDER BY id"  # noqa: S608
                found = connection.execute(query).fetchall()
                assert found == sorted((ident, rid) for ident, rid in keys.items() if rid in wanted)

    def test_what_is_unread_is_counted(self) -> None:
        """By app, after its position."""
        self.insert(row("a", 0), row("b", 10), row("c", 20), row("x", 30, app_id="other"))
        at = [from_datetime(NOON + timedelta(minutes=minutes)) for minutes in (0, 10, 20, 30)]
        with self.warehouse() as (warehouse, connection):
            assert warehouse.unread(connection, {"app": at[0], "other": None}) == {
                "app": (2, at[1]),
                "other": (1, at[3]),
            }
            assert warehouse.oldest(connection, ["app", "other"], at[1]) == {"app": at[2], "other": at[3]}
            assert warehouse.unread(connection, {}) == {}

    def test_an_event_is_found(self) -> None:
        """All rows with its id."""
        self.insert(row("a", 0), row("a", 5), row("b", 1))
        with self.warehouse() as (warehouse, connection):
            found = warehouse.find(connection, "a")
            assert [each.ingested_at for each in found.rows] == [
                from_datetime(NOON + timedelta(minutes=minutes)) for minutes in (0, 5)
            ]
            assert list(warehouse.find(connection, "no such id ' OR true").rows) == []

    def test_an_empty_table_is_no_error(self) -> None:
        """Nor has the check anything against it."""
        self.integrate()
        assert self.ids() == []
        assert not [finding for finding in open_warehouse(self.settings).check() if finding.level == "error"]

    def test_what_is_not_there_is_said_in_a_line_without_a_secret(self) -> None:
        """By reading and by the check."""
        address = self.missing(Path(self._folder.name))
        settings = self.settings.replace(warehouse_url=address)
        warehouse = open_warehouse(settings)
        said = [finding.message for finding in warehouse.check() if finding.level == "error"]
        assert said
        with compute(settings) as connection:
            try:
                with warehouse.open(connection, {"app": None}):
                    raise AssertionError("it was read although it is not there")
            except WarehouseUnavailable as error:
                said.append(str(error))
        for line in (*said, warehouse.name):
            assert "\n" not in line
            assert "hush" not in line


def row(ident: str, minutes: float, **other: Any) -> dict[str, Any]:
    """A row that was created and loaded some minutes after noon."""
    at = NOON + timedelta(minutes=minutes)
    return {
        "id": ident,
        "app_id": "app",
        "event_type": "user.subscription.renewed",
        "user_id": "u",
        "created_date": at,
        "ingested_at": at,
        "payload": '{"n": 1}',
        **other,
    }


def rows_of(table: pa.Table) -> Sequence[Mapping[str, Any]]:
    """The rows of an Arrow table as objects, for drivers that take no Arrow."""
    found: list[dict[str, Any]] = table.to_pylist()
    return found
