"""Runs the Control Center with uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from nami_amp_pipeline import redaction
from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.settings import Settings

_WAITING: Final = 128
_TICK_SECONDS: Final = 0.5


class _Server(uvicorn.Server):
    """Looks twice a second whether it is to end, not ten times: nobody is at its pages most of the time."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # at each number that ten divides, it also sets the date of answers
            await asyncio.sleep(_TICK_SECONDS)


def serve(settings: Settings, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves until a signal ends the process.

    Args:
        settings: of the pipeline.
        host: the address to listen on.
        port: 0 takes a free port.
        on_ready: called with the address of the first page.

    Raises:
        Misconfigured: it may not listen there, or a setting cannot be used.
        Blocked: it cannot listen there.
        StoreUnavailable: the state store cannot be reached.
    """
    options = Options.of(settings)
    options.check(host)
    app = create_app(settings, options)
    redaction.guarded_logger("uvicorn.error")  # it logs the traceback of a page that failed
    app.state.site.operations.apps()  # opens the store now, so that its error is that of the command
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    with listening:
        on_ready(options.url or f"http://{shown}:{listening.getsockname()[1]}")
        # What a proxy says of where a request comes from must not replace the peer of the socket.
        config = uvicorn.Config(
            app, log_level=logging.WARNING, access_log=False, proxy_headers=False, server_header=False, lifespan="off"
        )
        end = app.state.site.operations.keep_sending_metrics()
        _Server(config).run(sockets=[listening])
    end()
    app.state.site.operations.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_WAITING)  # from now on, so that nobody who has read the address is turned away
    except OSError as error:
        listening.close()
        raise Blocked(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None
    return listening
