"""Enrichments for tests, declared for the length of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import Enrichment, Property
from nami_amp_pipeline_tests.support.harness import Pipeline


def declare(monkeypatch: pytest.MonkeyPatch, *declared: Enrichment | Property) -> None:
    """Instead of whatever enrichments are declared; properties besides those that are."""
    enrichments = tuple(each for each in declared if isinstance(each, Enrichment))
    others = tuple(prop for prop in contract.PROPERTIES if prop.group != contract.ENRICHED)
    new = tuple(each for each in declared if isinstance(each, Property))
    given = tuple(prop for each in enrichments for prop in each.declared)
    monkeypatch.setattr(contract, "ENRICHMENTS", enrichments)
    monkeypatch.setattr(contract, "PROPERTIES", (*others, *new, *given))


def looked_up(batch: pa.Table, context: Any) -> dict[str, Any]:
    """The column ``ltv`` of the warehouse's table ``user_ltv``."""
    found = context.query("SELECT user_id, ltv FROM user_ltv WHERE user_id IN $users", users=batch["user_id"])
    known = dict(zip(found["user_id"].to_pylist(), found["ltv"].to_pylist(), strict=True))
    return {"ltv": [known.get(user) for user in batch["user_id"].to_pylist()]}


def ltv(function: Callable[[Any, Any], Any] = looked_up, **more: Any) -> Enrichment:
    """An enrichment of one number."""
    return Enrichment({"ltv": "number"}, function, means="what the user has paid", **more)


def set_ltv(pipeline: Pipeline, **values: float) -> None:
    """Makes the table ``user_ltv`` of a warehouse that is a file of DuckDB."""
    with duckdb.connect(str(pipeline.warehouse)) as connection:
        connection.execute("CREATE OR REPLACE TABLE user_ltv (user_id VARCHAR, ltv DOUBLE)")
        for user, value in values.items():
            connection.execute("INSERT INTO user_ltv VALUES (?, ?)", [user, value])


def event(ident: str, user: str, at: datetime, loaded: datetime | None = None, app: str = "app", **payload: Any) -> Any:
    """A row of the events table."""
    return {
        "id": ident, "app_id": app, "event_type": "user.subscription.renewed", "user_id": user, "created_date": at,
        "ingested_at": loaded or at, "payload": json.dumps(payload),
    }  # fmt: skip
