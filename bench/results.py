"""What was measured, part by part, with where and of what: ``bench/results.json``, from which the page is written.

The file is kept with the code, so that the page can be written again, a part be measured again by itself, and a change
of the figures be seen beside the change that made it.
"""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

FILE = Path(__file__).parent / "results.json"

_PACKAGES = ("dagster", "duckdb", "pyarrow", "sqlalchemy", "orjson")


def load() -> dict[str, Any]:
    """All parts that were ever measured, by name."""
    return dict(orjson.loads(FILE.read_bytes())) if FILE.exists() else {}


def record(part: str, command: str, seconds: float, figures: dict[str, Any]) -> None:
    """Puts a part's figures in the place of those before."""
    results = load()
    results[part] = {
        "command": command,
        "at": _now(),
        "took_seconds": round(seconds, 1),
        "commit": _commit(),
        "machine": machine(),
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "figures": figures,
    }
    _save(results)


def record_failure(part: str, command: str, message: str) -> None:
    """Notes that a part could not be measured; figures of an earlier time stay."""
    results = load()
    results.setdefault(part, {})["failed"] = {"command": command, "at": _now(), "message": message}
    _save(results)


def machine() -> dict[str, str]:
    """What the figures depend on, and nothing that names the machine."""
    memory = int(_read("/proc/meminfo", "MemTotal").split()[0] or 0) * 1024
    return {
        "processor": _read("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "file system": _file_system(),
    }


def _read(file: str, name: str) -> str:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return "0"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "0")


def _file_system() -> str:
    found = subprocess.run(["stat", "-f", "-c", "%T", str(FILE.parent)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=FILE.parent)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "../nami_amp_pipeline", "../sql")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _save(results: dict[str, Any]) -> None:
    aside = FILE.with_suffix(".part")
    aside.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    aside.rename(FILE)
