"""The Control Center's pages with a thousand apps, three thousand integrations and a month of a hundred million events.

``python -m bench.control_center --apps 100 --repeats 3``
"""

from __future__ import annotations

import hashlib
import sqlite3
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.testclient import TestClient

from bench.data import APPS, sample_warehouse
from bench.part import alone, say, spread, table
from bench.receiver import Receiver
from bench.scene import Home, room, summary
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import event_type_names
from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.state import integrations as state

TITLE = "The Control Center"
GOAL = 0.3
"""Seconds, the median of each page."""

HOUR: Final = 3_600_000_000
NAMES: Final = ("bench", "second", "third")
TYPES: Final = 8
"""Event types of an integration's hours."""

EVENTS: Final = 100_000_000
"""Of all integrations in a month."""

_RECORDS: Final = """
-- A month of ticks of the app that is looked at: what is kept of them for each integration.
WITH RECURSIVE tick(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM tick WHERE n + 1 < :ticks),
    mine AS (SELECT id FROM integrations WHERE app_id = :app)
INSERT INTO requests (integration_id, lane_id, first_row, end_row, events, bytes, status, outcome, answer, sent_at,
    answered_at, run_id)
SELECT mine.id, NULL, NULL, NULL, 12, 9000, 200, 'delivered', NULL, :now - n * 300000000,
    :now - n * 300000000 + 250000, 'bench' FROM mine, tick;

WITH RECURSIVE tick(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM tick WHERE n + 1 < :others)
INSERT INTO requests (integration_id, events, bytes, status, outcome, sent_at, answered_at, run_id)
SELECT id, 12, 9000, 200, 'delivered', :now - n * 3600000000, :now - n * 3600000000 + 250000, 'bench'
FROM integrations, tick WHERE app_id <> :app;

WITH RECURSIVE letter(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM letter WHERE n + 1 < :letters),
    some AS (SELECT id, CASE WHEN app_id = :app THEN :letters ELSE 20 END AS most FROM integrations)
INSERT INTO exceptions (integration_id, state, reason, event_id, event_type, user_id, identity, created_date, body,
    answer, run_id, at, hour)
SELECT some.id, CASE WHEN n % 10 = 9 THEN 'held' ELSE 'dead' END,
    CASE WHEN n % 10 = 9 THEN 'throttled' ELSE 'rejected' END,
    'letter-' || some.id || '-' || n, 'user.subscription.renewed', 'user-' || n % 500, 'u:user-' || n % 500,
    :now - n * 60000000, ',{"insert_id":"letter-' || some.id || '-' || n || '","time":1,"event_type":"x"}',
    '{"code":400,"error":"invalid","events_with_invalid_fields":["time"]}', 'bench', :now - n * 60000000,
    (:now - n * 60000000) / 3600000000 * 3600000000
FROM some, letter WHERE n < most;

WITH RECURSIVE person(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM person WHERE n + 1 < :people)
INSERT OR IGNORE INTO user_property_snapshots (app_id, user_id, external_id, as_of_date, as_of_event, entitlements,
    entitlements_date, entitlements_event)
SELECT a.app_id, 'person-' || n, CASE WHEN n % 2 THEN 'external-' || n END, :now - n * 1000000, 'event-' || n,
    '{"namiml_active_entitlements":["premium"],"namiml_active_skus":["sku"]}', :now - n * 1000000, 'event-' || n
FROM apps a, person WHERE a.app_id = :app OR n < :people / 20;

INSERT OR IGNORE INTO sent_states (integration_id, user_id, as_of_date, as_of_event)
SELECT i.id, external_id, as_of_date, as_of_event FROM user_property_snapshots s JOIN integrations i USING (app_id)
WHERE app_id = :app AND external_id IS NOT NULL;

WITH RECURSIVE day(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM day WHERE n + 1 < 30)
INSERT INTO reconciled_days (integration_id, day, at, source, hours, complete_at, delivered, held, repaired, said,
    run_id)
SELECT i.id, (:now / 86400000000 - n) * 86400000000, :now, 'the Export API', 24, :now, 1000, 1000, 0,
    'Amplitude holds 1,000 of 1,000', 'bench' FROM integrations i, day;
"""

_HOURS: Final = """
WITH RECURSIVE hour(n) AS (SELECT :hours - 1 UNION ALL SELECT n - 1 FROM hour WHERE n > 0)
INSERT OR IGNORE INTO hourly_counts
SELECT i.id, :first - n * 3600000000, t.value, :each, :each, 0, 0
FROM integrations i, hour, json_each(:types) t WHERE i.backfill_of IS NULL ORDER BY i.id, n DESC, t.value
"""


def measure(
    *, apps: int = 1_000, hours: int = 720, letters: int = 2_000, people: int = 10_000, repeats: int = 7
) -> dict[str, Any]:
    """Times every page of one app in this process: the first look fills caches, and is told apart.

    Args:
        apps: each with three integrations.
        hours: of history, in which each integration has events of several types.
        letters: dead letters and held events of each integration that is looked at; others have 20.
        people: users of the app that is looked at; other apps have a twentieth.
        repeats: of each page.
    """
    with Receiver() as receiver, room("control-center") as folder:
        home = Home(folder, f"duckdb:///{sample_warehouse(20_000)}")
        app = APPS[0]
        _integrate(home, receiver.url, [app])
        receiver.reset()
        home.tick()
        say("a tick was delivered")
        others = [f"app-{number:04}" for number in range(apps - 1)]
        sizes = _fill(home, others, app, {"hours": hours, "letters": letters, "people": people})
        say(f"{sizes['hours']:,} rows of hourly counts, {sizes['events']:,} events")
        pages = TestClient(create_app(home.settings), base_url="http://localhost")
        took: dict[str, list[float]] = {}
        first: dict[str, float] = {}
        for number in range(repeats + 1):
            for name, path in _paths(app).items():
                began = time.perf_counter()
                answer = pages.get(path)
                seconds = time.perf_counter() - began
                if answer.status_code != 200:
                    raise RuntimeError(f"{path} answers {answer.status_code}: {answer.text[:2000]}")
                if number:
                    took.setdefault(name, []).append(seconds)
                else:
                    first[name] = seconds
    return {"apps": apps, **sizes, "first": first, "pages": {name: summary(values) for name, values in took.items()}}


def _paths(app: str) -> Mapping[str, str]:
    of = f"/apps/{app}/deliveries/bench"
    return {
        "Apps": "/",
        "Integrations": f"/apps/{app}/integrations",
        "Amplitude form": f"/apps/{app}/integrations/bench",
        "Deliveries of all": f"/apps/{app}/deliveries",
        "Deliveries, 24 hours": of,
        "Deliveries, 30 days": f"{of}?window=30d",
        "Delivered events": f"{of}/events?outcome=delivered&window=30d",
        "Refused events of a window": f"{of}/events?outcome=dead_letters&window=30d",
        "Requests": f"{of}/requests",
        "Waiting": f"{of}/waiting",
        "Refused": f"/apps/{app}/refused",
        "Refused, one cause": f"/apps/{app}/refused?integration=bench&reason=rejected",
        "Send again": f"/apps/{app}/refused/again?reason=rejected",
        "Trace of an event": f"/apps/{app}/trace?q=letter-1-0",
        "Trace of a user": f"/apps/{app}/trace?q=external-1",
        "Backfills": f"/apps/{app}/backfills",
        "Reconciliation": f"/apps/{app}/reconciliation/bench",
        "Audience": f"/apps/{app}/reconciliation/bench/audience?property=namiml_active_entitlements&value=premium"
        "&place=sent",
        "Preview": f"/apps/{app}/integrations/bench/preview",
        "Properties": f"/apps/{app}/properties",
        "History": f"/apps/{app}/history",
    }


def _integrate(home: Home, url: str, apps: list[str]) -> None:
    context = Context.open(home.settings)
    for app_id in apps:
        for name in NAMES:
            key = hashlib.md5(f"{app_id}/{name}".encode(), usedforsecurity=False).hexdigest()
            state.add(
                context.store,
                context.cipher,
                state.NewIntegration(
                    app_id, name, url, Secret(key), anonymous="nami_user_id", allow_custom_endpoint=True
                ),
            )
    context.store.close()


def _fill(home: Home, others: list[str], app: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Writes a month of history past the pipeline: only counts and records, as a month of ticks would leave them."""
    now = int(time.time() * 1e6)
    types = event_type_names()[:TYPES]
    cells = max(1, (len(others) + 1) * len(NAMES) * sizes["hours"] * TYPES)
    each = -(-EVENTS // cells)
    path = home.settings.state_url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    connection.executemany("INSERT INTO apps (app_id, plan) VALUES (?, 'paid')", [(name,) for name in others])
    columns = [row[1] for row in connection.execute("PRAGMA table_info(integrations)")]
    copied = ", ".join(f'"{name}"' for name in columns if name not in ("id", "app_id"))
    connection.executemany(
        f"INSERT INTO integrations (app_id, {copied}) SELECT ?, {copied} FROM integrations WHERE app_id = ?",
        [(name, app) for name in others],
    )
    values = {
        "app": app,
        "now": now,
        "first": now // HOUR * HOUR,
        "ticks": sizes["hours"] * 12,
        "others": 24,
        "each": each,
        "types": "[" + ", ".join(f'"{name}"' for name in types) + "]",
        **sizes,
    }
    connection.execute(_HOURS, values)
    for statement in filter(str.strip, _RECORDS.split(";")):
        connection.execute(statement, values)
    connection.execute("ANALYZE")
    connection.commit()
    rows, events = connection.execute("SELECT count(*), sum(captured) FROM hourly_counts").fetchone()
    integrations = connection.execute("SELECT count(*) FROM integrations").fetchone()[0]
    connection.close()
    return {"hours": rows, "events": events, "integrations": integrations}


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    slowest = max(result["pages"], key=lambda name: result["pages"][name]["median"])
    median = result["pages"][slowest]["median"]
    what = f"the slowest page of the Control Center ({slowest}), {result['integrations']:,} integrations"
    return [(what, f"≤ {GOAL * 1_000:.0f} ms", f"{median * 1_000:.0f} ms", median <= GOAL)]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    rows = [
        [
            name,
            spread({key: _ms(value) for key, value in figures.items()}, ".0f"),
            f"{result['first'][name] * 1_000:.0f}",
        ]
        for name, figures in result["pages"].items()
    ]
    all_of_them = statistics.median(figures["median"] for figures in result["pages"].values())
    return (
        f"{result['apps']:,} apps, {result['integrations']:,} integrations; {result['hours']:,} rows of hourly counts "
        f"stand for {result['events']:,} events of a month. Time in the server, from the request to the whole page; "
        f"the store is SQLite. Half of the pages take {all_of_them * 1_000:.0f} ms or less. The files of the events "
        "are those of one tick: a trace over a month of files reads more of them.\n\n"
        + table(["page", "ms", "first look, ms"], rows)
    )


def _ms(value: Any) -> Any:
    return [each * 1_000 for each in value] if isinstance(value, list) else value * 1_000


if __name__ == "__main__":
    alone(sys.modules[__name__])
