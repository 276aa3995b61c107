"""drt's own command line, with another address for Amplitude: its destination knows no setting for that.

Runs in drt's environment; the URL is in ``BENCH_URL``.
"""

import os

from drt.cli.main import app
from drt.destinations import amplitude

amplitude._AMPLITUDE_HOSTS["default"] = os.environ["BENCH_URL"].removesuffix("/2/httpapi")

if __name__ == "__main__":
    app()
