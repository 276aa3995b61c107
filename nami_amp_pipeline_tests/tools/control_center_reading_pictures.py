"""Takes pictures of the reading pages: ``python -m nami_amp_pipeline_tests.tools.control_center_reading_pictures``."""

from __future__ import annotations

import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.operations.dead_letters import Filter
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline_tests.support.browser import chromium
from nami_amp_pipeline_tests.support.control_center import served
from nami_amp_pipeline_tests.support.harness import Answering, Pipeline
from nami_amp_pipeline_tests.tools.control_center_pictures import take

TYPES = (
    "user.subscription.renewed",
    "user.subscription.purchased",
    "user.subscription.cancelled",
    "user.journey.trial.started",
)
HOURS = 30
INVALID = orjson.dumps({"code": 400, "error": "invalid event", "events_with_invalid_fields": {"time": [0]}})


def event(rng: random.Random, number: int, at: datetime) -> dict[str, Any]:
    """An event of one of sixty users, of whom a few have no External ID."""
    person = rng.randrange(60)
    ids = [{"key": "external_id", "type": "string", "value": f"account-{person}"}] if person % 9 else []
    body = {
        "external_ids": ids,
        "active_entitlements": [{"entitlement_ref_id": "premium", "sku_ref_id": "premium_monthly"}],
        "customer_journey_state": {"in_trial_period": person % 5 == 0, "former_subscriber": False},
        "purchase_platform": "app_store",
    }
    return {
        "id": f"evt-{number:05}", "app_id": "radio", "event_type": rng.choice(TYPES), "user_id": f"user-{person}",
        "created_date": at, "ingested_at": at, "payload": orjson.dumps(body).decode(),
    }  # fmt: skip


def fill(made: Pipeline, now: datetime) -> None:
    """A day and more of events, some of which Amplitude rejected, and a plan of a backfill."""
    rng = random.Random(4)
    main = made.add("radio", anonymous="wait_for_login", events=["user.subscription.*", "user.journey.*"])
    number = 0
    for hour in range(HOURS):
        begins = now - timedelta(hours=HOURS - hour)
        events = rng.randrange(5, 30)
        rows = [event(rng, number + n, begins + timedelta(minutes=rng.random() * 50)) for n in range(events)]
        number += events
        made.insert(rows)
        made.clock.set(begins + timedelta(minutes=55))
        made.wires[main.id] = Answering([HttpAnswer(400, INVALID)] if hour % 6 == 2 else [])
        made.tick()
    made.clock.set(now)
    day = Window(int((now - timedelta(days=1)).timestamp() * 1e6), int(now.timestamp() * 1e6), "created_date")
    backfills.dry_run(made.context, NewBackfill(main.key, day), by="Ana")


def main() -> None:
    """Takes all of them."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as profile:
        made = Pipeline(Path(folder), open_at=now - timedelta(hours=HOURS))
        fill(made, now)
        (letter, *_), _ = Operations.over(made.context).dead_letters(Filter())
        pictures = {
            "control-center-deliveries": ("/apps/radio/deliveries/main", "light"),
            "control-center-refused": (f"/apps/radio/refused/{letter.id}", "dark"),
            "control-center-trace": (f"/apps/radio/trace?q={letter.event_id}", "light"),
            "control-center-backfill": ("/apps/radio/backfills/1", "light"),
        }
        browser = chromium(Path(profile))
        try:
            with served(made.settings) as url:
                for name, (path, scheme) in pictures.items():
                    take(browser, url, name, path, scheme)
        finally:
            browser.quit()
            made.close()


if __name__ == "__main__":
    main()
