"""``python -m nami_amp_pipeline_tests.endurance faults|fairness|outage|day``: figures; 1 if anything failed."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

from nami_amp_pipeline_tests.endurance import day, fairness, faults, outage
from nami_amp_pipeline_tests.endurance.report import Report
from nami_amp_pipeline_tests.support.postgres import Postgres


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m nami_amp_pipeline_tests.endurance", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("faults", help="everything fails at once")
    one.add_argument("--rows", type=int, default=200_000)
    one.add_argument("--seeds", type=int, default=10)
    one.add_argument("--first-seed", type=int, default=1)
    two = kinds.add_parser("fairness", help="one integration of twenty stands still")
    two.add_argument("--events", type=int, default=2_000)
    two.add_argument("--repeats", type=int, default=5)
    two.add_argument("--latency-ms", type=float, default=20.0)
    three = kinds.add_parser("outage", help="Amplitude is away for hours")
    three.add_argument("--hours", type=float, default=6.0)
    three.add_argument("--events", type=int, default=500_000)
    three.add_argument("--how", choices=outage.WAYS, action="append")
    four = kinds.add_parser("day", help="24 hours of ticks, with retention")
    four.add_argument("--ticks", type=int, default=288)
    four.add_argument("--events", type=int, default=288_000)
    four.add_argument("--kept", type=int, default=72, help="ticks that everything is kept for")
    four.add_argument("--every", type=int, default=12, help="ticks between two retention runs")
    four.add_argument("--unused", type=int, default=12, help="ticks that files stay which do not count any more")
    four.add_argument("--postgres", action="store_true", help="the store and Dagster's history in PostgreSQL")
    four.add_argument("--no-retention", action="store_true", help="to see that it is found")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    report = Report()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = Path(name)
        if given.kind == "faults":
            faults.run(report, folder, rows=given.rows, seeds=given.seeds, first_seed=given.first_seed)
            faults.search_cost(report, folder / "search", rows=min(given.rows, 30_000))
        elif given.kind == "fairness":
            fairness.run(report, folder, events=given.events, repeats=given.repeats, latency_ms=given.latency_ms)
        elif given.kind == "day":
            server = Postgres() if given.postgres else None
            plan = day.Plan(
                given.ticks, given.events, given.every, given.kept, given.unused, not given.no_retention, server
            )
            try:
                day.run(report, folder, plan)
            finally:
                if server is not None:
                    server.stop()
        else:
            for how in given.how or outage.WAYS:
                outage.run(report, folder / how, hours=given.hours, events=given.events, how=how)
    report.line(f"{time.perf_counter() - began:.0f} s, {len(report.failed)} failed")
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
