"""With an Amplitude that misbehaves nothing is lost, nothing is twice, and order is kept; over real HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline import sample
from nami_amp_pipeline.operations.status import IntegrationStatus
from nami_amp_pipeline.sandbox import Fault, Options, Sandbox, SandboxServer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.state import integrations as state
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.harness import Pipeline

KEY = "k" * 32


class Delivery:
    """A pipeline with 600 sample events, and the sandbox that it delivers to."""

    def __init__(self, home: Path, sandbox: Sandbox, server: SandboxServer) -> None:
        self.sandbox = sandbox
        self.pipeline = Pipeline(home, {"NAMI_AMP_BATCH_EVENTS": "50", "NAMI_AMP_RUN_RETRY_SECONDS": "20"})
        self.pipeline.context.clock = time.time
        self.pipeline.context.store.clock = time.time
        self.pipeline.context.sleep = time.sleep
        rows = [row for batch in sample.generate(100, rows=600, apps=("app",)) for row in batch.to_pylist()]
        self.pipeline.insert(rows)
        self.one = self.pipeline.add(
            "app",
            endpoint=server.endpoint,
            api_key=Secret(KEY),
            anonymous="nami_user_id",
            allow_custom_endpoint=True,
        )

    def run(self) -> IntegrationStatus:
        context = self.pipeline.context
        stages.capture_apps(context)
        stages.snapshot_apps(context)
        stages.prepare_integrations(context, [self.current])
        stages.deliver_integrations(context, [self.current])
        return self.numbers

    @property
    def current(self) -> Integration:
        return state.get(self.pipeline.context.store, self.one.key)

    @property
    def numbers(self) -> IntegrationStatus:
        numbers = self.pipeline.status(self.one)
        ended = numbers.delivered + sum(numbers.skipped.values()) + sum(numbers.dead_letters.values())
        assert numbers.captured == ended + numbers.pending
        return numbers

    def check(self, *, dead: int = 0) -> None:
        """Everything arrived once, in order, unchanged, but for the dead letters."""
        numbers = self.numbers
        assert numbers.pending == 0, numbers
        assert sum(numbers.dead_letters.values()) == dead, numbers
        audit = self.sandbox.audit
        assert audit.accepted == numbers.delivered > 400
        assert audit.accepted_more_than_once.count == 0
        assert audit.order_violations.count == 0
        assert audit.concurrent_same_user.count == 0
        assert audit.changed_repeats.count == 0


@pytest.fixture
def delivery(tmp_path: Path) -> Iterator[Delivery]:
    sandbox = Sandbox(options=Options(throttle=False))
    with SandboxServer(sandbox) as server:
        one = Delivery(tmp_path, sandbox, server)
        yield one
        one.pipeline.close()


@pytest.mark.parametrize(
    "kind",
    [
        "500",
        "503",
        "stored_then_500",
        "stored_then_504",
        "reset_before_response",
        "closed_without_answer",
        "truncated_body",
        "html_502",
        "html_400",
    ],
)
@pytest.mark.contract("5.5.8")
@pytest.mark.slow
def test_answers_that_tell_nothing_are_asked_for_again(kind: Any, delivery: Delivery) -> None:
    delivery.sandbox.faults.add(Fault(kind, probability=0.3, seed=3))
    delivery.run()
    delivery.sandbox.faults.remove()
    delivery.run()
    delivery.check()


@pytest.mark.parametrize("indexes", ["all", "first", "none"])
@pytest.mark.contract("5.3.1", "5.5.2")
@pytest.mark.slow
def test_poison_becomes_dead_letters_exactly(indexes: Any, delivery: Delivery) -> None:
    delivery.sandbox.faults.add(Fault("poison", share=0.02, seed=5, indexes=indexes))
    numbers = delivery.run()
    dead = sum(numbers.dead_letters.values())
    assert set(numbers.dead_letters) == {"rejected"}
    delivery.check(dead=dead)
    with delivery.pipeline.context.store.begin() as tx:
        bodies = tx.execute(sa.select(tables.exceptions.c.body).where(tables.exceptions.c.state == "dead")).scalars()
        assert len(list(bodies)) == dead > 0


@pytest.mark.contract("5.5.6")
@pytest.mark.slow
def test_too_large_requests_are_split(delivery: Delivery) -> None:
    delivery.sandbox.faults.add(Fault("413", min_events=20))
    delivery.run()
    delivery.check()


@pytest.mark.contract("5.5.4")
@pytest.mark.slow
def test_a_refused_key_halts_and_spends_no_event(delivery: Delivery) -> None:
    delivery.sandbox.faults.add(Fault("invalid_key"))
    numbers = delivery.run()
    assert numbers.state == "halted"
    assert numbers.delivered == 0 == sum(numbers.dead_letters.values())
    assert "invalid_api_key" in (numbers.error or "")
    assert KEY not in (numbers.error or "")
    delivery.sandbox.faults.remove()
    state.set_enabled(delivery.pipeline.context.store, delivery.one.key, enabled=True)
    delivery.run()
    delivery.check()


@pytest.mark.contract("5.5.4")
def test_a_redirect_is_not_followed(delivery: Delivery) -> None:
    delivery.sandbox.faults.add(Fault("redirect", location="http://127.0.0.1:9/"))
    assert delivery.run().state == "halted"
    assert delivery.sandbox.audit.accepted == 0


@pytest.mark.slow
def test_a_project_that_is_throttled_waits_as_told(delivery: Delivery) -> None:
    delivery.sandbox.faults.add(Fault("project_429", times=2, retry_after=1))
    delivery.run()
    delivery.check()


@pytest.mark.slow
def test_an_endpoint_that_is_down_leaves_everything_pending(delivery: Delivery) -> None:
    context = delivery.pipeline.context
    with context.store.begin() as tx:
        tx.execute(sa.update(tables.integrations).values(endpoint="http://127.0.0.1:9/2/httpapi"))
    object.__setattr__(delivery.pipeline.settings, "run_retry_seconds", 1.0)
    numbers = delivery.run()
    assert numbers.pending == numbers.captured > 0
    assert numbers.delivered == 0 == sum(numbers.dead_letters.values())
