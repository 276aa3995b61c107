"""Events that come late: what they lack is found in the snapshots of earlier segments, where their users are."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from nami_amp_pipeline.stages import snapshots
from nami_amp_pipeline_tests.support.harness import START, Pipeline

USER = 'o\'brien "the" user'
"""Quotes in it must not end a literal."""


def load(pipeline: Pipeline, ident: str, user_id: str, minutes: int, **payload: object) -> None:
    now = START.fromtimestamp(pipeline.clock.now, START.tzinfo)
    pipeline.insert(
        [
            {
                "id": ident,
                "app_id": "app",
                "event_type": "user.subscription.renewed",
                "user_id": user_id,
                "created_date": START + timedelta(minutes=minutes),
                "ingested_at": now,
                "payload": json.dumps(payload),
            }
        ]
    )


def state(entitlement: str) -> dict[str, object]:
    return {"active_entitlements": [{"entitlement_ref_id": entitlement, "sku_ref_id": f"{entitlement}-monthly"}]}


@pytest.mark.parametrize("named", [1_000, 0])
@pytest.mark.contract("1.3", "3.2")
@pytest.mark.slow
def test_a_late_event_takes_what_it_lacks_from_the_newest_before_it(
    named: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_NAMED_USERS", named)
    pipeline = Pipeline(tmp_path)
    pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    for number, (minutes, entitlement) in enumerate([(-50, "first"), (-30, "second"), (-10, "third")]):
        load(pipeline, f"whole-{number}", USER, minutes, **state(entitlement))
        load(pipeline, f"other-{number}", f"other-{number}", minutes, **state("other"))
        pipeline.tick()
        pipeline.clock.sleep(60)
    load(pipeline, "late", USER, -20)
    pipeline.tick()
    sent = {event["insert_id"]: event for wire in pipeline.wires.values() for event in wire.events}
    assert sent["late"]["user_properties"]["namiml_active_entitlements"] == ["second"]


def test_snapshot_files_tell_which_users_they_have_none_of(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    load(pipeline, "one", "somebody", 0, **state("premium"))
    pipeline.tick()
    (file,) = (pipeline.context.folder.root / "snapshots").glob("*.parquet")
    told = {
        user: duckdb.execute(
            "SELECT bloom_filter_excludes FROM parquet_bloom_probe(?, 'user_id', ?)", [str(file), user]
        ).fetchall()
        for user in ("somebody", "nobody")
    }
    assert told == {"somebody": [(False,)], "nobody": [(True,)]}
