"""The suite of warehouses on files in a bucket, on Delta Lake and on Iceberg; and what each of them refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog
from pyiceberg.types import StringType
from pyiceberg.utils.config import Config

from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.testing import WarehouseSuite
from nami_amp_pipeline.testing.warehouse import SCHEMA, row
from nami_amp_pipeline.warehouse import open_warehouse
from nami_amp_pipeline.warehouse.bucket_files import BucketFiles
from nami_amp_pipeline.warehouse.parquet_files import ParquetFiles
from nami_amp_pipeline_tests.support.bucket import S3, bucket, moto_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with moto_server() as port, pytest.MonkeyPatch.context() as patch, bucket(port, patch) as made:
        yield made


class InBucket(WarehouseSuite):
    _numbers = count()

    @pytest.fixture(autouse=True)
    def _set_up(self, s3: S3) -> None:
        self.s3 = s3
        super().setup_method()

    def setup_method(self) -> None:
        """Waits for the bucket, which only a fixture can give."""


class TestParquetInABucket(InBucket):
    def address(self, folder: Path) -> str:
        return f"parquet+s3://{self.s3.bucket}/events-{next(self._numbers)}"

    def load(self, address: str, rows: pa.Table) -> None:
        _put(self.s3, rows, f"{self._prefix(address)}/day=1/{next(self._numbers):06}.parquet")

    def _prefix(self, address: str) -> str:
        return address.removeprefix(f"parquet+s3://{self.s3.bucket}/")

    def missing(self, folder: Path) -> str:
        return "parquet+s3://none-such/events"

    def test_what_is_written_aside_is_not_read(self) -> None:
        self.integrate()
        prefix = self._prefix(self.url)
        given = pa.Table.from_pylist([row("aside", 0)], schema=SCHEMA)
        for name in ("_temporary/a.parquet", ".b.parquet", "c.parquet.tmp"):
            _put(self.s3, given, f"{prefix}/{name}")
        _put(self.s3, given, f"{prefix}-elsewhere/d.parquet")
        self.insert(row("read", 1))
        assert self.ids() == ["read"]


def test_threads_read_one_file_each_at_its_own_place(s3: S3) -> None:
    text = bytes(range(256)) * 400
    s3.client.put_object(Bucket=s3.bucket, Key="threads/bytes", Body=text)
    file = BucketFiles("s3").open(f"s3://{s3.bucket}/threads/bytes", "rb")
    places = [(number * 997 % len(text), 50 + number) for number in range(60)]
    together = threading.Barrier(4)

    def read(mine: list[tuple[int, int]]) -> list[bytes]:
        found = []
        for place, length in mine:
            file.seek(place)
            together.wait()
            found.append(file.read(length))
        return found

    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(read, [places[number::4] for number in range(4)]))
    for number, part in enumerate(parts):
        assert part == [text[place : place + length] for place, length in places[number::4]]


class TestDelta(WarehouseSuite):
    def address(self, folder: Path) -> str:
        write_deltalake(folder / "lake", SCHEMA.empty_table(), partition_by=["app_id"])
        return f"delta://{folder}/lake"

    def load(self, address: str, rows: pa.Table) -> None:
        write_deltalake(address.removeprefix("delta://"), rows, mode="append")

    def missing(self, folder: Path) -> str:
        return f"delta://{folder}/none"

    def test_a_file_that_was_replaced_does_not_count(self) -> None:
        self.integrate()
        for number in range(3):
            self.insert(row(f"e{number}", number))
        table = DeltaTable(self.url.removeprefix("delta://"))
        table.optimize.compact()
        with self.warehouse() as (warehouse, _):
            assert isinstance(warehouse, ParquetFiles)
            assert len(warehouse.files()) == 1
        assert self.ids() == ["e0", "e1", "e2"]
        table.delete("id = 'e1'")
        assert self.ids() == []

    def test_names_of_folders_that_had_to_be_escaped(self) -> None:
        self.integrate()
        odd = "o'brien / ä:x %25"
        rows = [row("a", 0, user_id=odd), row("b", 1, user_id="")]
        write_deltalake(
            self.url.removeprefix("delta://"), pa.Table.from_pylist(rows, SCHEMA), mode="overwrite",
            partition_by=["user_id"], schema_mode="overwrite",
        )  # fmt: skip
        assert [each["user_id"] for each in self.capture()] == [odd, ""]


class TestDeltaInABucket(InBucket):
    def address(self, folder: Path) -> str:
        address = f"s3://{self.s3.bucket}/delta-{next(self._numbers)}"
        write_deltalake(address, SCHEMA.empty_table(), storage_options=_PLAIN)
        return f"delta+{address}"

    def load(self, address: str, rows: pa.Table) -> None:
        write_deltalake(address.removeprefix("delta+"), rows, mode="append", storage_options=_PLAIN)

    def missing(self, folder: Path) -> str:
        return "delta+s3://none-such/events"


class TestIceberg(WarehouseSuite):
    @pytest.fixture(autouse=True)
    def _set_up(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PYICEBERG_CATALOG__NAMI__TYPE", "sql")
        monkeypatch.setenv("PYICEBERG_CATALOG__NAMI__URI", f"sqlite:///{tmp_path}/catalog.db")
        monkeypatch.setenv("PYICEBERG_CATALOG__NAMI__WAREHOUSE", f"file://{tmp_path}/lake")
        monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # which was read when this was imported
        super().setup_method()

    def setup_method(self) -> None:
        """Waits for the catalog, which only a fixture can name."""

    def address(self, folder: Path) -> str:
        catalog = load_catalog("nami")
        catalog.create_namespace("app")
        catalog.create_table("app.events", schema=SCHEMA)
        return "iceberg://nami/app.events"

    def load(self, address: str, rows: pa.Table) -> None:
        load_catalog("nami").load_table("app.events").append(rows)

    def missing(self, folder: Path) -> str:
        return "iceberg://nami/app.none"

    def test_a_table_with_another_past_is_refused(self) -> None:
        self.integrate()
        self.insert(row("a", 0))
        with load_catalog("nami").load_table("app.events").update_schema() as update:
            update.rename_column("payload", "body")
            update.add_column("more", StringType())
        with load_catalog("nami").load_table("app.events").update_schema() as update:
            update.rename_column("body", "payload")
        with self.warehouse() as (warehouse, connection), pytest.raises(WarehouseUnavailable, match="were renamed"):
            warehouse.app_ids(connection)

    def test_a_column_more_is_no_trouble(self) -> None:
        self.integrate()
        self.insert(row("a", 0))
        with load_catalog("nami").load_table("app.events").update_schema() as update:
            update.add_column("more", StringType())
        self.load(self.url, pa.Table.from_pylist([{**row("b", 1), "more": "x"}], SCHEMA.append(_MORE)))
        assert self.ids() == ["a", "b"]


def test_a_delta_table_whose_columns_have_other_names_in_its_files_is_refused(tmp_path: Path) -> None:
    mapped = {"delta.columnMapping.mode": "name", "delta.minReaderVersion": "2", "delta.minWriterVersion": "5"}
    log = tmp_path / "_delta_log"
    write_deltalake(tmp_path, SCHEMA.empty_table())
    first = log / "00000000000000000000.json"
    spelled = ", ".join(f'"{name}": "{value}"' for name, value in mapped.items())
    first.write_text(first.read_text().replace('"configuration":{}', f'"configuration":{{{spelled}}}'))
    with pytest.raises(WarehouseUnavailable, match="columnMapping"):
        _files(f"delta://{tmp_path}")


@pytest.mark.parametrize("url", ["iceberg://nami", "iceberg://nami/events", "parquet+s3:///events"])
def test_an_address_that_names_no_table_is_one_line(url: str) -> None:
    with pytest.raises(Misconfigured, match="NAMI_AMP_WAREHOUSE_URL must be"):
        open_warehouse(Settings(warehouse_url=url))


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("parquet+s3://lake/a", "obstore.store", "object-storage"),
        ("delta:///lake", "deltalake", "delta"),
        ("iceberg://nami/app.events", "pyiceberg.catalog", "iceberg"),
    ],
)
def test_a_library_that_is_missing_is_one_line(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(Misconfigured, match=rf"pip install 'nami-amp-pipeline\[{extra}\]'"):
        open_warehouse(Settings(warehouse_url=url))


_PLAIN = {"AWS_ALLOW_HTTP": "true"}
_MORE = pa.field("more", pa.string())


def _put(s3: S3, rows: pa.Table, key: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=sink.getvalue().to_pybytes())


def _files(url: str) -> list[str]:
    warehouse = open_warehouse(Settings(warehouse_url=url))
    assert isinstance(warehouse, ParquetFiles)
    return list(warehouse.files())
