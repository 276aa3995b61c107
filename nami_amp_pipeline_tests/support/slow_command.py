"""``nami-amp`` that is busy for a long time at a step of our choice.

Started from the nursery, by :func:`run`.

``STOP_AT`` names the step, ``STOP_BUSY`` what it is busy with there: ``computing`` in DuckDB, ``sleeping`` in Python,
or ``deaf`` in a call during which Python cannot handle a signal. The file ``STOP_FILE`` is made when it begins.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import duckdb

from nami_amp_pipeline.cli import main
from nami_amp_pipeline.context import Context

LONG_QUERY = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE (a.range * b.range) % 7 = 3"


def busy(how: str) -> None:
    """Takes minutes."""
    if how == "computing":
        with duckdb.connect() as connection:
            connection.execute(LONG_QUERY).fetchall()
    elif how == "deaf":
        hashlib.pbkdf2_hmac("sha512", b"", b"salt", 300_000_000)
    else:
        time.sleep(300)


def step(name: str) -> None:
    """The hook of the context."""
    if name == os.environ["STOP_AT"]:
        Path(os.environ["STOP_FILE"]).touch()
        busy(os.environ["STOP_BUSY"])


def run() -> None:
    """``nami-amp``, with the hook."""
    opened = Context.open

    def open_with_the_hook(*args: Any, **more: Any) -> Context:
        context = opened(*args, **more)
        context.step = step
        return context

    Context.open = staticmethod(open_with_the_hook)  # type: ignore[method-assign]
    main()
