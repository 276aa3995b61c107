"""A bucket of moto's S3 server in this process, and a server in front of it that makes trouble."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline_tests.support.harness import START, Pipeline

ENCRYPTION_KEY = "bmFtaS1hbXAtc2ltdWxhdGlvbi1rZXktMDEyMzQ1Njc="

_numbers = count(1)


@dataclass
class Trouble:
    """What the server in front of the bucket does to the next requests.

    Attributes:
        fail: of so many requests each is answered with 503; negative for all.
        after: of so many requests each is passed on, and then answered with 503: it seemed to fail.
        delay: seconds before each request is passed on.
        cut: of so many answers only the first half of the body arrives.
        only: of these methods alone; all if empty.
        seen: every request as (method, path).
    """

    fail: int = 0
    after: int = 0
    delay: float = 0.0
    cut: int = 0
    only: tuple[str, ...] = ()
    seen: list[tuple[str, str]] = field(default_factory=list)

    def take(self, name: str) -> bool:
        """Whether this one meets it."""
        left: int = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return left != 0


@dataclass
class S3:
    """A bucket.

    Attributes:
        address: as a setting has it, with a folder.
        client: of boto3, straight to the server.
        bucket: its name.
        trouble: what is in the way of everybody else.
    """

    address: str
    client: Any
    bucket: str
    trouble: Trouble

    def names(self) -> set[str]:
        """The names of all objects, without the folder."""
        found: set[str] = set()
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            found |= {each["Key"].partition("/")[2] for each in page.get("Contents", ())}
        return found


@contextmanager
def moto_server() -> Iterator[int]:
    """A server of moto; yields its port."""
    module = pytest.importorskip("moto.server")
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield int(server.get_host_and_port()[1])
    finally:
        server.stop()


@contextmanager
def bucket(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A new bucket of a server, behind one that can make trouble; the environment leads there."""
    pytest.importorskip("obstore")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"files-{next(_numbers)}"
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket=name)
    trouble = Trouble()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(port, trouble))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        yield S3(f"s3://{name}/nami", client, name, trouble)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(port: int, trouble: Trouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            trouble.seen.append((self.command, self.path))
            meets = not trouble.only or self.command in trouble.only
            if meets and trouble.delay:
                time.sleep(trouble.delay)
            if meets and trouble.take("fail"):
                self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
                return
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
            finally:
                connection.close()
            if meets and trouble.take("after"):
                self._answer(503, [], b"<Error><Code>InternalError</Code></Error>")
                return
            skipped = ("transfer-encoding", "connection", "server", "date", "content-length")
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
            if self.command == "HEAD":
                headers.append(("Content-Length", answer.getheader("Content-Length") or "0"))
                self._answer(answer.status, headers, b"", has_length=True)
            elif meets and len(data) > 1 and trouble.take("cut"):
                self.close_connection = True
                headers.append(("Content-Length", str(len(data))))
                self._answer(answer.status, headers, data[: len(data) // 2], has_length=True)
            else:
                self._answer(answer.status, headers, data)

        def _answer(
            self, status: int, headers: list[tuple[str, str]], body: bytes, *, has_length: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if not has_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - as the library calls them

        def log_message(self, *_: object) -> None:
            return

    return Handler


class Machines:
    """Machines with folders of their own, and a state store, an events table and a bucket in common.

    Args:
        folder: of their folders.
        s3: the bucket.
        state_url: of the store.
    """

    def __init__(self, folder: Path, s3: S3, state_url: str) -> None:
        self.folder, self.s3, self.state_url = folder, s3, state_url
        self.all: list[Pipeline] = []

    def new(self, *, begin: datetime = START, **environ: str) -> Pipeline:
        """One more, with nothing on its disk, and the clock of the others."""
        settings = {
            "NAMI_AMP_STATE_URL": self.state_url,
            "NAMI_AMP_DATA_URL": self.s3.address,
            "NAMI_AMP_ENCRYPTION_KEY": ENCRYPTION_KEY,
            "NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "0",
            "NAMI_AMP_WAREHOUSE_URL": f"duckdb:///{self.folder / '0' / 'warehouse.duckdb'}",
        }
        made = Pipeline(self.folder / str(len(self.all)), settings | environ, open_at=begin)
        if self.all:
            made.clock = self.all[0].clock
            made.context.clock = made.context.store.clock = made.clock
            made.context.sleep = made.clock.sleep
        self.all.append(made)
        return made

    def load(self, *idents: str, user: str = "u", minutes: float = 0) -> None:
        """Rows that were loaded some minutes from now."""
        at = datetime.fromtimestamp(self.all[0].clock.now, UTC) + timedelta(minutes=minutes)
        payload = {
            "devices": [{"id": "d"}],
            "external_ids": [{"key": "external_id", "type": "x", "value": f"of {user}"}],
        }
        self.all[0].insert(
            [
                {
                    "id": ident, "app_id": "app", "event_type": "user.subscription.renewed", "user_id": user,
                    "created_date": at, "ingested_at": at, "payload": json.dumps(payload),
                }
                for ident in idents
            ]
        )  # fmt: skip

    def close(self) -> None:
        """Closes their stores."""
        for each in self.all:
            each.close()
