"""What the service costs where nothing happens: ``nami-amp dev`` on the demo's home, all delivered, its ticks included.

``python -m bench.at_rest --seconds 120 --settle 20``. With ``BENCH_BASE`` in the environment, a checkout of another
commit, that is measured in turns with this one; by ``dagster dev``, if it is older than ``nami-amp dev``.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from socket import create_server
from typing import Any

from bench import watch
from bench.part import alone, say, spread, table
from bench.scene import NAMI_AMP, room, summary

TITLE = "At rest"
BASE = "BENCH_BASE"
GOAL = 0.5
"""Of the other commit."""

GOAL_SECONDS = 2.7
"""Of processor a minute, where no other commit is measured: half of what it was once."""

PATIENCE_SECONDS = 7_200
RUNS = "runs"
OTHERS = "others"
COMMAND = "the command itself"
_START_SECONDS = 300
_SAMPLE_SECONDS = 5.0
_STOP_SECONDS = 60
_NAMES = {
    "api grpc": "code server",
    "dagster._daemon": "daemon",
    "dagster_webserver": "webserver",
    "control-center": "Control Center",
    "sandbox": "local Amplitude",
    "code-server start": "code server",
    "orphans.py": COMMAND,
}


def measure(*, seconds: int = 600, settle: int = 60, repeats: int = 1, users: int = 2_000) -> dict[str, Any]:
    """The service on a home of its own, with nothing new in its warehouse.

    Args:
        seconds: for which it is looked at; ticks are at each fifth minute.
        settle: seconds before that, in which what its start costs comes to its end.
        repeats: how often, each time in a new home.
        users: of the demo.
    """
    checkouts: dict[str, Path] = {"this": Path(__file__).parent.parent}
    if base := os.environ.get(BASE):
        checkouts["base"] = Path(base).resolve()
    looks: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for _ in range(repeats):
        for name, checkout in checkouts.items():
            with room("at-rest") as folder:
                environ = _environ(folder, checkout)
                make_home(environ, folder, users)
                with serving(environ, folder) as pid:
                    time.sleep(settle)
                    looks[name].append(_looked_at(pid, seconds, folder))
            say(f"{name}: {looks[name][-1]['cpu_a_minute']:.2f} s of processor a minute")
    found: dict[str, Any] = {
        "seconds": seconds,
        "looks": looks,
        "cpu_a_minute": {name: summary([look["cpu_a_minute"] for look in all_]) for name, all_ in looks.items()},
        "memory": {name: summary([look["memory"] for look in all_]) for name, all_ in looks.items()},
    }
    if base:
        ratios = [a["cpu_a_minute"] / b["cpu_a_minute"] for a, b in zip(looks["this"], looks["base"], strict=True)]
        found["ratio"] = summary(ratios)
    return found


def _environ(folder: Path, checkout: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NAMI_AMP_", "DAGSTER_"))}
    return kept | {"NAMI_AMP_HOME": str(folder / "home"), "PYTHONPATH": str(checkout)}


def make_home(environ: Mapping[str, str], folder: Path, users: int) -> None:
    """The demo: two apps whose events were all delivered, to a local Amplitude."""
    watch.run([NAMI_AMP, "demo", "--users", str(users)], environ=environ, cwd=folder)
    say("the home is there")


@contextmanager
def serving(environ: Mapping[str, str], folder: Path) -> Iterator[int]:
    """``nami-amp dev`` on the home; yields its process id once all of it answers."""
    said = folder / "dev.log"
    command, ready, environ = _command(environ, folder)
    with said.open("wb") as out:
        process = subprocess.Popen(
            command, env=environ, cwd=folder, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    try:
        until = time.monotonic() + _START_SECONDS
        while ready not in said.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > until:
                raise watch.Failed(f"nami-amp dev did not start: {said.read_text(errors='replace')[-2_000:]}")
            time.sleep(0.2)
        say("the service is up")
        yield process.pid
    finally:
        started = watch.family(process.pid)[1:]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # a helper of its own ends the others
            process.wait()
        for child in started:  # `dagster dev` leaves daemon and webserver behind
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _command(environ: Mapping[str, str], folder: Path) -> tuple[list[str], str, dict[str, str]]:
    """What starts the service, what it says once it is up, and its environment."""
    if (Path(environ["PYTHONPATH"]) / "nami_amp_pipeline" / "commands" / "dev.py").exists():
        return [NAMI_AMP, "dev"], "Ctrl-C ends it", dict(environ)
    with closing(create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    dagster = str(Path(NAMI_AMP).with_name("dagster"))
    command = [dagster, "dev", "--module-name", "nami_amp_pipeline.definitions", "--port", str(port)]
    return command, "Serving dagster-webserver", {**environ, "DAGSTER_HOME": str(folder / "home" / "dagster")}


def _looked_at(pid: int, seconds: int, folder: Path) -> dict[str, Any]:
    """Processor and memory of each process of the service for so many seconds."""
    began, clock = time.monotonic(), time.time()
    names = _named(pid)
    before = _cpu(pid, names)
    memory: dict[str, list[int]] = {}
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(left, _SAMPLE_SECONDS))
        for name, resident in _memory(pid, names).items():
            memory.setdefault(name, []).append(resident)
    minutes = (time.monotonic() - began) / 60
    cpu = {name: (after - before[name]) / minutes for name, after in _cpu(pid, names).items()}
    samples = len(next(iter(memory.values())))
    together = [sum(values[number] for name, values in memory.items() if name != RUNS) for number in range(samples)]
    return {
        "cpu_a_minute": sum(cpu.values()),
        "cpu": cpu,
        "memory": statistics.median(together),
        "memory_of": {
            name: max(values) if name == RUNS else statistics.median(values) for name, values in memory.items()
        },
        "processes": len(names),
        **_history(folder / "home" / "dagster", clock, minutes),
    }


def name_of(command: Sequence[str]) -> str:
    """What a process of the service is called, by its command."""
    line = " ".join(command)
    return next((name for part, name in _NAMES.items() if part in line), OTHERS)


def _named(pid: int) -> dict[int, str]:
    """The processes that are there all the time; not those of a run that is under way."""
    found = {pid: COMMAND}
    for child in watch.family(pid)[1:]:
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
        name = name_of([Path(word).name if word.startswith("/") else word for word in words])
        if name != OTHERS:
            found[child] = name
    return found


def _cpu(pid: int, names: Mapping[int, str]) -> dict[str, float]:
    """Seconds of processor so far, by name; those of processes that came later are of runs."""
    spent: dict[str, float] = {}
    for member, name in names.items():
        spent[name] = spent.get(name, 0.0) + watch.own_cpu_seconds(member)
    return spent | {RUNS: watch.cpu_seconds(pid) - sum(spent.values())}


def _memory(pid: int, names: Mapping[int, str]) -> dict[str, int]:
    """Resident bytes by name, those of runs that are under way too."""
    found = dict.fromkeys([*names.values(), RUNS], 0)
    for member in watch.family(pid):
        found[names.get(member, RUNS)] += watch.memory(member).get("VmRSS", 0)
    return found


def _history(dagster: Path, since: float, minutes: float) -> dict[str, Any]:
    """Runs since then by their job, and how often a minute each schedule and sensor was evaluated."""
    if not dagster.is_dir():
        return {"runs": {}, "evaluations": {}}
    import dagster as dg  # takes two seconds

    with dg.DagsterInstance.from_config(str(dagster)) as instance:
        runs = Counter(
            record.dagster_run.job_name
            for record in instance.get_run_records()
            if record.create_timestamp.timestamp() >= since
        )
        evaluations = {
            state.instigator_name: len(instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since))
            / minutes
            for state in instance.all_instigator_state()
        }
    return {"runs": dict(runs), "evaluations": evaluations}


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    what = "the service at rest, CPU seconds a minute"
    cpu = result["cpu_a_minute"]["this"]
    if "ratio" not in result:
        return [(what, f"≤ {GOAL_SECONDS} s", f"{spread(cpu, '.1f')} s", cpu["median"] <= GOAL_SECONDS)]
    ratio = result["ratio"]
    return [(f"{what}, against the base", f"≤ {GOAL} ×", f"{spread(ratio, '.2f')} ×", ratio["median"] <= GOAL)]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    columns = list(result["looks"])
    lasts = [looks[-1] for looks in result["looks"].values()]
    head = [""]
    for name in columns:
        head += [f"{name}: CPU seconds a minute", f"{name}: resident, MB"]
    names = list(dict.fromkeys(name for last in lasts for name in last["cpu"]))
    rows = [
        [name, *(text for last in lasts for text in (_text(last["cpu"], name, 1), _text(last["memory_of"], name, 1e6)))]
        for name in names
    ]
    rows.append(["**together**"])
    for name in columns:
        memory = {key: [each / 1e6 for each in value] if isinstance(value, list) else value / 1e6
                  for key, value in result["memory"][name].items()}  # fmt: skip
        rows[-1] += [spread(result["cpu_a_minute"][name], ".2f"), spread(memory)]
    this = result["looks"]["this"][-1]
    runs = ", ".join(f"{many} of `{job}`" for job, many in sorted(this["runs"].items())) or "none"
    evaluations = ", ".join(f"`{name}` {rate:.1f}" for name, rate in sorted(this["evaluations"].items())) or "none"
    return (
        f"`nami-amp dev` for {result['seconds'] / 60:g} minutes on the demo's home, where all is delivered and nothing "
        f"new comes; nobody looks at its pages. Runs meanwhile: {runs}. Dagster's ticks a minute: {evaluations}. "
        "Memory is the median over the time, of runs the most at once, which is not in the sum; pages that processes "
        "have in common count for each.\n\n" + table(head, rows)
    )


def _text(values: Mapping[str, float], name: str, unit: float) -> str:
    if name not in values:
        return ""
    return f"{values[name] / unit:,.0f}" if unit > 1 else f"{values[name]:.2f}"


if __name__ == "__main__":
    alone(sys.modules[__name__])
