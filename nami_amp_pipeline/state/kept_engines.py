"""Engines of databases that a process keeps, for one that opens the same databases again and again, as a service does.

An engine that is made anew connects anew, and compiles each statement anew.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

import sqlalchemy as sa

_FILE: Final = "file"


class KeptEngines:
    """Engines by what they were made for.

    Args:
        most: how many are kept, those last used.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._engines: OrderedDict[Hashable, sa.Engine] = OrderedDict()
        self._lock = threading.Lock()
        atexit.register(self.close)  # SQLite removes the log beside a file that its last user closes

    def get(self, key: Hashable, make: Callable[[], sa.Engine]) -> sa.Engine:
        """An engine, which stays open: ``dispose`` of it does nothing.

        A file that was removed or replaced since is opened anew.

        Args:
            key: what the engine is for.
            make: makes it, where there is none.
        """
        with self._lock:
            if key not in self._engines:
                self._engines[key] = _kept(make())
            self._engines.move_to_end(key)
            left = [self._engines.popitem(last=False)[1] for _ in range(len(self._engines) - self._most)]
            engine = self._engines[key]
        for each in left:
            each.pool.dispose()  # of what is in use, whoever uses it closes it
        return engine

    def close(self) -> None:
        """Closes what nobody uses."""
        with self._lock:
            for engine in self._engines.values():
                engine.pool.dispose()


def _kept(engine: sa.Engine) -> sa.Engine:
    path = engine.url.database
    if engine.url.drivername.startswith("sqlite") and path:

        def remember(_connection: object, record: Any) -> None:
            record.info[_FILE] = _identity(path)

        def look(_connection: object, record: Any, _proxy: object) -> None:
            if record.info[_FILE] != _identity(path):
                raise sa.exc.DisconnectionError  # the pool connects anew

        sa.event.listen(engine, "connect", remember)
        sa.event.listen(engine, "checkout", look)
    vars(engine)["dispose"] = lambda: None
    return engine


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
