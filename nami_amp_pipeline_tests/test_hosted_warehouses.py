"""Snowflake and BigQuery as far as they can be tried without either: the suite of warehouses through their dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.storage.duckdb_engine import sql
from nami_amp_pipeline.testing import WarehouseSuite
from nami_amp_pipeline.testing.warehouse import row
from nami_amp_pipeline.warehouse import open_warehouse
from nami_amp_pipeline.warehouse.bigquery import BigQueryWarehouse
from nami_amp_pipeline.warehouse.snowflake import SnowflakeWarehouse
from nami_amp_pipeline_tests.support.hosted import Told

FOLDERS = "nami_amp_pipeline.warehouse.{}.driver"


class Hosted(WarehouseSuite):
    dialect: str
    url: str
    gone: str

    @pytest.fixture(autouse=True)
    def _driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FOLDERS.format(self.dialect), lambda *_: self.told)

    def address(self, folder: Path) -> str:
        self.told = Told(self.dialect, str(folder / "w.duckdb"))
        self._file = folder / "w.duckdb"
        with duckdb.connect(str(self._file)) as connection:
            connection.execute(sql("nami_events"))
        return self.url

    def load(self, address: str, rows: pa.Table) -> None:
        with duckdb.connect(str(self._file)) as connection:
            connection.register("new_rows", rows)
            connection.execute("INSERT INTO nami_events BY NAME FROM new_rows")

    def missing(self, folder: Path) -> str:
        self._file = folder / "none.duckdb"
        self.told = Told(self.dialect, str(self._file))
        return self.gone

    def test_a_payload_of_a_json_type(self) -> None:
        """It comes as text."""
        with duckdb.connect(str(self._file)) as connection:
            connection.execute("ALTER TABLE nami_events ALTER payload TYPE JSON")
        self.integrate()
        self.insert(row("a", 0, payload='{"a":1}'))
        (found,) = self.capture()
        assert found["payload"] == '{"a":1}'
        spelled = {"snowflake": "TO_JSON(payload)", "bigquery": "TO_JSON_STRING(payload)"}[self.dialect]
        assert any(spelled in statement for statement in self.told.statements)


class TestSnowflake(Hosted):
    dialect = "snowflake"
    url = "snowflake://nami:hush@acme-eu/ANALYTICS/PUBLIC?warehouse=SMALL&role=READER"
    gone = url


class TestBigQuery(Hosted):
    dialect = "bigquery"
    url = "bigquery://acme-analytics/nami?location=EU"
    gone = url


def opened(url: str, **more: Any) -> Any:
    return open_warehouse(Settings(warehouse_url=url, **more))


def test_the_options_of_snowflakes_driver() -> None:
    warehouse = opened(TestSnowflake.url)
    assert isinstance(warehouse, SnowflakeWarehouse)
    assert warehouse.options() == {
        "username": "nami",
        "password": "hush",
        "adbc.snowflake.sql.account": "acme-eu",
        "adbc.snowflake.sql.db": "ANALYTICS",
        "adbc.snowflake.sql.schema": "PUBLIC",
        "adbc.snowflake.sql.warehouse": "SMALL",
        "adbc.snowflake.sql.role": "READER",
        "adbc.snowflake.sql.client_option.login_timeout": "30s",
        "adbc.snowflake.sql.client_option.use_high_precision": "false",
        "adbc.snowflake.sql.client_option.max_timestamp_precision": "microseconds",
    }
    assert warehouse.table == "ANALYTICS.PUBLIC.nami_events"
    assert warehouse.name == "PUBLIC.nami_events in Snowflake database ANALYTICS of acme-eu"
    quoted = opened("snowflake://n:h@a/DB/one%20schema", warehouse_table='a "b"')
    assert quoted.table == 'DB."one schema"."a ""b"""'


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ("auth=pat", {"adbc.snowflake.sql.auth_type": "auth_pat"}),
        ("auth=oauth", {"adbc.snowflake.sql.auth_type": "auth_oauth"}),
        (
            "private_key_file=/run/secrets/key.p8",
            {
                "adbc.snowflake.sql.auth_type": "auth_jwt",
                "adbc.snowflake.sql.client_option.jwt_private_key": "/run/secrets/key.p8",
            },
        ),
    ],
)
def test_snowflake_knows_who_it_is_in_several_ways(more: str, options: dict[str, str]) -> None:
    given = opened(f"snowflake://nami:hush@acme-eu/DB/S?{more}").options()
    assert options.items() <= given.items()
    assert "password" not in given
    assert (given.get("adbc.snowflake.sql.client_option.auth_token") == "hush") == ("auth=" in more)


def test_the_options_of_bigquerys_driver() -> None:
    warehouse = opened("bigquery://acme/nami?location=EU&credentials_file=/run/secrets/key.json")
    assert isinstance(warehouse, BigQueryWarehouse)
    assert warehouse.options() == {
        "adbc.bigquery.sql.project_id": "acme",
        "adbc.bigquery.sql.dataset_id": "nami",
        "adbc.bigquery.sql.location": "EU",
        "adbc.bigquery.sql.auth_type": "adbc.bigquery.sql.auth_type.json_credential_file",
        "adbc.bigquery.sql.auth_credentials": "/run/secrets/key.json",
    }
    assert warehouse.table == "`acme.nami.nami_events`"


@pytest.mark.parametrize(
    "url",
    [
        "snowflake://acme/DB/S",
        "snowflake://n:hush@acme/DB",
        "snowflake://n:hush@acme/DB/S/T",
        "snowflake://n:hush@acme/DB/S?auth=hush",
        "snowflake://n:hush@acme/DB/S?password=hush",
        "snowflake://n:hu@sh@acme/DB/S",
        "snowflake://n:hush@acme/DB/S#hush",
        "bigquery://acme",
        "bigquery://n:hush@acme/nami",
        "bigquery://acme/na`mi",
        "bigquery://acme/nami?key=hush",
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(url: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        opened(url)
    assert "NAMI_AMP_WAREHOUSE_URL" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["snowflake", "bigquery"])
def test_a_driver_that_is_missing_is_one_line(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, f"adbc_driver_{scheme}.dbapi", None)
    url = {"snowflake": TestSnowflake.url, "bigquery": TestBigQuery.url}[scheme]
    (finding,) = opened(url).check()
    assert finding.level == "error"
    assert f"pip install 'nami-amp-pipeline[{scheme}]'" in finding.message


@pytest.mark.parametrize(
    ("scheme", "value", "literal"),
    [
        ("snowflake", "o'b\\rien", "'o''b\\\\rien'"),
        ("bigquery", "o'b\\ri\nen", "'o\\'b\\\\ri\\nen'"),
    ],
)
def test_texts_are_literals_that_end_where_they_should(scheme: str, value: str, literal: str) -> None:
    url = {"snowflake": TestSnowflake.url, "bigquery": TestBigQuery.url}[scheme]
    assert opened(url).text(value) == literal


def test_a_time_with_nanoseconds_is_found_by_its_microseconds() -> None:
    warehouse = opened(TestSnowflake.url)
    assert warehouse.within(1_000_000, 2_000_000) == (
        "ingested_at >= CAST('1970-01-01T00:00:01+00:00' AS TIMESTAMP_TZ) "
        "AND ingested_at < CAST('1970-01-01T00:00:02.000001+00:00' AS TIMESTAMP_TZ)"
    )
