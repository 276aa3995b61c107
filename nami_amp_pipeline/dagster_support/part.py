"""Runs a part of Dagster, as ``python -m`` would, with connections to its history that are kept.

``python -m nami_amp_pipeline.dagster_support.part dagster._daemon run``. A process that the code server starts for a
run loads this module too, and keeps its connections likewise.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

from nami_amp_pipeline.dagster_support.kept_connections import keep_connections

PARTS: Final = {
    "dagster": "dagster._cli",
    "dagster._daemon": "dagster._daemon.cli",
    "dagster_webserver": "dagster_webserver.cli",
}
"""Where the command line of each is."""

keep_connections()

if __name__ == "__main__":
    del sys.argv[0]
    import_module(PARTS[sys.argv[0]]).main()
