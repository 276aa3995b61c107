"""What a person sees of a comparison on Dagster's pages: the day in words, differences, samples, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from selenium.webdriver.common.by import By

from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.defs.partitions import add_partitions
from nami_amp_pipeline.defs.reconciliation import reconcile
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.dagster_pages import DagsterPages, dagster_pages
from nami_amp_pipeline_tests.support.held_by_amplitude import Held, held_by_amplitude
from nami_amp_pipeline_tests.support.scene import WARNINGS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

MISSING, ALTERED, TWICE, OTHERS = 7, 3, 2, 812


def trouble(world: Held) -> int:
    """A day after which Amplitude does not hold what was delivered; returns how many events that were."""
    world.load(150)
    world.add()
    world.tick()
    world.write_others(OTHERS)
    ids = sorted(event["insert_id"] for event in world.held())
    properties = {event["insert_id"] for event in world.held() if "sku" in event.get("event_properties", {})}
    cut = [ident for ident in ids[MISSING + TWICE :] if ident in properties][:ALTERED]
    world.damage("lost_after_200", ids[:MISSING])
    world.damage("stored_twice", ids[MISSING : MISSING + TWICE])
    world.damage("cut_property", cut, property_name="sku", characters=4)
    return len(ids)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DagsterPages, int]]:
    """The pages after the job ``reconcile``, and how many events were delivered."""
    folder = tmp_path_factory.mktemp("held")
    with held_by_amplitude(folder / "home") as world:
        delivered = trouble(world)
        world.later(days=1)
        settings = world.pipe.settings
        with dagster_instance(settings) as instance:
            add_partitions(instance, all_integrations(world.pipe.context.store))
            session = PipelineSession(settings, run_id="test", clock=world.pipe.clock)
            day = {"first_day": "2026-12-01", "last_day": "2026-12-01"}
            quiet = {"console": {"config": {"log_level": "CRITICAL"}}}
            done = reconcile.execute_in_process(
                instance=instance,
                resources={"pipeline": session},
                run_config={"ops": {"compare_days": {"config": day}}, "loggers": quiet},
            )
            session.close()
            assert done.success
        with dagster_pages(folder, settings.home) as pages:
            yield pages, delivered


def test_a_day_that_amplitude_does_not_hold_whole(seen: tuple[DagsterPages, int]) -> None:
    pages, delivered = seen
    pages.open("/assets/amplitude_reconciliation?view=events&partition=radio%7Cmain")
    words = f"Amplitude holds {delivered - MISSING:,} of {delivered:,}, {MISSING} missing, {ALTERED} altered"
    shown = pages.until("Partition radio|main materialized", words, f"{OTHERS} of other writers", "--repair")
    assert f"altered event_properties {ALTERED}" in shown
    assert re.search(r'altered \S+ event_properties sku "\w+" "\w{4}"', shown), "sent and held side by side"
    pages.picture("reconciliation")
    pages.open("/assets/amplitude_reconciliation?view=checks")
    pages.click(By.XPATH, "//*[text()='amplitude_holds_all']")
    pages.until("Evaluation result\nFailed", words)
