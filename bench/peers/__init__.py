"""The neighbours, each in a virtual environment of its own under ``bench/.venvs``, made once.

Both do what their documentation says, from the same DuckDB file and to the same receiver as the pipeline. They do less
than it does: no state of the user as of each event, no order, no record of what was acknowledged (drt keeps a
watermark, the SDK nothing).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import yaml

from bench import watch
from nami_amp_pipeline import contract

VENVS: Final = Path(__file__).parent.parent / ".venvs"

SDK: Final = ("amplitude-analytics==1.3.0", "duckdb>=2.0.0")
DRT: Final = ("drt-core[duckdb]==1.2.1",)

PROPERTIES: Final = (
    "event_platform",
    "app_platform_id",
    "impression_id",
    "transaction_id",
    "original_transaction_id",
    "sku",
    "amount",
    "currency",
    "quantity",
    "purchase_env",
    "app_env",
    "source",
    "locale",
    "subscription_interval",
)
"""Fields of a payload that drt's query takes out of it: it needs a column for each property."""


@dataclass(frozen=True)
class Peer:
    """A neighbour.

    Attributes:
        name: for people.
        version: what is installed.
        command: what posts all events.
    """

    name: str
    version: str
    command: Sequence[str]

    def run(self, events: Path, url: str, folder: Path) -> watch.Took:
        """Posts all events of a DuckDB file, each once.

        Raises:
            Failed: it says that it could not.
        """
        environ = {**os.environ, "BENCH_EVENTS": str(events), "BENCH_URL": url, "AMPLITUDE_API_KEY": "0" * 32}
        # Nothing but the receiver is asked: no proxy, no telemetry, no profile of whoever runs the benchmark.
        environ |= {"NO_PROXY": "127.0.0.1", "DO_NOT_TRACK": "1", "HOME": str(folder)}
        if self.name == "drt":
            drt_project(events, folder)
        return watch.run(self.command, environ=environ, cwd=folder)


def all_peers() -> list[Peer]:
    """The neighbours, installed."""
    here = Path(__file__).parent
    sdk, drt = _python("amplitude-analytics", SDK), _python("drt", DRT)
    return [
        Peer("amplitude-analytics", _version(sdk, "amplitude-analytics"), [str(sdk), str(here / "sdk.py")]),
        Peer("amplitude-analytics, 1,000 a batch", _version(sdk, "amplitude-analytics"),
             [str(sdk), str(here / "sdk.py"), "1000"]),
        Peer("drt", _version(drt, "drt-core"), [str(drt), str(here / "drt_cli.py"), "run", "--output", "json"]),
    ]  # fmt: skip


def drt_project(events: Path, folder: Path) -> None:
    """A project of drt's with one sync, as its documentation has it: DuckDB to Amplitude, 1,000 events a batch."""
    (folder / ".drt").mkdir(exist_ok=True)
    (folder / "syncs").mkdir(exist_ok=True)
    _write(folder / ".drt" / "profiles.yml", {"bench": {"type": "duckdb", "database": str(events)}})
    _write(folder / "drt_project.yml", {"name": "bench", "version": "0.1", "profile": "bench"})
    types = ", ".join(f"'{name}'" for name in contract.event_type_names())
    columns = ", ".join(f"payload->>'$.{name}' AS {name}" for name in PROPERTIES)
    sync = {
        "name": "events",
        "model": (
            "SELECT id AS insert_id, event_type, user_id, epoch_ms(created_date) AS time, "
            f"{columns} FROM nami_events WHERE event_type IN ({types}) ORDER BY created_date, id"
        ),
        "destination": {
            "type": "amplitude",
            "endpoint": "event",
            "api_key_env": "AMPLITUDE_API_KEY",
            "user_id_field": "user_id",
            "event_type_field": "event_type",
            "time_field": "time",
            "insert_id_field": "insert_id",
            "batch_size": 1000,
        },
        # Its default is 10 requests a second, which would be what is measured.
        "sync": {"mode": "full", "batch_size": 1000, "rate_limit": {"requests_per_second": 0}},
    }
    _write(folder / "syncs" / "events.yml", sync)


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))


def _python(name: str, requirements: Sequence[str]) -> Path:
    folder = VENVS / name
    python = folder / "bin" / "python"
    marker = folder / "installed"
    if not marker.exists() or marker.read_text() != repr(requirements):
        print(f"installing {', '.join(requirements)} into {folder.name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", *requirements], check=True, stderr=subprocess.DEVNULL)
        marker.write_text(repr(requirements))
    return python


def _version(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m, json; print(json.dumps(m.version({package!r})))"
    return str(orjson.loads(subprocess.run([str(python), "-c", code], check=True, capture_output=True).stdout))
