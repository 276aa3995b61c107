"""The readers of exports: hours, halving, patience, damaged answers, folders and buckets; no secret in an error."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from nami_amp_pipeline.amplitude.exported import (
    HOUR,
    ExportApi,
    ExportBucket,
    ExportFolder,
    ExportSource,
    export_address,
)
from nami_amp_pipeline.errors import Blocked, Misconfigured
from nami_amp_pipeline.secrets import Secret

DAY = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
HOURS = [DAY + number * HOUR for number in range(24)]
API_KEY, SECRET_KEY = "api-key-0123456789", "secret-key-9876543210"

Reply = Callable[[BaseHTTPRequestHandler, int, int], None]


def name_of(hour: int, part: int = 0) -> str:
    moment = datetime.fromtimestamp(hour / 1e6, UTC)
    return f"187520_{moment:%Y-%m-%d}_{moment.hour}#{part}.json.gz"


def gzipped(*ids: str, hour: int = DAY) -> bytes:
    moment = datetime.fromtimestamp(hour / 1e6, UTC)
    lines = [
        orjson.dumps({"$insert_id": id_, "server_upload_time": f"{moment:%Y-%m-%d %H:%M:%S}.000000"}) for id_ in ids
    ]
    return gzip.compress(b"\n".join(lines))


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"187520/{name}", content)
    return packed.getvalue()


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class Api:
    """An Export API that answers as told; ``asked`` has the hours of requests, ``waits`` how long the reader slept."""

    def __init__(self, reply: Reply, scratch: Path) -> None:
        self.asked: list[tuple[int, int]] = []
        self.authorized: list[str] = []
        self.waits: list[float] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                assert parts.path == "/api/2/export"
                given = parse_qs(parts.query)
                first, last = (
                    int(datetime.strptime(given[name][0], "%Y%m%dT%H").replace(tzinfo=UTC).timestamp()) * 1_000_000
                    for name in ("start", "end")
                )
                api.asked.append(((first - DAY) // HOUR, (last - DAY) // HOUR))
                api.authorized.append(self.headers["Authorization"])
                reply(self, first, last)

            def log_message(self, *_args: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{self.server.server_port}/2/httpapi"
        self.scratch = scratch
        self.reader = ExportApi(
            export_address(endpoint), Secret(API_KEY), Secret(SECRET_KEY), scratch, self.waits.append, timeout=5
        )


@contextmanager
def api(scratch: Path, reply: Reply) -> Iterator[Api]:
    made = Api(reply, scratch)
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()


def everything(source: ExportSource, hours: list[int]) -> tuple[list[str], set[int]]:
    """The insert ids of all files, in order, and the hours that are known to their end."""
    ids: list[str] = []
    known: set[int] = set()
    for chunk in source.read(hours):
        known |= chunk.hours
        for path in chunk.files:
            content = path.read_bytes()
            text = gzip.decompress(content) if path.suffix == ".gz" else content
            ids += [orjson.loads(line)["$insert_id"] for line in text.splitlines()]
    return sorted(ids), known


def per_hour(first: int, last: int) -> bytes:
    hours = range(first, last + 1, HOUR)
    return zipped({name_of(hour): gzipped(f"e{(hour - DAY) // HOUR}", hour=hour) for hour in hours})


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("https://api2.amplitude.com/2/httpapi", "https://amplitude.com/api/2/export"),
        ("https://api2.amplitude.com/batch", "https://amplitude.com/api/2/export"),
        ("https://api.eu.amplitude.com/2/httpapi", "https://analytics.eu.amplitude.com/api/2/export"),
        ("http://127.0.0.1:8123/2/httpapi", "http://127.0.0.1:8123/api/2/export"),
    ],
)
def test_the_address_is_that_of_the_region(endpoint: str, address: str) -> None:
    assert export_address(endpoint) == address


def test_a_day_is_one_request_with_both_keys_and_nothing_stays_behind(tmp_path: Path) -> None:
    with api(tmp_path, lambda handler, first, last: answer(handler, 200, per_hour(first, last))) as made:
        ids, known = everything(made.reader, HOURS)
    assert made.asked == [(0, 23)]
    assert made.authorized == ["Basic " + base64.b64encode(f"{API_KEY}:{SECRET_KEY}".encode()).decode()]
    assert (len(ids), known) == (24, set(HOURS))
    assert list(tmp_path.iterdir()) == []


def test_404_is_no_events_and_not_an_error(tmp_path: Path) -> None:
    with api(tmp_path, lambda handler, _first, _last: answer(handler, 404)) as made:
        assert everything(made.reader, HOURS) == ([], set(HOURS))


@pytest.mark.parametrize("status", [400, 504])
def test_too_much_is_halved_down_to_an_hour(tmp_path: Path, status: int) -> None:
    def reply(handler: BaseHTTPRequestHandler, first: int, last: int) -> None:
        is_too_much = last > first and first <= HOURS[5] <= last
        answer(handler, status) if is_too_much else answer(handler, 200, per_hour(first, last))

    with api(tmp_path, reply) as made:
        ids, known = everything(made.reader, HOURS)
    assert (sorted(ids), known) == (sorted(f"e{number}" for number in range(24)), set(HOURS))
    assert (5, 5) in made.asked
    assert len(made.asked) == 9


def test_an_hour_that_is_too_large_names_the_way_out(tmp_path: Path) -> None:
    with (
        api(tmp_path, lambda handler, _first, _last: answer(handler, 400)) as made,
        pytest.raises(Blocked, match=r"the hour 20260301T00 is too large.*--source s3://"),
    ):
        everything(made.reader, HOURS[:2])


@pytest.mark.parametrize("trouble", ["429", "500", "503", "cut", "no_zip", "damaged", "closed"])
def test_what_may_pass_is_asked_again_with_patience(tmp_path: Path, trouble: str) -> None:
    def reply(handler: BaseHTTPRequestHandler, first: int, last: int) -> None:
        whole = per_hour(first, last)
        if len(made.asked) > 2:
            answer(handler, 200, whole)
        elif trouble == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(whole)))
            handler.end_headers()
            handler.wfile.write(whole[: len(whole) // 2])
            handler.close_connection = True
        elif trouble == "no_zip":
            answer(handler, 200, whole[: len(whole) // 2])
        elif trouble == "damaged":
            answer(handler, 200, whole[:200] + b"\0" * 20 + whole[220:])
        elif trouble == "closed":
            handler.connection.close()
        else:
            answer(handler, int(trouble), Retry_After="90")

    with api(tmp_path, reply) as made:
        ids, _ = everything(made.reader, HOURS[:3])
    assert ids == ["e0", "e1", "e2"]
    assert made.waits == ([90.0, 90.0] if trouble in ("429", "500", "503") else [2.0, 10.0])
    assert list(tmp_path.iterdir()) == []


def test_patience_ends(tmp_path: Path) -> None:
    with api(tmp_path, lambda handler, _first, _last: answer(handler, 503)) as made:
        with pytest.raises(
            Blocked, match=r"gives no export of 20260301T00 to 20260301T02 \(it answered 503\)"
        ) as caught:
            everything(made.reader, HOURS[:3])
        assert len(made.waits) == 5
    assert SECRET_KEY not in str(caught.value)
    assert API_KEY not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_keys_are_said_at_once_and_not_shown(tmp_path: Path, status: int) -> None:
    with api(tmp_path, lambda handler, _first, _last: answer(handler, status, f"no {SECRET_KEY}".encode())) as made:
        with pytest.raises(Misconfigured, match="secret key of the same project") as caught:
            everything(made.reader, HOURS)
        assert len(made.asked) == 1
    assert SECRET_KEY not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 418])
def test_a_redirect_is_not_followed(tmp_path: Path, status: int) -> None:
    with (
        api(tmp_path, lambda handler, _first, _last: answer(handler, status, Location="https://example.com/")) as made,
        pytest.raises(Blocked, match=f"answered {status}"),
    ):
        everything(made.reader, HOURS)
    assert len(made.asked) == 1


def test_a_folder_is_read_by_the_hours_in_the_names(tmp_path: Path) -> None:
    folder, scratch = tmp_path / "exports", tmp_path / "scratch"
    (folder / "187520").mkdir(parents=True)
    scratch.mkdir()
    for number in (0, 1, 1, 7):
        parts = len(list((folder / "187520").glob(f"*_{number}#*")))
        hour = HOURS[number]
        (folder / "187520" / name_of(hour, parts)).write_bytes(gzipped(f"e{number}.{parts}", hour=hour))
    (folder / "download.zip").write_bytes(zipped({name_of(HOURS[2]): gzipped("z2"), name_of(HOURS[9]): gzipped("z9")}))
    (folder / "by-hand.json").write_bytes(gzip.decompress(gzipped("plain")))
    (folder / "-OrgID_merged.json.gz").write_bytes(gzipped("merged"))
    ids, known = everything(ExportFolder(folder, scratch), HOURS[:4])
    assert ids == ["e0.0", "e1.0", "e1.1", "plain", "z2"]
    assert known == set(HOURS[:3])
    assert list(scratch.iterdir()) == []


def test_a_folder_that_cannot_be_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no such folder"):
        ExportFolder(tmp_path / "nowhere", tmp_path)
    with pytest.raises(Misconfigured, match=r"no \.json\.gz"):
        ExportFolder(tmp_path, tmp_path)


def test_a_damaged_zip_in_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(per_hour(HOURS[0], HOURS[3])[:300])
    with pytest.raises(Blocked, match="cut off or damaged"):
        everything(ExportFolder(tmp_path, tmp_path), HOURS)


@pytest.mark.slow
def test_a_bucket_is_read_as_amplitudes_export_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    server_module = pytest.importorskip("moto.server")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        _, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="exports")
        for number, part in ((0, 0), (0, 1), (1, 0), (9, 0)):
            key = f"amplitude/187520/{name_of(HOURS[number], part)}"
            client.put_object(Bucket="exports", Key=key, Body=gzipped(f"e{number}.{part}", hour=HOURS[number]))
        client.put_object(Bucket="exports", Key="elsewhere/x.json.gz", Body=gzipped("x"))
        client.put_object(Bucket="exports", Key="amplitude/day.zip", Body=zipped({name_of(HOURS[2]): gzipped("z2")}))
        ids, known = everything(ExportBucket("s3://exports/amplitude", tmp_path), HOURS[:4])
        assert ids == ["e0.0", "e0.1", "e1.0", "z2"]
        assert known == set(HOURS[:3])
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(Blocked, match="cannot be listed"):
            everything(ExportBucket("s3://nowhere-at-all", tmp_path), HOURS)
    finally:
        server.stop()


def test_a_bucket_needs_a_name(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(Misconfigured, match="s3://BUCKET/PREFIX"):
        ExportBucket("s3://", tmp_path)
