"""The definitions of the pipeline, whose runs wait at a step for as long as the file ``STOP_FILE`` names it.

A run that waits writes the number of its process into the file ``STOP_FILE.reached``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from nami_amp_pipeline import definitions
from nami_amp_pipeline.context import Context

_ORDER = Path(os.environ["STOP_FILE"])


def _step(name: str) -> None:
    """The hook of the context."""
    while _ORDER.exists() and _ORDER.read_text() == name:
        _ORDER.with_suffix(".reached").write_text(str(os.getpid()))
        time.sleep(0.1)


_opened = Context.open


def _open(*args: Any, **more: Any) -> Context:
    context = _opened(*args, **more)
    context.step = _step
    return context


Context.open = staticmethod(_open)  # type: ignore[method-assign]
defs = definitions.defs
