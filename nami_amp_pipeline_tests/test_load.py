"""Loading: every good line, no bad one, each bad one named; a file whole or not at all."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.sample import generate, to_webhook_ndjson
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.warehouse import duckdb_attach
from nami_amp_pipeline.warehouse import duckdb_load as loading
from nami_amp_pipeline.warehouse.duckdb_load import LoadReport, load
from nami_amp_pipeline_tests.support.command_line import event

NOW = 1_788_220_800.25


def settings(folder: Path, **more: str) -> Settings:
    return Settings.load({"NAMI_AMP_HOME": str(folder / "home"), **more})


def loaded(folder: Path, *texts: bytes, app: str = "radio") -> LoadReport:
    files = []
    for number, text in enumerate(texts):
        files.append(folder / f"file-{number}")
        files[-1].write_bytes(text)
    return load(settings(folder), files, app, clock=lambda: NOW)


def rows(folder: Path, query: str = "SELECT id FROM nami_events ORDER BY rowid") -> list[Any]:
    with duckdb.connect(str(folder / "home" / "warehouse.duckdb"), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.execute(query).fetchall()
    return [row[0] if len(row) == 1 else row for row in found]


def line(**changes: object) -> bytes:
    whole = {
        "id": "i",
        "event_type": "user.x",
        "user_id": "u",
        "created_date": "2026-09-01T00:00:00Z",
        **changes,
    }
    return orjson.dumps({key: value for key, value in whole.items() if value is not ...})


def bad(report: LoadReport) -> Sequence[tuple[int | None, str]]:
    return [(one.line, one.why) for one in report.bad]


def test_a_line_becomes_a_row(tmp_path: Path) -> None:
    text = b'{"id":"i1","event_type":"user.x","user_id":"\xc3\x84 ",'
    text += b'"created_date":"2026-09-01T02:00:00.000001+02:00","a":[1, 2]}'
    report = loaded(tmp_path, text)
    assert (report.rows, report.bad) == (1, [])
    columns = "id, app_id, event_type, user_id, epoch_us(created_date), epoch_us(ingested_at), payload"
    assert rows(tmp_path, f"SELECT {columns} FROM nami_events") == [
        ("i1", "radio", "user.x", "Ä ", 1_788_220_800_000_001, 1_788_220_800_250_000, text.decode())
    ]


@pytest.mark.parametrize(
    "spelling", ["2026-09-01T00:00:00Z", "2026-09-01T00:00:00.000000Z", "2026-09-01T00:00:00.000000+00:00"]
)
def test_three_spellings_of_a_time(tmp_path: Path, spelling: str) -> None:
    loaded(tmp_path, line(created_date=spelling))
    assert rows(tmp_path, "SELECT epoch_us(created_date) FROM nami_events") == [1_788_220_800_000_000]


def test_bom_crlf_empty_lines_and_no_last_newline(tmp_path: Path) -> None:
    report = loaded(tmp_path, b"\xef\xbb\xbf" + event(1) + b"\r\n\r\n  \n\t\n" + event(2) + b"\r\n\n" + event(3))
    assert (report.rows, report.bad) == (3, [])
    assert rows(tmp_path) == ["event-1", "event-2", "event-3"]


@pytest.mark.parametrize("text", [b"", b"\n", b"\r\n\r\n", b"\xef\xbb\xbf"])
def test_nothing_in_a_file_is_nothing_loaded(tmp_path: Path, text: bytes) -> None:
    report = loaded(tmp_path, text)
    assert (report.rows, report.bad) == (0, [])


def test_gzip_is_told_by_the_content(tmp_path: Path) -> None:
    two_members = gzip.compress(event(1) + b"\n") + gzip.compress(event(2) + b"\n")
    assert loaded(tmp_path, two_members, event(3)).rows == 3


def test_a_pipe_is_as_good_as_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = gzip.compress(event(1) + b"\n" + event(2))
    with ThreadPoolExecutor(1) as pool:
        pool.submit((tmp_path / "pipe").write_bytes, text)
        assert load(settings(tmp_path), [tmp_path / "pipe"], "radio").rows == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"nonsense", "not JSON"),
        (b'{"id":"x"', "not JSON"),
        (line() + b" trailing", "not JSON"),
        (line()[:-1] + b",}", "not JSON"),
        (line()[:-1] + b',"a":[1,]}', "not JSON"),
        (line()[:-1] + b',"a":NaN}', "not JSON"),
        (line()[:-1] + b',"a":-Infinity}', "not JSON"),
        (line()[:-1] + b',"a":[inf]}', "not JSON"),
        (line()[:-1] + b',"a":01}', "not JSON"),
        (line()[:-1] + b',"a":"\x01"}', "not JSON"),
        (line()[:-1] + b',"a":"\xff"}', "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"7", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "no id"),
        (line(id=...), "no id"),
        (line(id=None), "no id"),
        (line(id=" "), "no id"),
        (line(id=7), "id is not a text"),
        (line(event_type=...), "no event_type"),
        (line(event_type=["a"]), "event_type is not a text"),
        (line(user_id=""), "no user_id"),
        (line(user_id=1), "user_id is not a text"),
        (line(created_date=...), "no created_date"),
        (line(created_date=1788220800), "created_date is not a text"),
        *(
            (line(created_date=text), f'created_date "{text}" is not a time such as 2026-09-01T12:00:00Z')
            for text in ("yesterday", "2026-09-01", "2026-09-01T00:00:00", "2026-13-01T00:00:00Z", "infinity", "now")
        ),
    ],
)
def test_a_bad_line_is_named_and_the_good_ones_are_loaded(tmp_path: Path, text: bytes, why: str) -> None:
    report = loaded(tmp_path, event(1) + b"\n\n" + text + b"\n" + event(2))
    assert bad(report) == [(3, why)]
    assert rows(tmp_path) == ["event-1", "event-2"]
    assert str(report.bad[0]) == f"{tmp_path}/file-0:3: {why}"


def test_what_only_looks_doubtful_is_loaded_as_it_is(tmp_path: Path) -> None:
    harmless = line(a=",}", b="[NaN]", c=": -Infinity", d=1e10, e=[None, 12.5e-3], f="\u2028 \U0001f600", g=",]")
    report = loaded(tmp_path, harmless)
    assert (report.rows, report.bad) == (1, [])
    assert rows(tmp_path, "SELECT payload FROM nami_events") == [harmless.decode()]


@pytest.mark.parametrize("odd", [b'"a":1e999', b'"a":"\\ud800"', b'"\\ud83d":1', b'"a":' + b"[" * 2_000 + b"]" * 2_000])
def test_odd_json_is_json(tmp_path: Path, odd: bytes) -> None:
    text = line()[:-1] + b"," + odd + b"}"
    report = loaded(tmp_path, text)
    assert (report.rows, report.bad) == (1, [])
    assert rows(tmp_path, "SELECT payload FROM nami_events") == [text.decode()]


def test_lines_are_numbered_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BLOCK_BYTES", 1_000)
    monkeypatch.setattr(loading, "MAX_LINE_BYTES", 5_000)
    lines = [event(number) for number in range(60)]
    lines[20] = b"bad"
    lines[30] = b'"' + b"x" * 20_000 + b'"'
    lines[40] = b"\n" * 1_500
    lines[50] = line(id="long", a="y" * 4_000)
    lines[59] = b"worse"
    report = loaded(tmp_path, b"\n".join(lines))
    assert bad(report) == [(21, "not JSON"), (31, "longer than 0 MB"), (1560, "not JSON")]
    assert (report.rows, report.bad_lines) == (56, 3)
    assert len(rows(tmp_path)) == 56


def test_an_overlong_last_line_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BLOCK_BYTES", 1_000)
    monkeypatch.setattr(loading, "MAX_LINE_BYTES", 2_000)
    report = loaded(tmp_path, event(1) + b"\n" + b"x" * 10_000)
    assert [one.line for one in report.bad] == [2]
    assert report.rows == 1


@pytest.mark.slow
@pytest.mark.slow_cases
@pytest.mark.parametrize("spoil", ["cut", "damage"])
def test_a_broken_gzip_is_left_out_whole(tmp_path: Path, spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BLOCK_BYTES", 10_000)
    text = gzip.compress(b"\n".join(event(number) for number in range(5_000)))
    broken = (
        text[: len(text) // 2] if spoil == "cut" else text[: len(text) // 2] + b"\x00" * 500 + text[len(text) // 2 :]
    )
    report = loaded(tmp_path, event(1), broken, event(2))
    assert rows(tmp_path) == ["event-1", "event-2"]
    assert report.bad_files == 1
    assert report.bad[0].line is None
    assert "nothing of this file was loaded" in str(report.bad[0])


def test_bad_lines_are_counted_where_they_are_too_many_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_BAD_LINES", 5)
    report = loaded(tmp_path, b"x\n" * 12, b"y\n" * 3 + event(1))
    assert (report.rows, report.bad_lines, len(report.bad)) == (1, 15, 5)


def test_loading_again_adds_the_rows_again(tmp_path: Path) -> None:
    loaded(tmp_path, event(1))
    loaded(tmp_path, event(1))
    assert rows(tmp_path) == ["event-1", "event-1"]


def test_samples_load_as_their_columns_say(tmp_path: Path) -> None:
    file = tmp_path / "sample.ndjson"
    batches = list(generate(100, apps=("radio",)))
    file.write_bytes(b"".join(to_webhook_ndjson(batch) for batch in batches))
    heard: list[int] = []
    report = load(settings(tmp_path), [file], "radio", progress=heard.append)
    wanted = sorted(
        (row["id"], row["event_type"], row["user_id"], row["created_date"])
        for batch in batches
        for row in batch.to_pylist()
    )
    assert report.rows == len(wanted)
    assert sum(heard) == file.stat().st_size
    assert sorted(rows(tmp_path, "SELECT id, event_type, user_id, created_date FROM nami_events")) == wanted


def test_table_and_schema_of_the_settings_are_made(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(event(1))
    own = settings(tmp_path, NAMI_AMP_WAREHOUSE_SCHEMA="raw", NAMI_AMP_WAREHOUSE_TABLE="webhook")
    assert load(own, [file], "radio").rows == 1
    assert rows(tmp_path, "SELECT id FROM raw.webhook") == ["event-1"]


class TestRefusals:
    def test_all_files_must_be_there_before_any_is_loaded(self, tmp_path: Path) -> None:
        (tmp_path / "good").write_bytes(event(1))
        for missing, why in ((tmp_path / "none", "there is no file"), (tmp_path, "is a folder")):
            with pytest.raises(Misconfigured, match=why):
                load(settings(tmp_path), [tmp_path / "good", missing], "radio")
        assert not (tmp_path / "home").exists()

    def test_app_ids_are_checked(self, tmp_path: Path) -> None:
        with pytest.raises(Misconfigured, match="app id"):
            loaded(tmp_path, event(1), app="ra/dio")

    def test_another_warehouse_is_filled_by_other_means(self, tmp_path: Path) -> None:
        with pytest.raises(Misconfigured, match="COPY"):
            load(settings(tmp_path, NAMI_AMP_WAREHOUSE_URL="postgresql://u@h/d"), [], "radio")

    def test_a_table_of_another_shape(self, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        with duckdb.connect(str(tmp_path / "home" / "warehouse.duckdb")) as connection:
            connection.execute("CREATE TABLE nami_events AS SELECT 1 AS id")
        with pytest.raises(WarehouseUnavailable, match="column id of table nami_events is INTEGER"):
            loaded(tmp_path, event(1))

    def test_what_is_no_duckdb_file(self, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "warehouse.duckdb").write_text("something else " * 1_000)
        with pytest.raises(WarehouseUnavailable, match="as a DuckDB file"):
            loaded(tmp_path, event(1))

    def test_a_file_in_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "home").write_text("")
        with pytest.raises(WarehouseUnavailable, match="cannot create the folder"):
            loaded(tmp_path, event(1))

    def test_a_locked_file_is_waited_for_and_then_said(self, tmp_path: Path) -> None:
        loaded(tmp_path, event(1))
        path = tmp_path / "home" / "warehouse.duckdb"
        program = f"import duckdb; c = duckdb.connect({str(path)!r}); print('held', flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            waits: list[float] = []
            with pytest.raises(WarehouseUnavailable, match="locked by another process"):
                load(settings(tmp_path), [tmp_path / "file-0"], "radio", sleep=waits.append)
            assert sum(waits) >= duckdb_attach.LOCK_PATIENCE_SECONDS

            def release(_seconds: float) -> None:
                if holder.poll() is None:
                    holder.communicate("\n")

            assert load(settings(tmp_path), [tmp_path / "file-0"], "radio", sleep=release).rows == 1
        assert rows(tmp_path) == ["event-1", "event-1"]
