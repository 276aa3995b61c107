"""A home for one benchmark: settings, integrations, and ``nami-amp run`` with its figures."""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from bench import watch
from bench.data import APPS, CACHE
from bench.receiver import Receiver
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import integrations as state

NAMI_AMP = str(Path(sys.executable).with_name("nami-amp"))
STAGES = {
    "capture": "nami_events",
    "snapshot": "user_property_snapshots",
    "prepare": "amplitude_events",
    "upload": "amplitude_deliveries",
}
"""Ops of the job to the assets that they make."""


class Wrong(Exception):
    """What arrived is not what should have."""


@dataclass
class Tick:
    """One ``nami-amp run``.

    Attributes:
        took: of the whole command, process start included.
        delivered: events.
        stages: seconds of each op of Dagster's run, by asset.
        run_seconds: from the start of the first op to the end of the last.
        received: the receiver's report.
    """

    took: watch.Took
    delivered: int
    stages: dict[str, float]
    run_seconds: float
    received: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the results keep of it."""
        return {
            "seconds": self.took.seconds,
            "run_seconds": self.run_seconds,
            "delivered": self.delivered,
            "events_per_second": self.delivered / self.took.seconds,
            "events_per_second_of_run": self.delivered / self.run_seconds if self.run_seconds else None,
            "stages": self.stages,
            "cpu": self.took.cpu,
            "receiver_cpu": self.received.get("receiver_cpu"),
            "peak_rss": self.took.peak_rss,
            "peak_anonymous": self.took.peak_anonymous,
            "requests": self.received.get("requests"),
            "bytes": self.received.get("bytes"),
            "uncompressed_bytes": self.received.get("uncompressed_bytes"),
        }


class Home:
    """A fresh home of the pipeline.

    Args:
        folder: where it is made.
        warehouse: address of the warehouse.
        more: other settings, as ``NAMI_AMP_…`` variables.
    """

    def __init__(self, folder: Path, warehouse: str, **more: str) -> None:
        self.folder = folder
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NAMI_AMP_", "DAGSTER_"))},
            "NAMI_AMP_HOME": str(folder),
            "NAMI_AMP_WAREHOUSE_URL": warehouse,
            **more,
        }
        self.settings = Settings.load({k: v for k, v in self.environ.items() if k.startswith("NAMI_AMP_")})

    def integrate(self, url: str, apps: Iterable[str] = APPS, *, start_from: int | None = None) -> None:
        """Adds an integration for each app, with all event types; those without a login go under Nami's user id.

        All in one transaction, and without a look for others with the same key, which reads all of them each time.
        """
        context = Context.open(self.settings)
        with context.store.begin() as tx:
            state.hold_keys(context.store, tx)
            for app_id in apps:
                new = state.NewIntegration(
                    app_id,
                    "bench",
                    url,
                    Secret(hashlib.md5(app_id.encode(), usedforsecurity=False).hexdigest()),
                    anonymous="nami_user_id",
                    start_from=start_from,
                    allow_custom_endpoint=True,
                    allow_shared_key=True,
                )
                state.insert(context.store, tx, context.cipher, new)
        context.store.close()

    def tick(self) -> Tick:
        """``nami-amp run``, once.

        Raises:
            Wrong: events were left pending.
        """
        took = self.run()
        report = orjson.loads(took.output)
        pending = sum(one["pending"] for one in report["integrations"])
        if pending:
            raise Wrong(f"{pending} events were left pending")
        stages, seconds = self._stages(report["run_id"])
        return Tick(took, sum(one["delivered"] for one in report["integrations"]), stages, seconds)

    def run(self) -> watch.Took:
        """The command, whose output is the JSON of ``nami-amp run --json``."""
        return watch.run([NAMI_AMP, "run", "--json"], environ=self.environ, cwd=self.folder)

    def _stages(self, run_id: str) -> tuple[dict[str, float], float]:
        """What Dagster's history says of a run."""
        import dagster as dg  # takes two seconds, and not every part needs it

        with dg.DagsterInstance.from_config(str(self.folder / "dagster")) as instance:
            stats = [one for one in instance.get_run_step_stats(run_id) if one.start_time and one.end_time]
        spent = {STAGES.get(one.step_key, one.step_key): (one.end_time or 0) - (one.start_time or 0) for one in stats}
        if not stats:
            return {}, 0.0
        return spent, max(one.end_time or 0 for one in stats) - min(one.start_time or 0 for one in stats)


def delivered_all(
    home: Home, receiver: Receiver, expected: object = None, *, latency: float = 0.0, order: bool = True
) -> Tick:
    """A tick whose events are checked at the receiver.

    Args:
        home: where to run.
        receiver: where the integrations post.
        expected: :data:`bench.checks.CHECKSUM` of the ids that must arrive; None: not looked at.
        latency: seconds before each answer.
        order: whether each user's events must arrive in order.

    Raises:
        Wrong: something is missing, came twice, is invalid or out of order.
    """
    receiver.reset(latency)
    tick = home.tick()
    tick.received = arrived(receiver, tick.delivered, expected, order=order)
    return tick


def arrived(receiver: Receiver, delivered: int, expected: object = None, *, order: bool = True) -> dict[str, Any]:
    """What came since the receiver's last reset, checked; see :func:`delivered_all`.

    Args:
        receiver: where it came.
        delivered: events, as the pipeline counts them.
        expected: as there.
        order: as there.

    Raises:
        Wrong: as there.
    """
    got = receiver.report()
    wrong = {name: got[name] for name in ("invalid", "out_of_order", "overlapping") if got[name]}
    if not order:
        wrong.pop("out_of_order", None)
    if not got["events"] == got["distinct_ids"] == delivered:
        wrong |= {"delivered": delivered, "arrived": got["events"], "distinct": got["distinct_ids"]}
    if expected is not None and expected != got["checksum"]:
        wrong["checksum"] = got["checksum"]
    if wrong:
        raise Wrong(f"what arrived is not what should have: {wrong}")
    return got


@contextmanager
def room(prefix: str) -> Iterator[Path]:
    """A folder on the disk of the cache, gone afterwards; ``/tmp`` may be memory."""
    CACHE.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=f"{prefix}-", dir=CACHE) as folder:
        yield Path(folder)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most, and all of them."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "values": list(values),
    }
