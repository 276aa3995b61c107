"""A Control Center to test: its pages in this process, over a store and a warehouse of the test's own."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.settings import Settings

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}
"""What a browser says of a form of this site."""


def client(tmp_path: Path, options: Options | None = None, **settings: Any) -> TestClient:
    """A browser without script, on the pages of a new home in a folder."""
    app = create_app(Settings(home=tmp_path, **settings), options)
    return TestClient(app, base_url="http://localhost", headers=SAME_ORIGIN, raise_server_exceptions=False)


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """An ASGI application on a port of this machine, in a thread; gives its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, log_level=logging.WARNING, access_log=False, proxy_headers=False, lifespan="off")
    )
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def served(settings: Settings, options: Options | None = None) -> Iterator[str]:
    """The pages on a port of this machine."""
    app = create_app(settings, options)
    with listening(app) as url:
        yield url
    app.state.site.operations.close()
