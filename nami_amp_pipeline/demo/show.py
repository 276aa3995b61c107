"""The demo itself: sets the scene, runs one micro-batch through Dagster, and shows what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

from nami_amp_pipeline.clock import Clock, system_clock
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.demo.addresses import show_addresses
from nami_amp_pipeline.demo.arrivals import LocalAmplitude, Person, people, sent_by_type
from nami_amp_pipeline.demo.local_amplitude import local_amplitude
from nami_amp_pipeline.demo.setup import DAYS, demo_endpoints, demo_integration_keys, ensure_integrations, load_sample
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.runner import RunReport, run_micro_batch
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import Integration


def run_demo(
    settings: Settings,
    *,
    users: int = 2000,
    port: int | None = None,
    keep_serving: bool = False,
    out: TextIO,
    clock: Clock = system_clock,
) -> int:
    """Shows one whole run with made-up subscribers and a local Amplitude; everything stays under ``settings.home``.

    Args:
        settings: what was set.
        users: how many subscribers to make up; the same ones each time.
        port: where the local Amplitude listens; None for the port of the last time, or one that is free. 0 takes any.
        keep_serving: whether it goes on listening after the report, until the process is asked to end.
        out: where the report goes.
        clock: what time it is; the sample of a new home ends now.

    Returns:
        The exit status: 0 if everything that was sent arrived, 1 if not.

    Raises:
        Misconfigured: the settings name a warehouse that is not the demo's.
        Blocked: something outside keeps the demo from running.
    """
    console = Console(file=out, markup=False, highlight=False, emoji=False, soft_wrap=not out.isatty())
    started = time.monotonic()
    sample = load_sample(settings, users, clock())
    console.print(
        f"{sample.events:,} events of {users:,} made-up subscribers in two apps, of the {DAYS} days up to "
        f"{sample.end:%Y-%m-%d %H:%M} UTC: "
        + (f"{sample.new:,} loaded into {settings.home / 'warehouse.duckdb'}." if sample.new else "all loaded before.")
    )
    context = Context.open(settings, run_id="demo", clock=clock)
    try:
        with local_amplitude(settings, port, demo_endpoints(context)) as place:
            integrations = ensure_integrations(context, place.endpoint)
            amplitude = LocalAmplitude(place.url)
            repeats = amplitude.audit()["duplicates"]
            run_started = time.monotonic()
            report = run_micro_batch(settings, demo_integration_keys())
            seconds = time.monotonic() - run_started
            fine = _show(console, context, integrations, report, amplitude, repeats)
            console.print(f"\nThe micro-batch took {seconds:.1f} s, the demo {time.monotonic() - started:.1f} s.")
            show_addresses(console, settings, report.run_id, place, is_served=keep_serving)
            context.store.close()
            if keep_serving and place.is_of_the_demo:
                _wait_for_the_end()
    finally:
        context.store.close()
    return 0 if fine else 1


def _show(
    console: Console,
    context: Context,
    integrations: Sequence[Integration],
    report: RunReport,
    amplitude: LocalAmplitude,
    repeats_before: int,
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
    repeats = amplitude.audit()["duplicates"] - repeats_before
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
    _print(console, table)
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
        _print(console, table)


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
    _print(console, table)
    for numbers in found:
        for code, events in numbers.skipped.items():
            console.print(f"{numbers.integration} skipped {events:,}: {reasons.means(code)}.", soft_wrap=True)
            known = reasons.reason(code)
            if known is not None and known.action:
                console.print(f"  Do: {known.action.replace('APP/NAME', numbers.integration)}.", soft_wrap=True)
    console.print(
        "Captured counts distinct events of the selected types; some events were loaded twice, some types are not "
        "selected.\n"
        "captured = delivered + skipped + dead letters + pending: "
        + ("holds for each integration." if fine else "does NOT hold. That is a bug; please report it.")
    )
    return fine


def _table(title: str, *left: str, right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print(console: Console, table: Table) -> None:
    """Prints a table; in a pipe its rows, separated by tabs, with nothing cut or folded."""
    if not console.soft_wrap:
        console.print(table)
        return
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    if table.show_header:
        rows.insert(0, tuple(column.header for column in table.columns))
    if table.title:
        console.print(table.title)
    for row in rows:
        console.file.write("\t".join(map(str, row)) + "\n")


def _wait_for_the_end() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
