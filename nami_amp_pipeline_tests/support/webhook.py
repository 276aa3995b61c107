"""A webhook on a port of this machine, which takes what it is sent, or refuses it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "T0-very-secret-path"


class Webhook:
    """What Slack offers as an incoming webhook.

    Attributes:
        status: answered to each message.
        messages: the texts that were taken (answered with 200).
        refused: how many were not.
    """

    def __init__(self) -> None:
        self.status = 200
        self.messages: list[str] = []
        self.refused = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                assert self.path == f"/services/{SECRET}"
                if outer.status == 200:
                    outer.messages.append(_text(body))
                else:
                    outer.refused += 1
                self.send_response(outer.status)
                if outer.status in (301, 302):
                    self.send_header("Location", outer.url)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Its address, a secret."""
        return f"http://127.0.0.1:{self._server.server_port}/services/{SECRET}"

    def __enter__(self) -> Webhook:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _text(body: bytes) -> str:
    (one,) = json.loads(body).items()
    assert one[0] == "text"
    assert isinstance(one[1], str)
    return str(one[1])
