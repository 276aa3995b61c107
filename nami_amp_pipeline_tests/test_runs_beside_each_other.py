"""A micro-batch, and at each of its steps somebody else: another run, a person who changes or removes, a rotation."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.clock import system_clock
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.retention import retain
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages.pipeline import run_stage
from nami_amp_pipeline.stages.table import CAPTURE, DELIVER, STAGES, delivering
from nami_amp_pipeline.state import integration_changes, tables
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state.integration_changes import IntegrationChange
from nami_amp_pipeline.state.integrations import NewIntegration
from nami_amp_pipeline.state.rotation import forget, rotate
from nami_amp_pipeline.state.store import Lease, Store
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres

pytestmark = pytest.mark.slow_cases

APPS: Final = ("radio", "fit")
EACH: Final = 20
STEPS: Final = (
    "capture.commit", "capture.committed", "ledger.commit", "ledger.committed", "snapshot.commit",
    "snapshot.committed", "prepare.commit", "prepare.committed", "deliver.commit", "deliver.committed",
    "deliver.post", "deliver.answered", "receipts.commit", "receipts.committed",
)  # fmt: skip


class Beside:
    """A pipeline with two apps, and another process beside it."""

    def __init__(self, home: Path, environ: dict[str, str]) -> None:
        few = {"NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "0", "NAMI_AMP_BATCH_EVENTS": "5", "NAMI_AMP_SEGMENT_ROWS": "20"}
        self.pipeline = Pipeline(home, {**few, "NAMI_AMP_DUCKDB_THREADS": "1", **environ})
        self.clock = self.pipeline.clock
        self.other = Context.open(self.pipeline.settings, run_id="other", clock=self.clock)
        self.other.sleep = self.clock.sleep
        self.wires: list[Agreeing] = []

    def begin(self) -> None:
        """Delivers some events, and has new ones."""
        for app in APPS:
            self.pipeline.add(app)
        self.load(0)
        assert not self.run(self.pipeline.context).problems()
        self.load(EACH)

    def begin_like(self, begun: Beside) -> None:
        """Goes on from where the other, which is a copy of this one, has come to."""
        self.clock.now = begun.clock.now
        self.wires = list(begun.wires)

    def load(self, first: int) -> None:
        """Events of both apps, of users who share ids across the apps."""
        rows = [
            {
                "id": f"{app}-{number}",
                "app_id": app,
                "event_type": "user.subscription.renewed",
                "user_id": f"u{number % 7}",
                "created_date": START + timedelta(seconds=number),
                "ingested_at": START + timedelta(seconds=number),
                "payload": f'{{"external_ids":[{{"key":"external_id","value":"x{number % 7}"}}],"sku":"s{number}"}}',
            }
            for app in APPS
            for number in range(first, first + EACH)
        ]
        self.pipeline.insert(rows)
        self.clock.now += 4_000

    def run(self, context: Context) -> MicroBatch:
        """A micro-batch with all that Dagster makes of it; its requests stay in a wire of its own."""
        wire = Agreeing()
        self.wires.append(wire)
        tick = MicroBatch.begin(context)
        for stage in STAGES:
            stage = replace(DELIVER, run=delivering(wire=wire)) if stage is DELIVER else stage
            tick.describe(stage, tick.run(stage))
        tick.report()
        return tick

    def run_with(self, step: str, act: Callable[[], object]) -> MicroBatch:
        """A micro-batch at one of whose steps something else happens, once."""
        begun: list[str] = []

        def hook(name: str) -> None:
            if name == step and not begun:
                begun.append(name)
                act()

        self.pipeline.context.step = hook
        try:
            tick = self.run(self.pipeline.context)
        finally:
            self.pipeline.context.step = lambda _name: None
        assert begun, f"the run did not come to {step}"
        return tick

    def sent(self) -> Counter[str]:
        """How often each event was posted."""
        return Counter(event["insert_id"] for wire in self.wires for event in wire.events)

    def check(self, *apps: str, most: int = 1) -> None:
        """Every event of these apps was posted, at most so often, and counts as delivered."""
        sent = self.sent()
        ones = registry.all_integrations(self.other.store, [f"{app}/main" for app in apps])
        for app, now in zip(apps, status(self.other, ones), strict=True):
            ids = [f"{app}-{number}" for number in range(2 * EACH)]
            assert all(1 <= sent[one] <= most for one in ids)
            assert (now.captured, now.delivered, now.pending) == (len(ids), len(ids), 0)

    def close(self) -> None:
        self.pipeline.close()
        self.other.store.close()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Beside, Path, Callable[[], dict[str, str]]]:
    """One that has begun and is closed, its home, and what names the state store of a copy."""
    home = tmp_path_factory.mktemp("begun")
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    url = server.fresh_database() if server is not None else ""
    made = Beside(home, {"NAMI_AMP_STATE_URL": url} if url else {})
    made.begin()
    made.close()
    return made, home, lambda: {"NAMI_AMP_STATE_URL": server.copy_of(url)} if server is not None else {}


@pytest.fixture
def beside(begun: tuple[Beside, Path, Callable[[], dict[str, str]]], tmp_path: Path) -> Iterator[Callable[[], Beside]]:
    """Makes one that has begun."""
    made: list[Beside] = []
    like, home, store = begun

    def make() -> Beside:
        copy = Path(shutil.copytree(home, tmp_path / str(len(made))))
        made.append(Beside(copy, store()))
        made[-1].begin_like(like)
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    "step", ["capture.commit", "snapshot.commit", "prepare.commit", "deliver.post", "receipts.commit"]
)
@pytest.mark.parametrize("late", [False, True])
def test_two_runs_at_once_deliver_each_event_once_and_both_are_green(
    beside: Callable[[], Beside], step: str, late: bool
) -> None:
    """``late``: the other one comes when the first has not prolonged its leases for longer than they hold."""
    both = beside()
    others: list[MicroBatch] = []

    def another_run() -> None:
        if late:
            both.clock.now += both.pipeline.settings.lease_seconds + 1
        others.append(both.run(both.other))

    first = both.run_with(step, another_run)
    last = both.run(both.pipeline.context)
    assert [tick.problems() for tick in (*others, last)] == [[], []]
    if late and step in ("deliver.post", "receipts.commit"):
        # It slept in mid delivery: what was under way is sent again, byte for byte, and the run says so.
        both.check(*APPS, most=2)
        assert all("another process" in line for line in first.problems()), first.problems()
    else:
        both.check(*APPS)
        assert first.problems() == []


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_an_integration_that_is_removed_in_mid_run_disturbs_no_other(beside: Callable[[], Beside], step: str) -> None:
    both = beside()
    tick = both.run_with(step, lambda: registry.remove(both.other.store, "radio/main"))
    assert tick.problems() == []
    assert both.run(both.pipeline.context).problems() == []
    both.check("fit")
    assert max(both.sent().values()) == 1


@pytest.mark.slow
def test_leases_of_a_stage_that_takes_longer_than_they_hold_are_kept(tmp_path: Path) -> None:
    both = Beside(tmp_path, {})
    both.begin()
    context = replace(both.pipeline.context, store=Store(both.pipeline.settings.state_url, system_clock, 1.0))
    table = tables.leases
    seen: set[int] = set()

    def slow(_context: Context, apps: Sequence[str], leases: Mapping[str, Lease], *_: Any) -> Mapping[str, Any]:
        until = time.monotonic() + 60
        while len(seen) < 4:  # its leases were prolonged three times: they would have run out by now
            assert time.monotonic() < until
            with context.store.reading() as tx:
                seen.update(tx.execute(sa.select(table.c.expires_at).where(table.c.name == "app:fit")).scalars())
        return dict.fromkeys(leases)

    assert run_stage(context, replace(CAPTURE, run=slow), APPS) == dict.fromkeys(APPS)
    assert "leases" not in {thread.name for thread in threading.enumerate()}
    # Stage 4 does it itself: the right to send is counted from the renewal on.
    assert [stage.asset for stage in STAGES if stage.renews_leases] == [DELIVER.asset]
    context.store.close()
    both.close()


def _changes(context: Context) -> dict[str, Callable[[], Any]]:
    """What people do beside a run, by name."""
    store, cipher = context.store, context.cipher

    def change(given: IntegrationChange) -> Callable[[], Any]:
        return lambda: integration_changes.change(store, cipher, "radio/main", given)

    new = NewIntegration("radio", "two", "us", Secret("2" * 32), allow_shared_key=True)
    return {
        "disable": lambda: registry.set_enabled(store, "radio/main", enabled=False),
        "rotate": lambda: rotate(store, cipher),
        "rotate and forget": lambda: (rotate(store, cipher), forget(store, cipher)),
        "retention": lambda: retain(context),
        "another key": change(IntegrationChange(api_key=Secret("1" * 32))),
        "hash": change(IntegrationChange(hashed=["sku"])),
        "start from the beginning": change(IntegrationChange(start_from=None)),
        "add": lambda: registry.add(store, cipher, new),
    }


CHANGES: Final = (
    "disable", "rotate", "rotate and forget", "retention", "another key", "hash", "start from the beginning", "add",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_what_people_do_in_mid_run_costs_no_event_and_no_run(
    beside: Callable[[], Beside], begun: tuple[Beside, Any, Any], what: str
) -> None:
    is_sqlite = begun[0].other.store.url.startswith("sqlite")
    # Eight changes share the steps: each step is met with both stores, and a change meets other steps with the other.
    number = CHANGES.index(what)
    steps = STEPS[number % 5 :: 5] if is_sqlite else STEPS[(number + 3) % 7 :: 7]
    for step in steps:
        both = beside()
        tick = both.run_with(step, _changes(both.other)[what])
        registry.set_enabled(both.other.store, "radio/main", enabled=True)
        assert [tick.problems(), both.run(both.pipeline.context).problems()] == [[], []], step
        both.check(*APPS, most=2 if what == "add" else 1)  # two integrations of one app
