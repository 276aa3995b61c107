"""The demo itself: sets the scene, runs one micro-batch through Dagster, and shows what came of it."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.table import Table

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support.instance import dagster_home
from nami_amp_pipeline.demo.arrivals import LocalAmplitude, Person, people, sent_by_type
from nami_amp_pipeline.demo.setup import demo_keys, ensure_integrations, journal, load_sample
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.runner import RunReport, run_micro_batch
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import Integration

PORT: Final = 8765
_PORTS_TRIED: Final = 20
_PIPE_COLUMNS: Final = 110


def run_demo(
    settings: Settings,
    *,
    users: int = 2000,
    port: int | None = None,
    keep_serving: bool = False,
    out: TextIO,
) -> int:
    """Shows one whole run with made-up subscribers and a local Amplitude; everything stays under ``settings.home``.

    Args:
        settings: what was set.
        users: how many subscribers to make up; the same ones each time.
        port: where the local Amplitude listens; None for 8765, or the next port that is free. 0 takes any.
        keep_serving: whether it goes on listening after the report, until the process is asked to end.
        out: where the report goes.

    Returns:
        The exit status: 0 if everything that was sent arrived, 1 if not.

    Raises:
        Misconfigured: the settings name a warehouse that is not the demo's.
        Blocked: something outside keeps the demo from running.
    """
    console = Console(
        file=out, markup=False, highlight=False, emoji=False, width=None if out.isatty() else _PIPE_COLUMNS
    )
    started = time.monotonic()
    events, new = load_sample(settings, users)
    console.print(
        f"{events:,} events of {users:,} made-up subscribers in two apps: "
        + (f"{new:,} loaded into {settings.home / 'warehouse.duckdb'}." if new else "all loaded before.")
    )
    with _local_amplitude(settings, port) as server:
        context = Context.open(settings, run_id="demo")
        try:
            integrations = ensure_integrations(context, server.endpoint)
            run_started = time.monotonic()
            report = run_micro_batch(settings, demo_keys())
            seconds = time.monotonic() - run_started
            fine = _show(console, context, integrations, report, LocalAmplitude(server.url))
        finally:
            context.store.close()
        console.print(f"\nThe micro-batch took {seconds:.1f} s, the demo {time.monotonic() - started:.1f} s.")
        _show_addresses(console, settings, report, server, is_served=keep_serving)
        if keep_serving:
            _wait_for_the_end()
    return 0 if fine else 1


@contextmanager
def _local_amplitude(settings: Settings, port: int | None) -> Iterator[SandboxServer]:
    """A sandbox that remembers; without throttling, as the sample's whole month arrives in a second."""
    try:
        sandbox = Sandbox(options=Options(throttle=False), journal=journal(settings))
    except OSError as error:
        raise Blocked(f"cannot open {journal(settings)}: {error.strerror or error}") from None
    try:
        server = _listen(sandbox, port)
        try:
            yield server
        finally:
            server.stop()
    finally:
        sandbox.close()


def _listen(sandbox: Sandbox, port: int | None) -> SandboxServer:
    tried = range(PORT, PORT + _PORTS_TRIED) if port is None else range(port, port + 1)
    reason = ""
    for number in tried:
        server = SandboxServer(sandbox, port=number)
        try:
            server.start()
        except OSError as error:
            reason = error.strerror or str(error)
            continue
        return server
    ports = f"port {tried[0]}" if len(tried) == 1 else f"any port from {tried[0]} to {tried[-1]}"
    raise Blocked(f"the local Amplitude cannot listen on {ports}: {reason}")


def _show(
    console: Console,
    context: Context,
    integrations: Sequence[Integration],
    report: RunReport,
    amplitude: LocalAmplitude,
) -> bool:
    """Prints the report; returns whether everything that was sent arrived, once."""
    delivered = sum(row["delivered"] for row in report.integrations)
    console.print(
        f"{delivered:,} events delivered to the local Amplitude.\n"
        if delivered
        else "Nothing was sent: every event was delivered by an earlier run, and none is sent twice.\n"
    )
    arrived = _show_events(console, context, integrations, amplitude)
    _show_people(console, people(amplitude, integrations))
    conserved = _show_numbers(console, status(context, integrations))
    repeats = amplitude.audit()["duplicates"]
    console.print(f"Events sent to Amplitude twice in this run: {repeats}.")
    for problem in report.problems:
        console.print(f"Not delivered: {problem}")
    return report.ok and arrived and conserved


def _show_events(
    console: Console, context: Context, integrations: Sequence[Integration], amplitude: LocalAmplitude
) -> bool:
    table = _table("Sent to Amplitude, and arrived there", "App", "Event", right=("Sent", "Arrived"))
    everything = True
    for integration in integrations:
        sent, arrived = sent_by_type(context, integration), amplitude.events_by_type(integration.app_id)
        for event_type in sorted({*sent, *arrived}):
            counts = sent.get(event_type, 0), arrived.get(event_type, 0)
            everything &= counts[0] == counts[1]
            table.add_row(integration.app_id, event_type, *(f"{count:,}" for count in counts))
        table.add_row(integration.app_id, "all", f"{sum(sent.values()):,}", f"{sum(arrived.values()):,}", style="bold")
        table.add_section()
    console.print(table)
    console.print(
        "Every event that was sent arrived exactly once.\n"
        if everything
        else "The local Amplitude lacks some of the sent events; its journal may have been removed.\n"
    )
    return everything


def _show_people(console: Console, persons: Sequence[Person]) -> None:
    console.print("Three of the subscribers, as Amplitude knows them now:")
    for person in persons:
        console.print(f"\n  {person.member.name} ({person.app_id}, user {person.user_id})", style="bold")
        console.print(f"  {person.member.story}")
        if person.profile is None:
            console.print("  nothing arrived yet")
            continue
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("events", str(person.profile["events"]))
        for name, value in sorted(person.profile["user_properties"].items()):
            table.add_row(name, _value(value))
        console.print(table)


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _show_numbers(console: Console, found: Sequence[IntegrationStatus]) -> bool:
    table = _table(
        "Where every event is", "Integration", right=("Captured", "Delivered", "Skipped", "Dead letters", "Pending")
    )
    fine = True
    for numbers in found:
        skipped, dead = sum(numbers.skipped.values()), sum(numbers.dead_letters.values())
        fine &= numbers.captured == numbers.delivered + skipped + dead + numbers.pending
        table.add_row(
            numbers.integration,
            *(f"{count:,}" for count in (numbers.captured, numbers.delivered, skipped, dead, numbers.pending)),
        )
    console.print()
    console.print(table)
    for numbers in found:
        for reason, events in numbers.skipped.items():
            console.print(f"{numbers.integration} skipped {events:,}: {_SKIPPED.get(reason, reason)}")
    console.print(
        "Captured counts distinct events of the selected types; some events were loaded twice, some types are not "
        "selected.\n"
        "captured = delivered + skipped + dead letters + pending: "
        + ("holds for each integration." if fine else "does NOT hold. That is a bug; please report it.")
    )
    return fine


_SKIPPED: Final = {"no_external_id": "no External ID, as these users had not logged in yet"}


def _table(title: str, *left: str, right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _show_addresses(
    console: Console, settings: Settings, report: RunReport, server: SandboxServer, *, is_served: bool
) -> None:
    again = f"nami-amp sandbox --port {server.port} --journal {shlex.quote(str(journal(settings)))}"
    lines: list[Any] = ["\nTo look around:"]
    if is_served:
        lines.append(f"  Amplitude  {server.url}  (Ctrl-C stops it; to start it again: {again})")
    else:
        lines += [f"  Amplitude  {server.url}", f"             after you run: {again}"]
    lines += [
        f"  Dagster    http://127.0.0.1:3000/runs/{report.run_id}",
        "             http://127.0.0.1:3000/asset-groups",
        f"             after you run: {_dagster_command(settings)}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def _dagster_command(settings: Settings) -> str:
    """How to start Dagster's UI on the history that the run stands in."""
    home = dagster_home(settings)
    if os.environ.get("DAGSTER_HOME"):
        return "dagster dev -m nami_amp_pipeline.definitions"
    here = Path.cwd()
    if home == here / ".nami-amp" / "dagster" and (here / "dagster.yaml").exists():
        return "dagster dev"
    return f"DAGSTER_HOME={shlex.quote(str(home))} dagster dev -m nami_amp_pipeline.definitions"


def _wait_for_the_end() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
