"""A local Amplitude in a process of its own: says its address, and serves until its standard input ends."""

from __future__ import annotations

import random
import sys

from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer


def main() -> None:
    """Serves; the one argument is how many milliseconds each answer takes."""
    options = Options(index_mode="none", latency_ms=float(sys.argv[1]), throttle=False)
    with SandboxServer(Sandbox(options=options, rng=random.Random(0))) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
