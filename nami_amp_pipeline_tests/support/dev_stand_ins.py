"""Stand-ins for the processes of ``nami-amp dev``: small programs that listen where the real ones would.

``python dev_stand_ins.py ROLE WHERE [WORKSPACE]`` is one; ``patched`` has the command start them.
"""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

GREETINGS = {"control-center": "Control Center at {url}; Ctrl-C stops it.", "sandbox": "Local Amplitude at {url} …"}


def command(role: str, *where: object) -> list[str]:
    """The command of a stand-in."""
    return [sys.executable, "-I", "-S", __file__, role, *map(str, where)]


def patched(monkeypatch: pytest.MonkeyPatch, **others: Callable[..., list[str]]) -> None:
    """Has ``nami-amp dev`` start stand-ins.

    Args:
        monkeypatch: undoes it.
        others: commands in place of these, by role, with ``_`` for ``-``.
    """
    from nami_amp_pipeline.commands import dev as command_line
    from nami_amp_pipeline.dagster_support import dev as library

    made: dict[str, Callable[..., list[str]]] = {
        "code_server": lambda place: command("code-server", place),
        "daemon": lambda _workspace: command("daemon", "-"),
        "webserver": lambda port, workspace: command("webserver", port, workspace),
        "control_center": lambda port: command("control-center", port),
        "sandbox": lambda port, _events: command("sandbox", port),
        **others,
    }
    for role in ("code_server", "daemon", "webserver"):
        monkeypatch.setattr(library, f"{role}_command", made[role])
    for role in ("control_center", "sandbox"):
        monkeypatch.setattr(command_line, f"_{role}", made[role])


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers everything with the workspace, as Dagster's pages tell of their code servers."""

    says = ""

    def do_POST(self) -> None:
        """Answers."""
        answer = json.dumps({"data": self.says}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _end_slowly(*_: object) -> None:
    time.sleep(3)
    sys.exit()


def main(role: str, where: str, workspace: str = "") -> None:
    """Is one of the processes."""
    if role == "code-server":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(where)
        listening.listen()
        # What the real one starts: the processes of runs.
        subprocess.Popen([sys.executable, "-I", "-S", __file__, "run", "-"])
    elif where != "-":
        if role == "slow-webserver":
            signal.signal(signal.SIGTERM, _end_slowly)
        Pages.says = Path(workspace).read_text() if workspace else "{}"
        server = http.server.HTTPServer(("127.0.0.1", int(where)), Pages)
        sys.stdout.write(GREETINGS.get(role, "").format(url=f"http://127.0.0.1:{where}") + "\n")
        sys.stdout.flush()
        server.serve_forever()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
