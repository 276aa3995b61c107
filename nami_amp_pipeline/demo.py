"""The demo: made-up subscribers, a local Amplitude, one micro-batch through Dagster, and a report of what arrived."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, TextIO

import duckdb
import pyarrow as pa
import requests
from rich.console import Console
from rich.table import Table

from nami_amp_pipeline import sample
from nami_amp_pipeline.amplitude.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.compute import sql
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.runner import RunReport, run_micro_batch
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import integrations as state

PORT: Final = 8765
"""Where the local Amplitude listens, so that ``nami-amp sandbox`` finds the same place again."""

_SEED: Final = 7
_USER_ID: Final[dict[str, Any]] = {"radio-nami": "external_id", "fit-nami": "nami_user_id"}


def run_demo(
    settings: Settings, *, users: int = 2000, port: int | None = None, keep_serving: bool = False, out: TextIO
) -> int:
    """Runs the demo; a second time it finds everything delivered and sends nothing.

    Args:
        settings: where everything lives; the warehouse must be a DuckDB file.
        users: how many subscribers to make up.
        port: where the local Amplitude listens; 8765, or any free one if that is taken.
        keep_serving: whether the local Amplitude stays up until it is interrupted.
        out: where the report goes.

    Returns:
        The exit status: 0, or 1 if what was sent is not what arrived.
    """
    console = Console(file=out, width=100, highlight=False)
    began = time.monotonic()
    settings.home.mkdir(parents=True, exist_ok=True)
    loaded = _load(settings, users)
    journal = settings.home / "sandbox.ndjson"
    server = _serve(journal, PORT if port is None else port)
    try:
        before = _arrived(server.url)
        _add_integrations(settings, server.endpoint)
        report = run_micro_batch(settings)
        after = _arrived(server.url)
        as_it_should = _print_report(console, server.url, loaded, before, after, report)
        _print_people(console, server.url)
        seconds = time.monotonic() - began
        console.print(f"\nDone in {seconds:.0f} s. To look around:")
        for command, page in (
            (f"nami-amp sandbox --journal {journal}", f"what arrived: http://127.0.0.1:{PORT}/"),
            ("dagster dev", f"this run: http://127.0.0.1:3000/runs/{report.run_id}"),
            ("", "lineage: http://127.0.0.1:3000/asset-groups"),
        ):
            console.print(f"  {command:<48}{page}", soft_wrap=True)
        if keep_serving:
            console.print(f"The local Amplitude stays at {server.url} until Ctrl-C.")
            while True:
                time.sleep(3600)
    finally:
        server.stop()
    return 0 if as_it_should and report.ok else 1


def _load(settings: Settings, users: int) -> int:
    """Puts the sample into the warehouse, once; returns how many rows are new."""
    path = Path(settings.warehouse_url.removeprefix("duckdb:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with duckdb.connect(str(path)) as connection:
        connection.execute(sql("nami_events"))
        apps = ", ".join(f"'{app_id}'" for app_id in _USER_ID)
        ((there,),) = connection.execute(f"SELECT count(*) FROM nami_events WHERE app_id IN ({apps})").fetchall()  # noqa: S608
        if there:
            return 0
        for batch in sample.generate(users, seed=_SEED, apps=tuple(_USER_ID)):
            connection.register("sample", pa.Table.from_batches([batch]))
            connection.execute("INSERT INTO nami_events BY NAME SELECT * FROM sample")
            connection.unregister("sample")
            rows += batch.num_rows
    return rows


def _serve(journal: Path, port: int) -> SandboxServer:
    # The sample's busiest users would be throttled as at Amplitude, which is not what a demo is to show.
    sandbox = Sandbox(journal=journal, options=Options(throttle=False))
    try:
        server = SandboxServer(sandbox, port=port)
        server.start()
    except OSError:
        server = SandboxServer(sandbox)
        server.start()
    return server


def _add_integrations(settings: Settings, endpoint: str) -> None:
    context = Context.open(settings)
    try:
        known = {one.key for one in state.all_integrations(context.store)}
        for app_id, user_id in _USER_ID.items():
            if f"{app_id}/demo" not in known:
                state.add(
                    context.store,
                    context.cipher,
                    state.NewIntegration(
                        app_id,
                        "demo",
                        endpoint,
                        Secret(f"demo-key-of-{app_id}"),
                        user_id_kind=user_id,
                        allow_custom_endpoint=True,
                    ),
                )
    finally:
        context.store.close()


def _get(url: str, **query: str | int) -> Any:
    answer = requests.get(url, params=query, timeout=60)
    answer.raise_for_status()
    return answer.json()


def _arrived(url: str) -> Counter[str]:
    """Events in the local Amplitude by type, asked of itself."""
    found: Counter[str] = Counter()
    for project in _get(f"{url}/sandbox/summary")["projects"]:
        for event_type, events in project["event_types"].items():
            found[event_type] += events
    return found


def _print_report(
    console: Console, url: str, loaded: int, before: Counter[str], after: Counter[str], report: RunReport
) -> bool:
    new = after - before
    delivered = sum(one["delivered"] for one in report.integrations)
    console.print(f"{loaded:,} sample events were loaded, {delivered:,} were delivered by run {report.run_id}.")
    table = Table("event type", title="What arrived in the local Amplitude")
    table.add_column("now", justify="right")
    table.add_column("in all", justify="right")
    for event_type in sorted(after):
        table.add_row(event_type, f"{new[event_type]:,}", f"{after[event_type]:,}")
    table.add_section()
    table.add_row("all", f"{new.total():,}", f"{after.total():,}")
    console.print(table)
    numbers = Table("integration", title="What became of the events that were captured")
    for column in ("captured", "delivered", "skipped", "dead letters", "pending"):
        numbers.add_column(column, justify="right")
    for one in report.integrations:
        skipped, dead = sum(one["skipped"].values()), sum(one["dead_letters"].values())
        numbers.add_row(
            one["integration"],
            *(f"{n:,}" for n in (one["captured"], one["delivered"], skipped, dead, one["pending"])),
        )
    console.print(numbers)
    audit = _get(f"{url}/sandbox/audit")
    twice = audit["accepted_more_than_once"]
    if delivered == 0 and new.total() == 0:
        console.print("Everything had been delivered before: nothing was sent again.")
    console.print(f"Sent and arrived: {delivered:,} and {new.total():,}. Arrived twice: {twice}.")
    return delivered == new.total() and twice == 0


def _print_people(console: Console, url: str) -> None:
    table = Table("user", "property", "as Amplitude holds it", title="Three users and their properties")
    for member in sample.cast_of("radio-nami"):
        found = _get(f"{url}/sandbox/users", user_id=member.external_id or member.user_id, limit=1)["users"]
        if not found:
            table.add_row(member.name, "–", "no External ID: skipped")
            continue
        for number, (name, value) in enumerate(sorted(found[0]["user_properties"].items())):
            table.add_row(member.name if number == 0 else "", name, str(value))
        table.add_section()
    console.print(table)


__all__ = ["PORT", "run_demo"]
