"""Runs ``nami-amp`` for the tests: in a process of its own, or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import orjson
from click.testing import CliRunner, Result

from nami_amp_pipeline.cli import cli
from nami_amp_pipeline.clock import Clock, system_clock
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.nursery import Started

API_KEY = "a-secret-api-key-0123456789"
PROGRAM = Path(sys.executable).with_name("nami-amp")


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """An environment of which nothing is left but what the program needs."""
    here = str(Path(__file__).parents[2])  # the program is that of these tests, wherever it is installed from
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "KEY": API_KEY, "PYTHONPATH": here, **settings}


def nami_amp(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs the program in a process of its own, with ``folder`` as working directory and home."""
    return Started(arguments, folder, environment(folder, **settings)).ended()


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Makes a folder the working directory for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def invoke(
    folder: Path, *arguments: str, settings: Mapping[str, str] | None = None, typed: str | None = None
) -> Result:
    """Runs the command in this process, with ``folder`` as working directory, and a text on its standard input."""
    wanted: dict[str, str | None] = {name: None for name in os.environ if name.startswith(("NAMI_AMP_", "DAGSTER_"))}
    wanted |= {"KEY": API_KEY, **(settings or {})}
    with working_in(folder):
        return CliRunner(env=wanted).invoke(cli, list(arguments), input=typed)


def one_line(text: str) -> str:
    """The text, which must be one line for a person and no traceback."""
    assert text.endswith("\n"), text
    assert text.count("\n") == 1, text
    assert text.startswith("nami-amp: ")
    assert "Traceback" not in text
    return text


def add(folder: Path, endpoint: str, *more: str, name: str = "prod", app: str = "radio") -> None:
    """Adds an integration that goes to a local endpoint."""
    done = invoke(
        folder, "integrations", "add", app, name, "--endpoint", endpoint, "--allow-custom-endpoint", "--api-key-env",
        "KEY", "--start-from", "beginning", "--allow-shared-key", *more,
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def event(
    number: int, user: str = "u1", external: str | None = "e1", event_type: str = "user.subscription.purchased"
) -> bytes:
    """A line of Nami's webhook."""
    ids = [{"key": "external_id", "type": "string", "value": external}] if external is not None else []
    return orjson.dumps(
        {
            "id": f"event-{number}",
            "event_type": event_type,
            "event_platform": "apple",
            "created_date": f"2026-09-01T00:{number // 60 % 60:02d}:{number % 60:02d}Z",
            "user_id": user,
            "external_ids": ids,
            "customer_journey_state": {"former_subscriber": False, "in_trial_period": True},
        }
    )


def load_events(folder: Path, *lines: bytes, app: str = "radio") -> None:
    """Loads events into the warehouse of ``folder``."""
    file = folder / "events.ndjson"
    file.write_bytes(b"\n".join(lines) + b"\n")
    done = invoke(folder, "load", str(file), "--app", app)
    assert done.exit_code == 0, done.output


def tick(folder: Path, run_id: str, clock: Clock = system_clock) -> list[IntegrationStatus]:
    """One micro-batch without Dagster; returns how all integrations stand after it."""
    settings = Settings.load({"NAMI_AMP_HOME": str(folder / ".nami-amp"), "NAMI_AMP_RUN_RETRY_SECONDS": "0"})
    context = Context.open(settings, run_id=run_id, clock=clock)
    try:
        pipeline.capture_apps(context)
        pipeline.snapshot_apps(context)
        pipeline.prepare_integrations(context, all_integrations(context.store))
        pipeline.deliver_integrations(context, all_integrations(context.store))
        found = status(context, all_integrations(context.store))
    finally:
        context.store.close()
    for one in found:
        ended = one.delivered + sum(one.skipped.values()) + sum(one.dead_letters.values())
        assert one.captured == ended + one.pending
    return found
