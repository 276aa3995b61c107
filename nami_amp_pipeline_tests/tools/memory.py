"""Peak memory of the four stages for rows of odd sizes, in a DuckDB warehouse: Linux, default settings.

``python -m nami_amp_pipeline_tests.tools.memory devices:400 text:400 sixty:20000 one_user:1000000``
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.harness import START, Pipeline

_PAYLOADS: dict[str, Callable[[int], dict[str, Any]]] = {
    "devices": lambda _: {"devices": [{"id": f"device-{n:08d}", "platform": {"name": "x" * 44}} for n in range(8_000)]},
    "text": lambda number: {"devices": [{"id": f"d{number}"}], "text": "x" * 680_000},
    "sixty": lambda number: {"devices": [{"id": f"d{number}"}], "texts": ["x" * 1_000] * 60},
    "one_user": lambda number: {"devices": [{"id": f"d{number % 3}"}], "amount": 1.5, "text": "x" * 700},
}


def _fill(home: Path, shape: str, rows: int) -> None:
    pipeline = Pipeline(home)
    pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    some = 20_000 if shape == "one_user" else 50
    for start in range(0, rows, some):
        pipeline.insert([_row(number, shape) for number in range(start, min(start + some, rows))])
    pipeline.close()


def _row(number: int, shape: str) -> dict[str, Any]:
    moment = START - timedelta(hours=2) + timedelta(milliseconds=number)
    return {
        "id": f"e{number}", "app_id": "app", "event_type": "user.subscription.renewed",
        "user_id": "one" if shape == "one_user" else f"u{number}", "created_date": moment, "ingested_at": moment,
        "payload": json.dumps(_PAYLOADS[shape](number)),
    }  # fmt: skip


class _Takes:
    """A wire whose other end takes everything at once; where nothing is under way, time passes.

    Args:
        pass_time: is given how many seconds pass.
    """

    def __init__(self, pass_time: Callable[[float], None]) -> None:
        self._pass_time = pass_time
        self._under_way: list[int] = []

    def start(self, number: int, request: Request) -> None:
        self._under_way.append(number)

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        answered, self._under_way = self._under_way, []
        if not answered:
            self._pass_time(seconds)
        return [(number, HttpAnswer(200, b'{"code":200}')) for number in answered]

    def close(self) -> None:
        assert not self._under_way


def _measure(home: Path) -> None:
    pipeline = Pipeline(home)
    integrations = all_integrations(pipeline.context.store)
    acts: dict[str, Callable[[], Any]] = {
        "stage 1": lambda: stages.capture_apps(pipeline.context),
        "stage 2": lambda: stages.snapshot_apps(pipeline.context),
        "stage 3": lambda: stages.prepare_integrations(pipeline.context, integrations),
        "stage 4": lambda: stages.deliver_integrations(
            pipeline.context, integrations, wire=_Takes(pipeline.clock.sleep)
        ),
    }
    for name, act in acts.items():
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew
        said = ""
        try:
            act()
        except NamiAmpError as error:
            said = f", {error}"
        sys.stdout.write(f"  {name}: {_peak():,} MB{said}" + "\n")
        sys.stdout.flush()
    pipeline.close()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) // 1_000 for line in lines if line.startswith("VmHWM"))


def _shapes(arguments: list[str]) -> Iterator[tuple[str, int]]:
    for argument in arguments:
        shape, _, rows = argument.partition(":")
        yield shape, int(rows or 400)


def main() -> None:
    """Fills and measures in processes of their own, so that nothing else counts."""
    spawn = get_context("spawn")
    for shape, rows in _shapes(sys.argv[1:]):
        sys.stdout.write(f"{shape}, {rows:,} rows" + "\n")
        sys.stdout.flush()
        with tempfile.TemporaryDirectory() as folder:
            for act, given in ((_fill, (shape, rows)), (_measure, ())):
                process = spawn.Process(target=act, args=(Path(folder), *given))
                process.start()
                process.join()


if __name__ == "__main__":
    main()
