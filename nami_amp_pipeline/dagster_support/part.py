"""Runs a part of Dagster as ``python -m`` would, and so that it costs little while nothing happens.

``python -m nami_amp_pipeline.dagster_support.part dagster._daemon run``. A process that the code server starts for a
run loads this module too, before anything else.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_IS_PROCESS: Final = __name__ in ("__main__", "__mp_main__")
"""The second one is of a process for a run."""

if _IS_PROCESS:  # before Dagster is loaded, whose 250,000 objects would be looked through again and again
    gc.set_threshold(50_000, 20, 50)

from nami_amp_pipeline.dagster_support.kept_connections import (  # noqa: E402
    is_on_postgres,
    keep_connections,
    keep_postgres_connections,
)

WATCH_SECONDS: Final = 5
"""How often daemon and webserver ask the code server whether it is still the same; Dagster's own value is 1."""

RELOAD_SECONDS: Final = 240
"""How often the daemon loads anew what the code server has; Dagster's own value is 60.

If it is another code server, it does so at once. Less than the 300 s after which a daemon that cannot do so ends.
"""

TICK_SECONDS: Final = 0.5
"""How often the webserver looks whether it is to end; uvicorn's own value is 0.1."""


def look_seldom() -> None:
    """Lets the loops of daemon and webserver, which wait for what hardly ever happens, go round less often.

    Raises:
        AttributeError: this Dagster has no such loop.
    """
    for module, name, value in (
        ("dagster._grpc.server_watcher", "WATCH_INTERVAL", WATCH_SECONDS),
        ("dagster._daemon.controller", "RELOAD_WORKSPACE_INTERVAL", RELOAD_SECONDS),
    ):
        loop = import_module(module)
        getattr(loop, name)
        setattr(loop, name, value)
    server: Any = import_module("uvicorn").Server
    server.main_loop = _main_loop


async def _main_loop(server: Any) -> None:
    while not await server.on_tick(0):  # at each number that ten divides, it also sets the date of answers
        await asyncio.sleep(TICK_SECONDS)


def _nothing() -> None:
    pass


PARTS: Final[dict[str, tuple[str, Callable[[], None]]]] = {
    "dagster": ("dagster._cli", _nothing),
    "dagster._daemon": ("dagster._daemon.cli", look_seldom),
    "dagster_webserver": ("dagster_webserver.cli", look_seldom),
}
"""Where the command line of each is, and what is done before."""

if _IS_PROCESS:
    keep_connections()
    if is_on_postgres(Path(os.environ.get("DAGSTER_HOME", "."))):
        keep_postgres_connections()

if __name__ == "__main__":
    del sys.argv[0]
    _where, _before = PARTS[sys.argv[0]]
    _before()
    import_module(_where).main()
